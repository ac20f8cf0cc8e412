//! What is wrong with a document, and where in it.

use std::{cell::RefCell, fmt};

/// Faults that are told; a document with more has one cause for most of them.
const MAX_TOLD: usize = 50;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct Fault {
    /// The keys and indices that lead to it, such as `layers.3.physical_to_logical_map[7]`; empty for the document as
    /// a whole.
    pub path: String,
    /// What is wrong and what to do.
    pub message: String,
}

/// Everything that is wrong with a document: at least one fault.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Faults {
    /// The first of them.
    pub faults: Vec<Fault>,
    /// How many more there are.
    pub more: usize,
}

impl std::error::Error for Faults {}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, Fault { path, message }) in self.faults.iter().enumerate() {
            let (newline, colon) = (if i == 0 { "" } else { "\n" }, if path.is_empty() { "" } else { ": " });
            write!(f, "{newline}{path}{colon}{message}")?;
        }
        if self.more > 0 { write!(f, "\nand {} more", self.more) } else { Ok(()) }
    }
}

impl Faults {
    /// A document with this fault alone, which concerns all of it.
    pub(super) fn whole(message: impl Into<String>) -> Self {
        Self { faults: vec![Fault { path: String::new(), message: message.into() }], more: 0 }
    }
}

/// Gathers faults while a document is read.
#[derive(Default)]
pub(super) struct Sink(RefCell<Faults>);

impl Sink {
    pub(super) fn push(&self, path: impl Into<String>, message: impl Into<String>) {
        let mut all = self.0.borrow_mut();
        if all.faults.len() < MAX_TOLD {
            all.faults.push(Fault { path: path.into(), message: message.into() });
        } else {
            all.more += 1;
        }
    }

    /// `value`, if nothing was wrong.
    pub(super) fn finish<T>(self, value: Option<T>) -> Result<T, Faults> {
        let faults = self.0.into_inner();
        match value {
            Some(value) if faults.faults.is_empty() => Ok(value),
            _ => Err(faults),
        }
    }
}
