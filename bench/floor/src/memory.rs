//! Bytes copied from memory that the processor's caches do not hold into a buffer that they do.

use std::hint::black_box;
use std::time::Duration;

use crate::times::Times;

/// From where, in bytes; more than caches hold.
const ARENA: usize = 256 << 20;

/// Bytes between two readings of the clock: one reading costs as much as a small copy.
const BATCH: usize = 4 << 20;

pub(crate) fn copy(bytes: usize, time: Duration) -> anyhow::Result<Times> {
    anyhow::ensure!(bytes <= ARENA, "more than {ARENA} bytes: {bytes}");
    // Written, so that it is memory and not the kernel's one page of zeros.
    let arena = vec![1_u8; ARENA];
    let mut buffer = vec![0_u8; bytes];
    let batch = (BATCH / bytes).max(1);
    let mut from = 0;
    Times::of(time, batch as u64, || {
        for _ in 0..batch {
            if from + bytes > ARENA {
                from = 0;
            }
            buffer.copy_from_slice(&arena[from..from + bytes]);
            black_box(&mut buffer);
            from += bytes;
        }
        Ok(())
    })
}
