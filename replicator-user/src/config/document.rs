//! The YAML text as a tree whose every part can be found again in the text.
//!
//! serde_yaml tells where in the text an error arose, and nothing else. So the parts are numbered in the order in which
//! it visits them, and a part is located by visiting the text again and failing at its number.

use std::{cell::Cell, fmt};

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::fault::Fault;

/// Bytes of a file: a map of 60 layers with every replica of 256 experts written out takes a tenth of it.
pub(super) const MAX_BYTES: usize = 4 << 20;

/// Keys, values and list items after expansion of aliases.
const MAX_PARTS: u32 = 1_000_000;

/// Open brackets. Time that libyaml takes grows with their square; no configuration has more than a handful.
const MAX_OPEN_BRACKETS: usize = 500;

/// A part of a document, found again by [`Document::locate`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place(u32);

impl Place {
    const NOWHERE: Self = Self(u32::MAX);
}

/// A value and where it is.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) place: Place,
    pub(super) value: Value,
}

/// A key and where it is.
#[derive(Debug)]
pub(super) struct Key {
    pub(super) place: Place,
    pub(super) text: String,
}

/// What a configuration can hold.
#[derive(Debug)]
pub(super) enum Value {
    Empty,
    Bool(bool),
    Integer(u64),
    /// A number that no field takes: negative, fractional or huge.
    Number(String),
    Text(String),
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

/// A text and the tree in it.
pub(super) struct Document<'t> {
    text: &'t str,
    pub(super) root: Node,
}

impl<'t> Document<'t> {
    /// # Errors
    /// Where the text is not YAML, or larger than anything sensible.
    pub(super) fn parse(text: &'t str) -> Result<Self, Fault> {
        check_size(text.len())?;
        check_brackets(text)?;
        let root = visit(text, Place::NOWHERE).map_err(|error| {
            let message = error.to_string();
            let (line, column) = error.location().map_or((1, 1), |place| (place.line(), place.column()));
            let own = message.strip_suffix(&format!(" at line {line} column {column}")).unwrap_or(&message);
            fault(line, column, format!("not a configuration in YAML: {own}"))
        })?;
        Ok(Self { text, root })
    }

    /// Line and column of a part, counted from 1.
    pub(super) fn locate(&self, place: Place) -> (usize, usize) {
        let error = visit(self.text, place).err();
        let location = error.and_then(|error| error.location());
        location.map_or((1, 1), |location| (location.line(), location.column()))
    }
}

fn fault(line: usize, column: usize, message: impl Into<String>) -> Fault {
    Fault { line, column, path: String::new(), message: message.into() }
}

/// # Errors
/// Where a file is larger than anything sensible.
pub(super) fn check_size(bytes: usize) -> Result<(), Fault> {
    if bytes <= MAX_BYTES {
        return Ok(());
    }
    Err(fault(1, 1, format!("more than {MAX_BYTES} bytes; write ranges, and share maps between layers")))
}

/// # Errors
/// Where a file is not UTF-8.
pub(super) fn decode(bytes: &[u8]) -> Result<&str, Fault> {
    std::str::from_utf8(bytes).map_err(|error| {
        let before = String::from_utf8_lossy(&bytes[..error.valid_up_to()]);
        let last_line = before.rsplit('\n').next().unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        fault(line, last_line.chars().count() + 1, "not UTF-8 text; save the file as UTF-8")
    })
}

pub(crate) fn check_brackets(text: &str) -> Result<(), Fault> {
    let mut open = 0_usize;
    for (line, content) in text.lines().enumerate() {
        for (column, character) in content.chars().enumerate() {
            match character {
                '[' | '{' => open += 1,
                ']' | '}' => open = open.saturating_sub(1),
                _ => {}
            }
            if open > MAX_OPEN_BRACKETS {
                let message = format!("more than {MAX_OPEN_BRACKETS} open brackets; close them");
                return Err(fault(line + 1, column + 1, message));
            }
        }
    }
    Ok(())
}

