//! What is wrong with a configuration, and where.

use std::{cell::RefCell, fmt, io};

use super::document::{Document, Place};

/// Faults that are told; a file with more has one cause for most of them.
const MAX_TOLD: usize = 50;

/// Faults that are kept before the ones to tell are chosen.
const MAX_KEPT: usize = 10_000;

/// Characters of a user's own text in a message.
const MAX_QUOTED: usize = 60;

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{file}: cannot be read: {source}")]
    Read {
        /// The file, as it was named.
        file: String,
        /// What the system said.
        source: io::Error,
    },
    /// It is not a valid configuration.
    #[error(transparent)]
    Invalid(#[from] Faults),
}

/// Everything that is wrong with a file: at least one fault, in the order of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Faults {
    /// The file, as it was named.
    pub file: String,
    /// The first of them.
    pub faults: Vec<Fault>,
    /// How many more there are.
    pub more: usize,
}

impl std::error::Error for Faults {}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Fault {
    /// Line, counted from 1.
    pub line: usize,
    /// Character in the line, counted from 1.
    pub column: usize,
    /// The keys that lead to the field; empty for the file as a whole.
    pub path: String,
    /// What is wrong and what to do.
    pub message: String,
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, fault) in self.faults.iter().enumerate() {
            let newline = if i == 0 { "" } else { "\n" };
            write!(f, "{newline}{}:{}:{}: ", self.file, fault.line, fault.column)?;
            if !fault.path.is_empty() {
                write!(f, "{}: ", fault.path)?;
            }
            write!(f, "{}", fault.message)?;
        }
        if self.more > 0 {
            write!(f, "\n{}: and {} more", self.file, self.more)?;
        }
        Ok(())
    }
}

/// A user's own text for a message: cut where it is long, and without control characters, which could play tricks on
/// a terminal.
pub(crate) fn quoted(text: &str) -> String {
    let mut shown: String = text.chars().take(MAX_QUOTED).flat_map(char::escape_debug).collect();
    if text.chars().nth(MAX_QUOTED).is_some() {
        shown.push_str("...");
    }
    format!("`{shown}`")
}

/// Gathers faults while a document is read.
#[derive(Default)]
pub(super) struct Sink(RefCell<Vec<(Place, String, String)>>);

impl Sink {
    pub(super) fn push(&self, place: Place, path: &str, message: String) {
        let mut faults = self.0.borrow_mut();
        if faults.len() < MAX_KEPT {
            faults.push((place, path.to_owned(), message));
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.borrow().is_empty()
    }

    /// The faults with their lines.
    pub(super) fn into_faults(self, document: &Document<'_>, file: &str) -> Faults {
        let mut faults = self.0.into_inner();
        faults.sort_by_key(|(place, ..)| *place);
        let more = faults.len().saturating_sub(MAX_TOLD);
        faults.truncate(MAX_TOLD);
        let mut located = Vec::<Fault>::with_capacity(faults.len());
        let mut last = None;
        for (place, path, message) in faults {
            let (line, column) = match (last, located.last()) {
                (Some(same), Some(fault)) if same == place => (fault.line, fault.column),
                _ => document.locate(place),
            };
            last = Some(place);
            located.push(Fault { line, column, path, message });
        }
        Faults { file: file.to_owned(), faults: located, more }
    }
}
