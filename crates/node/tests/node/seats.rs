//! Which thread applies what.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::thread;

use keelson_node::{Env, Node, Replies, Reply, Ticket};
use keelson_proto::rpc::etcdserverpb::InternalRaftRequest;

use crate::rig::{Desk, PATIENCE, Rig, compact, config, delete, put};

/// Answers of how many puts are looked at: on a busy machine apply's thread may be awake for some of them.
const PUTS: u32 = 100;

/// Remembers on which thread an answer was given.
struct Names {
    desk: Arc<Desk>,
    of: Mutex<BTreeMap<u32, String>>,
}

impl Replies for Names {
    fn deliver(&self, thread: u16, replies: Vec<(Ticket, Reply)>) {
        let name = thread::current().name().unwrap_or_default().to_owned();
        let answered = replies
            .iter()
            .map(|(ticket, _)| (ticket.slot, name.clone()));
        self.of.lock().unwrap().extend(answered);
        self.desk.deliver(thread, replies);
    }
}

#[test]
fn a_lone_put_is_applied_by_the_thread_that_synced_it_and_what_may_take_long_by_applys_own() {
    let dir = tempfile::tempdir().unwrap();
    let desk = Arc::new(Desk::default());
    let names = Arc::new(Names {
        desk: desk.clone(),
        of: Mutex::default(),
    });
    let node = Node::start(config(dir.path()), Env::real(), names.clone(), desk.clone()).unwrap();
    node.wait_ready(PATIENCE).unwrap();
    let rig = Rig { node, desk };
    let applied_by = |request: InternalRaftRequest| {
        let ticket = rig.desk.ticket();
        rig.node.propose(request, ticket).unwrap();
        let reply = rig.desk.wait(ticket);
        assert!(matches!(reply, Reply::Applied(_)), "{reply:?}");
        names.of.lock().unwrap().remove(&ticket.slot).unwrap()
    };

    let puts = (0..PUTS).map(|number| put(&format!("key/{number}"), "value"));
    let threads: BTreeSet<String> = puts.map(applied_by).collect();
    assert!(threads.contains("log"), "{threads:?}");

    let large = "v".repeat(64 << 10);
    for request in [put("large", &large), delete("key/1"), compact(50, false)] {
        assert_eq!(applied_by(request), "apply");
    }
    rig.node.stop();
}
