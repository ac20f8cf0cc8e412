//! Reads fields of a document; what is wrong with them goes to the sink, and reading goes on.

use std::{collections::HashSet, ops::RangeInclusive};

use super::{
    document::{Key, Node, Place, Value},
    fault::{Sink, quoted},
};

/// Names longer than this are nobody's typing error, and comparing them would take long.
const MAX_COMPARED: usize = 64;

/// Names listed where none is similar.
const MAX_LISTED: usize = 12;

/// A value with the keys that lead to it.
#[derive(Clone)]
pub(super) struct Field<'d> {
    sink: &'d Sink,
    node: &'d Node,
    place: Place,
    path: String,
}

/// A map whose keys are known.
pub(super) struct Section<'d> {
    field: Field<'d>,
    entries: &'d [(Key, Node)],
}

/// "; did you mean ...", or what there is to choose from.
pub(crate) fn nearest<'n>(name: &str, known: impl Iterator<Item = &'n str> + Clone, what: &str) -> String {
    let similar = |other: &&str| strsim::osa_distance(name, other);
    let best = known.clone().filter(|other| other.len() <= MAX_COMPARED).min_by_key(similar);
    match best.filter(|_| name.len() <= MAX_COMPARED) {
        Some(best) if similar(&best) <= 1 + best.len() / 4 => format!("; did you mean {}?", quoted(best)),
        None if known.clone().next().is_none() => format!("; there are no {what}"),
        _ => {
            let mut listed: Vec<_> = known.clone().take(MAX_LISTED).map(quoted).collect();
            if known.count() > MAX_LISTED {
                listed.push("...".to_owned());
            }
            format!("; {what}: {}", listed.join(", "))
        }
    }
}

/// A key that is a number or a range of numbers: `3` or `2-4`.
pub(super) fn range(text: &str) -> Option<RangeInclusive<u64>> {
    let number = |digits: &str| {
        let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        plain.then(|| digits.parse().ok()).flatten()
    };
    match text.split_once('-') {
        None => number(text).map(|only| only..=only),
        Some((first, last)) => {
            Some(number(first.trim_end())?..=number(last.trim_start())?).filter(|range| !range.is_empty())
        }
    }
}

impl<'d> Field<'d> {
    pub(super) fn root(sink: &'d Sink, node: &'d Node) -> Self {
        Self { sink, node, place: node.place, path: String::new() }
    }

    pub(super) fn fault(&self, message: impl Into<String>) {
        self.sink.push(self.place, &self.path, message.into());
    }

