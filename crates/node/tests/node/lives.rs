//! Writes, reads, restarts.

use keelson_store::Outcome;

use crate::rig::{Rig, config, delete};

#[test]
fn a_new_directory_elects_itself_and_serves_what_is_put() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(config(&dir.path().join("data")));
    assert!(rig.node.is_leader());
    assert_eq!(rig.node.status().leader, rig.node.member_id());
    assert_eq!(rig.get("a"), None);
    assert_eq!(rig.put("a", "1"), 2);
    assert_eq!(rig.put("a", "2"), 3);
    assert_eq!(rig.get("a").as_deref(), Some("2"));
    let outcome = rig.run(delete("a"));
    assert!(
        matches!(
            outcome,
            Outcome::Delete {
                revision: 4,
                deleted: 1,
                ..
            }
        ),
        "{outcome:?}"
    );
    assert_eq!(rig.get("a"), None);
    let events = rig.desk.events.lock().unwrap().clone();
    assert_eq!(events, [(2, 2), (3, 3), (4, 4)]);
    rig.node.stop();
}

#[test]
fn what_was_written_is_there_after_a_stop_and_a_start() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(config(dir.path()));
    let (member, cluster) = (rig.node.member_id(), rig.node.cluster_id());
    for key in 0..50 {
        rig.put(&format!("k{key}"), "v");
    }
    rig.node.stop();
    drop(rig);
    let rig = Rig::start(config(dir.path()));
    assert_eq!(
        (rig.node.member_id(), rig.node.cluster_id()),
        (member, cluster)
    );
    assert_eq!(rig.node.shared().revision(), 51);
    assert_eq!(rig.get("k49").as_deref(), Some("v"));
    assert_eq!(rig.put("more", "v"), 52);
    rig.node.stop();
}
