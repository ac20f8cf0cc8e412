//! How a table's copies are shared among the egress devices, and which fan-out maps that takes.

use std::collections::BTreeMap;

use replicator_common::{
    limits::{MAX_COPIES, MAX_COUNTED_DEVICES, MAX_DEVICES, MAX_UNCOUNTED_MEMBERS},
    table::{LEVELS, LOCAL_MEMBER, MEMBER_WORDS, Share, fanout_rule, level},
};

/// How a table finds its fan-out map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Rule {
    /// By the exact number of copies on its one remote device.
    Exact = fanout_rule::EXACT,
    /// By the numbers of copies on each device, rounded up to [`LEVELS`].
    Rounded = fanout_rule::ROUNDED,
    /// It has one map, with each member once.
    Whole = fanout_rule::WHOLE,
}

/// The fan-out maps that a table needs. Tables with equal groups share them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FanOutGroup {
    /// How the map is found.
    pub rule: Rule,
    /// Remote devices, ascending, and the most copies a frame can have on each.
    pub devices: Vec<(u32, u32)>,
    /// Device of this host's stack, where it has bits.
    pub local: Option<u32>,
}

/// Where a table's copies leave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// One for each device, this host's stack last if it has bits. Its stride is 0: see `fanout_local`.
    pub shares: Vec<Share>,
    /// Shares without this host's.
    pub remote_shares: u8,
    /// What a local copy adds to the index of the fan-out map.
    pub fanout_local: u32,
    /// The maps.
    pub group: FanOutGroup,
}

/// Why a table's members cannot be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// Too many egress devices.
    #[error(
        "the members leave on {0} devices (this host's stack is one if it has bits), a table may have {MAX_DEVICES}; \
         split the table"
    )]
    Devices(usize),
    /// Too many members for a table without counted maps.
    #[error(
        "{members} members leave on {devices} devices; on more than {MAX_COUNTED_DEVICES} devices a table may have \
         {MAX_UNCOUNTED_MEMBERS} members: split the table, or use fewer devices"
    )]
    Members {
        /// Members, with this host if it has bits.
        members: usize,
        /// Remote devices.
        devices: usize,
    },
    /// A neighbor behind the way to this host's own stack.
    #[error("a neighbor is behind device {0}, which leads to this host's own stack; give its real interface")]
    BehindOwnStack(u32),
}

/// Shares a table's members out among their devices. `devices` has the device (interface index) of each remote member,
/// member 1 first; `local` the device of this host's stack, if it has bits.
///
/// # Errors
/// Where the datapath cannot serve so many devices or members.
pub fn layout(devices: &[u32], local: Option<u32>) -> Result<Layout, LayoutError> {
    let mut members = BTreeMap::<u32, [u64; MEMBER_WORDS]>::new();
    for (&device, member) in devices.iter().zip(usize::from(LOCAL_MEMBER) + 1..) {
        members.entry(device).or_default()[member / 64] |= 1 << (member % 64);
    }
    if let Some(device) = local.filter(|device| members.contains_key(device)) {
        return Err(LayoutError::BehindOwnStack(device));
    }
    let own = usize::from(local.is_some());
    if members.len() + own > MAX_DEVICES {
        return Err(LayoutError::Devices(members.len() + own));
    }
    let rule = match members.len() {
        0..=1 => Rule::Exact,
        2..=MAX_COUNTED_DEVICES => Rule::Rounded,
        _ => Rule::Whole,
    };
    if rule == Rule::Whole && devices.len() + own > MAX_UNCOUNTED_MEMBERS {
        return Err(LayoutError::Members { members: devices.len() + own, devices: members.len() });
    }
    let count = |words: &[u64; MEMBER_WORDS]| words.iter().map(|word| word.count_ones()).sum();
    let group = FanOutGroup {
        rule,
        devices: members.iter().map(|(&device, words)| (device, count(words))).collect(),
        local,
    };
    let strides = group.strides();
    let mut shares: Vec<_> = members
        .into_iter()
        .zip(&strides)
        .map(|((ifindex, members), &stride)| Share { members, ifindex, stride })
        .collect();
    let remote_shares = shares.len() as u8;
    shares.extend(local.map(|ifindex| Share { members: [1 << LOCAL_MEMBER, 0, 0, 0], ifindex, stride: 0 }));
    Ok(Layout { shares, remote_shares, fanout_local: group.local_stride(), group })
}

