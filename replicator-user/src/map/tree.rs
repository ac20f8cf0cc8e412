//! JSON or YAML text as a tree. A list of integers, which is nearly all of a map, is kept as one.

use std::{cell::Cell, fmt};

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::fault::Faults;
use crate::config::check_brackets;

/// Bytes of a document: 2,048 layers of 1,024 physical experts take half of it.
pub const MAX_BYTES: usize = 16 << 20;

/// Bytes of a document in YAML, whose reader is slow: 61 layers of 4,096 slots take a third of it.
const MAX_YAML_BYTES: usize = 4 << 20;

/// Keys, lists, maps and values other than integers.
const MAX_PARTS: usize = 100_000;

/// Integers, aliases of YAML expanded.
const MAX_INTEGERS: usize = 8 << 20;

/// What a document can hold.
#[derive(Debug)]
pub(super) enum Value {
    Null,
    Bool(bool),
    Integer(i64),
    /// A number that no field takes: fractional or huge.
    Number(String),
    Text(String),
    /// A list without anything else in it, so the empty list too.
    Integers(Vec<i64>),
    List(Vec<Value>),
    /// In the order of the text, with keys that stand there twice.
    Map(Vec<(String, Value)>),
}

/// # Errors
/// Where the bytes are not JSON, or more than anything sensible.
pub(super) fn json(bytes: &[u8]) -> Result<Value, Faults> {
    let walk = Walk::default();
    let text = text(bytes, MAX_BYTES)?;
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let value = (&walk).deserialize(&mut deserializer).and_then(|value| deserializer.end().map(|()| value));
    value.map_err(|error| Faults::whole(format!("not a document in JSON: {error}")))
}

/// # Errors
/// Where the bytes are not YAML, or more than anything sensible.
pub(super) fn yaml(bytes: &[u8]) -> Result<Value, Faults> {
    let text = text(bytes, MAX_YAML_BYTES)?;
    check_brackets(text)
        .map_err(|fault| Faults::whole(format!("{} at line {}", fault.message, fault.line)))?;
    let value = (&Walk::default()).deserialize(serde_yaml::Deserializer::from_str(text));
    value.map_err(|error| Faults::whole(format!("not a document in YAML: {error}")))
}

fn text(bytes: &[u8], most: usize) -> Result<&str, Faults> {
    if bytes.len() > most {
        return Err(Faults::whole(format!("more than {most} bytes; send some layers at a time")));
    }
    // A zip archive, as torch.save writes it, and a bare pickle of protocol 2 or newer.
    if bytes.starts_with(b"PK\x03\x04") || bytes.first() == Some(&0x80) {
        return Err(Faults::whole(
            "a pickle (.pt), which may run code when it is read; save the tensor as JSON: \
             json.dump(tensor.tolist(), file)",
        ));
    }
    std::str::from_utf8(bytes).map_err(|error| {
        Faults::whole(format!("not UTF-8 text from byte {} on; save it as UTF-8", error.valid_up_to()))
    })
}

#[derive(Default)]
struct Walk {
    parts: Cell<usize>,
    integers: Cell<usize>,
}

impl Walk {
    fn count<E: Error>(counter: &Cell<usize>, most: usize, what: &str) -> Result<(), E> {
        counter.set(counter.get() + 1);
        if counter.get() > most { Err(E::custom(format!("more than {most} {what}"))) } else { Ok(()) }
    }

    fn part<E: Error>(&self, value: Value) -> Result<Value, E> {
        Self::count(&self.parts, MAX_PARTS, "keys and values")?;
        Ok(value)
    }

    fn integer<E: Error>(&self, value: i64) -> Result<Value, E> {
        Self::count(&self.integers, MAX_INTEGERS, "integers")?;
        Ok(Value::Integer(value))
    }
}

impl<'de> DeserializeSeed<'de> for &Walk {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for &Walk {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("text, a number, true or false, a list or a map")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        self.part(Value::Null)
    }

    fn visit_none<E: Error>(self) -> Result<Value, E> {
        self.part(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        self.part(Value::Bool(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        self.integer(value)
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        match i64::try_from(value) {
            Ok(value) => self.integer(value),
            Err(_) => self.part(Value::Number(value.to_string())),
        }
    }

    fn visit_i128<E: Error>(self, value: i128) -> Result<Value, E> {
        self.part(Value::Number(value.to_string()))
    }

    fn visit_u128<E: Error>(self, value: u128) -> Result<Value, E> {
        self.part(Value::Number(value.to_string()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        self.part(Value::Number(value.to_string()))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        self.part(Value::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        self.part(Value::Null)?;
        let mut integers = Vec::new();
        while let Some(item) = items.next_element_seed(self)? {
            let Value::Integer(integer) = item else {
                // Only lists of integers may be long: others take four times the memory.
                integers.iter().try_for_each(|_| self.part(Value::Null).map(drop))?;
                let mut list: Vec<_> = integers.into_iter().map(Value::Integer).collect();
                list.push(item);
                while let Some(item) = items.next_element_seed(self)? {
                    list.push(self.part(item)?);
                }
                return Ok(Value::List(list));
            };
            integers.push(integer);
        }
        integers.shrink_to_fit();
        Ok(Value::Integers(integers))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        self.part(Value::Null)?;
        let mut map = Vec::new();
        while let Some(key) = entries.next_key_seed(self)? {
            let key = match key {
                Value::Text(key) | Value::Number(key) => key,
                Value::Integer(key) => key.to_string(),
                _ => return Err(A::Error::custom("a key is a name or a number")),
            };
            map.push((key, entries.next_value_seed(self)?));
        }
        Ok(Value::Map(map))
    }
}
