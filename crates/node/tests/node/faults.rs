//! Disks that are slow, and disks that fail.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use keelson_node::{Env, Node, Reply};
use keelson_proto::ApiError;

use crate::disk::{Onlooker, WatchedFiles};
use crate::rig::{Desk, PATIENCE, Rig, config, put};

/// What the disk does when it is told to sync.
#[derive(Debug, Default)]
struct Fault {
    fails: AtomicBool,
    /// Whether syncs wait, and how many do.
    holds: Mutex<(bool, u32)>,
    changed: Condvar,
}

impl Onlooker for Fault {
    fn sync(&self, _file: u64, sync: &dyn Fn() -> io::Result<()>) -> io::Result<()> {
        let mut holds = self.holds.lock().unwrap();
        if holds.0 {
            holds.1 += 1;
            self.changed.notify_all();
            holds = self.changed.wait_while(holds, |holds| holds.0).unwrap();
            holds.1 -= 1;
        }
        drop(holds);
        if self.fails.load(Ordering::SeqCst) {
            return Err(io::Error::other("the disk is gone"));
        }
        sync()
    }
}

impl Fault {
    fn hold(&self, hold: bool) {
        self.holds.lock().unwrap().0 = hold;
        self.changed.notify_all();
    }

    fn wait_until_held(&self) {
        let holds = self.holds.lock().unwrap();
        let (_holds, timeout) = self
            .changed
            .wait_timeout_while(holds, PATIENCE, |holds| holds.1 == 0)
            .unwrap();
        assert!(!timeout.timed_out(), "nothing was synced");
    }
}

struct Faulty {
    rig: Rig,
    fault: Arc<Fault>,
    failures: Arc<AtomicU32>,
}

fn start(dir: &Path) -> Faulty {
    let fault = Arc::new(Fault::default());
    let failures = Arc::new(AtomicU32::new(0));
    let counted = failures.clone();
    let env = Env {
        files: Arc::new(WatchedFiles::new(fault.clone())),
        failed: Arc::new(move |_| {
            counted.fetch_add(1, Ordering::SeqCst);
        }),
        ..Env::real()
    };
    let desk = Arc::new(Desk::default());
    let node = Node::start(config(dir), env, desk.clone(), desk.clone()).unwrap();
    node.wait_ready(PATIENCE).unwrap();
    let rig = Rig { node, desk };
    // What the member does by itself is through: nothing else will sync.
    rig.put_until("the cluster's version", |node| {
        node.shared().members().version().is_some()
    });
    Faulty {
        rig,
        fault,
        failures,
    }
}

#[test]
fn nobody_is_answered_before_the_disk_is() {
    let dir = tempfile::tempdir().unwrap();
    let Faulty {
        rig,
        fault,
        failures,
    } = start(dir.path());
    let revision = rig.node.shared().revision();
    fault.hold(true);
    let first = rig.propose(put("first", "1"));
    fault.wait_until_held();
    let others: Vec<_> = (0..100).map(|_| rig.propose(put("other", "1"))).collect();
    assert_eq!(
        rig.get("first"),
        None,
        "a read goes on meanwhile, and sees nothing of it"
    );
    assert_eq!(rig.node.shared().revision(), revision);
    assert!(!rig.desk.has(first));
    let batches = rig.node.stats().log_batches.get();
    fault.hold(false);
    for ticket in others.into_iter().chain([first]) {
        assert!(matches!(rig.desk.wait(ticket), Reply::Applied(_)));
    }
    let batches = rig.node.stats().log_batches.get() - batches;
    assert!(
        batches < 50,
        "what waited for the disk is written together, not in {batches} parts"
    );
    rig.node.stop();
    assert_eq!(failures.load(Ordering::SeqCst), 0);
}

#[test]
fn a_failed_sync_ends_the_member_and_is_told_once() {
    let dir = tempfile::tempdir().unwrap();
    let Faulty {
        rig,
        fault,
        failures,
    } = start(dir.path());
    rig.put("before", "1");
    fault.fails.store(true, Ordering::SeqCst);
    let lost = rig.propose(put("lost", "1"));
    let clock = rig.node.env().clock.clone();
    let deadline = clock.now() + PATIENCE;
    while rig.node.failure().is_none() {
        assert!(clock.now() < deadline, "the failure never showed");
        std::thread::yield_now();
    }
    assert!(rig.node.failure().unwrap().contains("the disk is gone"));
    let ticket = rig.desk.ticket();
    assert_eq!(
        rig.node.propose(put("more", "1"), ticket),
        Err(ApiError::Stopped)
    );
    rig.node.stop();
    assert!(!matches!(rig.desk.wait(lost), Reply::Applied(_)));
    assert_eq!(failures.load(Ordering::SeqCst), 1);
    drop(rig);
    let rig = Rig::start(config(dir.path()));
    assert_eq!(rig.get("before").as_deref(), Some("1"));
    rig.node.stop();
}
