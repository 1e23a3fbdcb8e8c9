//! The counted B+tree.

use super::history::{History, Kept};
use super::keys::{PackedKeys, make_room, separator};
use super::leaf::{Budget, LEAF_KEYS_MAX, Leaf};
use super::{Found, KeyState};
use crate::revision::Revision;

/// Children of a branch, at most.
const CHILDREN_MAX: usize = 64;

/// A node with what is known of all keys below it.
#[derive(Debug)]
pub(super) struct Subtree {
    /// Keys alive now.
    pub(super) live: u64,
    /// No key below began or ended a life after this.
    pub(super) flipped: Revision,
    node: Node,
}

#[derive(Debug)]
enum Node {
    Leaf(Leaf),
    Branch(Branch),
}

/// Children in key order. Separator `i` lies above every key of child `i`, and not above any of child `i + 1`.
#[derive(Debug, Default)]
struct Branch {
    separators: PackedKeys,
    children: Vec<Subtree>,
}

/// What an edit makes of a key.
pub(super) enum Edit {
    /// Nothing was there or is now, or the key's life goes on.
    Same,
    /// The key is new, and alive or not.
    New(History),
    /// The key was dead and lives.
    Born,
    /// The key lived and is dead.
    Died,
}

/// What an edit did to a subtree.
#[derive(Default)]
struct Change {
    born: bool,
    died: bool,
    new: bool,
    heap: isize,
    split: Option<(Vec<u8>, Subtree)>,
}

/// The whole tree.
#[derive(Debug)]
pub(super) struct Tree {
    root: Subtree,
    /// Keys there are, dead ones too.
    pub(super) keys: u64,
    heap: usize,
}

/// The part of a range that is still to be looked at: from `low` inclusive to `high` exclusive.
#[derive(Clone, Copy)]
pub(super) struct Span<'a> {
    pub(super) low: Option<&'a [u8]>,
    pub(super) high: Option<&'a [u8]>,
}

/// Rows that were found while the lock was held.
#[derive(Default)]
pub(super) struct Rows {
    keys: Vec<u8>,
    rows: Vec<(usize, KeyState)>,
}

impl Rows {
    pub(super) fn clear(&mut self) {
        self.keys.clear();
        self.rows.clear();
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Found<'_>> {
        let starts = std::iter::once(0).chain(self.rows.iter().map(|row| row.0));
        self.rows.iter().zip(starts).map(|(&(end, state), start)| {
            let KeyState {
                rev,
                create,
                version,
                stored_len,
            } = state;
            Found {
                key: &self.keys[start..end],
                rev,
                create,
                version,
                stored_len,
            }
        })
    }
}

impl Branch {
    fn child_of(&self, key: &[u8]) -> usize {
        match self.separators.search(key) {
            Ok(i) => i + 1,
            Err(i) => i,
        }
    }

    /// The children that may hold keys of `span`, inclusive.
    fn children_of(&self, span: Span<'_>) -> std::ops::RangeInclusive<usize> {
        let first = span.low.map_or(0, |low| self.child_of(low));
        let last = span
            .high
            .map_or(self.children.len() - 1, |high| self.child_of(high));
        first..=last
    }

    fn heap(&self) -> usize {
        self.separators.heap() + self.children.capacity() * size_of::<Subtree>()
    }

    /// Adds `right`, whose keys begin at `separator`, behind child `i`.
    fn insert(&mut self, i: usize, separator: &[u8], right: Subtree) {
        self.separators.insert(i, separator);
        make_room(&mut self.children, 1);
        self.children.insert(i + 1, right);
    }

    /// Takes child `i` out; a neighbour's range covers its keys from then on.
    fn remove(&mut self, i: usize) -> Subtree {
        if self.separators.len() > 0 {
            self.separators.remove(i.saturating_sub(1));
        }
        self.children.remove(i)
    }

    /// Merges child `i + 1` into child `i`, when both together are small. Returns whether it did.
    fn maybe_merge(&mut self, i: usize) -> bool {
        let Some([left, right]) = self.children.get_mut(i..i + 2) else {
            return false;
        };
        match (&mut left.node, &mut right.node) {
            (Node::Leaf(left), Node::Leaf(right)) if left.may_append(right) => {
                left.append(std::mem::take(right))
            }
            (Node::Branch(left), Node::Branch(right))
                if left.children.len() + right.children.len() <= CHILDREN_MAX * 3 / 4 =>
            {
                let right = std::mem::take(right);
                left.separators
                    .insert(left.separators.len(), &self.separators.get(i));
                left.separators.append(&right.separators);
                make_room(&mut left.children, right.children.len());
                left.children.extend(right.children);
            }
            _ => return false,
        }
        left.live += right.live;
        left.flipped = left.flipped.max(right.flipped);
        self.separators.remove(i);
        self.children.remove(i + 1);
        true
    }
}

