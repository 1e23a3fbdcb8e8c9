//! Data directories that etcd wrote, opened by our store: every recorded answer is ours too.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::path::PathBuf;

use keelson_recorded::dirs::{Directory, Instance, committed, json, unpack_file};
use keelson_recorded::dirs_compare::{Observed, acknowledged, differences};
use keelson_store::hash::hash_kv;
use serde_json::Value;

/// What follows the database in a saved snapshot.
const SHA256_BYTES: usize = 32;

fn data() -> PathBuf {
    let root = std::env::var_os("KEELSON_DATA").expect("KEELSON_DATA names the recorded data");
    PathBuf::from(root).join("etcd")
}

/// Who compacted: a server that does remembers the hash that it made of what it compacted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Compacted {
    /// An earlier run.
    Before,
    /// This one.
    Now,
}

/// A member's directory, and what is known about it.
struct Case {
    name: String,
    expected: Value,
    directory: Directory,
}

impl Case {
    fn load(variant: &str) -> Case {
        let folder = data().join(variant);
        let directory = Directory::unpack(&folder.join("member.tar.gz"));
        Case {
            name: variant.to_owned(),
            expected: json(&folder.join("expected.json")).unwrap(),
            directory: directory.unwrap(),
        }
    }

    /// Compares with what a server answered that was started on the directory, and with what the
    /// one answered that wrote it, if it was asked.
    fn compare(&self, instance: &mut Instance, moment: &str, compacted: Compacted) {
        let durable = instance.commit().unwrap();
        let mut found = Vec::new();
        for (server, like) in [("reopened", Compacted::Before), ("live", Compacted::Now)] {
            let answers = &self.expected[server];
            assert!(
                !answers.is_null() || server == "live",
                "{}: nothing to compare with",
                self.name
            );
            if !answers.is_null() {
                let observed = Observed {
                    answers,
                    compaction_hash: like == compacted,
                    // A restore leaves the configuration of the cluster that was saved in the
                    // file, and etcd leaves it there; ours is rewritten by every commit.
                    file_hash: self.expected["restore"].is_null(),
                };
                for difference in differences(instance.store.shared(), &durable, observed) {
                    found.push(format!("{server}: {difference}"));
                }
            }
        }
        let promises = &self.expected["acknowledged"];
        if !promises.is_null()
            && let Err(lost) = acknowledged(instance.store.shared(), promises)
        {
            found.push(format!("acknowledged: {lost:#}"));
        }
        assert!(
            found.is_empty(),
            "{} {moment}:\n{}",
            self.name,
            found.join("\n")
        );
    }
}

/// Opens the directory, brings it up to its log, and compares; then again from the file.
fn answers_as_recorded(variant: &str) {
    let case = Case::load(variant);
    let mut instance = Instance::open(&case.directory.database()).unwrap();
    let replay = case.directory.log().unwrap();
    let entries = committed(&replay, &instance.store);
    let applied = instance.apply(&entries).unwrap();
    instance.finish_compactions().unwrap();
    if !case.expected["restore"].is_null() {
        instance.publish(&case.expected["reopened"]).unwrap();
    }
    case.compare(
        &mut instance,
        &format!("after {applied} entries"),
        Compacted::Before,
    );
    let mut instance = instance.restart().unwrap();
    case.compare(&mut instance, "after a restart", Compacted::Before);
    instance.committer.defragment().unwrap();
    let mut instance = instance.restart().unwrap();
    case.compare(
        &mut instance,
        "after a defragmentation and a restart",
        Compacted::Before,
    );
}

/// Makes the state anew from the whole log, from an empty file on, and compares with what the
/// server answered whose log it is: even the hashes that its compactions left, and its file's.
fn the_log_alone_answers_as_recorded(variant: &str) {
    let case = Case::load(variant);
    std::fs::remove_file(case.directory.database()).unwrap();
    let mut instance = Instance::open(&case.directory.database()).unwrap();
    let replay = case.directory.whole_log().unwrap();
    let applied = instance.apply(&replay.entries).unwrap();
    assert!(applied > 30, "{variant}: {applied} entries");
    case.compare(
        &mut instance,
        &format!("after {applied} entries"),
        Compacted::Now,
    );
    let mut instance = instance.restart().unwrap();
    case.compare(&mut instance, "after a restart", Compacted::Before);
}

