//! The table as configured: bit -> neighbors that reach it.

use replicator_common::{
    bier::BitStringLength,
    limits::{MAX_MEMBERS, MAX_VARIANTS},
    table::CHUNK_WORDS,
};

use super::{Destination, NeighborId};

/// Which destinations reach each bit; several are replicas, of which a frame takes one. One that stands there n times
/// takes n shares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Birt {
    length: BitStringLength,
    bsl_code: u8,
    variants: usize,
    /// Index is bit - 1. A host's own replica stands alone.
    replicas: Vec<Vec<Destination>>,
    neighbors: Vec<NeighborId>,
}

/// Why rows are not a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BirtError {
    /// More rows than the BitString has bits.
    #[error("there are rows for {rows} bits and a BitString of {bits}; take a longer BitString")]
    Rows {
        /// Rows given.
        rows: usize,
        /// Bits of the BitString.
        bits: usize,
    },
    /// More members than a row can name.
    #[error(
        "the table has {0} members (this host is one), {MAX_MEMBERS} fit; split it, or let other replicators \
         reach some of the nodes"
    )]
    Members(usize),
    /// Not a number of variants.
    #[error("{0} variants; take 1, 2, 4, 8 or {MAX_VARIANTS}")]
    Variants(usize),
}

/// What a table takes of the maps' pools, in entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// Chunks of rows.
    pub rows: usize,
    /// Chunks of F-BMs.
    pub fbms: usize,
    /// Members.
    pub members: usize,
}

/// The number of variants that spreads traffic well enough over `replicas`: the smallest that gives every replica a
/// share and none more than 25 % above an even one, or the largest there is.
pub fn default_variants(replicas: usize) -> usize {
    let replicas = replicas.max(1);
    let even_enough = |&variants: &usize| {
        let largest_share = variants.div_ceil(replicas);
        variants >= replicas && 4 * largest_share * replicas <= 5 * variants
    };
    (0..=MAX_VARIANTS.ilog2()).map(|e| 1 << e).find(even_enough).unwrap_or(MAX_VARIANTS)
}

impl Birt {
    /// The table with these destinations for each bit, bit 1 first. A bit without one has no row. Where this host is
    /// among the destinations of a bit, it serves that bit alone: no copy leaves for what is here already. `variants`
    /// is chosen by [`default_variants`] where it is `None`.
    ///
    /// # Errors
    /// Where a limit of the datapath is passed.
    pub fn new(
        length: BitStringLength,
        mut replicas: Vec<Vec<Destination>>,
        variants: Option<usize>,
    ) -> Result<Self, BirtError> {
        if replicas.len() > length.bits() {
            return Err(BirtError::Rows { rows: replicas.len(), bits: length.bits() });
        }
        replicas.resize(length.bits(), Vec::new());
        for destinations in &mut replicas {
            if destinations.contains(&Destination::Local) {
                *destinations = vec![Destination::Local];
            }
        }
        let mut neighbors: Vec<_> = replicas
            .iter()
            .flatten()
            .filter_map(|destination| match destination {
                Destination::Local => None,
                Destination::Neighbor(id) => Some(*id),
            })
            .collect();
        neighbors.sort_unstable();
        neighbors.dedup();
        if neighbors.len() + 1 > MAX_MEMBERS {
            return Err(BirtError::Members(neighbors.len() + 1));
        }
        let most_replicas = replicas.iter().map(Vec::len).max().unwrap_or(0);
        let variants = variants.unwrap_or_else(|| default_variants(most_replicas));
        if !variants.is_power_of_two() || variants > MAX_VARIANTS {
            return Err(BirtError::Variants(variants));
        }
        Ok(Self { length, bsl_code: length.code(), variants, replicas, neighbors })
    }

    /// The same table for frames whose BSL code counts from 0, as drafts before RFC 8296 had it.
    #[must_use]
    pub fn with_draft_code(self) -> Self {
        Self { bsl_code: self.length.draft_code(), ..self }
    }

    /// Length of the BitString.
    pub fn length(&self) -> BitStringLength {
        self.length
    }