impl Span<'_> {
    /// What of the span lies in child `i`, when the span reaches from child `range.start()` to `range.end()`.
    fn of_child(&self, i: usize, range: &std::ops::RangeInclusive<usize>) -> Self {
        Span {
            low: self.low.filter(|_| i == *range.start()),
            high: self.high.filter(|_| i == *range.end()),
        }
    }

    /// The places of the keys of `leaf` that lie in the span.
    fn places(&self, leaf: &Leaf) -> std::ops::Range<usize> {
        let low = self.low.map_or(0, |low| leaf.keys.lower_bound(low));
        let high = self
            .high
            .map_or(leaf.len(), |high| leaf.keys.lower_bound(high));
        low..high.max(low)
    }
}

impl Subtree {
    fn leaf(leaf: Leaf, flipped: Revision) -> Subtree {
        Subtree {
            live: leaf.live(),
            flipped,
            node: Node::Leaf(leaf),
        }
    }

    fn branch(branch: Branch, flipped: Revision) -> Subtree {
        let live = branch.children.iter().map(|child| child.live).sum();
        Subtree {
            live,
            flipped,
            node: Node::Branch(branch),
        }
    }

    fn is_empty(&self) -> bool {
        match &self.node {
            Node::Leaf(leaf) => leaf.len() == 0,
            Node::Branch(branch) => branch.children.is_empty(),
        }
    }

    fn edit(
        &mut self,
        key: &[u8],
        rev: Revision,
        f: &mut dyn FnMut(Option<&mut History>) -> Edit,
    ) -> Change {
        let mut change = match &mut self.node {
            Node::Leaf(leaf) => edit_leaf(leaf, key, f),
            Node::Branch(branch) => {
                let i = branch.child_of(key);
                let mut change = branch.children[i].edit(key, rev, f);
                if let Some((separator, right)) = change.split.take() {
                    let before = branch.heap();
                    branch.insert(i, &separator, right);
                    change.split = maybe_split_branch(branch);
                    let new = change
                        .split
                        .as_ref()
                        .map_or(0, |(_, right)| right.node_heap());
                    change.heap += (branch.heap() + new).cast_signed() - before.cast_signed();
                }
                change
            }
        };
        self.live = self.live + u64::from(change.born) - u64::from(change.died);
        if change.new || change.born || change.died {
            self.flipped = self.flipped.max(rev);
        }
        if let Some((_, right)) = &mut change.split {
            self.live -= right.live;
            right.flipped = self.flipped;
        }
        change
    }

    fn node_heap(&self) -> usize {
        match &self.node {
            Node::Leaf(leaf) => leaf.heap(),
            Node::Branch(branch) => branch.heap(),
        }
    }

    fn count(
        &self,
        span: Span<'_>,
        at: Revision,
        budget: &mut usize,
        count: &mut u64,
    ) -> Option<Vec<u8>> {
        if span.low.is_none() && span.high.is_none() && self.flipped <= at {
            *count += self.live;
            return None;
        }
        match &self.node {
            Node::Leaf(leaf) => {
                let places = span.places(leaf);
                if places.len() > *budget {
                    return Some(leaf.keys.get(places.start));
                }
                *budget -= places.len();
                let live = leaf.histories[places]
                    .iter()
                    .filter(|history| history.is_live_at(at));
                *count += live.count() as u64;
                None
            }
            Node::Branch(branch) => {
                let range = branch.children_of(span);
                range.clone().find_map(|i| {
                    branch.children[i].count(span.of_child(i, &range), at, budget, count)
                })
            }
        }
    }

    fn rows(
        &self,
        span: Span<'_>,
        at: Revision,
        budget: &mut usize,
        rows: &mut Rows,
    ) -> Option<Vec<u8>> {
        if self.live == 0 && self.flipped <= at {
            return None;
        }
        match &self.node {
            Node::Leaf(leaf) => {
                let places = span.places(leaf);
                let end = places.end.min(places.start + *budget);
                *budget -= end - places.start;
                for i in places.start..end {
                    if let Some(state) = leaf.histories[i].at(at) {
                        leaf.keys.append_to(i, &mut rows.keys);
                        rows.rows.push((rows.keys.len(), state));
                    }
                }
                (end < places.end).then(|| leaf.keys.get(end))
            }
            Node::Branch(branch) => {
                let range = branch.children_of(span);
                range.clone().find_map(|i| {
                    branch.children[i].rows(span.of_child(i, &range), at, budget, rows)
                })
            }
        }
    }

