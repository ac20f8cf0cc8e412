use std::time::Duration;

use serde_json::json;

use super::*;
use crate::models::state::StateError;

/// A map of two experts on two nodes: slots by layer.
fn map(model: &str, epoch: u64, layers: &[u16]) -> ExpertMap {
    parse(model, epoch, layers, &json!({}))
}

fn parse(model: &str, epoch: u64, layers: &[u16], more: &serde_json::Value) -> ExpertMap {
    let layer = |layer: &u16| (layer.to_string(), json!({ "physical_to_logical_map": [0, 1] }));
    let mut document = json!({
        "version": 1, "model": model, "epoch": epoch, "logical_experts": 2,
        "ranks": [{ "rank": 0, "node": "a" }, { "rank": 1, "node": "b" }],
        "layers": layers.iter().map(layer).collect::<serde_json::Map<_, _>>(),
    });
    document.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    ExpertMap::parse(document.to_string().as_bytes()).unwrap_or_else(|faults| panic!("{faults}"))
}

fn patch(model: &str, epoch: u64, layers: &[u16]) -> ExpertMap {
    parse(model, epoch, layers, &json!({ "partial": true }))
}

fn at(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

const GRACE: Duration = Duration::from_secs(10);

fn models() -> Models {
    let configured = [("fixed".to_owned(), [0, 1].into())].into();
    Models::new(configured, GRACE)
}

/// Table and generation of each layer of the answer.
fn take(models: &mut Models, map: ExpertMap, now: Duration) -> BTreeMap<u16, (u16, u8)> {
    let plan = models.plan(map, now).unwrap_or_else(|refusal| panic!("{refusal}"));
    let installed = models.commit(plan, now);
    installed.layers.into_iter().map(|(layer, table)| (layer, (table.table, table.generation))).collect()
}

fn id(table: u16, generation: u8) -> BiftId {
    BiftId::expert(table, generation).unwrap()
}

#[test]
fn tables_get_the_lowest_free_numbers_and_generations_that_follow_from_the_epoch() {
    let mut models = models();
    assert_eq!(take(&mut models, map("m", 7, &[3, 9]), at(0)), [(3, (2, 8)), (9, (3, 8))].into());
    assert_eq!(take(&mut models, map("n", 255, &[0]), at(0)), [(0, (4, 1))].into(), "1 + 255 mod 255");
    assert_eq!(take(&mut models, patch("m", 8, &[9]), at(1)), [(9, (3, 9))].into());
    // Layer 3 has its number still, and its own epoch.
    let m = models.get("m").unwrap().installed();
    assert_eq!((m.epoch, m.bit_string_length), (8, 64));
    assert_eq!((m.layers[&3].epoch, m.layers[&3].bift_id), (7, id(2, 8).get()));
    assert_eq!((m.layers[&9].epoch, m.layers[&9].alias), (8, id(3, 0).get()));
    // A generation in force is not given out: 263 = 8 + 255.
    assert_eq!(take(&mut models, patch("m", 263, &[9]), at(2)), [(9, (3, 10))].into());
}

#[test]
fn a_generation_rests_after_it_went_out_of_force() {
    let mut models = models();
    take(&mut models, map("m", 7, &[0]), at(0));
    take(&mut models, map("m", 8, &[0]), at(0));
    assert_eq!(models.expired(at(9_999)), None);
    assert_eq!(models.next_expiry(), Some(at(10_000)));
    assert_eq!(models.expired(at(10_000)), Some(id(2, 8)));
    assert_eq!(models.expired(at(10_000)), None);
    let generation = |models: &Models, now| models.plan(map("m", 262, &[0]), now).unwrap().layers[&0].own;
    assert_eq!(generation(&models, at(10_999)), id(2, 10), "8 rests, 9 is in force");
    assert_eq!(generation(&models, at(11_000)), id(2, 8));
}

#[test]
fn a_full_map_takes_layers_away_and_a_partial_one_does_not() {
    let mut models = models();
    take(&mut models, map("m", 1, &[0, 1]), at(0));
    let plan = models.plan(patch("m", 2, &[2]), at(0)).unwrap();
    assert_eq!((plan.dropped.len(), plan.model.tables().len()), (0, 3));
    let plan = models.plan(map("m", 2, &[1]), at(0)).unwrap();
    assert_eq!(plan.dropped, [id(2, 0)]);
    models.commit(plan, at(0));
    let epochs = models.epochs("m", at(4_000)).unwrap();
    assert_eq!(epochs.layers[&0].epoch, None, "its table is in force all the same");
    assert_eq!(epochs.layers[&0].superseded.len(), 1);
    let [older] = epochs.layers[&1].superseded[..] else { panic!("{epochs:?}") };
    assert_eq!((older.epoch, older.bift_id, older.seconds_left), (1, id(3, 2).get(), 6.0));
    assert_eq!(models.superseded(), 2);
    // The number of the layer that is gone is not given out while its table is in force.
    assert_eq!(take(&mut models, patch("m", 3, &[5]), at(5_000)), [(5, (4, 4))].into());
}

#[test]
fn epochs_ascend_and_a_refusal_changes_nothing() {
    let mut models = models();
    take(&mut models, map("m", 5, &[0]), at(0));
    let before = models.get("m").unwrap().clone();
    for (map, refusal) in [
        (map("m", 5, &[0]), Refusal::StaleEpoch { epoch: 5, current: 5 }),
        (patch("m", 4, &[0]), Refusal::StaleEpoch { epoch: 4, current: 5 }),
        (patch("other", 4, &[0]), Refusal::UnknownModel("other".to_owned())),
        (map("fixed", 4, &[0]), Refusal::Configured("fixed".to_owned())),
        (
            parse("m", 6, &[0], &json!({ "first_table": 1 })),
            Refusal::fault("first_table", "gives layer 0 table 1, which `fixed` has; give another"),
        ),
        (
            parse("m", 6, &[0], &json!({ "partial": true, "first_table": 9 })),
            Refusal::fault("first_table", "not that of the map in force; put a full map to change it"),
        ),
        (
            parse("m", 6, &[0], &json!({ "partial": true, "ranks": [{ "rank": 0, "node": "a" }] })),
            Refusal::fault("ranks", "not the ranks of the map in force; put a full map to change it"),
        ),
    ] {
        assert_eq!(models.plan(map, at(0)).unwrap_err(), refusal);
        assert_eq!(*models.get("m").unwrap(), before);
    }
    assert_eq!(models.get("x").unwrap_err(), Refusal::UnknownModel("x".to_owned()));
}

#[test]
fn a_map_may_say_the_numbers_and_change_them() {
    let mut models = models();
    assert_eq!(
        take(&mut models, parse("m", 1, &[3, 4], &json!({ "first_table": 7 })), at(0)),
        [(3, (10, 2)), (4, (11, 2))].into()
    );
    assert_eq!(take(&mut models, patch("m", 2, &[5]), at(0)), [(5, (12, 3))].into());
    // Layer 3 takes the number that layer 4 had: no generation of it twice, and its alias goes on.
    let plan = models.plan(parse("m", 256, &[3], &json!({ "first_table": 8 })), at(0)).unwrap();
    assert_eq!(plan.layers[&3], Ids { own: id(11, 3), alias: id(11, 0) });
    assert_eq!(plan.dropped, [id(10, 0), id(12, 0)]);
}

#[test]
fn what_is_deleted_is_gone_and_its_numbers_rest() {
    let mut models = models();
    take(&mut models, map("m", 1, &[0]), at(0));
    take(&mut models, map("m", 2, &[0]), at(0));
    take(&mut models, map("n", 2, &[0]), at(0));
    assert_eq!(models.ids_of("m").unwrap(), [id(2, 3), id(2, 0), id(2, 2)]);
    assert_eq!(models.remove("m", at(0)), Ok(Deleted { model: "m".to_owned(), epoch: 2 }));
    assert!(models.remove("m", at(0)).is_err());
    assert_eq!((models.superseded(), models.summaries().len()), (0, 1));
    // Others get a number last that somebody had: senders may know its alias. Who had it gets it again.
    assert_eq!(take(&mut models, map("o", 1, &[0]), at(500)), [(0, (4, 2))].into());
    assert_eq!(take(&mut models, map("m", 1, &[0]), at(999)), [(0, (2, 4))].into(), "2 and 3 rest");
    models.remove("m", at(1_000)).unwrap();
    assert_eq!(take(&mut models, map("m", 1, &[0]), at(2_000)), [(0, (2, 2))].into());
    models.remove("m", at(2_000)).unwrap();
    let all: Vec<u16> = (0..2043).collect();
    assert_eq!(take(&mut models, map("p", 1, &all), at(9_000)).len(), 2043, "5 to 2047");
    assert_eq!(take(&mut models, map("q", 1, &[0]), at(9_000)), [(0, (2, 2))].into());
    assert!(matches!(
        models.plan(map("r", 1, &[0]), at(9_000)),
        Err(Refusal::NoRoom { retry_after: None, .. })
    ));
}

#[test]
fn room_is_made_by_the_oldest_but_not_by_the_newest() {
    let mut models = models();
    take(&mut models, map("m", 0, &[0]), at(0));
    for epoch in 1..=129 {
        take(&mut models, map("m", epoch, &[0]), at(epoch));
    }
    assert_eq!(models.superseded(), 129);
    assert_eq!(models.crowded(false, at(100)), None, "it was superseded 99 ms ago");
    assert_eq!(models.crowded(false, at(101)), Some(id(2, 1)));
    assert_eq!(models.crowded(false, at(101)), None, "128 of a table may be in force");
    assert_eq!(models.crowded(true, at(200)), Some(id(2, 2)));
    // All generations in force or at rest: 256 maps within a second.
    let refused = (130..).find(|&epoch| {
        let plan = models.plan(map("m", epoch, &[0]), at(200));
        plan.map(|plan| models.commit(plan, at(200))).is_err()
    });
    assert_eq!(refused, Some(255));
}

#[test]
fn many_tables_of_a_storm_make_room_together() {
    let mut models = models();
    let layers: Vec<u16> = (0..64).collect();
    for epoch in 0..=17 {
        take(&mut models, map("m", epoch, &layers), at(epoch));
    }
    assert_eq!(models.superseded(), 17 * 64);
    let mut retired = 0;
    while models.crowded(false, at(5_000)).is_some() {
        retired += 1;
    }
    assert_eq!(retired, 64, "1,024 may be in force");
}

#[test]
fn the_state_of_a_model_is_read_as_it_was_written() {
    let mut models = models();
    take(&mut models, map("m \"quoted\"", 7, &[3, 9]), at(0));
    take(&mut models, patch("m \"quoted\"", 8, &[9]), at(0));
    let model = models.get("m \"quoted\"").unwrap().clone();
    let text = model.to_state();
    assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok(), "{text}");
    assert_eq!(Model::from_state(&text).unwrap(), model);

    let before = model.before().unwrap();
    assert_eq!(before.tables().keys().collect::<Vec<_>>(), [&9], "layer 3 is as it was");
    assert_eq!((before.tables()[&9].epoch, before.tables()[&9].generation), (7, 8));

    // Every cut and every changed byte is seen.
    for end in 0..text.len() - 1 {
        assert!(Model::from_state(&text[..end]).is_err(), "cut at {end}");
    }
    for at in 0..text.len() - 1 {
        let mut damaged = text.clone().into_bytes();
        damaged[at] ^= 1;
        if let Ok(damaged) = String::from_utf8(damaged) {
            assert!(Model::from_state(&damaged).is_err(), "byte {at}: {damaged}");
        }
    }
    let other = |from: &str, to: &str| {
        let state = text.split_once("\"state\":").unwrap().1.trim_end().strip_suffix('}').unwrap();
        let state = state.replace(from, to);
        let sum = crc32fast::hash(state.as_bytes());
        Model::from_state(&format!("{{\"checksum\":\"crc32:{sum:08x}\",\"state\":{state}}}")).unwrap_err()
    };
    assert!(matches!(other("{\"version\":1,", "{\"version\":2,"), StateError::Version(2)));
    assert!(matches!(other("\"9\":[3,9,8]", "\"8\":[3,9,8]"), StateError::Tables));
    assert!(matches!(other("\"9\":[3,9,8]", "\"9\":[3,0,8]"), StateError::Tables));
    assert!(matches!(other("\"9\":[3,9,8]", "\"9\":[2048,9,8]"), StateError::Tables));
    assert!(matches!(other("[0, 1]", "[0, 2]"), StateError::Map(_)));
}

