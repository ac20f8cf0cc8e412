//! Who may send, and which addresses are this host's.

use std::collections::BTreeMap;

use aya::{
    Ebpf,
    maps::{HashMap, LpmTrie, MapData, MapError, lpm_trie::Key},
};
use replicator_common::neighbor::{Endpoint, SourcePrefix};

use super::DatapathError;

const ENDPOINTS: &str = "ENDPOINTS";
const PREFIXES: &str = "SOURCE_PREFIXES";

/// The admission maps. They are changed entry by entry: first what is added, then what is taken away.
pub struct Admission {
    endpoints: HashMap<MapData, Endpoint, u32>,
    prefixes: LpmTrie<MapData, SourcePrefix, u32>,
    known: BTreeMap<EndpointKey, u32>,
    known_prefixes: Vec<(SourcePrefix, u32)>,
}

type EndpointKey = (u32, [u8; 16]);

impl Admission {
    pub(super) fn new(ebpf: &mut Ebpf) -> Result<Self, DatapathError> {
        fn take<T: TryFrom<aya::maps::Map, Error = MapError>>(
            ebpf: &Ebpf,
            name: &'static str,
        ) -> Result<T, DatapathError> {
            let error = |source| DatapathError::Map { name, source };
            let map = super::map(ebpf, name)?;
            T::try_from(duplicate(map).map_err(error)?).map_err(error)
        }
        Ok(Self {
            endpoints: take(ebpf, ENDPOINTS)?,
            prefixes: take(ebpf, PREFIXES)?,
            known: BTreeMap::new(),
            known_prefixes: Vec::new(),
        })
    }

    /// Reads what an earlier daemon put there.
    pub(super) fn adopt(&mut self) -> Result<(), DatapathError> {
        let error = |source| DatapathError::Map { name: ENDPOINTS, source };
        for entry in self.endpoints.iter() {
            let (Endpoint { kind, address }, roles) = entry.map_err(error)?;
            self.known.insert((kind, address), roles);
        }
        let error = |source| DatapathError::Map { name: PREFIXES, source };
        let keys = self.prefixes.keys().collect::<Result<Vec<_>, _>>().map_err(error)?;
        for key in keys {
            // A copy: the key's fields are not aligned.
            let (bits, prefix) = (key.prefix_len(), key.data());
            match bits.checked_sub(SourcePrefix::KIND_BITS) {
                Some(length) => self.known_prefixes.push((prefix, length)),
                // No prefix of addresses of one kind.
                None => self.prefixes.remove(&key).map_err(error)?,
            }
        }
        Ok(())
    }

    /// Makes these the endpoints with a role.
    ///
    /// # Errors
    /// Where the map is full.
    pub fn set_endpoints(
        &mut self,
        wanted: impl IntoIterator<Item = (Endpoint, u32)>,
    ) -> Result<(), DatapathError> {
        let error = |source| DatapathError::Map { name: ENDPOINTS, source };
        let mut new = BTreeMap::<EndpointKey, u32>::new();
        for (endpoint, roles) in wanted {
            *new.entry((endpoint.kind, endpoint.address)).or_default() |= roles;
        }
        for (&(kind, address), &roles) in &new {
            if self.known.get(&(kind, address)) != Some(&roles) {
                self.endpoints.insert(Endpoint { kind, address }, roles, 0).map_err(error)?;
                self.known.insert((kind, address), roles);
            }
        }
        let old: Vec<_> = self.known.keys().filter(|key| !new.contains_key(key)).copied().collect();
        for key @ (kind, address) in old {
            self.endpoints.remove(&Endpoint { kind, address }).map_err(error)?;
            self.known.remove(&key);
        }
        Ok(())
    }

    /// Makes these the prefixes that frames may come from: each with the length of its own address.
    ///
    /// # Errors
    /// Where the map is full.
    pub fn set_prefixes(&mut self, wanted: Vec<(SourcePrefix, u32)>) -> Result<(), DatapathError> {
        let error = |source| DatapathError::Map { name: PREFIXES, source };
        let key =
            |&(prefix, length): &(SourcePrefix, u32)| Key::new(SourcePrefix::KIND_BITS + length, prefix);
        for prefix in wanted.iter().filter(|prefix| !self.known_prefixes.contains(prefix)) {
            self.prefixes.insert(&key(prefix), 1, 0).map_err(error)?;
        }
        for prefix in self.known_prefixes.iter().filter(|prefix| !wanted.contains(prefix)) {
            self.prefixes.remove(&key(prefix)).map_err(error)?;
        }
        self.known_prefixes = wanted;
        Ok(())
    }
}

/// A second handle of the same map, so that the object keeps its own for pinning.
fn duplicate(map: &aya::maps::Map) -> Result<aya::maps::Map, MapError> {
    use std::os::fd::AsFd as _;
    let data = match map {
        aya::maps::Map::HashMap(data) | aya::maps::Map::LpmTrie(data) => data,
        _ => return Err(MapError::InvalidMapType { map_type: 0 }),
    };
    let fd = data
        .fd()
        .as_fd()
        .try_clone_to_owned()
        .map_err(|io_error| MapError::from(aya::sys::SyscallError { call: "dup", io_error }))?;
    aya::maps::Map::from_map_data(MapData::from_fd(fd)?)
}