impl FanOutGroup {
    /// The group of a table that is in force, by its rule and shares, of which the first `remote` are not this host's;
    /// `None` where [`layout`] makes no such shares.
    pub fn of(rule: u8, shares: &[Share], remote: usize) -> Option<Self> {
        let (shares, local) = shares.split_at_checked(remote)?;
        let (rule, devices) = match rule {
            fanout_rule::EXACT => (Rule::Exact, 0..=1),
            fanout_rule::ROUNDED => (Rule::Rounded, 2..=MAX_COUNTED_DEVICES),
            fanout_rule::WHOLE => (Rule::Whole, MAX_COUNTED_DEVICES + 1..=MAX_DEVICES),
            _ => return None,
        };
        let ascending = shares.windows(2).all(|pair| pair[0].ifindex < pair[1].ifindex);
        let most = |share: &Share| share.members.iter().map(|word| word.count_ones()).sum();
        let group = Self {
            rule,
            devices: shares.iter().map(|share| (share.ifindex, most(share))).collect(),
            local: local.first().map(|share| share.ifindex),
        };
        let members: u32 = group.devices.iter().map(|(_, most)| most).sum();
        let fits = devices.contains(&shares.len()) && local.len() <= 1 && members as usize <= MAX_COPIES;
        (ascending && fits).then_some(group)
    }

    /// Counts (or levels of counts) that are told apart on a device with at most `most` copies, 0 among them.
    fn radix(&self, most: u32) -> u32 {
        match self.rule {
            Rule::Exact => most + 1,
            Rule::Rounded => level(most) + 1,
            Rule::Whole => 1,
        }
    }

    /// What one copy, or one level of copies, on each device adds to the index.
    fn strides(&self) -> Vec<u32> {
        if self.rule == Rule::Whole {
            return vec![0; self.devices.len()];
        }
        let radices = self.devices.iter().map(|&(_, most)| self.radix(most));
        radices
            .scan(1, |next, radix| {
                let stride = *next;
                *next *= radix;
                Some(stride)
            })
            .collect()
    }

    fn remote_combinations(&self) -> u32 {
        self.devices.iter().map(|&(_, most)| self.radix(most)).product()
    }

    fn local_stride(&self) -> u32 {
        match (self.rule, self.local) {
            (Rule::Whole, _) | (_, None) => 0,
            (_, Some(_)) => self.remote_combinations(),
        }
    }

    /// Indices the group takes.
    pub fn len(&self) -> u32 {
        if self.local_stride() == 0 { self.remote_combinations() } else { 2 * self.remote_combinations() }
    }

    /// Whether no member has any bit, so that no frame can look for a map.
    pub fn is_empty(&self) -> bool {
        self.devices.is_empty() && self.local.is_none()
    }

    /// The maps in the order of their indices: devices and entries for each. A map without entries belongs to frames
    /// without copies, which do not look for one: it need not be made.
    pub fn maps(&self) -> impl Iterator<Item = Vec<(u32, u32)>> {
        (0..self.len()).map(|index| {
            let mut rest = index;
            let mut map = Vec::with_capacity(self.devices.len() + 1);
            for &(device, most) in &self.devices {
                let radix = self.radix(most);
                let digit = rest % radix;
                rest /= radix;
                map.push(match self.rule {
                    Rule::Exact => (device, digit),
                    // The highest level may be more than there are members: what it takes too much is surplus.
                    Rule::Rounded => (device, u32::from(LEVELS[digit as usize]).min(most)),
                    Rule::Whole => (device, most),
                });
            }
            if let Some(device) = self.local
                && (rest == 1 || self.rule == Rule::Whole)
            {
                map.push((device, 1));
            }
            map.retain(|&(_, copies)| copies > 0);
            map
        })
    }