#[test]
fn etcd_3_5_auth_answers_as_recorded() {
    answers_as_recorded("3.5/auth");
}

#[test]
fn etcd_3_5_autocompact_answers_as_recorded() {
    answers_as_recorded("3.5/autocompact");
}

#[test]
fn etcd_3_5_basic_answers_as_recorded() {
    answers_as_recorded("3.5/basic");
}

#[test]
fn etcd_3_5_defragged_answers_as_recorded() {
    answers_as_recorded("3.5/defragged");
}

#[test]
fn etcd_3_5_killed_answers_as_recorded() {
    answers_as_recorded("3.5/killed");
}

#[test]
fn etcd_3_5_killed_compacting_answers_as_recorded() {
    answers_as_recorded("3.5/killed-compacting");
}

#[test]
fn etcd_3_5_learner_answers_as_recorded() {
    answers_as_recorded("3.5/learner");
}

#[test]
fn etcd_3_5_nospace_answers_as_recorded() {
    answers_as_recorded("3.5/nospace");
}

#[test]
fn etcd_3_5_restored_answers_as_recorded() {
    answers_as_recorded("3.5/restored");
}

#[test]
fn etcd_3_5_segments_answers_as_recorded() {
    answers_as_recorded("3.5/segments");
}

#[test]
fn etcd_3_6_auth_answers_as_recorded() {
    answers_as_recorded("3.6/auth");
}

#[test]
fn etcd_3_6_autocompact_answers_as_recorded() {
    answers_as_recorded("3.6/autocompact");
}

#[test]
fn etcd_3_6_basic_answers_as_recorded() {
    answers_as_recorded("3.6/basic");
}

#[test]
fn etcd_3_6_defragged_answers_as_recorded() {
    answers_as_recorded("3.6/defragged");
}

#[test]
fn etcd_3_6_killed_answers_as_recorded() {
    answers_as_recorded("3.6/killed");
}

#[test]
fn etcd_3_6_killed_compacting_answers_as_recorded() {
    answers_as_recorded("3.6/killed-compacting");
}

#[test]
fn etcd_3_6_learner_answers_as_recorded() {
    answers_as_recorded("3.6/learner");
}

#[test]
fn etcd_3_6_nospace_answers_as_recorded() {
    answers_as_recorded("3.6/nospace");
}

#[test]
fn etcd_3_6_restored_bumped_answers_as_recorded() {
    answers_as_recorded("3.6/restored-bumped");
}

#[test]
fn etcd_3_6_segments_answers_as_recorded() {
    answers_as_recorded("3.6/segments");
}

#[test]
fn etcd_3_6_upgraded_from_3_5_answers_as_recorded() {
    answers_as_recorded("3.6/upgraded-from-3.5");
}

#[test]
fn etcd_3_7_auth_answers_as_recorded() {
    answers_as_recorded("3.7/auth");
}

#[test]
fn etcd_3_7_autocompact_answers_as_recorded() {
    answers_as_recorded("3.7/autocompact");
}

#[test]
fn etcd_3_7_basic_answers_as_recorded() {
    answers_as_recorded("3.7/basic");
}

#[test]
fn etcd_3_7_defragged_answers_as_recorded() {
    answers_as_recorded("3.7/defragged");
}

#[test]
fn etcd_3_7_downgrading_answers_as_recorded() {
    answers_as_recorded("3.7/downgrading");
}

#[test]
fn etcd_3_7_killed_answers_as_recorded() {
    answers_as_recorded("3.7/killed");
}

#[test]
fn etcd_3_7_killed_compacting_answers_as_recorded() {
    answers_as_recorded("3.7/killed-compacting");
}

#[test]
fn etcd_3_7_learner_answers_as_recorded() {
    answers_as_recorded("3.7/learner");
}