#[test]
fn a_model_knows_what_was_before_each_layer() {
    let mut models = models();
    let before = |models: &Models| -> Vec<(u16, u64)> {
        let before = models.get("m").unwrap().before();
        let tables = before.into_iter().flat_map(|before| before.tables().clone());
        tables.map(|(layer, table)| (layer, table.epoch)).collect()
    };
    take(&mut models, map("m", 1, &[0, 1, 2]), at(0));
    assert_eq!(before(&models), []);
    take(&mut models, patch("m", 2, &[1]), at(0));
    take(&mut models, patch("m", 3, &[2, 7]), at(0));
    assert_eq!(before(&models), [(1, 1), (2, 1)]);
    take(&mut models, patch("m", 4, &[1]), at(0));
    assert_eq!(before(&models), [(1, 2), (2, 1)]);
    take(&mut models, map("m", 5, &[0]), at(0));
    assert_eq!(before(&models), [(0, 1), (1, 4), (2, 3), (7, 3)]);
    let ranks = json!({ "ranks": [{ "rank": 0, "node": "a" }] });
    take(&mut models, parse("m", 6, &[0], &ranks), at(0));
    assert_eq!(before(&models), [(0, 5), (1, 4), (2, 3), (7, 3)], "of the ranks that layer 0 was of before");
    take(&mut models, map("m", 7, &[0]), at(0));
    assert_eq!(before(&models), [(0, 6)], "slots of other ranks mean something else");
}

