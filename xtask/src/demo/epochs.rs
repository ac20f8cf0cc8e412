//! The expert maps of a run, epoch after epoch: where the experts are in each, and when it is its turn.

use fastrand::Rng;

use super::{model::Shape, placement::Placement};

/// Most changes of a run. The daemon keeps up to 128 older tables of a layer for senders that still go by them.
pub(super) const MAX_CHANGES: u16 = 100;

/// An expert map: the first, or a change.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Epoch {
    /// Its number, from 1 on.
    pub number: u16,
    /// Whether layers that are not in it stay as they are.
    pub partial: bool,
    /// Layer -> where its experts are, for the layers in it.
    pub layers: Vec<Option<Placement>>,
    /// Experts that change their nodes, over all layers.
    pub experts_moved: u64,
}

impl Epoch {
    /// Layers in it.
    pub(super) fn layers(&self) -> u16 {
        self.layers.iter().flatten().count() as u16
    }
}

/// The maps of a run.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Epochs {
    all: Vec<Epoch>,
    nodes: u32,
    tokens: usize,
}

impl Epochs {
    /// The first map and `changes` more, full and partial ones in turn, spread over `tokens` tokens. The same seed gives the
    /// same maps.
    pub(super) fn draw(shape: Shape, nodes: u32, changes: u16, tokens: usize, seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let mut now = vec![Placement::consecutive(shape.experts, nodes); shape.layers.into()];
        let first = now.iter().cloned().map(Some).collect();
        let mut all = vec![Epoch { number: 1, partial: false, layers: first, experts_moved: 0 }];
        for change in 1..=changes {
            let partial = change % 2 == 0;
            let in_it = if partial { now.len().div_ceil(4) } else { now.len() };
            let experts = (shape.experts as usize / 8).max(2);
            let mut layers = vec![None; now.len()];
            let mut experts_moved = 0;
            for layer in rng.choose_multiple(0..now.len(), in_it) {
                // Two of three leave nodes with as many experts as they have.
                let moved = if change % 3 == 0 {
                    now[layer].gathered(experts, &mut rng)
                } else {
                    now[layer].exchanged(experts / 2, &mut rng)
                };
                experts_moved += moved.moved_since(&now[layer]);
                now[layer] = moved.clone();
                layers[layer] = Some(moved);
            }
            all.push(Epoch { number: change + 1, partial, layers, experts_moved });
        }
        Self { all, nodes, tokens }
    }

    /// All of them, the first map first.
    pub(super) fn all(&self) -> &[Epoch] {
        &self.all
    }

    /// Expert nodes.
    pub(super) fn nodes(&self) -> u32 {
        self.nodes
    }

    /// Where the experts of a layer are by the map of this epoch; none where it does not have the layer.
    pub(super) fn placement(&self, epoch: u16, layer: u16) -> Option<&Placement> {
        let epoch = self.all.get(usize::from(epoch).checked_sub(1)?)?;
        epoch.layers.get(usize::from(layer))?.as_ref()
    }

    /// The token before which this epoch's map is sent, when the one before is in force: as many tokens go before the first
    /// change, between two, and after the last is in force.
    pub(super) fn turn(&self, epoch: usize) -> usize {
        // The first map is in force before all tokens, the last before one more turn.
        let turns = self.all.len() + 1;
        (epoch - 1) * self.tokens / turns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape { layers: 26, experts: 64, active: 6, groups: None };

    fn draw(changes: u16, tokens: usize) -> Epochs {
        Epochs::draw(SHAPE, 8, changes, tokens, 3)
    }

    #[test]
    fn full_and_partial_maps_take_turns() {
        let epochs = draw(12, 1000);
        let shape = |epoch: &Epoch| (epoch.number, epoch.partial, epoch.layers());
        assert_eq!(epochs.all().len(), 13);
        for pair in epochs.all()[1..].chunks(2) {
            let [full, partial] = pair else { panic!("{} epochs", epochs.all().len()) };
            // An eighth of the 64 experts of each layer moves.
            assert_eq!((full.partial, full.layers(), full.experts_moved), (false, 26, 208));
            assert_eq!((partial.partial, partial.layers(), partial.experts_moved), (true, 7, 56));
        }
        assert_eq!(shape(&epochs.all()[0]), (1, false, 26));
        assert_eq!(shape(&epochs.all()[12]), (13, true, 7));
    }

    #[test]
    fn each_map_moves_the_experts_of_the_one_before() {
        let epochs = draw(12, 1000);
        let mut now = epochs.all()[0].layers.clone();
        for epoch in &epochs.all()[1..] {
            let mut moved = 0;
            for (layer, before) in now.iter_mut().enumerate() {
                let Some(after) = &epoch.layers[layer] else { continue };
                moved += after.moved_since(before.as_ref().unwrap());
                *before = Some(after.clone());
            }
            assert_eq!(epoch.experts_moved, moved, "epoch {}", epoch.number);
        }
        // Every third change gathers: slots for more experts than the eight that each node had.
        let slots = |epoch: u16| epochs.placement(epoch, 0).unwrap().slots().len();
        assert_eq!(slots(2), 64);
        assert_eq!(slots(4), 128);
    }

    #[test]
    fn a_layer_has_a_placement_in_the_maps_that_have_it() {
        let epochs = draw(2, 1000);
        assert_eq!(epochs.placement(1, 25), Some(&Placement::consecutive(64, 8)));
        assert_eq!((0..26).filter(|&layer| epochs.placement(3, layer).is_some()).count(), 7);
        for (epoch, layer) in [(0, 0), (4, 0), (1, 26)] {
            assert_eq!(epochs.placement(epoch, layer), None, "epoch {epoch}, layer {layer}");
        }
    }

    #[test]
    fn the_seed_decides() {
        assert_eq!(draw(12, 1000), draw(12, 1000));
        assert_ne!(draw(12, 1000), Epochs::draw(SHAPE, 8, 12, 1000, 4));
    }

    #[test]
    fn changes_are_spread_over_the_tokens() {
        let turns = |changes, tokens| {
            let epochs = draw(changes, tokens);
            (2..=usize::from(changes) + 2).map(|epoch| epochs.turn(epoch)).collect::<Vec<_>>()
        };
        // The last turn is that of the tokens after the last change.
        assert_eq!(turns(3, 1000), [200, 400, 600, 800]);
        assert_eq!(turns(3, 2), [0, 0, 1, 1]);
        assert_eq!(turns(0, 10), [5]);
    }

    #[test]
    fn the_smallest_clusters_and_models_have_maps_too() {
        let shape = Shape { layers: 1, experts: 1, active: 1, groups: None };
        let epochs = Epochs::draw(shape, 1, 4, 10, 1);
        assert!(epochs.all().iter().all(|epoch| epoch.layers() == 1 && epoch.experts_moved == 0));
        let nodes = Epochs::draw(Shape { experts: 8, ..SHAPE }, 128, 12, 10, 1);
        assert!(nodes.all()[1..].iter().all(|epoch| epoch.experts_moved > 0));
    }
}
