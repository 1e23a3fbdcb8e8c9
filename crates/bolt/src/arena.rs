//! The nodes of a transaction.

use std::sync::Arc;

use crate::node::Node;

/// A node's place in its transaction's arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NodeId(u32);

/// Nodes by number. Each is held by an `Arc`, so that an earlier state can be kept by holding the
/// old `Arc`: a change then copies the node, not before.
#[derive(Debug, Default)]
pub(crate) struct Arena {
    nodes: Vec<Arc<Node>>,
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
        Arc::make_mut(&mut self.nodes[id.0 as usize])
    }

    /// Takes a node out; nothing refers to it any more.
    pub(crate) fn take(&mut self, id: NodeId) -> Node {
        let node = std::mem::replace(&mut self.nodes[id.0 as usize], Arc::new(Node::empty_leaf()));
        Arc::unwrap_or_clone(node)
    }

    /// How many nodes were made.
    pub(crate) fn len(&self) -> u64 {
        self.nodes.len() as u64
    }
}