    fn alive(
        &self,
        span: Span<'_>,
        budget: &mut usize,
        keys: &mut Vec<Vec<u8>>,
    ) -> Option<Vec<u8>> {
        if self.live == 0 {
            return None;
        }
        match &self.node {
            Node::Leaf(leaf) => {
                let places = span.places(leaf);
                let end = places.end.min(places.start + *budget);
                *budget -= end - places.start;
                let alive = (places.start..end).filter(|&i| leaf.histories[i].is_live());
                keys.extend(alive.map(|i| leaf.keys.get(i)));
                (end < places.end).then(|| leaf.keys.get(end))
            }
            Node::Branch(branch) => {
                let range = branch.children_of(span);
                range
                    .clone()
                    .find_map(|i| branch.children[i].alive(span.of_child(i, &range), budget, keys))
            }
        }
    }

    fn kept(
        &self,
        span: Span<'_>,
        at: i64,
        budget: &mut usize,
        kept: &mut dyn FnMut(Kept),
    ) -> Option<Vec<u8>> {
        match &self.node {
            Node::Leaf(leaf) => {
                let places = span.places(leaf);
                let end = places.end.min(places.start + *budget);
                *budget -= end - places.start;
                leaf.histories[places.start..end]
                    .iter()
                    .filter_map(|history| history.kept(at))
                    .for_each(&mut *kept);
                (end < places.end).then(|| leaf.keys.get(end))
            }
            Node::Branch(branch) => {
                let range = branch.children_of(span);
                range.clone().find_map(|i| {
                    branch.children[i].kept(span.of_child(i, &range), at, budget, kept)
                })
            }
        }
    }

    fn compact(
        &mut self,
        span: Span<'_>,
        at: i64,
        budget: &mut Budget,
        dead: &mut Vec<(Revision, bool)>,
        change: &mut Compacted,
    ) -> Option<Vec<u8>> {
        match &mut self.node {
            Node::Leaf(leaf) => {
                let places = span.places(leaf);
                let end = places.end.min(places.start + budget.keys);
                let resume = (end < places.end).then(|| leaf.keys.get(end));
                let heap = |leaf: &Leaf| {
                    leaf.heap() + leaf.histories.iter().map(History::heap).sum::<usize>()
                };
                let before = heap(leaf);
                let (gone, unfinished) = leaf.compact(places.start..end, at, budget, dead);
                change.keys += gone as u64;
                change.heap += heap(leaf).cast_signed() - before.cast_signed();
                unfinished.or(resume)
            }
            Node::Branch(branch) => {
                let range = branch.children_of(span);
                let mut resume = None;
                let mut last = *range.start();
                for i in range.clone() {
                    last = i;
                    resume = branch.children[i].compact(
                        span.of_child(i, &range),
                        at,
                        budget,
                        dead,
                        change,
                    );
                    if resume.is_some() {
                        break;
                    }
                }
                let shallow = |branch: &Branch| {
                    branch.heap()
                        + branch
                            .children
                            .iter()
                            .map(Subtree::node_heap)
                            .sum::<usize>()
                };
                let before = shallow(branch);
                for i in (*range.start()..=last).rev() {
                    if branch.children[i].is_empty() {
                        branch.remove(i);
                    } else {
                        branch.maybe_merge(i);
                    }
                }
                if let Some(before) = range.start().checked_sub(1) {
                    branch.maybe_merge(before);
                }
                change.heap += shallow(branch).cast_signed() - before.cast_signed();
                resume
            }
        }
    }
}

/// What a slice of a compaction did to the tree.
#[derive(Default)]
struct Compacted {
    keys: u64,
    heap: isize,
}

fn edit_leaf(
    leaf: &mut Leaf,
    key: &[u8],
    f: &mut dyn FnMut(Option<&mut History>) -> Edit,
) -> Change {
    let mut change = Change::default();
    let place = leaf.keys.search(key);
    let edit = match place {
        Ok(i) => {
            let history = &mut leaf.histories[i];
            let before = history.heap().cast_signed();
            let edit = f(Some(history));
            change.heap = history.heap().cast_signed() - before;
            edit
        }
        Err(_) => f(None),
    };
    match (edit, place) {
        (Edit::Same, _) => {}
        (Edit::Born, _) => change.born = true,
        (Edit::Died, _) => change.died = true,
        (Edit::New(history), Err(i)) => {
            change.new = true;
            change.born = history.is_live();
            let before = leaf.heap();
            change.heap = history.heap().cast_signed();
            leaf.insert(i, key, history);
            change.split = maybe_split_leaf(leaf, i);
            let new = change
                .split
                .as_ref()
                .map_or(0, |(_, right)| right.node_heap());
            change.heap += (leaf.heap() + new).cast_signed() - before.cast_signed();
        }
        (Edit::New(_), Ok(i)) => unreachable!("the key at place {i} is not new"),
    }
    change
}