fn visit(text: &str, stop_at: Place) -> Result<Node, serde_yaml::Error> {
    let walk = Walk { next: Cell::new(0), stop_at };
    walk.part().deserialize(serde_yaml::Deserializer::from_str(text))
}

struct Walk {
    next: Cell<u32>,
    stop_at: Place,
}

impl Walk {
    fn part(&self) -> Part<'_> {
        let place = Place(self.next.get());
        self.next.set(place.0 + 1);
        Part { walk: self, place }
    }

    fn key(&self) -> KeyPart<'_> {
        KeyPart(self.part())
    }
}

/// One part about to be visited.
#[derive(Clone, Copy)]
struct Part<'w> {
    walk: &'w Walk,
    place: Place,
}

impl Part<'_> {
    /// Has to be called while the part is visited: errors get its location then.
    fn pass<E: Error>(self) -> Result<(), E> {
        if self.place == self.walk.stop_at {
            return Err(E::custom("located"));
        }
        if self.place.0 >= MAX_PARTS {
            return Err(E::custom(format!(
                "more than {MAX_PARTS} keys and values, aliases expanded; use ranges"
            )));
        }
        Ok(())
    }

    fn leaf<E: Error>(self, value: Value) -> Result<Node, E> {
        self.pass()?;
        Ok(Node { place: self.place, value })
    }
}

impl<'de> DeserializeSeed<'de> for Part<'_> {
    type Value = Node;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Part<'_> {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("text, a number, true or false, a list or a map without a !tag")
    }

    fn visit_unit<E: Error>(self) -> Result<Node, E> {
        self.leaf(Value::Empty)
    }

    fn visit_none<E: Error>(self) -> Result<Node, E> {
        self.leaf(Value::Empty)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Node, E> {
        self.leaf(Value::Bool(value))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Node, E> {
        self.leaf(Value::Integer(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Node, E> {
        self.leaf(Value::Number(value.to_string()))
    }

    fn visit_u128<E: Error>(self, value: u128) -> Result<Node, E> {
        self.leaf(Value::Number(value.to_string()))
    }

    fn visit_i128<E: Error>(self, value: i128) -> Result<Node, E> {
        self.leaf(Value::Number(value.to_string()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Node, E> {
        self.leaf(Value::Number(value.to_string()))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Node, E> {
        self.leaf(Value::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
        self.pass()?;
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(self.walk.part())? {
            list.push(item);
        }
        Ok(Node { place: self.place, value: Value::List(list) })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Node, A::Error> {
        self.pass()?;
        let mut map = Vec::new();
        while let Some(key) = entries.next_key_seed(self.walk.key())? {
            map.push((key, entries.next_value_seed(self.walk.part())?));
        }
        Ok(Node { place: self.place, value: Value::Map(map) })
    }
}

struct KeyPart<'w>(Part<'w>);

impl KeyPart<'_> {
    fn leaf<E: Error>(self, text: impl Into<String>) -> Result<Key, E> {
        self.0.pass()?;
        Ok(Key { place: self.0.place, text: text.into() })
    }
}

impl<'de> DeserializeSeed<'de> for KeyPart<'_> {
    type Value = Key;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Key, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Visitor<'_> for KeyPart<'_> {
    type Value = Key;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key: a name, a number or a range such as 2-4")
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Key, E> {
        self.leaf(value.to_string())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Key, E> {
        self.leaf(value.to_string())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Key, E> {
        self.leaf(value.to_string())
    }

    fn visit_u128<E: Error>(self, value: u128) -> Result<Key, E> {
        self.leaf(value.to_string())
    }

    fn visit_i128<E: Error>(self, value: i128) -> Result<Key, E> {
        self.leaf(value.to_string())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Key, E> {
        self.leaf(value.to_string())
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Key, E> {
        self.leaf(value)
    }
}
