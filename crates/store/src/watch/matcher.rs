//! Which watchers a key concerns.

use std::collections::BTreeMap;

use smallvec::SmallVec;

use super::interval::Intervals;
use crate::index::KeyRange;

/// Watchers by what they watch: single keys in a map, ranges in a tree of intervals.
#[derive(Debug, Default)]
pub(super) struct Matcher {
    keys: BTreeMap<Box<[u8]>, SmallVec<[u32; 2]>>,
    ranges: Intervals,
}

impl Matcher {
    pub(super) fn insert(&mut self, range: KeyRange<'_>, watcher: u32) {
        match range {
            KeyRange::Single(key) => match self.keys.get_mut(key) {
                Some(watchers) => watchers.push(watcher),
                None => {
                    self.keys
                        .insert(key.into(), SmallVec::from_slice(&[watcher]));
                }
            },
            KeyRange::Range { start, end } => self.ranges.insert(start, end, watcher),
        }
    }

    pub(super) fn remove(&mut self, range: KeyRange<'_>, watcher: u32) {
        match range {
            KeyRange::Single(key) => {
                let watchers = self
                    .keys
                    .get_mut(key)
                    .expect("a watcher is where it was put");
                watchers.retain(|held| *held != watcher);
                if watchers.is_empty() {
                    self.keys.remove(key);
                }
            }
            KeyRange::Range { start, .. } => {
                assert!(
                    self.ranges.remove(start, watcher),
                    "a watcher is where it was put"
                );
            }
        }
    }

    pub(super) fn matching(&self, key: &[u8], f: &mut impl FnMut(u32)) {
        for watcher in self.keys.get(key).into_iter().flatten() {
            f(*watcher);
        }
        self.ranges.stab(key, f);
    }
}