/// Splits a leaf that has grown too large by a key at place `new`. One that grows at its end keeps what it has, so that
/// keys which come in order fill their leaves.
fn maybe_split_leaf(leaf: &mut Leaf, new: usize) -> Option<(Vec<u8>, Subtree)> {
    if !leaf.is_over() {
        return None;
    }
    let at = if new + 1 == leaf.len() {
        new
    } else {
        leaf.len() / 2
    };
    let separator = separator(&leaf.keys.get(at - 1), &leaf.keys.get(at));
    Some((
        separator,
        Subtree::leaf(leaf.split_off(at), Revision::default()),
    ))
}

fn maybe_split_branch(branch: &mut Branch) -> Option<(Vec<u8>, Subtree)> {
    if branch.children.len() <= CHILDREN_MAX {
        return None;
    }
    let at = branch.children.len() / 2;
    let children = branch.children.split_off(at);
    branch.children.shrink_to_fit();
    let separator = branch.separators.get(at - 1);
    let separators = branch.separators.split_off(at);
    branch.separators.remove(at - 1);
    Some((
        separator,
        Subtree::branch(
            Branch {
                separators,
                children,
            },
            Revision::default(),
        ),
    ))
}

impl Tree {
    pub(super) fn new() -> Tree {
        let root = Subtree::leaf(Leaf::default(), Revision::default());
        Tree {
            root,
            keys: 0,
            heap: 0,
        }
    }

    /// Keys alive now.
    pub(super) fn live(&self) -> u64 {
        self.root.live
    }

    /// Bytes of memory taken.
    pub(super) fn bytes(&self) -> usize {
        self.heap + size_of::<Tree>()
    }

    pub(super) fn get(&self, key: &[u8]) -> Option<&History> {
        let mut node = &self.root.node;
        loop {
            match node {
                Node::Leaf(leaf) => return leaf.get(key),
                Node::Branch(branch) => node = &branch.children[branch.child_of(key)].node,
            }
        }
    }

    /// Lets `f` change what the index says of `key` at revision `rev`. `f` is called once.
    pub(super) fn edit(
        &mut self,
        key: &[u8],
        rev: Revision,
        f: &mut dyn FnMut(Option<&mut History>) -> Edit,
    ) {
        let change = self.root.edit(key, rev, f);
        self.keys += u64::from(change.new);
        self.add_heap(change.heap);
        if let Some((separator, right)) = change.split {
            let flipped = self.root.flipped;
            let left = std::mem::replace(&mut self.root, Subtree::leaf(Leaf::default(), flipped));
            let mut branch = Branch {
                separators: PackedKeys::default(),
                children: vec![left],
            };
            branch.insert(0, &separator, right);
            self.add_heap(branch.heap().cast_signed());
            self.root = Subtree::branch(branch, flipped);
        }
    }

    fn add_heap(&mut self, change: isize) {
        self.heap = self
            .heap
            .checked_add_signed(change)
            .expect("no more is freed than was taken");
    }

    /// Adds to `count` the keys of `span` that are alive at `at`. Returns where to go on when `budget` keys were looked at.
    pub(super) fn count(
        &self,
        span: Span<'_>,
        at: Revision,
        mut budget: usize,
        count: &mut u64,
    ) -> Option<Vec<u8>> {
        assert!(budget >= LEAF_KEYS_MAX, "a slice gets past a leaf at least");
        self.root.count(span, at, &mut budget, count)
    }

    /// Appends to `rows` the keys of `span` that are alive at `at`. Returns where to go on when `budget` keys were looked
    /// at.
    pub(super) fn rows(
        &self,
        span: Span<'_>,
        at: Revision,
        mut budget: usize,
        rows: &mut Rows,
    ) -> Option<Vec<u8>> {
        self.root.rows(span, at, &mut budget, rows)
    }

    /// Appends to `keys` the keys of `span` that are alive now. Returns where to go on when `budget` keys were looked at.
    pub(super) fn alive(
        &self,
        span: Span<'_>,
        mut budget: usize,
        keys: &mut Vec<Vec<u8>>,
    ) -> Option<Vec<u8>> {
        self.root.alive(span, &mut budget, keys)
    }

