//! Syncs counted against acknowledgements: whatever a client was told of had been written to the log, and a
//! sync that began after that had ended.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;

use keelson_node::{Env, Node, Replies, Reply, Ticket};

use crate::disk::{Onlooker, WatchedFiles};
use crate::rig::{Desk, PATIENCE, Rig, config, put};

/// What values begin with; their number of eight digits follows.
const MARK: &[u8] = b"write number ";

fn value(number: u32) -> String {
    format!("write number {number:08}")
}

/// The numbers of all values in some bytes of the log.
fn numbers(bytes: &[u8]) -> impl Iterator<Item = u32> {
    let length = MARK.len() + 8;
    let marked = bytes.windows(length).filter(|it| it.starts_with(MARK));
    marked.map(|it| {
        std::str::from_utf8(&it[MARK.len()..])
            .unwrap()
            .parse()
            .unwrap()
    })
}

/// What the disk has been told, and what of it is safe.
#[derive(Debug, Default)]
struct Ledger(Mutex<Entries>);

#[derive(Debug, Default)]
struct Entries {
    /// Writes to each file that no sync has begun after.
    written: BTreeMap<u64, Vec<u32>>,
    synced: BTreeSet<u32>,
    syncs: usize,
}

impl Onlooker for Ledger {
    fn wrote(&self, file: u64, slices: &[IoSlice<'_>]) {
        let bytes: Vec<u8> = slices.iter().flat_map(|slice| slice.to_vec()).collect();
        let mut entries = self.0.lock().unwrap();
        entries
            .written
            .entry(file)
            .or_default()
            .extend(numbers(&bytes));
    }

    fn sync(&self, file: u64, sync: &dyn Fn() -> io::Result<()>) -> io::Result<()> {
        // What is written while it syncs may or may not be in it.
        let before = self.0.lock().unwrap().written.remove(&file);
        sync()?;
        let mut entries = self.0.lock().unwrap();
        entries.synced.extend(before.unwrap_or_default());
        entries.syncs += 1;
        Ok(())
    }
}

/// An acknowledgement, and how the disk stood when it was given.
#[derive(Clone, Copy, Debug)]
struct Told {
    number: u32,
    is_synced: bool,
    /// Syncs that had ended.
    syncs: usize,
}

/// Takes answers, and looks at the ledger at each of them.
struct Witness {
    desk: Arc<Desk>,
    ledger: Arc<Ledger>,
    told: Mutex<Vec<Told>>,
}

impl Replies for Witness {
    fn deliver(&self, thread: u16, replies: Vec<(Ticket, Reply)>) {
        let entries = self.ledger.0.lock().unwrap();
        let applied = replies
            .iter()
            .filter(|(_, reply)| matches!(reply, Reply::Applied(_)));
        self.told
            .lock()
            .unwrap()
            .extend(applied.map(|(ticket, _)| Told {
                number: ticket.slot,
                is_synced: entries.synced.contains(&ticket.slot),
                syncs: entries.syncs,
            }));
        drop(entries);
        self.desk.deliver(thread, replies);
    }
}

struct Watched {
    rig: Rig,
    witness: Arc<Witness>,
}

impl Watched {
    fn start(dir: &Path, no_fsync: bool) -> Watched {
        let desk = Arc::new(Desk::default());
        let ledger = Arc::new(Ledger::default());
        let env = Env {
            files: Arc::new(WatchedFiles::new(ledger.clone())),
            ..Env::real()
        };
        let witness = Arc::new(Witness {
            desk: desk.clone(),
            ledger,
            told: Mutex::default(),
        });
        let mut config = config(dir);
        config.unsafe_no_fsync = no_fsync;
        let node = Node::start(config, env, witness.clone(), desk.clone()).unwrap();
        node.wait_ready(PATIENCE).unwrap();
        let rig = Rig { node, desk };
        Watched { rig, witness }
    }

    /// Puts a value with its own number, and waits until that is acknowledged.
    fn write(&self, padding: usize) {
        let ticket = self.rig.desk.ticket();
        let value = value(ticket.slot) + &"v".repeat(padding);
        let request = put(&format!("key/{}", ticket.slot % 10), &value);
        self.rig.node.propose(request, ticket).unwrap();
        let reply = self.rig.desk.wait(ticket);
        assert!(matches!(reply, Reply::Applied(_)), "{reply:?}");
    }

    /// Everything that was acknowledged since the last call.
    fn told(&self) -> Vec<Told> {
        std::mem::take(&mut self.witness.told.lock().unwrap())
    }
}

#[test]
fn nothing_is_acknowledged_that_is_not_in_the_synced_log() {
    let dir = tempfile::tempdir().unwrap();
    let watched = Watched::start(dir.path(), false);
    let syncs = || watched.witness.ledger.0.lock().unwrap().syncs;

    let mut before = syncs();
    for _ in 0..100 {
        watched.write(0);
    }
    let told = watched.told();
    assert_eq!(told.len(), 100);
    for told in told {
        assert!(
            told.is_synced,
            "write {}, after {} syncs",
            told.number, told.syncs
        );
        assert!(told.syncs > before, "write {} shared a sync", told.number);
        before = told.syncs;
    }

    // Past the end of a segment of 1 MiB too, from where on another file is synced.
    let segments = || {
        std::fs::read_dir(dir.path().join("member/wal"))
            .unwrap()
            .count()
    };
    let begun = segments();
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..100 {
                    watched.write(0);
                }
            });
        }
    });
    for _ in 0..5 {
        watched.write(256 << 10);
    }
    assert!(segments() > begun, "no segment was closed");
    let told = watched.told();
    assert_eq!(told.len(), 805);
    let early = told.iter().filter(|told| !told.is_synced);
    let early: Vec<_> = early.map(|told| told.number).collect();
    assert!(
        early.is_empty(),
        "acknowledged before their sync: {early:?}"
    );
    watched.rig.node.stop();
}

#[test]
fn a_member_that_acknowledges_before_it_syncs_is_found_out() {
    let dir = tempfile::tempdir().unwrap();
    let watched = Watched::start(dir.path(), true);
    for _ in 0..20 {
        watched.write(0);
    }
    let told = watched.told();
    assert_eq!(told.len(), 20);
    assert!(told.iter().all(|told| !told.is_synced), "{told:?}");
    watched.rig.node.stop();
}