#[test]
fn etcd_3_7_nospace_answers_as_recorded() {
    answers_as_recorded("3.7/nospace");
}

#[test]
fn etcd_3_7_restored_bumped_answers_as_recorded() {
    answers_as_recorded("3.7/restored-bumped");
}

#[test]
fn etcd_3_7_segments_answers_as_recorded() {
    answers_as_recorded("3.7/segments");
}

#[test]
fn etcd_3_7_upgraded_from_3_5_and_3_6_answers_as_recorded() {
    answers_as_recorded("3.7/upgraded-from-3.5-and-3.6");
}

#[test]
fn the_log_of_etcd_3_5_auth_alone_answers_as_recorded() {
    the_log_alone_answers_as_recorded("3.5/auth");
}

#[test]
fn the_log_of_etcd_3_5_autocompact_alone_answers_as_recorded() {
    the_log_alone_answers_as_recorded("3.5/autocompact");
}

#[test]
fn the_log_of_etcd_3_5_basic_alone_answers_as_recorded() {
    the_log_alone_answers_as_recorded("3.5/basic");
}

#[test]
fn the_log_of_etcd_3_5_killed_alone_answers_as_recorded() {
    the_log_alone_answers_as_recorded("3.5/killed");
}

#[test]
fn the_log_of_etcd_3_5_killed_compacting_alone_answers_as_recorded() {
    the_log_alone_answers_as_recorded("3.5/killed-compacting");
}

#[test]
fn the_log_of_etcd_3_5_learner_alone_answers_as_recorded() {
    the_log_alone_answers_as_recorded("3.5/learner");
}

#[test]
fn the_log_of_etcd_3_5_nospace_alone_answers_as_recorded() {
    the_log_alone_answers_as_recorded("3.5/nospace");
}

#[test]
fn the_log_of_etcd_3_5_segments_alone_answers_as_recorded() {
    the_log_alone_answers_as_recorded("3.5/segments");
}

#[test]
fn the_log_of_etcd_3_6_auth_alone_answers_as_recorded() {
    the_log_alone_answers_as_recorded("3.6/auth");
}

#[test]
fn the_log_of_etcd_3_6_autocompact_alone_answers_as_recorded() {
    the_log_alone_answers_as_recorded("3.6/autocompact");
}

#[test]
fn the_log_of_etcd_3_6_basic_alone_answers_as_recorded() {
    the_log_alone_answers_as_recorded("3.6/basic");
}

#[test]
fn the_log_of_etcd_3_6_killed_alone_answers_as_recorded() {
    the_log_alone_answers_as_recorded("3.6/killed");
}

#[test]
fn the_log_of_etcd_3_6_killed_compacting_alone_answers_as_recorded() {
    the_log_alone_answers_as_recorded("3.6/killed-compacting");
}

#[test]
fn the_log_of_etcd_3_6_learner_alone_answers_as_recorded() {
    the_log_alone_answers_as_recorded("3.6/learner");
}

#[test]
fn the_log_of_etcd_3_6_nospace_alone_answers_as_recorded() {
    the_log_alone_answers_as_recorded("3.6/nospace");
}

#[test]
fn the_log_of_etcd_3_6_segments_alone_answers_as_recorded() {
    the_log_alone_answers_as_recorded("3.6/segments");
}

#[test]
fn the_log_of_etcd_3_7_auth_alone_answers_as_recorded() {
    the_log_alone_answers_as_recorded("3.7/auth");
}

#[test]
fn the_log_of_etcd_3_7_autocompact_alone_answers_as_recorded() {
    the_log_alone_answers_as_recorded("3.7/autocompact");
}

#[test]
fn the_log_of_etcd_3_7_basic_alone_answers_as_recorded() {
    the_log_alone_answers_as_recorded("3.7/basic");
}

#[test]
fn the_log_of_etcd_3_7_killed_alone_answers_as_recorded() {
    the_log_alone_answers_as_recorded("3.7/killed");
}

#[test]
fn the_log_of_etcd_3_7_killed_compacting_alone_answers_as_recorded() {
    the_log_alone_answers_as_recorded("3.7/killed-compacting");
}