    fn child(&self, key: &Key, node: &'d Node) -> Self {
        // What stands in several lines is pointed at by its key.
        let place = match node.value {
            Value::List(_) | Value::Map(_) | Value::Empty => key.place,
            _ => node.place,
        };
        let name = quoted(&key.text);
        let name = name.trim_matches('`');
        let path = if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) };
        Self { sink: self.sink, node, place, path }
    }

    fn has(&self) -> String {
        match &self.node.value {
            Value::Empty => "is empty".to_owned(),
            Value::Bool(value) => format!("is {value}"),
            Value::Integer(value) => format!("is {value}"),
            Value::Number(value) | Value::Text(value) => format!("is {}", quoted(value)),
            Value::List(_) => "is a list".to_owned(),
            Value::Map(_) => "is a map".to_owned(),
        }
    }

    /// Says what the value is and what it must be.
    pub(super) fn must_be(&self, what: &str) {
        self.fault(format!("{}; it must be {what}", self.has()));
    }

    pub(super) fn is_list(&self) -> bool {
        matches!(self.node.value, Value::List(_))
    }

    pub(super) fn is_blank(&self) -> bool {
        match &self.node.value {
            Value::Empty => true,
            Value::List(items) => items.is_empty(),
            _ => false,
        }
    }

    pub(super) fn is_map(&self) -> bool {
        matches!(self.node.value, Value::Map(_))
    }

    /// A map with these keys alone; an empty value is an empty map.
    pub(super) fn section(&self, keys: &[&str]) -> Option<Section<'d>> {
        let entries = self.map_entries(&format!("a map with {}", keys.join(", ")))?;
        for (key, _) in entries.iter().filter(|(key, _)| !keys.contains(&key.text.as_str())) {
            let known = nearest(&key.text, keys.iter().copied(), "keys");
            self.sink.push(key.place, &self.path, format!("unknown key {}{known}", quoted(&key.text)));
        }
        Some(Section { field: self.clone(), entries })
    }

    /// The entries of a map with free keys; an empty value is an empty map.
    pub(super) fn entries(&self, what: &str) -> Vec<(&'d str, Self)> {
        let entries = self.map_entries(what).unwrap_or(&[]);
        entries.iter().map(|(key, node)| (key.text.as_str(), self.child(key, node))).collect()
    }

    fn map_entries(&self, what: &str) -> Option<&'d [(Key, Node)]> {
        match &self.node.value {
            Value::Empty => Some(&[]),
            Value::Map(entries) => {
                let mut seen = HashSet::new();
                for (key, _) in entries.iter().filter(|(key, _)| !seen.insert(key.text.as_str())) {
                    let message = format!("{} stands here twice; keep one", quoted(&key.text));
                    self.sink.push(key.place, &self.path, message);
                }
                Some(entries)
            }
            _ => {
                self.must_be(what);
                None
            }
        }
    }

    /// The items of a list; an empty value is an empty list. `None` where it is too long, too.
    pub(super) fn items(&self, what: &str, most: usize) -> Option<Vec<Self>> {
        let items: &[Node] = match &self.node.value {
            Value::Empty => &[],
            Value::List(items) => items,
            _ => {
                self.must_be(what);
                return None;
            }
        };
        if items.len() > most {
            self.fault(format!("has {} entries; at most {most} fit", items.len()));
            return None;
        }
        let item = |(i, node): (usize, &'d Node)| Self {
            sink: self.sink,
            node,
            place: node.place,
            path: format!("{}[{i}]", self.path),
        };
        Some(items.iter().enumerate().map(item).collect())
    }

    /// A text.
    pub(super) fn text(&self, what: &str) -> Option<&'d str> {
        match &self.node.value {
            Value::Text(text) => Some(text),
            Value::Integer(_) | Value::Number(_) | Value::Bool(_) => {
                self.fault(format!(
                    "{}, which YAML takes for a number or truth value; put it in quotes",
                    self.has()
                ));
                None
            }
            _ => {
                self.must_be(what);
                None
            }
        }
    }

    /// A text that `read` understands.
    pub(super) fn parse<T>(&self, what: &str, read: impl FnOnce(&str) -> Option<T>) -> Option<T> {
        let value = read(self.text(what)?);
        if value.is_none() {
            self.must_be(what);
        }
        value
    }

    /// A whole number in this range.
    pub(super) fn integer<T: TryFrom<u64>>(&self, range: RangeInclusive<u64>, what: &str) -> Option<T> {
        match self.node.value {
            Value::Integer(value) if range.contains(&value) => T::try_from(value).ok(),
            _ => {
                self.must_be(what);
                None
            }
        }
    }

    /// True or false.
    pub(super) fn truth(&self) -> Option<bool> {
        match self.node.value {
            Value::Bool(value) => Some(value),
            _ => {
                self.must_be("true or false");
                None
            }
        }
    }

    /// One of a few words.
    pub(super) fn choice<T: Copy>(&self, choices: &[(&str, T)]) -> Option<T> {
        let words: Vec<_> = choices.iter().map(|(word, _)| *word).collect();
        self.parse(&words.join(" or "), |text| {
            choices.iter().find(|(word, _)| *word == text).map(|(_, value)| *value)
        })
    }
}

impl<'d> Section<'d> {
    /// The field of a key, if it is there; the first, if it stands there twice.
    pub(super) fn get(&self, key: &str) -> Option<Field<'d>> {
        let (key, node) = self.entries.iter().find(|(entry, _)| entry.text == key)?;
        Some(self.field.child(key, node))
    }

    /// As [`Self::get`], and a fault where it is not there.
    pub(super) fn require(&self, key: &str, why: &str) -> Option<Field<'d>> {
        let field = self.get(key);
        if field.is_none() {
            self.field.fault(format!("`{key}` is missing; {why}"));
        }
        field
    }

    pub(super) fn fault(&self, message: impl Into<String>) {
        self.field.fault(message);
    }
}
