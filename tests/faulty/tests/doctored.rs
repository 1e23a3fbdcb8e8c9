//! The verdict passes what a single store would have done, and nothing that was spoilt.

use keelson_faulty::doctor;
use keelson_faulty::record::put;
use keelson_faulty::verdict::{Recorded, judge};
use keelson_faulty::watchers::Watched;
use keelson_sim::Random;
use keelson_sim::history::{Change, History, Model, Operation, Request, Response, Write};
use keelson_sim::watch_check::{Sent, Watch};

/// What `count` clients would record of a single store, one after the other, and a watcher of all keys.
fn records(seed: u64, count: u64) -> Recorded {
    let mut random = Random::new(seed);
    let mut model = Model::default();
    let mut history = History::default();
    let mut sent = Vec::new();
    for number in 0..count {
        let key = format!("k{}", random.below(4));
        let request = match random.below(10) {
            0..5 => Request::Write(put(key, format!("v{number}"))),
            5 => Request::Write(Write::Delete {
                key: key.into_bytes(),
            }),
            _ => Request::Read {
                key: None,
                serializable: random.chance(300),
            },
        };
        let changes = model.changes_of(&request);
        if !changes.is_empty() {
            model.apply(&changes);
            history.observed.insert(model.revision, changes.clone());
            let events = changes.iter().cloned();
            let events = events.map(|change| (model.revision, change)).collect();
            sent.push(Sent::Events(events));
        }
        if random.chance(100) {
            sent.push(Sent::Progress(model.revision));
        }
        let response = Response {
            revision: model.revision,
            deleted: i64::from(matches!(changes[..], [Change::Delete(_)])),
            succeeded: false,
            rows: match request {
                Request::Read { .. } => model.read(None),
                _ => Vec::new(),
            },
        };
        // Now and then nobody hears of an answer.
        let answer = (!random.chance(50)).then_some((2 * number + 1, response));
        history.operations.push(Operation {
            client: 0,
            called: 2 * number,
            answer,
            request,
        });
    }
    let watch = Watch {
        key: vec![0],
        range_end: vec![0],
        start: 2,
        sent,
    };
    Recorded {
        history,
        watches: vec![Watched {
            watch,
            is_complete: true,
        }],
        last: model.revision,
    }
}

#[test]
fn what_a_single_store_would_have_done_passes_and_nothing_that_is_spoilt() {
    for seed in 0..20 {
        let recorded = records(seed, 200);
        judge(&recorded).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        let ways = doctor::check(&recorded).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        assert_eq!(ways, 7);
    }
}

#[test]
fn records_that_nothing_can_be_spoilt_of_prove_nothing() {
    assert!(doctor::check(&records(1, 0)).is_err());
}
