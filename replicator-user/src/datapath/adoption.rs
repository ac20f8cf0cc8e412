//! Going on with the maps of an earlier daemon, whether it ended or was killed: this build's programs over those maps.

use std::{collections::BTreeMap, path::PathBuf};

use aya::maps::{Map, MapData, MapError};
use aya_obj::Object;
use replicator_common::neighbor::Settings;
use tracing::{debug, warn};

use super::{
    Datapath, DatapathError, LoadOptions, Pins, grace, mapped::MappedArray, successor, tables::Damage,
};

/// Why there is nothing to go on with.
#[derive(Debug, thiserror::Error)]
enum Unfit {
    /// As on a first start.
    #[error("nothing is pinned")]
    Nothing,
    #[error("map {0} is not pinned")]
    Missing(String),
    #[error("map {0} has another kind or size than this build's")]
    Other(String),
    #[error("its cookie is not known")]
    NoCookie,
    #[error(transparent)]
    Damaged(#[from] Damage),
}

impl Datapath {
    /// Goes on with the maps that an earlier daemon of the same layout pinned: its tables, neighbors and counters are in
    /// force and stay so, and frames that its programs hold are served by this build's. Nothing is attached yet. `None`
    /// where there is nothing complete and consistent to go on with, which is logged: then [`Self::load`].
    ///
    /// # Errors
    /// Where the kernel refuses something.
    pub fn adopt(object: &[u8], options: &LoadOptions, pins: &Pins) -> Result<Option<Self>, DatapathError> {
        match Self::adopt_fit(object, options, pins)? {
            Ok(datapath) => Ok(Some(datapath)),
            Err(Unfit::Nothing) => {
                debug!("nothing is pinned in {}", pins.path().display());
                Ok(None)
            }
            Err(reason) => {
                warn!(
                    "the maps in {} cannot be gone on with: {reason}; new ones are loaded",
                    pins.path().display()
                );
                Ok(None)
            }
        }
    }

    fn adopt_fit(
        object: &[u8],
        options: &LoadOptions,
        pins: &Pins,
    ) -> Result<Result<Self, Unfit>, DatapathError> {
        let (pinned, cookie) = match fit(object, pins)? {
            Ok(fit) => fit,
            Err(reason) => return Ok(Err(reason)),
        };
        let mut datapath = Self::open(object, options, cookie, &pinned)?;
        datapath.pinned = true;
        // One that was to take over, and did not come to it.
        let path = pins.map(successor::NAME);
        successor::clear(&path).map_err(|source| DatapathError::Map { name: successor::NAME, source })?;
        if let Err(damage) = datapath.tables.adopt(&mut datapath.fan_outs) {
            return Ok(Err(damage.into()));
        }
        datapath.neighbors.adopt();
        datapath.admission.adopt()?;
        datapath.fan_outs.remake()?;
        // What the earlier daemon took out of force just before it ended counts as free from here on.
        grace::wait();
        Ok(Ok(datapath))
    }
}

/// The pins of all maps, and the cookie of their load.
fn fit(object: &[u8], pins: &Pins) -> Result<Result<(BTreeMap<String, PathBuf>, u32), Unfit>, DatapathError> {
    let wanted = Object::parse(object).map_err(DatapathError::Object)?.maps;
    let mut pinned = BTreeMap::new();
    let mut missing = None;
    for (name, definition) in wanted {
        if is_of_programs(&name) {
            continue;
        }
        let path = pins.map(&name);
        let data = match MapData::from_pin(&path) {
            Ok(data) => data,
            Err(MapError::SyscallError(error)) if error.io_error.kind() == std::io::ErrorKind::NotFound => {
                missing = Some(name);
                continue;
            }
            Err(source) => return Err(DatapathError::Map { name: "of an earlier daemon", source }),
        };
        let info =
            data.info().map_err(|source| DatapathError::Map { name: "of an earlier daemon", source })?;
        let found = (info.key_size(), info.value_size(), info.max_entries(), info.map_flags());
        let expected = (
            definition.key_size(),
            definition.value_size(),
            definition.max_entries(),
            definition.map_flags(),
        );
        if info.map_type().map(|kind| kind as u32).ok() != Some(definition.map_type()) || found != expected {
            return Ok(Err(Unfit::Other(name)));
        }
        pinned.insert(name, path);
    }
    if let Some(name) = missing {
        return Ok(Err(if pinned.is_empty() { Unfit::Nothing } else { Unfit::Missing(name) }));
    }
    let settings = |source| DatapathError::Map { name: "SETTINGS", source };
    let data = MapData::from_pin(pins.map("SETTINGS")).map_err(settings)?;
    let settings = Map::from_map_data(data).map_err(settings)?;
    let settings = MappedArray::<Settings>::new("SETTINGS", &settings)?;
    Ok(match settings.read(0).cookie {
        0 => Err(Unfit::NoCookie),
        cookie => Ok((pinned, cookie)),
    })
}

/// Whether a map belongs to the programs of one load: their constants, and the buffer of their log.
pub(super) fn is_of_programs(name: &str) -> bool {
    name.starts_with('.') || name == "AYA_LOGS"
}
