//! From a [`Birt`] to rows and F-BMs, and from those to the entries of the pools.

use replicator_common::{
    bier::BitStringLength,
    limits::MAX_VARIANTS,
    table::{CHUNK_WORDS, FbmChunk, LOCAL_MEMBER, Member, NO_MEMBER, RowChunk, Table},
};

use super::{Birt, Destination, Layout};

/// A table as the datapath reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bift {
    /// Length of the BitString.
    pub length: BitStringLength,
    /// BSL code that frames for the table carry.
    pub bsl_code: u8,
    /// Index is the member; the first is this host, whether it has bits or not.
    pub members: Vec<Destination>,
    /// 1, 2, 4, 8 or 16 complete tables.
    pub variants: Vec<Variant>,
}

/// One bit -> member table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variant {
    /// Member of each bit, bit 1 first; [`NO_MEMBER`] where there is none.
    pub rows: Vec<u8>,
    /// For each member the bits it serves: a partition of `union`. 64-bit words, lowest first: bit 1 is bit 0 of the
    /// first.
    pub fbms: Vec<Vec<u64>>,
    /// The bits with a row.
    pub union: Vec<u64>,
}

/// Where a table's parts lie: the first entry of each in its pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// Chunks of rows.
    pub rows: u32,
    /// Chunks of F-BMs.
    pub fbms: u32,
    /// Members.
    pub members: u32,
    /// Shares.
    pub shares: u32,
    /// Fan-out maps of the table's group.
    pub fanout: u32,
}

impl Birt {
    /// The table as the datapath reads it. In variant v, a bit with r replicas takes the one at (v + s) mod r, so every
    /// place in the list gets an equal share of the variants, as far as they can be divided. s is chosen bit by bit to load the
    /// neighbors evenly in each variant: bits have replicas because they are hot, and hot bits that met on one
    /// neighbor would gain nothing.
    pub fn compile(&self) -> Bift {
        let members: Vec<_> = [Destination::Local]
            .into_iter()
            .chain(self.neighbors().iter().map(|&id| Destination::Neighbor(id)))
            .collect();
        let member = |destination: &Destination| match destination {
            Destination::Local => LOCAL_MEMBER,
            // `Birt::new` made the list from these destinations and saw that its indices fit a row.
            Destination::Neighbor(id) => self.neighbors().partition_point(|other| other < id) as u8 + 1,
        };
        let words = self.length().words();
        let blank = Variant {
            rows: vec![NO_MEMBER; self.length().bits()],
            fbms: vec![vec![0; words]; members.len()],
            union: vec![0; words],
        };
        let mut variants = vec![blank; self.variants()];
        let mut load = vec![[0_u32; MAX_VARIANTS]; members.len()];
        for (bit, replicas) in self.replicas().iter().enumerate().filter(|(_, replicas)| !replicas.is_empty())
        {
            let replicas: Vec<u8> = replicas.iter().map(member).collect();
            let pick = |variant: usize, shift: usize| replicas[(variant + shift) % replicas.len()];
            let crowd = |shift: &usize| -> u32 {
                (0..self.variants()).map(|variant| load[usize::from(pick(variant, *shift))][variant]).sum()
            };
            let shift = (0..replicas.len()).min_by_key(crowd).unwrap_or(0);
            for (v, variant) in variants.iter_mut().enumerate() {
                let chosen = pick(v, shift);
                variant.rows[bit] = chosen;
                variant.fbms[usize::from(chosen)][bit / 64] |= 1 << (bit % 64);
                variant.union[bit / 64] |= 1 << (bit % 64);
                load[usize::from(chosen)][v] += u32::from(replicas.len() > 1);
            }
        }
        Bift { length: self.length(), bsl_code: self.bsl_code(), members, variants }
    }
}

impl Bift {
    /// The table's part of the pool of rows.
    pub fn row_chunks(&self) -> Vec<RowChunk> {
        let rows = self.variants.iter().flat_map(|variant| variant.rows.as_chunks().0);
        rows.map(|&rows| RowChunk(rows)).collect()
    }

    /// The table's part of the pool of F-BMs: for each variant the union, then each member's.
    pub fn fbm_chunks(&self) -> Vec<FbmChunk> {
        let chunk = |words: &[u64]| {
            let mut chunk = [0; CHUNK_WORDS];
            chunk[..words.len()].copy_from_slice(words);
            FbmChunk(chunk)
        };
        let fbms = self.variants.iter().flat_map(|variant| [&variant.union].into_iter().chain(&variant.fbms));
        fbms.flat_map(|fbm| fbm.chunks(CHUNK_WORDS).map(chunk)).collect()
    }

    /// The table's part of the pool of members. This host's entry is not read: its neighbor follows from the frame's
    /// encapsulation.
    pub fn member_entries(&self) -> Vec<Member> {
        let neighbor = |destination: &Destination| match destination {
            Destination::Local => 0,
            Destination::Neighbor(id) => id.get(),
        };
        self.members.iter().map(|member| Member { neighbor: neighbor(member), zero: 0 }).collect()
    }

