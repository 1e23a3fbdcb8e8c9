//! Two hundred seeds, each twice.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use keelson_sim::plan::Plan;
use keelson_sim::{GENERATOR, run_twice};

const SEEDS: u64 = 200;

#[test]
fn two_hundred_seeds_keep_what_is_promised_and_repeat_themselves() {
    let next = AtomicU64::new(0);
    let failed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= SEEDS {
                        return;
                    }
                    if let Some(failure) = run_twice(&Plan::new(seed)).failure {
                        failed.lock().unwrap().push((seed, failure));
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(
        failed.is_empty(),
        "generator {GENERATOR}; repeat with `cargo run -p keelson-sim --profile sim -- --seeds N..N+1 --shown`: {failed:#?}"
    );
}
