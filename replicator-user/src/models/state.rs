//! A model as text that outlives the daemon: its newest map and the BIFT-ids of its tables, with a checksum.
//!
//! ```json
//! {"checksum":"crc32:0a1b2c3d","state":{"version":1,"newest":{"tables":{"3":[0,8,7]},"map":{...}},"before":null}}
//! ```
//! `tables` has for each layer the table's number, its generation and its epoch; `map` is a document as
//! docs/expert-map.md has it. `before` is the same of the layers that the newest took the place of. The checksum is that
//! of the text of `state`.

use std::{collections::BTreeMap, fmt::Write as _};

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{LayerTable, Model};
use crate::map::{ExpertMap, Faults};

/// Version of the text.
const VERSION: u32 = 1;

/// Why a text is no model.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// It is cut off, or something else entirely.
    #[error("not the state of a model: {0}")]
    Syntax(#[from] serde_json::Error),
    /// It was changed or damaged.
    #[error("its checksum is {0} and should be {1}")]
    Checksum(String, String),
    /// Another version wrote it.
    #[error("it has version {0}, and this build knows {VERSION}")]
    Version(u32),
    /// Its map is none.
    #[error("its map: {0}")]
    Map(#[from] Faults),
    /// Its layers are not those of its map, or a number is beyond its limit.
    #[error("its tables are not those of its map")]
    Tables,
}

#[derive(Deserialize)]
struct Sealed<'t> {
    checksum: String,
    #[serde(borrow)]
    state: &'t RawValue,
}

#[derive(Deserialize)]
struct State<'t> {
    version: u32,
    #[serde(borrow)]
    newest: Part<'t>,
    #[serde(borrow)]
    before: Option<Part<'t>>,
}

#[derive(Deserialize)]
struct Part<'t> {
    tables: BTreeMap<u16, (u16, u8, u64)>,
    #[serde(borrow)]
    map: &'t RawValue,
}

fn checksum(text: &str) -> String {
    format!("crc32:{:08x}", crc32fast::hash(text.as_bytes()))
}

impl Model {
    /// The model as text.
    pub fn to_state(&self) -> String {
        let mut state = format!("{{\"version\":{VERSION},\"newest\":");
        self.write_part(&mut state);
        state.push_str(",\"before\":");
        match &self.before {
            Some(before) => before.write_part(&mut state),
            None => state.push_str("null"),
        }
        state.push('}');
        format!("{{\"checksum\":\"{}\",\"state\":{state}}}\n", checksum(&state))
    }

    fn write_part(&self, text: &mut String) {
        text.push_str("{\"tables\":{");
        for (i, (layer, table)) in self.tables.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            let LayerTable { epoch, table, generation, .. } = table;
            // Writing to a string cannot fail.
            let _ = write!(text, "{comma}\"{layer}\":[{table},{generation},{epoch}]");
        }
        // A document ends with a line break, which is not of the value.
        let _ = write!(text, "}},\"map\":{}}}", self.map.to_json().trim_end());
    }

    /// Reads such a text.
    ///
    /// # Errors
    /// Where it is damaged or of another version.
    pub fn from_state(text: &str) -> Result<Self, StateError> {
        let sealed: Sealed<'_> = serde_json::from_str(text)?;
        let sum = checksum(sealed.state.get());
        if sum != sealed.checksum {
            return Err(StateError::Checksum(sum, sealed.checksum));
        }
        let state: State<'_> = serde_json::from_str(sealed.state.get())?;
        if state.version != VERSION {
            return Err(StateError::Version(state.version));
        }
        let mut model = Self::from_part(&state.newest)?;
        if model.map.is_partial() {
            return Err(StateError::Tables);
        }
        model.before = state.before.as_ref().map(|part| Self::from_part(part).map(Box::new)).transpose()?;
        Ok(model)
    }

    fn from_part(part: &Part<'_>) -> Result<Self, StateError> {
        let map = ExpertMap::parse(part.map.get().as_bytes())?;
        let table = |(&layer, &(table, generation, epoch)): (&u16, &(u16, u8, u64))| {
            let table = LayerTable::new(epoch, table, generation).filter(|table| table.generation != 0)?;
            map.layers().contains_key(&layer).then_some((layer, table))
        };
        let tables: Option<BTreeMap<_, _>> = part.tables.iter().map(table).collect();
        let tables = tables.filter(|tables| tables.len() == map.layers().len());
        Ok(Self { tables: tables.ok_or(StateError::Tables)?, map, before: None })
    }
}