    /// The table's entry, once its parts have their places.
    pub fn table(&self, layout: &Layout, places: &Places) -> Table {
        // None of these can be cut: `Birt` and `layout` keep to the limits.
        Table {
            rows: places.rows,
            fbms: places.fbms,
            members: places.members,
            shares: places.shares,
            fanout: places.fanout,
            fanout_local: layout.fanout_local,
            member_count: self.members.len() as u16,
            remote_shares: layout.remote_shares,
            fanout_rule: layout.group.rule as u8,
            bsl_code: self.bsl_code,
            words: self.length.words() as u8,
            variant_mask: (self.variants.len() - 1) as u8,
            shares_count: layout.shares.len() as u8,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::birt::tests::to, Destination::Local, *};
    use crate::bift::{BirtError, layout};

    fn birt(length: BitStringLength, rows: Vec<Vec<Destination>>, variants: Option<usize>) -> Birt {
        Birt::new(length, rows, variants).unwrap()
    }

    /// F-BMs are a partition of the bits with rows, and say the same as the rows.
    fn check(bift: &Bift) {
        for variant in &bift.variants {
            assert_eq!(variant.rows.len(), bift.length.bits());
            assert_eq!(variant.fbms.len(), bift.members.len());
            for (bit, &row) in variant.rows.iter().enumerate() {
                let has = |words: &[u64]| words[bit / 64] >> (bit % 64) & 1 == 1;
                assert_eq!(has(&variant.union), row != NO_MEMBER, "bit {}", bit + 1);
                for (member, fbm) in variant.fbms.iter().enumerate() {
                    assert_eq!(has(fbm), usize::from(row) == member, "bit {} member {member}", bit + 1);
                }
            }
        }
    }

    #[test]
    fn a_small_table_by_hand() {
        // Bit 1 at node 5, 2 here, 3 at node 2 or 5, 4 nowhere, 64 at node 2.
        let mut rows = vec![vec![]; 64];
        rows[0] = vec![to(5)];
        rows[1] = vec![to(5), Local];
        rows[2] = vec![to(2), to(5)];
        rows[63] = vec![to(2)];
        let bift = birt(BitStringLength::B64, rows, None).compile();
        check(&bift);
        assert_eq!(bift.members, [Local, to(2), to(5)]);
        assert_eq!(bift.variants.len(), 2);
        let [first, second] = &bift.variants[..] else { panic!() };
        assert_eq!(first.rows[..5], [2, 0, 1, NO_MEMBER, NO_MEMBER]);
        assert_eq!(second.rows[..5], [2, 0, 2, NO_MEMBER, NO_MEMBER]);
        assert_eq!(first.fbms, [[0b0010], [1 << 63 | 0b0100], [0b0001]]);
        assert_eq!(second.fbms, [[0b0010], [1 << 63], [0b0101]]);
        assert_eq!(first.union, [1 << 63 | 0b0111]);
        assert_eq!(second.union, first.union);

        assert_eq!(bift.member_entries().iter().map(|m| m.neighbor).collect::<Vec<_>>(), [0, 5, 8]);
        let chunks = bift.fbm_chunks();
        assert_eq!(chunks.len(), 8);
        assert_eq!(chunks[0].0, [1 << 63 | 0b0111, 0, 0, 0]);
        assert_eq!(chunks[1].0, [0b0010, 0, 0, 0]);
        assert_eq!(chunks[7].0, [0b0101, 0, 0, 0]);
        let rows = bift.row_chunks();
        assert_eq!(rows.len(), 2);
        assert_eq!((rows[0].0[2], rows[1].0[2], rows[1].0[63]), (1, 2, 1));
    }

    #[test]
    fn chunks_lie_where_the_datapath_looks() {
        // 1,024 bits, 4 variants, 3 members: bit 1 + 300 n at node n.
        let mut rows = vec![vec![]; 1024];
        rows[0] = vec![to(0)];
        rows[300] = vec![to(1), to(0)];
        rows[900] = vec![Local];
        let birt = birt(BitStringLength::B1024, rows, Some(4));
        let bift = birt.compile();
        check(&bift);
        let layout = layout(&[10, 11], Some(12)).unwrap();
        let table = bift.table(&layout, &Places { rows: 100, fbms: 200, members: 3, shares: 4, fanout: 5 });
        assert_eq!((table.words, table.variant_mask, table.member_count, table.bsl_code), (16, 3, 3, 5));
        assert_eq!((table.members, table.shares, table.fanout), (3, 4, 5));
        assert_eq!((table.remote_shares, table.shares_count), (2, 3));
        let (fbms, rows) = (bift.fbm_chunks(), bift.row_chunks());
        let size = birt.size();
        assert_eq!((size.rows, size.fbms, size.members), (64, 4 * 4 * 4, 3));
        assert_eq!((rows.len(), fbms.len(), bift.members.len()), (64, 64, 3));
        for (v, variant) in bift.variants.iter().enumerate() {
            let chunk = rows[table.variant_rows(v as u32) as usize - 100 + 300 / 64];
            assert_eq!(chunk.0[300 % 64], variant.rows[300]);
            // Union, then members 0, 1, 2; bit 901 is in the fourth chunk: word 900 / 64 = 14.
            let base = table.variant_fbms(v as u32) as usize - 200;
            assert_eq!(fbms[base + 3].0[2], 1 << (900 % 64));
            assert_eq!(fbms[base + 4 + 3].0[2], 1 << (900 % 64));
            assert_eq!(fbms[base + 8].0[0], 1, "node 0 has bit 1");
            assert_eq!(fbms[base + 12].0, [0; 4], "node 1 has none of the first 256 bits");
        }
    }

    #[test]
    fn every_replica_gets_its_share_of_the_variants() {
        for replicas in 1..=20 {
            let bift = birt(BitStringLength::B64, vec![(0..replicas).map(to).collect(); 5], None).compile();
            check(&bift);
            let variants = bift.variants.len();
            for bit in 0..5 {
                for member in 1..=replicas {
                    let times = bift.variants.iter().filter(|v| usize::from(v.rows[bit]) == member).count();
                    let share = variants / replicas..=variants.div_ceil(replicas);
                    assert!(share.contains(&times), "{times} of {variants} for 1 of {replicas}");
                }
            }
        }
    }

    #[test]
    fn a_destination_that_stands_there_twice_gets_two_shares() {
        let bift = birt(BitStringLength::B64, vec![vec![to(0), to(1), to(0)]], None).compile();
        check(&bift);
        let times = |member| bift.variants.iter().filter(|variant| variant.rows[0] == member).count();
        assert_eq!([1, 2].map(times), [5, 3], "8 variants: 5.3 and 2.7");
    }

    /// Members of each bit with replicas, in variant `v`, counted by member.
    fn loads(bift: &Bift, v: usize, hot: &[usize]) -> Vec<usize> {
        let mut loads = vec![0; bift.members.len()];
        hot.iter().for_each(|&bit| loads[usize::from(bift.variants[v].rows[bit])] += 1);
        loads
    }

    #[test]
    fn hot_bits_do_not_meet_on_one_neighbor() {
        // The same two replicas, on odd bits alone; pairs that alternate; stars around node 0.
        let odd = (0..64).map(|bit| if bit % 2 == 1 { vec![to(0), to(1)] } else { vec![to(2)] });
        let pairs = (0..64).map(|bit| if bit % 2 == 1 { vec![to(0), to(1)] } else { vec![to(2), to(3)] });
        let star = (0..64).map(|bit| vec![to(0), to(1 + bit % 7)]);
        let odd = birt(BitStringLength::B64, odd.collect(), None).compile();
        let pairs = birt(BitStringLength::B64, pairs.collect(), None).compile();
        let star = birt(BitStringLength::B64, star.collect(), None).compile();
        let all: Vec<_> = (0..64).collect();
        let hot: Vec<_> = (0..64).skip(1).step_by(2).collect();
        for v in 0..2 {
            assert_eq!(loads(&odd, v, &hot), [0, 16, 16, 0]);
            assert_eq!(loads(&pairs, v, &all), [0, 16, 16, 16, 16]);
            let star = loads(&star, v, &all);
            // Node 0 stands in every pair: whatever one variant spares it, the other gives it.
            assert!((28..=36).contains(&star[1]) && star[2..].iter().all(|&n| n <= 6), "{star:?}");
        }
    }

    #[test]
    fn random_tables_hold_together() {
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = |below: usize| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            (seed % below as u64) as usize
        };
        for round in 0..60 {
            let length = BitStringLength::ALL[round % 5];
            let nodes = 1 + random(254);
            let rows = (0..length.bits())
                .map(|_| {
                    let replicas = random(4);
                    let mut row: Vec<_> = (0..replicas).map(|_| to(random(nodes))).collect();
                    if random(9) == 0 {
                        row.push(Local);
                    }
                    row
                })
                .collect::<Vec<_>>();
            let birt = match Birt::new(length, rows.clone(), None) {
                Ok(birt) => birt,
                Err(error) => {
                    assert!(matches!(error, BirtError::Members(_)), "{error}");
                    continue;
                }
            };
            let bift = birt.compile();
            check(&bift);
            for variant in &bift.variants {
                for (bit, row) in rows.iter().enumerate() {
                    match variant.rows[bit] {
                        NO_MEMBER => assert!(row.is_empty()),
                        0 => assert!(row.contains(&Local)),
                        member => assert!(row.contains(&bift.members[usize::from(member)])),
                    }
                }
            }
            let size = birt.size();
            assert_eq!(bift.row_chunks().len(), size.rows);
            assert_eq!(bift.fbm_chunks().len(), size.fbms);
            assert_eq!(bift.member_entries().len(), size.members);
        }
    }
}
