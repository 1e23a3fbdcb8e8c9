//! Events of a batch to the watchers of a serving thread.

use keelson_counts::{Table, count};
use keelson_proto::request;
use keelson_store::EventRange;
use keelson_store::watch::{Filters, Flow, Shard, Spec, StreamId};

use super::store::Rig;
use super::{key, put};

/// Puts in a batch.
const BATCH: usize = 16;

fn batch(rig: &mut Rig) -> EventRange {
    for place in 0..BATCH {
        rig.apply(request::encode(&put(place)));
    }
    rig.store.take_events().unwrap()
}

fn shard(rig: &Rig, watchers: usize, spec: impl Fn(usize) -> (Box<[u8]>, Box<[u8]>)) -> Shard {
    let now = rig.store.shared().revision();
    let mut shard = Shard::default();
    shard.open_at(now);
    for place in 0..watchers {
        let (key, range_end) = spec(place);
        let spec = Spec {
            key,
            range_end,
            filters: Filters::default(),
            start: 0,
        };
        shard.add_from_now(StreamId(0), 0, spec, now);
    }
    shard
}

pub(super) fn add_to(table: &mut Table) {
    let mut rig = Rig::new(1_000);
    table.add(
        "store: apply of 16 puts, their events taken as a batch",
        count(
            |_| {
                (0..BATCH)
                    .map(|place| request::encode(&put(place)))
                    .collect()
            },
            |puts: Vec<_>| {
                for put in puts {
                    rig.apply(put);
                }
                rig.store.take_events().unwrap()
            },
        ),
    );
    let everything = |_| ([0].into(), [0].into());
    let watchers = shard(&rig, 50, everything);
    to_watchers(table, &mut rig, "50 watchers of all", 50 * BATCH, watchers);
    let one_key = |place| (key(place)[..].into(), [].into());
    let watchers = shard(&rig, 1_000, one_key);
    to_watchers(table, &mut rig, "watchers of 1,000 keys", BATCH, watchers);
}

/// Counts what it takes to hand each batch's events, `taken` of them, to the watchers of `shard`.
fn to_watchers(table: &mut Table, rig: &mut Rig, name: &str, taken: usize, mut shard: Shard) {
    let deliver = |batch: EventRange| {
        let mut events = 0;
        shard.events(&batch, &mut |_, _, some| {
            events += some.len();
            Flow::Taken
        });
        assert_eq!(events, taken);
    };
    let name = format!("watch: a batch of 16 puts to {name}");
    table.add(&name, count(|_| batch(rig), deliver));
}
