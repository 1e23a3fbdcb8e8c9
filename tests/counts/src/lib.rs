//! How often operations of the cores allocate, and how much: a figure that is the same on every machine
//! and under any load, so that a change that made things worse is seen without measuring time.
//!
//! [`count`] counts, [`Table`] is what was accepted.

mod table;

pub use table::{Build, Table};

/// How many operations are counted together: what a structure allocates now and then, as it grows, is in it.
pub const OPERATIONS: usize = 100;

/// How many come before, so that what is made once is there.
const WARM_UP: usize = 20;

/// What [`OPERATIONS`] operations allocated on their own thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// How often; making one longer counts as another.
    pub allocations: u64,
    /// How many bytes, those of short lives too.
    pub bytes: u64,
}

/// Does `work` with each of the inputs, which are made before, and counts what it allocates. What `work`
/// returns is kept until the end, so that no build finds it useless.
pub fn count<I, O>(mut input: impl FnMut(usize) -> I, mut work: impl FnMut(I) -> O) -> Count {
    let mut kept = Vec::with_capacity(WARM_UP + OPERATIONS);
    let inputs: Vec<I> = (0..WARM_UP + OPERATIONS).map(&mut input).collect();
    let mut inputs = inputs.into_iter();
    for input in inputs.by_ref().take(WARM_UP) {
        kept.push(work(input));
    }
    let counted = allocation_counter::measure(|| {
        for input in inputs {
            kept.push(work(input));
        }
    });
    std::hint::black_box(kept);
    Count {
        allocations: counted.count_total,
        bytes: counted.bytes_total,
    }
}

/// Does something that is not to be counted in the middle of what is: the part of a test.
pub fn uncounted<O>(work: impl FnOnce() -> O) -> O {
    let mut done = None;
    allocation_counter::opt_out(|| done = Some(work()));
    done.expect("the work was done")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_work_allocates_is_counted_and_nothing_else() {
        let seen = count(
            |place| vec![0u8; place],
            |input| (input, Box::new([0u8; 32])),
        );
        assert_eq!(
            seen,
            Count {
                allocations: 100,
                bytes: 3200
            }
        );
        let seen = count(|_| (), |()| uncounted(|| vec![0u8; 32]));
        assert_eq!(seen, Count::default());
    }
}
