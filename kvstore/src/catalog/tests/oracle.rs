//! Append, remove, crash and reopen at random, beside a map that cannot crash.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Op {
    /// A run of new blocks.
    Append {
        namespace: u8,
        count: u64,
    },
    /// Some of those that are there.
    Remove(Vec<prop::sample::Index>),
    /// One namespace, whole.
    RemoveNamespace(u8),
    Sync,
    /// The process ends in good order.
    Restart,
    /// The process is killed: what was acknowledged is there.
    Kill,
    /// The machine loses power: files are cut to what was synced last, or anything behind it.
    LosePower {
        kept_of_log: prop::sample::Index,
    },
}

fn ops() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (0..3u8, 1..40u64).prop_map(|(namespace, count)| Op::Append { namespace, count }),
        4 => prop::collection::vec(any::<prop::sample::Index>(), 1..20).prop_map(Op::Remove),
        1 => (0..3u8).prop_map(Op::RemoveNamespace),
        2 => Just(Op::Sync),
        1 => Just(Op::Restart),
        2 => Just(Op::Kill),
        1 => any::<prop::sample::Index>().prop_map(|kept_of_log| Op::LosePower { kept_of_log }),
    ]
}

type Model = BTreeMap<(NamespaceId, u64), Record>;

/// Everything there is: in key order, as the model has it.
fn loaded(catalog: &Catalog) -> Model {
    let (records, stats) = load(catalog, 2);
    assert_eq!((stats.undecodable, stats.absent, stats.damaged), (0, 0, 0));
    let keys: Vec<_> = records.iter().map(|record| (record.namespace, record.sequence)).collect();
    assert!(keys.is_sorted_by(|a, b| a < b), "in key order, each once");
    keys.into_iter().zip(records).collect()
}

/// Cuts the log at any byte: what a disk that had not written all of it shows.
fn cut_log(dir: &Path, kept: prop::sample::Index) {
    let mut logs: Vec<_> =
        std::fs::read_dir(dir.join("catalog")).unwrap().map(|entry| entry.unwrap().path()).collect();
    logs.retain(|path| path.extension().is_some_and(|extension| extension == "log"));
    logs.sort();
    let Some(last) = logs.last() else { return };
    let bytes = std::fs::metadata(last).unwrap().len();
    std::fs::File::options()
        .write(true)
        .open(last)
        .unwrap()
        .set_len(kept.index(bytes as usize + 1) as u64)
        .unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    #[test]
    fn a_catalog_is_a_map_that_survives(ops in prop::collection::vec(ops(), 1..40)) {
        let mut home = tempfile::tempdir().unwrap();
        let (mut catalog, _) = open(home.path());
        let mut model = Model::new();
        // The model after each write since the last start that synced everything: power failure leaves one of them.
        let mut history = vec![model.clone()];
        let mut synced = 0;
        let mut highest = 0;
        for op in ops {
            match op {
                Op::Append { namespace, count } => {
                    let first = catalog.next_sequence(count);
                    prop_assert!(first > highest, "a number is given once");
                    highest = first + count - 1;
                    let records: Vec<Record> = (first..first + count).map(|n| record(namespace, n)).collect();
                    catalog.append(&records).unwrap();
                    model.extend(records.into_iter().map(|record| ((record.namespace, record.sequence), record)));
                    history.push(model.clone());
                }
                Op::Remove(picks) => {
                    let keys: Vec<_> = model.keys().copied().collect();
                    let keys: Vec<_> =
                        picks.iter().filter(|_| !keys.is_empty()).map(|pick| *pick.get(&keys)).collect();
                    catalog.remove(&keys).unwrap();
                    keys.iter().for_each(|key| _ = model.remove(key));
                    history.push(model.clone());
                }
                Op::RemoveNamespace(namespace) => {
                    catalog.remove_namespace(&[namespace; 16]).unwrap();
                    model.retain(|(found, _), _| *found != [namespace; 16]);
                    history.push(model.clone());
                }
                Op::Sync => {
                    catalog.sync().unwrap();
                    synced = history.len() - 1;
                }
                Op::Restart => {
                    catalog.mark_clean(true).unwrap();
                    drop(catalog);
                    let opened;
                    (catalog, opened) = open(home.path());
                    prop_assert!(opened.clean);
                    prop_assert_eq!(&loaded(&catalog), &model);
                    (history, synced) = (vec![model.clone()], 0);
                }
                Op::Kill => {
                    let left = image(home.path());
                    drop(catalog);
                    home = left;
                    let opened;
                    (catalog, opened) = open(home.path());
                    prop_assert!(!opened.clean);
                    prop_assert_eq!(opened.start, Start::Kept);
                    prop_assert_eq!(&loaded(&catalog), &model);
                    (history, synced) = (vec![model.clone()], 0);
                }
                Op::LosePower { kept_of_log } => {
                    // Cut anywhere: it is some moment of its history, whether synced or not.
                    let left = image(home.path());
                    drop(catalog);
                    home = left;
                    cut_log(home.path(), kept_of_log);
                    let opened;
                    (catalog, opened) = open(home.path());
                    let found = loaded(&catalog);
                    let fresh = opened.start != Start::Kept;
                    prop_assert!(found.is_empty() && fresh || history.contains(&found), "a state that never was");
                    model = found;
                    highest = 0;
                    (history, synced) = (vec![model.clone()], 0);
                }
            }
        }
        prop_assert!(synced < history.len());
        prop_assert_eq!(loaded(&catalog), model);
    }
}
