//! Reads fields of a tree; what is wrong with them goes to the sink, and reading goes on.

use std::{collections::HashSet, ops::RangeInclusive};

use super::{
    fault::{Faults, Sink},
    tree::Value,
};
use crate::config::{nearest, quoted};

/// A value with the path to it.
#[derive(Clone)]
pub(super) struct Field<'d> {
    pub(super) sink: &'d Sink,
    pub(super) path: String,
    value: &'d Value,
}

/// Reads a whole document.
pub(super) fn read<T>(root: &Value, read: impl FnOnce(Field<'_>) -> Option<T>) -> Result<T, Faults> {
    let sink = Sink::default();
    let value = read(Field { sink: &sink, path: String::new(), value: root });
    sink.finish(value)
}

impl<'d> Field<'d> {
    pub(super) fn fault(&self, message: impl Into<String>) {
        self.sink.push(&self.path, message);
    }

    fn must_be(&self, what: &str) {
        let has = match self.value {
            Value::Null => "null".to_owned(),
            Value::Bool(value) => value.to_string(),
            Value::Integer(value) => value.to_string(),
            Value::Number(value) | Value::Text(value) => quoted(value),
            Value::Integers(_) | Value::List(_) => "a list".to_owned(),
            Value::Map(_) => "a map".to_owned(),
        };
        self.fault(format!("is {has}; it must be {what}"));
    }

    fn child(&self, key: &str, value: &'d Value) -> Self {
        let key = quoted(key);
        let key = key.trim_matches('`');
        let path = if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) };
        Self { sink: self.sink, path, value }
    }

    /// The entries of a map.
    pub(super) fn entries(&self, what: &str) -> Option<Vec<(&'d str, Self)>> {
        let Value::Map(entries) = self.value else {
            self.must_be(what);
            return None;
        };
        let mut seen = HashSet::new();
        for (key, _) in entries.iter().filter(|(key, _)| !seen.insert(key)) {
            self.fault(format!("{} stands here twice; keep one", quoted(key)));
        }
        Some(entries.iter().map(|(key, value)| (key.as_str(), self.child(key, value))).collect())
    }

    /// The fields of a map with these keys alone, in their order.
    pub(super) fn section<const N: usize>(&self, keys: [&str; N]) -> Option<[Option<Self>; N]> {
        let entries = self.entries(&format!("a map with {}", keys.join(", ")))?;
        for (key, _) in entries.iter().filter(|(key, _)| !keys.contains(key)) {
            let known = nearest(key, keys.into_iter(), "keys");
            self.fault(format!("unknown key {}{known}", quoted(key)));
        }
        let mut fields = keys.map(|_| None);
        for (key, field) in entries.into_iter().rev() {
            if let Some(place) = keys.iter().position(|known| *known == key) {
                fields[place] = Some(field);
            }
        }
        Some(fields)
    }

    /// The field, or a fault that says why it is needed.
    pub(super) fn require(&self, field: Option<Self>, key: &str, why: &str) -> Option<Self> {
        if field.is_none() {
            self.fault(format!("`{key}` is missing; {why}"));
        }
        field
    }

    pub(super) fn is_map(&self) -> bool {
        matches!(self.value, Value::Map(_))
    }

    /// The items of a list, unless there are too many.
    pub(super) fn items(&self, what: &str, most: usize) -> Option<Vec<Self>> {
        let items = match self.value {
            Value::List(items) => &items[..],
            Value::Integers(items) if items.is_empty() => &[],
            _ => {
                self.must_be(what);
                return None;
            }
        };
        if items.len() > most {
            self.fault(format!("has {} entries; at most {most} fit", items.len()));
            return None;
        }
        let item = |(i, value)| Self { sink: self.sink, path: format!("{}[{i}]", self.path), value };
        Some(items.iter().enumerate().map(item).collect())
    }

    /// A list of integers, unless there are too many.
    pub(super) fn integers(&self, what: &str, most: usize) -> Option<&'d [i64]> {
        match self.value {
            Value::Integers(integers) if integers.len() <= most => Some(integers),
            Value::Integers(integers) => {
                self.fault(format!("has {} entries; at most {most} fit", integers.len()));
                None
            }
            Value::List(_) => {
                for item in self.items(what, most)? {
                    if !matches!(item.value, Value::Integer(_)) {
                        item.must_be("an integer");
                    }
                }
                None
            }
            _ => {
                self.must_be(what);
                None
            }
        }
    }

    pub(super) fn integer(&self, range: RangeInclusive<u64>, what: &str) -> Option<u64> {
        match self.value {
            Value::Integer(value) => u64::try_from(*value).ok().filter(|value| range.contains(value)),
            _ => None,
        }
        .or_else(|| {
            self.must_be(what);
            None
        })
    }

    pub(super) fn truth(&self) -> Option<bool> {
        if let Value::Bool(value) = self.value {
            return Some(*value);
        }
        self.must_be("true or false");
        None
    }

    pub(super) fn text(&self, valid: impl FnOnce(&str) -> bool, what: &str) -> Option<&'d str> {
        match self.value {
            Value::Text(text) if valid(text) => Some(text),
            _ => {
                self.must_be(what);
                None
            }
        }
    }
}
