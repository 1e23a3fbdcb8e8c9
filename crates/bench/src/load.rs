//! Keys, values, and which operation is begun when.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep_until};

use crate::spec::Spec;

/// What all keys of a run begin with.
pub(crate) const PREFIX: &str = "bench/";

/// Keys and values of a run.
#[derive(Clone, Debug)]
pub(crate) struct Data {
    key_size: usize,
    pub(crate) keys: u64,
    pub(crate) value: Bytes,
}

impl Data {
    pub(crate) fn new(spec: &Spec) -> Data {
        // Bytes that do not compress, the same in every run.
        let value = (0..spec.value_size as u64).map(|at| mix(at).to_le_bytes()[0]);
        Data {
            key_size: spec.key_size,
            keys: spec.keys,
            value: value.collect(),
        }
    }

    /// The key of a number below `keys`: the prefix and the number, with zeros in between.
    pub(crate) fn key(&self, number: u64) -> Bytes {
        let mut key = Vec::with_capacity(self.key_size);
        key.extend_from_slice(PREFIX.as_bytes());
        key.resize(self.key_size, b'0');
        let mut rest = number;
        for digit in key[PREFIX.len()..].iter_mut().rev() {
            if rest == 0 {
                break;
            }
            *digit = b'0' + u8::try_from(rest % 10).expect("a digit is below 10");
            rest /= 10;
        }
        Bytes::from(key)
    }

    /// A key that looks random: the one of the run's operation `number`.
    pub(crate) fn any_key(&self, number: u64) -> Bytes {
        self.key(mix(number) % self.keys)
    }
}

/// A number that looks random (the finaliser of splitmix64).
pub(crate) fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Hands out operations until there are no more, or no more time.
#[derive(Debug)]
pub(crate) struct Schedule {
    next: AtomicU64,
    stopped: AtomicBool,
    total: u64,
    start: Instant,
    end: Instant,
    rate: Option<u64>,
}

/// An operation that is to begin now.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Turn {
    /// Its number in the run.
    pub(crate) number: u64,
    /// From when on it is waited for.
    pub(crate) since: Instant,
}

impl Schedule {
    pub(crate) fn new(spec: &Spec, start: Instant) -> Schedule {
        Schedule {
            next: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
            total: spec.total.unwrap_or(u64::MAX),
            start,
            end: start + spec.time_box(),
            rate: spec.rate,
        }
    }

    /// Begins no more operations.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// Whether no more operations are begun.
    pub(crate) fn has_ended(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
            || self.next.load(Ordering::Relaxed) >= self.total
            || Instant::now() >= self.end
    }

    /// The next operation, when it is due; `None` when the run is over.
    ///
    /// An operation that no client was free for counts from when it was due; one that a client
    /// waited for counts from when the clock woke it, since clocks wake late.
    pub(crate) async fn turn(&self) -> Option<Turn> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        if number >= self.total || self.stopped.load(Ordering::Relaxed) {
            return None;
        }
        let now = Instant::now();
        let Some(rate) = self.rate else {
            return (now < self.end).then_some(Turn { number, since: now });
        };
        let due = self.start + Duration::from_secs_f64(number as f64 / rate as f64);
        if due >= self.end || now >= self.end {
            return None;
        }
        if due <= now {
            return Some(Turn { number, since: due });
        }
        sleep_until(due).await;
        Some(Turn {
            number,
            since: Instant::now(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Work;

    #[test]
    fn keys_have_their_size_and_sort_by_their_number() {
        let data = Data::new(&Spec::new(Work::Put));
        assert_eq!(data.key(0), "bench/00000000000000000000000000");
        assert_eq!(data.key(9_999), "bench/00000000000000000000009999");
        assert!(data.any_key(3) <= data.key(9_999));
        assert_eq!(data.value.len(), 256);
    }

    #[tokio::test]
    async fn a_run_ends_with_its_total_with_its_time_and_when_it_is_told_to() {
        let mut spec = Spec::new(Work::Put);
        spec.total = Some(2);
        let schedule = Schedule::new(&spec, Instant::now());
        assert_eq!(schedule.turn().await.unwrap().number, 0);
        assert_eq!(schedule.turn().await.unwrap().number, 1);
        assert!(schedule.turn().await.is_none());
        spec.total = None;
        spec.duration = Some(Duration::from_secs(2));
        let long_ago = Instant::now().checked_sub(Duration::from_secs(3)).unwrap();
        let schedule = Schedule::new(&spec, long_ago);
        assert!(schedule.turn().await.is_none());
        let schedule = Schedule::new(&spec, Instant::now());
        assert!(schedule.turn().await.is_some() && !schedule.has_ended());
        schedule.stop();
        assert!(schedule.turn().await.is_none() && schedule.has_ended());
    }

    #[tokio::test]
    async fn what_is_begun_late_counts_from_when_it_was_due() {
        let mut spec = Spec::new(Work::Put);
        spec.rate = Some(10);
        let start = Instant::now().checked_sub(Duration::from_secs(1)).unwrap();
        let schedule = Schedule::new(&spec, start);
        schedule.turn().await.unwrap();
        let second = schedule.turn().await.unwrap();
        assert_eq!(second.since, start + Duration::from_millis(100));
    }
}
