//! The keys of one lease.

use std::collections::{BTreeSet, btree_set};
use std::sync::Arc;

/// A sorted set of keys. Most leases have one key or none, and pay for no more.
#[derive(Clone, Debug, Default)]
pub struct KeySet(Few);

#[derive(Clone, Debug, Default)]
enum Few {
    #[default]
    None,
    One(Arc<[u8]>),
    /// Two or more, or what is left of them.
    Many(BTreeSet<Arc<[u8]>>),
}

impl KeySet {
    /// Whether there is no key.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many keys there are.
    #[must_use]
    pub fn len(&self) -> usize {
        match &self.0 {
            Few::None => 0,
            Few::One(_) => 1,
            Few::Many(keys) => keys.len(),
        }
    }

    /// The keys, in ascending order.
    #[must_use]
    pub fn iter(&self) -> Iter<'_> {
        Iter(match &self.0 {
            Few::None => FewIter::One(None),
            Few::One(key) => FewIter::One(Some(key)),
            Few::Many(keys) => FewIter::Many(keys.iter()),
        })
    }

    pub(crate) fn insert(&mut self, key: Arc<[u8]>) {
        match &mut self.0 {
            Few::None => self.0 = Few::One(key),
            Few::One(first) if *first == key => {}
            Few::One(first) => self.0 = Few::Many(BTreeSet::from([first.clone(), key])),
            Few::Many(keys) => {
                keys.insert(key);
            }
        }
    }

    pub(super) fn remove(&mut self, key: &[u8]) {
        match &mut self.0 {
            Few::None => {}
            Few::One(first) => {
                if **first == *key {
                    self.0 = Few::None;
                }
            }
            Few::Many(keys) => {
                keys.remove(key);
                if keys.is_empty() {
                    self.0 = Few::None;
                }
            }
        }
    }
}

/// The same keys, however they are kept.
impl PartialEq for KeySet {
    fn eq(&self, other: &KeySet) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for KeySet {}

impl<'a> IntoIterator for &'a KeySet {
    type Item = &'a [u8];
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

/// The keys of a [`KeySet`], in ascending order.
#[derive(Clone, Debug)]
pub struct Iter<'a>(FewIter<'a>);

#[derive(Clone, Debug)]
enum FewIter<'a> {
    One(Option<&'a Arc<[u8]>>),
    Many(btree_set::Iter<'a, Arc<[u8]>>),
}

impl<'a> Iterator for Iter<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        match &mut self.0 {
            FewIter::One(key) => key.take(),
            FewIter::Many(keys) => keys.next(),
        }
        .map(|key| &**key)
    }
}
