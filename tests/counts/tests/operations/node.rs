//! A member without threads: a put from the proposal to its answer, through consensus, log and apply.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use keelson_counts::{Table, count, uncounted};
use keelson_node::{Clock, Config, Env, NoPeers, Part, Replies, Reply, Stepped, Ticket, Watchers};
use keelson_proto::rpc::etcdserverpb::InternalRaftRequest;
use keelson_store::EventRange;

use super::put;

/// Nothing is due by itself while it stands still.
struct StillClock;

impl Clock for StillClock {
    fn now(&self) -> Duration {
        Duration::from_secs(1)
    }

    fn wall(&self) -> Duration {
        Duration::from_secs(1_700_000_000)
    }
}

#[derive(Default)]
struct Desk {
    answered: Mutex<BTreeSet<u32>>,
}

impl Replies for Desk {
    fn deliver(&self, _thread: u16, replies: Vec<(Ticket, Reply)>) {
        uncounted(|| {
            for (ticket, reply) in replies {
                assert!(matches!(reply, Reply::Applied(_)), "{reply:?}");
                self.answered.lock().unwrap().insert(ticket.slot);
            }
        });
    }
}

impl Watchers for Desk {
    fn restored(&self, _revision: i64) {}
    fn events(&self, _batch: EventRange) {}
}

fn settle(member: &mut Stepped) {
    while Part::ALL.iter().any(|part| member.has_mail(*part)) {
        for part in Part::ALL {
            member.turn(part).unwrap();
        }
    }
}

pub(super) fn add_to(table: &mut Table) {
    for size in [1, 64] {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::new("m1", dir.path(), "http://127.0.0.1:2380");
        config.unsafe_no_fsync = true;
        config.wal_segment_bytes = 16 << 20;
        let env = Env {
            clock: Arc::new(StillClock),
            random: Arc::new(|| 7),
            ..Env::real()
        };
        let desk = Arc::new(Desk::default());
        let (replies, watchers) = (desk.clone(), desk.clone());
        let mut member = Stepped::start(config, env, replies, watchers, Arc::new(NoPeers)).unwrap();
        settle(&mut member);
        let mut slot = 0;
        let run = |puts: Vec<InternalRaftRequest>| {
            for put in puts {
                slot += 1;
                let ticket = Ticket {
                    thread: 0,
                    slot,
                    generation: 0,
                };
                member.node().propose(put, ticket).unwrap();
            }
            settle(&mut member);
        };
        let batch = |place| (0..size).map(|each| put(place * size + each)).collect();
        table.add(
            &format!("node: puts from proposal to answer, {size} at once"),
            count(batch, run),
        );
        assert_eq!(desk.answered.lock().unwrap().len(), slot as usize);
        member.stop().unwrap();
    }
}
