//! Ranges of keys, and which of them a key lies in.
//!
//! An augmented treap: ordered by start, each node knows which range below it reaches farthest.
//! Priorities come from a counter, mixed, so that the shape needs no source of randomness.

use std::cmp::Ordering;

/// The end of a range, exclusive; `None` is past every key.
type End = Option<Box<[u8]>>;

/// Half-open ranges of keys, each with the id of its owner.
#[derive(Debug, Default)]
pub(super) struct Intervals {
    nodes: Vec<Node>,
    free: Vec<u32>,
    root: Link,
    inserted: u64,
}

type Link = Option<u32>;

#[derive(Debug)]
struct Node {
    start: Box<[u8]>,
    end: End,
    owner: u32,
    priority: u64,
    left: Link,
    right: Link,
    /// The node of this subtree whose range reaches farthest.
    farthest: u32,
}

/// Whether a range that ends at `end` reaches past `key`.
fn reaches(end: &End, key: &[u8]) -> bool {
    end.as_deref().is_none_or(|end| key < end)
}

fn farther(a: &End, b: &End) -> bool {
    match (a, b) {
        (_, None) => false,
        (None, Some(_)) => true,
        (Some(a), Some(b)) => a > b,
    }
}

/// Mixes a counter into a priority (the finalizer of splitmix64).
fn mix(counter: u64) -> u64 {
    let mut z = counter.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Intervals {
    pub(super) fn insert(&mut self, start: &[u8], end: Option<&[u8]>, owner: u32) {
        self.inserted += 1;
        let node = Node {
            start: start.into(),
            end: end.map(Into::into),
            owner,
            priority: mix(self.inserted),
            left: None,
            right: None,
            farthest: 0,
        };
        let place = match self.free.pop() {
            Some(place) => {
                self.nodes[place as usize] = node;
                place
            }
            None => {
                self.nodes.push(node);
                u32::try_from(self.nodes.len() - 1).expect("fewer watchers than 2^32")
            }
        };
        self.nodes[place as usize].farthest = place;
        let (left, right) = self.split(self.root, start, owner);
        let left = self.merge(left, Some(place));
        self.root = self.merge(left, right);
    }

    /// Removes the range of an owner; false if it is not there.
    pub(super) fn remove(&mut self, start: &[u8], owner: u32) -> bool {
        let (left, rest) = self.split(self.root, start, owner);
        let after = owner.checked_add(1).expect("fewer watchers than 2^32");
        let (found, right) = self.split(rest, start, after);
        self.root = self.merge(left, right);
        match found {
            Some(place) => {
                self.nodes[place as usize].start = Box::default();
                self.nodes[place as usize].end = None;
                self.free.push(place);
                true
            }
            None => false,
        }
    }

    /// Calls `f` with the owner of each range that `key` lies in.
    pub(super) fn stab(&self, key: &[u8], f: &mut impl FnMut(u32)) {
        let mut stack: Vec<u32> = self.root.into_iter().collect();
        while let Some(place) = stack.pop() {
            let node = &self.nodes[place as usize];
            if !reaches(&self.nodes[node.farthest as usize].end, key) {
                continue;
            }
            stack.extend(node.left);
            if *node.start <= *key {
                if reaches(&node.end, key) {
                    f(node.owner);
                }
                stack.extend(node.right);
            }
        }
    }

    fn order(&self, place: u32, start: &[u8], owner: u32) -> Ordering {
        let node = &self.nodes[place as usize];
        (*node.start).cmp(start).then(node.owner.cmp(&owner))
    }

    /// Nodes before (start, owner), and the others.
    fn split(&mut self, tree: Link, start: &[u8], owner: u32) -> (Link, Link) {
        let Some(place) = tree else {
            return (None, None);
        };
        if self.order(place, start, owner) == Ordering::Less {
            let (left, right) = self.split(self.nodes[place as usize].right, start, owner);
            self.nodes[place as usize].right = left;
            self.refresh(place);
            (Some(place), right)
        } else {
            let (left, right) = self.split(self.nodes[place as usize].left, start, owner);
            self.nodes[place as usize].left = right;
            self.refresh(place);
            (left, Some(place))
        }
    }

    /// Joins two trees, all of the first before all of the second.
    fn merge(&mut self, left: Link, right: Link) -> Link {
        let (Some(l), Some(r)) = (left, right) else {
            return left.or(right);
        };
        if self.nodes[l as usize].priority > self.nodes[r as usize].priority {
            self.nodes[l as usize].right = self.merge(self.nodes[l as usize].right, right);
            self.refresh(l);
            left
        } else {
            self.nodes[r as usize].left = self.merge(left, self.nodes[r as usize].left);
            self.refresh(r);
            right
        }
    }

    fn refresh(&mut self, place: u32) {
        let node = &self.nodes[place as usize];
        let mut farthest = place;
        for child in [node.left, node.right].into_iter().flatten() {
            let candidate = self.nodes[child as usize].farthest;
            let end = |place: u32| &self.nodes[place as usize].end;
            if farther(end(candidate), end(farthest)) {
                farthest = candidate;
            }
        }
        self.nodes[place as usize].farthest = farthest;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Range = (Vec<u8>, Option<Vec<u8>>);

    fn key() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(0u8..4, 0..3)
    }

    fn range() -> impl Strategy<Value = Range> {
        (key(), prop::option::of(key()))
    }

    proptest! {
        #[test]
        fn a_stab_finds_exactly_the_ranges_around_the_key(
            ranges in prop::collection::vec(range(), 0..40),
            removed in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
            probes in prop::collection::vec(key(), 1..20),
        ) {
            let mut tree = Intervals::default();
            let mut model: Vec<Option<&Range>> = Vec::new();
            for (owner, range) in ranges.iter().enumerate() {
                tree.insert(&range.0, range.1.as_deref(), owner as u32);
                model.push(Some(range));
            }
            for index in removed {
                if model.is_empty() {
                    break;
                }
                let owner = index.index(model.len());
                let was = model[owner].take();
                let start = &ranges[owner].0;
                prop_assert_eq!(tree.remove(start, owner as u32), was.is_some());
            }
            for probe in probes {
                let mut found = Vec::new();
                tree.stab(&probe, &mut |owner| found.push(owner as usize));
                found.sort_unstable();
                let expected: Vec<usize> = model
                    .iter()
                    .enumerate()
                    .filter(|(_, range)| range.is_some_and(|(start, end)| {
                        *start <= probe && end.as_ref().is_none_or(|end| probe < *end)
                    }))
                    .map(|(owner, _)| owner)
                    .collect();
                prop_assert_eq!(found, expected);
            }
        }
    }
}