#[test]
fn a_restored_model_keeps_its_numbers_if_it_can() {
    let mut before = Models::new(BTreeMap::new(), GRACE);
    take(&mut before, map("m", 7, &[0, 1]), at(0));
    let model = before.get("m").unwrap().clone();

    let mut same = Models::new(BTreeMap::new(), GRACE);
    assert_eq!(same.restore(vec![model.clone()], &BTreeSet::new()), []);
    assert_eq!(*same.get("m").unwrap(), model);
    // What is found in the kernel beside it may still be in use.
    same.found(id(0, 7), Some(("m".to_owned(), 0, 6)), at(0));
    same.found(id(9, 7), None, at(0));
    assert_eq!(same.epochs("m", at(0)).unwrap().layers[&0].superseded[0].epoch, 6);
    assert_eq!(same.expired(at(10_000)), Some(id(0, 7)));

    // The configuration has taken tables 0 and 1 since then.
    let mut changed = models();
    assert_eq!(changed.restore(vec![model.clone()], &BTreeSet::new()), []);
    let tables = changed.get("m").unwrap().tables();
    assert_eq!((tables[&0].table, tables[&1].table, tables[&0].epoch), (2, 3, 7));
    let mut configured = Models::new([("m".to_owned(), [5].into())].into(), GRACE);
    let refused = configured.restore(vec![model.clone()], &BTreeSet::new());
    assert_eq!(refused, [(model, Refusal::Configured("m".to_owned()))]);
}