    /// Calls `kept` with what compaction to `at` keeps of the keys of `span`. Returns where to go on when `budget` keys
    /// were looked at.
    pub(super) fn kept(
        &self,
        span: Span<'_>,
        at: i64,
        mut budget: usize,
        kept: &mut dyn FnMut(Kept),
    ) -> Option<Vec<u8>> {
        self.root.kept(span, at, &mut budget, kept)
    }

    /// Compacts the keys of `span` to `at`. Returns where to go on when `budget` is used up: at the key whose history is
    /// compacted in part, if there is one.
    pub(super) fn compact(
        &mut self,
        span: Span<'_>,
        at: i64,
        budget: &mut Budget,
        dead: &mut Vec<(Revision, bool)>,
    ) -> Option<Vec<u8>> {
        let mut change = Compacted::default();
        let resume = self.root.compact(span, at, budget, dead, &mut change);
        self.keys -= change.keys;
        self.add_heap(change.heap);
        while let Node::Branch(branch) = &mut self.root.node {
            if branch.children.len() > 1 {
                break;
            }
            let gone = branch.heap();
            let child = branch.children.pop();
            let child = child.unwrap_or_else(|| Subtree::leaf(Leaf::default(), self.root.flipped));
            self.root = child;
            self.add_heap(-gone.cast_signed());
        }
        resume
    }

    /// Checks every invariant of the tree, and panics with the one that does not hold. Costs O(n).
    pub(super) fn check(&self) {
        let mut found = Totals::default();
        check_subtree(&self.root, None, None, &mut found);
        assert_eq!(found.keys, self.keys, "the tree knows its number of keys");
        assert_eq!(found.heap, self.heap, "the tree knows its size");
        if let Node::Branch(root) = &self.root.node {
            assert!(
                root.children.len() > 1,
                "a branch at the root has children to choose from"
            );
        }
    }
}

#[derive(Default)]
struct Totals {
    keys: u64,
    heap: usize,
}

/// Checks a subtree whose keys have to lie from `low` inclusive to `high` exclusive; returns its height.
fn check_subtree(
    subtree: &Subtree,
    low: Option<&[u8]>,
    high: Option<&[u8]>,
    found: &mut Totals,
) -> usize {
    found.heap += subtree.node_heap();
    match &subtree.node {
        Node::Leaf(leaf) => {
            assert_eq!(leaf.keys.len(), leaf.len(), "each key has a history");
            assert!(
                leaf.len() <= LEAF_KEYS_MAX,
                "a leaf that is too large is split"
            );
            assert_eq!(
                leaf.live(),
                subtree.live,
                "a leaf knows how many of its keys live"
            );
            found.keys += leaf.len() as u64;
            let keys: Vec<_> = (0..leaf.len()).map(|i| leaf.keys.get(i)).collect();
            assert!(keys.is_sorted_by(|a, b| a < b), "keys rise");
            for (key, history) in keys.iter().zip(&leaf.histories) {
                assert!(
                    low.is_none_or(|low| low <= key.as_slice()),
                    "a key is not below its separator"
                );
                assert!(
                    high.is_none_or(|high| key.as_slice() < high),
                    "a key is below the next separator"
                );
                assert!(
                    history.flipped_main() <= subtree.flipped.main,
                    "no key flipped after its leaf"
                );
                history.check();
                found.heap += history.heap();
            }
            0
        }
        Node::Branch(branch) => {
            let children = branch.children.len();
            assert!(
                (1..=CHILDREN_MAX).contains(&children),
                "a branch has children, and not too many"
            );
            assert_eq!(
                branch.separators.len() + 1,
                children,
                "a separator stands between two children"
            );
            let live: u64 = branch.children.iter().map(|child| child.live).sum();
            assert_eq!(
                live, subtree.live,
                "a branch knows how many keys live below it"
            );
            let mut height = None;
            for (i, child) in branch.children.iter().enumerate() {
                assert!(!child.is_empty(), "an empty child is taken out");
                assert!(
                    child.flipped <= subtree.flipped,
                    "a child does not flip after its parent"
                );
                let from = i.checked_sub(1).map(|before| branch.separators.get(before));
                let upto = (i + 1 < children).then(|| branch.separators.get(i));
                let below = check_subtree(
                    child,
                    from.as_deref().or(low),
                    upto.as_deref().or(high),
                    found,
                );
                assert_eq!(
                    *height.get_or_insert(below),
                    below,
                    "all leaves lie at one depth"
                );
            }
            height.expect("a branch has children") + 1
        }
    }
}