#[test]
fn the_log_of_etcd_3_7_learner_alone_answers_as_recorded() {
    the_log_alone_answers_as_recorded("3.7/learner");
}

#[test]
fn the_log_of_etcd_3_7_nospace_alone_answers_as_recorded() {
    the_log_alone_answers_as_recorded("3.7/nospace");
}

#[test]
fn the_log_of_etcd_3_7_segments_alone_answers_as_recorded() {
    the_log_alone_answers_as_recorded("3.7/segments");
}

#[test]
fn the_log_of_etcd_3_7_downgrading_alone_answers_as_recorded() {
    the_log_alone_answers_as_recorded("3.7/downgrading");
}

/// The three members of a cluster, each by itself.
#[test]
fn members_of_clusters_answer_as_recorded() {
    for version in ["3.5", "3.6", "3.7"] {
        let folder = data().join(version).join("cluster3");
        let expected = json(&folder.join("expected.json")).unwrap();
        for (member, live, reopened) in [
            ("m1", "live", "reopened"),
            ("m2", "live_m2", "reopened_m2"),
            ("m3", "live_m3", "reopened_m3"),
        ] {
            let archive = folder.join(format!("{member}.tar.gz"));
            let case = Case {
                name: format!("{version}/cluster3/{member}"),
                expected: serde_json::json!({
                    "live": expected[live],
                    "reopened": expected[reopened],
                }),
                directory: Directory::unpack(&archive).unwrap(),
            };
            let mut instance = Instance::open(&case.directory.database()).unwrap();
            let replay = case.directory.log().unwrap();
            let entries = committed(&replay, &instance.store);
            instance.apply(&entries).unwrap();
            case.compare(&mut instance, "after its entries", Compacted::Before);
        }
    }
}

/// Database images that `snapshot save` wrote.
#[test]
fn saved_snapshots_answer_as_recorded() {
    let folder = data().with_file_name("snapshots");
    let temporary = tempfile::tempdir().unwrap();
    for (version, variant) in [
        ("3.5", "basic"),
        ("3.5", "auth"),
        ("3.6", "basic"),
        ("3.6", "auth"),
        ("3.7", "basic"),
        ("3.7", "auth"),
    ] {
        let name = format!("{version}-{variant}.db");
        let path = temporary.path().join(&name);
        unpack_file(&folder.join(format!("{name}.gz")), &path, SHA256_BYTES).unwrap();
        let mut instance = Instance::open(&path).unwrap();
        let durable = instance.commit().unwrap();
        let known = json(&folder.join(format!("{name}.json"))).unwrap();
        let observed = Observed {
            answers: &known["observed"],
            compaction_hash: false,
            file_hash: true,
        };
        let found = differences(instance.store.shared(), &durable, observed);
        assert!(found.is_empty(), "{name}:\n{}", found.join("\n"));
    }
}

/// Files that are no whole database end in an error; what is missing behind it does no harm.
#[test]
fn damaged_snapshots_are_errors_unless_the_database_is_whole() {
    let folder = data().with_file_name("snapshots");
    let temporary = tempfile::tempdir().unwrap();
    for (name, opens) in [
        ("bad-trailer.db", true),
        ("cut-trailer.db", true),
        ("no-trailer.db", true),
        // One bit in an unused part of a page.
        ("bad-body.db", true),
        // A new database.
        ("empty.db", true),
        ("cut-at-page.db", false),
        ("cut-in-middle.db", false),
        ("not-a-snapshot.db", false),
    ] {
        let path = temporary.path().join(name);
        std::fs::copy(folder.join(name), &path).unwrap();
        let opened = Instance::open(&path);
        assert_eq!(opened.is_ok(), opens, "{name}: {:?}", opened.err());
        if name != "empty.db"
            && let Ok(instance) = opened
        {
            let known = json(&folder.join("3.7-auth.db.json")).unwrap();
            let latest = hash_kv(instance.store.shared(), 0).unwrap();
            assert_eq!(
                known["observed"]["hashkv_latest"]["hash"], latest.hash,
                "{name}"
            );
        }
    }
}
