//! Going on with the maps of an earlier daemon, whether it ended or was killed: this build's programs over those maps.

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
};

use aya::maps::{Map, MapData, MapError, MapInfo};
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
    /// If it is for another reason than the maps, a new load is refused too.
    #[error(transparent)]
    Refused(#[from] DatapathError),
}

impl Datapath {
    /// Goes on with the maps that an earlier daemon of the same layout pinned: its tables, neighbors and counters are in
    /// force and stay so, and frames that its programs hold are served by this build's. Nothing is attached yet. `None`
    /// where there is nothing complete and consistent to go on with, which is logged: then [`Self::load`].
    ///
    /// # Errors
    /// [`DatapathError::Object`].
    pub fn adopt(object: &[u8], options: &LoadOptions, pins: &Pins) -> Result<Option<Self>, DatapathError> {
        let wanted = Object::parse(object).map_err(DatapathError::Object)?.maps;
        let adopted = find(wanted, pins).and_then(|found| Self::adopt_found(object, options, pins, &found));
        match adopted {
            Ok(datapath) => return Ok(Some(datapath)),
            Err(Unfit::Nothing) => debug!("nothing is pinned in {}", pins.path().display()),
            Err(reason) => {
                warn!("new maps are loaded, for those in {} do not serve: {reason}", pins.path().display());
            }
        }
        Ok(None)
    }

    fn adopt_found(
        object: &[u8],
        options: &LoadOptions,
        pins: &Pins,
        Found { pinned, cookie }: &Found,
    ) -> Result<Self, Unfit> {
        let mut datapath = Self::open(object, options, *cookie, pinned)?;
        datapath.pinned = true;
        // One that was to take over, and did not come to it.
        successor::clear(&pins.map(successor::NAME)).map_err(error(successor::NAME))?;
        datapath.tables.adopt(&mut datapath.fan_outs)?;
        datapath.neighbors.adopt();
        datapath.admission.adopt()?;
        datapath.fan_outs.remake()?;
        // What the earlier daemon took out of force just before it ended counts as free from here on.
        grace::wait();
        Ok(datapath)
    }
}

/// What there is to go on with.
struct Found {
    /// The pin of each map.
    pinned: BTreeMap<String, PathBuf>,
    /// The cookie of their load.
    cookie: u32,
}

/// Looks whether all maps that this build's programs share with an earlier daemon's are pinned, and as they are wanted.
fn find(wanted: HashMap<String, aya_obj::Map>, pins: &Pins) -> Result<Found, Unfit> {
    let mut pinned = BTreeMap::new();
    let mut missing = None;
    for (name, wanted) in wanted.into_iter().filter(|(name, _)| !is_of_programs(name)) {
        let path = pins.map(&name);
        if !path.exists() {
            missing = Some(name);
            continue;
        }
        let info = MapInfo::from_pin(&path).map_err(error("that is pinned"))?;
        let found = (info.key_size(), info.value_size(), info.max_entries(), info.map_flags());
        let kind = info.map_type().map(|kind| kind as u32).ok();
        if found != (wanted.key_size(), wanted.value_size(), wanted.max_entries(), wanted.map_flags())
            || kind != Some(wanted.map_type())
        {
            return Err(Unfit::Other(name));
        }
        pinned.insert(name, path);
    }
    match missing {
        Some(_) if pinned.is_empty() => return Err(Unfit::Nothing),
        Some(name) => return Err(Unfit::Missing(name)),
        None => {}
    }
    let settings = MapData::from_pin(pins.map("SETTINGS")).and_then(Map::from_map_data);
    let settings = settings.map_err(error("SETTINGS"))?;
    match MappedArray::<Settings>::new("SETTINGS", &settings)?.read(0).cookie {
        0 => Err(Unfit::NoCookie),
        cookie => Ok(Found { pinned, cookie }),
    }
}

fn error(name: &'static str) -> impl FnOnce(MapError) -> DatapathError {
    move |source| DatapathError::Map { name, source }
}

/// Whether a map belongs to the programs of one load: their constants, and the buffer of their log.
pub(super) fn is_of_programs(name: &str) -> bool {
    name.starts_with('.') || name == "AYA_LOGS"
}