/// Only who has to move moves, and to nothing that frames may name.
#[test]
fn a_model_that_has_to_move_takes_nothing_from_others() {
    let mut before = Models::new(BTreeMap::new(), GRACE);
    take(&mut before, map("a", 1, &[0]), at(0));
    take(&mut before, map("b", 1, &[0]), at(0));
    let kept: Vec<_> = before.all().cloned().collect();
    let mut after = Models::new([("fixed".to_owned(), [0].into())].into(), GRACE);
    // Beside b's table, table 2 is in force in this generation: whose it was is not known.
    let in_force = [id(0, 2), id(1, 2), id(2, 2)].into();
    assert_eq!(after.restore(kept, &in_force), []);
    let tables = |name: &str| after.get(name).unwrap().tables()[&0];
    assert_eq!((tables("b").table, tables("b").generation), (1, 2));
    assert_eq!((tables("a").table, tables("a").generation), (3, 2));
    assert!(after.may_have_had("b", 0, 1) && after.may_have_had("a", 0, 7), "its own, and nobody's");
    assert!(!after.may_have_had("a", 0, 1), "b's");
    assert!(!after.may_have_had("b", 1, 1), "another layer's");
    assert!(!after.may_have_had("a", 0, 0), "the configuration's");
}

/// What was found in the kernel goes when its time is over, but not what a map has named again meanwhile.
#[test]
fn what_is_put_in_force_again_is_superseded_no_more() {
    let mut models = Models::new(BTreeMap::new(), GRACE);
    models.found(id(0, 0), None, at(0));
    models.found(id(0, 5), None, at(0));
    assert_eq!(
        take(&mut models, parse("m", 4, &[0], &json!({ "first_table": 0 })), at(1)),
        [(0, (0, 6))].into()
    );
    assert_eq!(models.expired(at(10_000)), Some(id(0, 5)), "its alias leads to the new table");
    assert_eq!(models.expired(at(60_000)), None);
}

