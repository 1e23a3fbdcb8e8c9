//! A red-black tree of intervals, of the shape that etcd's has (`pkg/adt` of etcd 3.7).
//!
//! The shape is visible in one place. Of a range that ends before it begins etcd looks for an interval
//! that holds the key, and on its way leaves out every subtree whose root lies past the range's end: so
//! it depends on the tree's shape what it finds. Such a range may stand in a transaction beside a put,
//! so members that answer otherwise would hold different keys.

use std::cmp::Ordering;

/// Where an interval ends, exclusively; `None` is past every key.
pub(super) type End<'a> = Option<&'a [u8]>;

/// An end that lies past every key comes last.
pub(super) fn compare_ends(left: End<'_>, right: End<'_>) -> Ordering {
    match (left, right) {
        (Some(left), Some(right)) => left.cmp(right),
        (Some(_), None) => Ordering::Less,
        (None, Some(_)) => Ordering::Greater,
        (None, None) => Ordering::Equal,
    }
}

/// No node.
const NIL: usize = usize::MAX;

const LEFT: usize = 0;
const RIGHT: usize = 1;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Node {
    begin: Box<[u8]>,
    end: Option<Box<[u8]>>,
    parent: usize,
    children: [usize; 2],
    is_red: bool,
}

/// Intervals, inserted one by one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tree {
    nodes: Vec<Node>,
    root: usize,
}

impl Default for Tree {
    fn default() -> Tree {
        Tree {
            nodes: Vec::new(),
            root: NIL,
        }
    }
}

impl Tree {
    /// Adds an interval; `end` lies behind `begin`.
    pub(super) fn insert(&mut self, begin: &[u8], end: End<'_>) {
        let added = self.nodes.len();
        let (mut parent, mut side, mut at) = (NIL, LEFT, self.root);
        while at != NIL {
            let node = &self.nodes[at];
            let order = begin
                .cmp(&node.begin)
                .then_with(|| compare_ends(end, node.end.as_deref()));
            side = if order == Ordering::Less { LEFT } else { RIGHT };
            parent = at;
            at = node.children[side];
        }
        self.nodes.push(Node {
            begin: begin.into(),
            end: end.map(Into::into),
            parent,
            children: [NIL; 2],
            is_red: true,
        });
        if parent == NIL {
            self.root = added;
        } else {
            self.nodes[parent].children[side] = added;
        }
        self.balance(added);
    }

    fn is_red(&self, at: usize) -> bool {
        at != NIL && self.nodes[at].is_red
    }

    /// Which child of its parent a node is.
    fn side(&self, at: usize) -> usize {
        let parent = self.nodes[at].parent;
        usize::from(self.nodes[parent].children[RIGHT] == at)
    }

    /// No red node has a red parent afterwards.
    fn balance(&mut self, mut at: usize) {
        while self.is_red(self.nodes[at].parent) {
            let parent = self.nodes[at].parent;
            // A red node is not the root, so it has a parent.
            let grandparent = self.nodes[parent].parent;
            let side = self.side(parent);
            let uncle = self.nodes[grandparent].children[1 - side];
            if self.is_red(uncle) {
                self.nodes[uncle].is_red = false;
                self.nodes[parent].is_red = false;
                self.nodes[grandparent].is_red = true;
                at = grandparent;
                continue;
            }
            if self.side(at) != side {
                at = parent;
                self.rotate(at, side);
            }
            let parent = self.nodes[at].parent;
            self.nodes[parent].is_red = false;
            self.nodes[grandparent].is_red = true;
            self.rotate(grandparent, 1 - side);
        }
        let root = self.root;
        self.nodes[root].is_red = false;
    }

    /// Moves a node down to one side; the child of the other side takes its place.
    fn rotate(&mut self, at: usize, side: usize) {
        let raised = self.nodes[at].children[1 - side];
        let moved = self.nodes[raised].children[side];
        self.nodes[at].children[1 - side] = moved;
        if moved != NIL {
            self.nodes[moved].parent = at;
        }
        let parent = self.nodes[at].parent;
        self.nodes[raised].parent = parent;
        if parent == NIL {
            self.root = raised;
        } else {
            let place = self.side(at);
            self.nodes[parent].children[place] = raised;
        }
        self.nodes[raised].children[side] = at;
        self.nodes[at].parent = raised;
    }

    /// Whether etcd finds the key of `[key, end)`, where `end` is not behind `key`.
    pub(super) fn finds_backwards(&self, key: &[u8], end: &[u8]) -> bool {
        let mut waiting = vec![self.root];
        while let Some(at) = waiting.pop() {
            if at == NIL {
                continue;
            }
            let node = &self.nodes[at];
            if *key < *node.begin {
                waiting.push(node.children[LEFT]);
            } else if node.end.as_deref().is_none_or(|its| key < its) {
                return true;
            } else if *node.begin < *end {
                waiting.extend(node.children);
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(intervals: &[(&str, &str)]) -> Tree {
        let mut tree = Tree::default();
        for (begin, end) in intervals {
            let end = (!end.is_empty()).then_some(end.as_bytes());
            tree.insert(begin.as_bytes(), end);
        }
        tree
    }

    /// Checks the rules of such trees, and returns how many black nodes every way down has.
    fn check(tree: &Tree, at: usize) -> usize {
        if at == NIL {
            return 1;
        }
        let node = &tree.nodes[at];
        let [left, right] = node.children;
        for (child, order) in [(left, Ordering::Less), (right, Ordering::Greater)] {
            if child != NIL {
                assert_eq!(tree.nodes[child].parent, at);
                assert!(!(node.is_red && tree.nodes[child].is_red), "two red ones");
                let compared = tree.nodes[child].begin.cmp(&node.begin);
                assert!(compared == order || compared == Ordering::Equal);
            }
        }
        let black = check(tree, left);
        assert_eq!(black, check(tree, right), "ways down differ");
        black + usize::from(!node.is_red)
    }

    #[test]
    fn the_tree_stays_balanced_in_every_order() {
        for step in [1_u32, 7, 31, 255, 499] {
            let mut tree = Tree::default();
            for number in 0..500_u32 {
                let key = format!("{:05}", number * step % 500);
                tree.insert(key.as_bytes(), None);
                assert!(!tree.is_red(tree.root));
                check(&tree, tree.root);
            }
        }
    }

    #[test]
    fn what_lies_behind_a_root_past_the_end_is_not_found() {
        // [b, c) is the root: it lies past the end "a" and before the key "d".
        let denied = tree(&[("b", "c"), ("a", "aa"), ("d", "e")]);
        assert!(!denied.finds_backwards(b"d", b"a"));
        assert!(denied.finds_backwards(b"d", b"bb"));
        assert!(denied.finds_backwards(b"d", b"d"));
        // The same set with [d, e) as its root.
        let permitted = tree(&[("d", "e"), ("a", "aa"), ("f", "g"), ("b", "c")]);
        assert!(permitted.finds_backwards(b"d", b"a"));
    }
}