    /// BSL code that frames for the table carry.
    pub fn bsl_code(&self) -> u8 {
        self.bsl_code
    }

    /// Number of variants.
    pub fn variants(&self) -> usize {
        self.variants
    }

    /// Destinations of each bit, bit 1 first.
    pub fn replicas(&self) -> &[Vec<Destination>] {
        &self.replicas
    }

    /// The remote members, ascending: the first is member 1.
    pub fn neighbors(&self) -> &[NeighborId] {
        &self.neighbors
    }

    /// Whether this host serves a bit.
    pub fn has_local(&self) -> bool {
        self.replicas.iter().any(|destinations| destinations.contains(&Destination::Local))
    }

    /// What the table takes of the pools.
    pub fn size(&self) -> Size {
        let members = self.neighbors.len() + 1;
        Size {
            rows: self.variants * self.length.words(),
            fbms: self.variants * (members + 1) * self.length.words().div_ceil(CHUNK_WORDS),
            members,
        }
    }
}

#[cfg(test)]
pub(in crate::bift) mod tests {
    use super::{Destination::Local, *};

    pub(in crate::bift) fn to(index: usize) -> Destination {
        Destination::Neighbor(NeighborId::remote(index).unwrap())
    }

    #[test]
    fn the_default_is_the_fewest_variants_with_no_share_25_percent_too_large() {
        // Replicas and variants; beside it, the largest share and the even one.
        for (replicas, variants) in [
            (0, 1),
            (1, 1),
            (2, 2),
            (3, 8), // 3 of 8 is 12.5 % above 8/3; with 4 variants it was 2 of 4, 50 %
            (4, 4),
            (5, 8),  // 2 of 8: 25 %
            (6, 16), // 3 of 16: 12.5 %; with 8 it was 2 of 8, 50 %
            (7, 16), // 3 of 16: 31 %, and there are no more variants
            (8, 8),
            (9, 16),
            (10, 16),
            (11, 16),
            (16, 16),
            (40, 16),
        ] {
            assert_eq!(default_variants(replicas), variants, "{replicas} replicas");
        }
    }

    #[test]
    fn this_host_serves_alone_what_it_has() {
        let birt =
            Birt::new(BitStringLength::B64, vec![vec![to(4), Local, to(2)], vec![to(7)]], None).unwrap();
        assert_eq!(birt.replicas()[0], [Local]);
        assert_eq!(birt.replicas()[1], [to(7)]);
        assert_eq!(birt.replicas()[63], []);
        assert_eq!(birt.neighbors(), [NeighborId::remote(7).unwrap()]);
        assert_eq!(birt.variants(), 1);
        assert!(birt.has_local());
    }

    #[test]
    fn limits_are_errors() {
        let rows = |n: usize| (0..n).map(|i| vec![to(i)]).collect::<Vec<_>>();
        let error = |rows, variants| Birt::new(BitStringLength::B256, rows, variants).unwrap_err();
        assert!(Birt::new(BitStringLength::B256, rows(254), None).is_ok());
        assert_eq!(error(rows(255), None), BirtError::Members(256));
        assert_eq!(error(rows(257), None), BirtError::Rows { rows: 257, bits: 256 });
        for variants in [0, 3, 32, usize::MAX] {
            assert_eq!(error(rows(1), Some(variants)), BirtError::Variants(variants));
        }
    }

    #[test]
    fn draft_codes_count_from_0() {
        let birt = Birt::new(BitStringLength::B256, vec![], None).unwrap();
        assert_eq!(birt.bsl_code(), 3);
        assert_eq!(birt.with_draft_code().bsl_code(), 2);
    }

    #[test]
    fn neighbor_ids_follow_those_of_this_host() {
        assert_eq!(NeighborId::remote(0).unwrap().get(), 3);
        assert_eq!(NeighborId::remote(1020).unwrap().get(), 1023);
        assert_eq!(NeighborId::remote(1021), None);
        assert_eq!(NeighborId::remote(7).unwrap().remote_index(), Some(7));
        assert_eq!(NeighborId(2).remote_index(), None);
    }
}
