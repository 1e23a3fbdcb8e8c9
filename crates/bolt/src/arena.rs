//! The nodes of a transaction.

use std::collections::HashMap;
use std::sync::Arc;

use fnv::FnvBuildHasher;

use crate::node::Node;

/// A node's place in its transaction's arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NodeId(u32);

/// Nodes by number. Each is held by an `Arc`, so that a savepoint keeps an earlier state by holding
/// the old `Arc`: a change then copies the node, not before.
#[derive(Debug)]
pub(crate) struct Arena {
    nodes: Vec<Arc<Node>>,
    /// Stands in the place of nodes that were taken out.
    gone: Arc<Node>,
    /// One for each open savepoint.
    frames: Vec<Frame>,
}

/// What a savepoint goes back to.
#[derive(Debug)]
struct Frame {
    /// Nodes with numbers from here on are newer.
    len: usize,
    /// Nodes that were changed since, as they were.
    nodes: HashMap<usize, Arc<Node>, FnvBuildHasher>,
}

impl Default for Arena {
    fn default() -> Arena {
        Arena {
            nodes: Vec::new(),
            gone: Arc::new(Node::empty_leaf()),
            frames: Vec::new(),
        }
    }
}

impl Arena {
    pub(crate) fn add(&mut self, node: Node) -> NodeId {
        let id = u32::try_from(self.nodes.len()).expect("fewer than 2^32 nodes in a transaction");
        self.nodes.push(Arc::new(node));
        NodeId(id)
    }

    pub(crate) fn get(&self, id: NodeId) -> &Node {
        &self.nodes[id.0 as usize]
    }

    pub(crate) fn get_mut(&mut self, id: NodeId) -> &mut Node {
        self.keep(id);
        Arc::make_mut(&mut self.nodes[id.0 as usize])
    }

    /// Takes a node out; nothing refers to it any more.
    pub(crate) fn take(&mut self, id: NodeId) -> Node {
        self.keep(id);
        let node = std::mem::replace(&mut self.nodes[id.0 as usize], self.gone.clone());
        Arc::unwrap_or_clone(node)
    }

    /// How many nodes were made.
    pub(crate) fn len(&self) -> u64 {
        self.nodes.len() as u64
    }

    /// Keeps the node as it is for the innermost savepoint, if that has not done so.
    fn keep(&mut self, id: NodeId) {
        let at = id.0 as usize;
        if let Some(frame) = self.frames.last_mut().filter(|frame| at < frame.len) {
            frame
                .nodes
                .entry(at)
                .or_insert_with(|| self.nodes[at].clone());
        }
    }

    /// Begins a savepoint.
    pub(crate) fn push_frame(&mut self) {
        self.frames.push(Frame {
            len: self.nodes.len(),
            nodes: HashMap::default(),
        });
    }

    /// Goes back to where the innermost savepoint began, and ends it.
    pub(crate) fn roll_back(&mut self) {
        if let Some(frame) = self.frames.pop() {
            self.nodes.truncate(frame.len);
            for (at, node) in frame.nodes {
                self.nodes[at] = node;
            }
        }
    }

    /// Ends the innermost savepoint; its changes are the outer one's from now on.
    pub(crate) fn release(&mut self) {
        let Some(frame) = self.frames.pop() else {
            return;
        };
        if let Some(outer) = self.frames.last_mut() {
            for (at, node) in frame.nodes {
                if at < outer.len {
                    outer.nodes.entry(at).or_insert(node);
                }
            }
        }
    }
}
