//! Bytes as a database file: whatever they are, nothing but errors may come of it.
#![no_main]

use keelson_bolt::Options;
use libfuzzer_sys::fuzz_target;

#[path = "../../crates/bolt/tests/exercise/mod.rs"]
mod exercise;

fuzz_target!(|data: &[u8]| {
    let Some((choice, contents)) = data.split_first() else {
        return;
    };
    let options = Options {
        read_only: choice & 1 != 0,
        no_freelist_sync: choice & 2 != 0,
        // Bytes seldom say how much may be grown.
        max_size: Some(16 << 20),
        ..Options::default()
    };
    drop(exercise::exercise(contents, &options));
});