    /// Index of the map for so many copies on each device (in the order of `devices`, none above its most) and to this
    /// host's stack: what the datapath computes from strides, counted from the group's first map.
    pub fn index(&self, counts: &[u32], local: bool) -> u32 {
        let step = |count| if self.rule == Rule::Rounded { level(count) } else { count };
        let remote: u32 =
            self.strides().iter().zip(counts).map(|(stride, &count)| stride * step(count)).sum();
        remote + self.local_stride() * u32::from(local)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{HashMap, HashSet};

    fn on(devices: &[(u32, usize)]) -> Vec<u32> {
        devices.iter().flat_map(|&(device, members)| vec![device; members]).collect()
    }

    #[test]
    fn one_device_is_counted_exactly() {
        let layout = layout(&on(&[(4, 3)]), None).unwrap();
        let group = FanOutGroup { rule: Rule::Exact, devices: vec![(4, 3)], local: None };
        assert_eq!(layout.group, group);
        assert_eq!(layout.shares, [Share { members: [0b1110, 0, 0, 0], ifindex: 4, stride: 1 }]);
        assert_eq!((layout.remote_shares, layout.fanout_local), (1, 0));
        let maps: Vec<_> = group.maps().collect();
        assert_eq!(maps, [vec![], vec![(4, 1)], vec![(4, 2)], vec![(4, 3)]]);
        assert_eq!(group.index(&[3], false), 3);
    }

    #[test]
    fn this_host_doubles_the_maps() {
        let layout = layout(&on(&[(4, 2)]), Some(9)).unwrap();
        assert_eq!(
            layout.shares,
            [
                Share { members: [0b0110, 0, 0, 0], ifindex: 4, stride: 1 },
                Share { members: [0b0001, 0, 0, 0], ifindex: 9, stride: 0 },
            ]
        );
        assert_eq!((layout.remote_shares, layout.fanout_local), (1, 3));
        let maps: Vec<_> = layout.group.maps().collect();
        let expected =
            [vec![], vec![(4, 1)], vec![(4, 2)], vec![(9, 1)], vec![(4, 1), (9, 1)], vec![(4, 2), (9, 1)]];
        assert_eq!(maps, expected);
        assert_eq!(layout.group.index(&[2], true), 5);
    }

    #[test]
    fn this_host_alone_and_nobody_at_all() {
        let alone = layout(&[], Some(9)).unwrap();
        assert_eq!(alone.group.maps().collect::<Vec<_>>(), [vec![], vec![(9, 1)]]);
        assert_eq!((alone.remote_shares, alone.fanout_local, alone.shares.len()), (0, 1, 1));
        assert!(!alone.group.is_empty());
        let nobody = layout(&[], None).unwrap();
        assert_eq!(nobody.group.maps().collect::<Vec<_>>(), [vec![]]);
        assert!(nobody.group.is_empty());
    }

    #[test]
    fn two_devices_are_counted_in_levels() {
        // Levels up to 5 copies: 0, 1, 2, 3, 4, 6; the last is cut to 5. Up to 1: 0, 1.
        let layout = layout(&on(&[(7, 1), (3, 5)]), Some(9)).unwrap();
        assert_eq!(layout.group.devices, [(3, 5), (7, 1)]);
        assert_eq!(layout.group.rule, Rule::Rounded);
        let strides: Vec<_> = layout.shares.iter().map(|share| (share.ifindex, share.stride)).collect();
        assert_eq!(strides, [(3, 1), (7, 6), (9, 0)]);
        assert_eq!(layout.fanout_local, 12);
        let maps: Vec<_> = layout.group.maps().collect();
        assert_eq!(maps.len(), 24);
        assert_eq!(maps[layout.group.index(&[5, 1], true) as usize], [(3, 5), (7, 1), (9, 1)]);
        assert_eq!(maps[23], [(3, 5), (7, 1), (9, 1)]);
        assert_eq!(maps[4], [(3, 4)]);
        // Member 1 is on device 7, members 2 to 6 on device 3.
        assert_eq!(layout.shares[0].members, [0b111_1100, 0, 0, 0]);
        assert_eq!(layout.shares[1].members, [0b10, 0, 0, 0]);
    }

    #[test]
    fn four_devices_have_one_map() {
        let layout = layout(&on(&[(1, 2), (2, 1), (3, 1), (4, 59)]), Some(9)).unwrap();
        assert_eq!(layout.group.rule, Rule::Whole);
        assert_eq!(layout.group.maps().collect::<Vec<_>>(), [[(1, 2), (2, 1), (3, 1), (4, 59), (9, 1)]]);
        assert_eq!(layout.group.index(&[1, 0, 1, 59], true), 0);
        assert_eq!(layout.fanout_local, 0);
        assert!(layout.shares.iter().all(|share| share.stride == 0));
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let members = |n| LayoutError::Members { members: n, devices: 4 };
        assert_eq!(layout(&on(&[(1, 2), (2, 1), (3, 1), (4, 60)]), Some(9)), Err(members(65)));
        assert_eq!(layout(&on(&[(1, 2), (2, 1), (3, 1), (4, 61)]), None), Err(members(65)));
        assert!(layout(&on(&[(1, 2), (2, 1), (3, 1), (4, 60)]), None).is_ok());
        let sixteen: Vec<_> = (1..=16).collect();
        assert!(layout(&sixteen, None).is_ok());
        assert_eq!(layout(&sixteen, Some(99)), Err(LayoutError::Devices(17)));
        assert_eq!(layout(&[5, 6], Some(6)), Err(LayoutError::BehindOwnStack(6)));
    }

    #[test]
    fn members_of_every_word_are_found() {
        let layout = layout(&on(&[(1, 254)]), None).unwrap();
        assert_eq!(layout.shares[0].members, [u64::MAX - 1, u64::MAX, u64::MAX, u64::MAX >> 1]);
        assert_eq!(layout.group.len(), 255);
    }

    /// Every combination of counts finds a map with room, by the strides as the datapath uses them, and only
    /// combinations that are rounded to the same meet.
    #[test]
    fn every_combination_finds_its_map() {
        let shapes: &[&[u32]] = &[
            &[],
            &[1],
            &[7],
            &[254],
            &[1, 1],
            &[5, 9],
            &[30, 2],
            &[127, 127],
            &[3, 4, 5],
            &[13, 1, 7],
            &[1, 1, 1],
        ];
        for most in shapes {
            for local in [None, Some(99)] {
                let devices: Vec<_> = (1..).zip(most.iter().map(|&n| n as usize)).collect();
                let layout = layout(&on(&devices), local).unwrap();
                let group = &layout.group;
                let maps: Vec<HashMap<u32, u32>> =
                    group.maps().map(|map| map.into_iter().collect()).collect();
                assert_eq!(maps.len(), group.len() as usize);
                let mut seen = HashMap::new();
                let combinations: u32 = most.iter().map(|n| n + 1).product();
                for (number, with_local) in (0..combinations).flat_map(|n| [(n, false), (n, true)]) {
                    if with_local && local.is_none() {
                        continue;
                    }
                    let mut rest = number;
                    let counts: Vec<u32> = most
                        .iter()
                        .map(|n| {
                            let count = rest % (n + 1);
                            rest /= n + 1;
                            count
                        })
                        .collect();
                    let index = group.index(&counts, with_local);
                    let rounded: Vec<u32> = match group.rule {
                        Rule::Exact => counts.clone(),
                        _ => counts.iter().map(|&count| level(count)).collect(),
                    };
                    let by_strides: u32 =
                        layout.shares.iter().zip(&rounded).map(|(share, n)| share.stride * n).sum::<u32>()
                            + layout.fanout_local * u32::from(with_local);
                    assert_eq!(index, by_strides);
                    let map = &maps[index as usize];
                    for ((device, _), &count) in devices.iter().zip(&counts) {
                        let entries = map.get(device).copied().unwrap_or(0);
                        assert!(entries >= count);
                        if group.rule == Rule::Exact {
                            assert_eq!(entries, count);
                        }
                        assert_eq!(entries == 0, count == 0, "no clone for a device without copies");
                    }
                    assert_eq!(map.get(&99).copied(), with_local.then_some(1));
                    let key = (rounded, with_local);
                    assert_eq!(seen.entry(index).or_insert_with(|| key.clone()), &key);
                }
                assert_eq!(seen.len(), maps.len(), "no map that nobody finds");
                let unlike: HashSet<Vec<_>> = group.maps().collect();
                assert_eq!(unlike.len(), maps.len());
            }
        }
    }

    #[test]
    fn a_group_is_found_again_from_the_shares() {
        for devices in [&[][..], &[(4, 3)], &[(3, 5), (7, 1)], &[(1, 2), (2, 1), (3, 1), (4, 57)]] {
            for local in [None, Some(9)] {
                let layout = layout(&on(devices), local).unwrap();
                let (rule, remote) = (layout.group.rule as u8, layout.remote_shares.into());
                assert_eq!(FanOutGroup::of(rule, &layout.shares, remote), Some(layout.group.clone()));
                assert_eq!(FanOutGroup::of(3, &layout.shares, remote), None);
                assert_eq!(FanOutGroup::of(rule, &layout.shares, layout.shares.len() + 1), None);
                let other = if devices.len() < 2 { Rule::Whole } else { Rule::Exact };
                assert_eq!(FanOutGroup::of(other as u8, &layout.shares, remote), None);
            }
        }
        let two = layout(&on(&[(3, 5), (7, 1)]), None).unwrap();
        assert_eq!(FanOutGroup::of(fanout_rule::ROUNDED, &[two.shares[1], two.shares[0]], 2), None, "order");
        let all = Share { members: [u64::MAX; MEMBER_WORDS], ifindex: 8, stride: 1 };
        assert_eq!(FanOutGroup::of(fanout_rule::ROUNDED, &[two.shares[0], all], 2), None, "too many members");
        assert_eq!(FanOutGroup::of(fanout_rule::EXACT, &[all, all, all], 1), None, "two of this host");
    }

    #[test]
    fn equal_needs_make_equal_groups() {
        let one = layout(&[5, 3, 5], Some(9)).unwrap();
        let other = layout(&[3, 5, 5], Some(9)).unwrap();
        assert_eq!(one.group, other.group);
        assert_ne!(one.shares, other.shares);
    }
}