#[test]
fn a_deletion_takes_all_of_a_model_and_nothing_of_others() {
    let mut models = models();
    let fixed = |epoch, first: u16| parse("a", epoch, &[0], &json!({ "first_table": first }));
    take(&mut models, fixed(1, 7), at(0));
    take(&mut models, fixed(2, 9), at(0));
    // b has the number now that a's table of before has.
    take(&mut models, parse("b", 5, &[0], &json!({ "first_table": 7 })), at(0));
    assert_eq!(models.ids_of("b").unwrap(), [id(7, 6), id(7, 0)]);
    assert_eq!(models.ids_of("a").unwrap(), [id(9, 3), id(9, 0), id(7, 2)]);
    assert_eq!(models.epochs("b", at(0)).unwrap().layers[&0].superseded, []);
    // A layer that is gone goes with the model too.
    take(&mut models, map("m", 1, &[0, 1]), at(0));
    take(&mut models, map("m", 2, &[0]), at(0));
    assert_eq!(models.ids_of("m").unwrap().len(), 4);
    // Frames may be under way that name the alias of what was deleted.
    models.remove("b", at(100)).unwrap();
    let again = |models: &Models, name: &str, now| {
        models.plan(parse(name, 9, &[0], &json!({ "first_table": 7 })), now).map(|plan| plan.layers[&0].alias)
    };
    assert!(matches!(again(&models, "c", at(1_099)), Err(Refusal::NoRoom { retry_after: Some(1), .. })));
    assert_eq!(again(&models, "b", at(1_099)), Ok(id(7, 0)), "it had it before");
    assert_eq!(again(&models, "c", at(1_100)), Ok(id(7, 0)));
}

#[test]
fn a_layer_beyond_the_last_table_is_refused_in_a_partial_map_too() {
    let mut models = models();
    take(&mut models, parse("p", 1, &[0], &json!({ "first_table": 2047 })), at(0));
    let refusal = models.plan(patch("p", 2, &[0, 1]), at(0)).unwrap_err();
    let Refusal::Invalid(faults) = refusal else { panic!("{refusal}") };
    assert_eq!(faults.faults[0].path, "layers.1");
}
