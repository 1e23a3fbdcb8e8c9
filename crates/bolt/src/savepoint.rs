//! Nested transactions: changes that can be undone without losing the ones before.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};

use bytes::Bytes;

use crate::freelist::Freelist;
use crate::source::{BucketId, OpenBucket, TreeRoot};
use crate::work::Work;
use crate::write_tx::WriteTx;

/// A part of a write transaction that can be undone by itself. It is a [`WriteTx`] in all but
/// commit; dropped, it undoes what was changed through it; [`Savepoint::release`] keeps it. They
/// nest.
///
/// It costs what it changes: a node is copied when it is first changed inside of it.
///
/// ```
/// # use keelson_bolt::{Db, Error, MemStorage, Options};
/// # fn main() -> Result<(), Error> {
/// # let db = Db::open_storage(Box::new(MemStorage::new()), Options::default())?;
/// let mut tx = db.begin_write()?;
/// tx.create_bucket(b"kept")?;
/// let mut part = tx.savepoint();
/// part.create_bucket(b"undone")?;
/// drop(part);
/// tx.commit()?;
/// # let tx = db.begin_read()?;
/// # assert!(tx.bucket(b"kept")?.is_some() && tx.bucket(b"undone")?.is_none());
/// # Ok(())
/// # }
/// ```
pub struct Savepoint<'tx, 'db> {
    tx: &'tx mut WriteTx<'db>,
    /// How many savepoints were open before.
    outer: usize,
    released: bool,
}

impl<'tx, 'db> Savepoint<'tx, 'db> {
    pub(crate) fn begin(tx: &'tx mut WriteTx<'db>) -> Savepoint<'tx, 'db> {
        let (work, freelist) = tx.parts();
        let outer = work.begin_savepoint(freelist);
        Savepoint {
            tx,
            outer,
            released: false,
        }
    }

    /// Keeps the changes: they are the outer transaction's from now on.
    pub fn release(mut self) {
        self.released = true;
        self.tx.parts().0.release_savepoint(self.outer);
    }
}

impl Drop for Savepoint<'_, '_> {
    fn drop(&mut self) {
        if !self.released {
            let (work, freelist) = self.tx.parts();
            work.roll_back_savepoint(self.outer, freelist);
        }
    }
}

impl<'db> Deref for Savepoint<'_, 'db> {
    type Target = WriteTx<'db>;

    fn deref(&self) -> &WriteTx<'db> {
        self.tx
    }
}

impl<'db> DerefMut for Savepoint<'_, 'db> {
    fn deref_mut(&mut self) -> &mut WriteTx<'db> {
        self.tx
    }
}

/// What a savepoint goes back to, but for the nodes, which the arena keeps.
pub(crate) struct Frame {
    /// Open buckets with numbers from here on are newer.
    buckets: usize,
    /// Buckets that were changed since, as they were.
    kept: BTreeMap<BucketId, Kept>,
    /// Changes of the tables of open buckets, oldest first.
    links: Vec<Link>,
    /// What was freed before.
    freed: usize,
    failed: bool,
}

/// A bucket as it was.
struct Kept {
    root: TreeRoot,
    sequence: u64,
    changed: bool,
    fill: f64,
    nesting: usize,
}

/// A change in a bucket's table of open buckets.
enum Link {
    Added(BucketId, Bytes),
    Removed(BucketId, Bytes, BucketId),
}

impl Work {
    fn begin_savepoint(&mut self, freelist: &Freelist) -> usize {
        self.forest.arena.push_frame();
        self.frames.push(Frame {
            buckets: self.buckets.len(),
            kept: BTreeMap::new(),
            links: Vec::new(),
            freed: freelist.mark(),
            failed: self.failed,
        });
        self.frames.len() - 1
    }

    /// Undoes savepoints until `outer` are left.
    fn roll_back_savepoint(&mut self, outer: usize, freelist: &mut Freelist) {
        while self.frames.len() > outer {
            let Some(frame) = self.frames.pop() else {
                return;
            };
            self.forest.arena.roll_back();
            for link in frame.links.into_iter().rev() {
                match link {
                    Link::Added(parent, name) => {
                        self.buckets[parent].children.remove(&name);
                    }
                    Link::Removed(parent, name, id) => {
                        self.buckets[parent].children.insert(name, id);
                    }
                }
            }
            for (id, kept) in frame.kept {
                let bucket = &mut self.buckets[id];
                bucket.root = kept.root;
                bucket.sequence = kept.sequence;
                bucket.changed = kept.changed;
                bucket.fill = kept.fill;
                bucket.nesting = kept.nesting;
            }
            self.buckets.truncate(frame.buckets);
            freelist.undo_free(frame.freed);
            self.failed = frame.failed;
        }
    }

    /// Keeps the changes of savepoints until `outer` are left.
    pub(crate) fn release_savepoint(&mut self, outer: usize) {
        while self.frames.len() > outer {
            let Some(frame) = self.frames.pop() else {
                return;
            };
            self.forest.arena.release();
            if let Some(into) = self.frames.last_mut() {
                for (id, kept) in frame.kept {
                    if id < into.buckets {
                        into.kept.entry(id).or_insert(kept);
                    }
                }
                into.links.extend(frame.links);
            }
        }
    }

    /// An open bucket, for a change of anything but its table of open buckets.
    pub(crate) fn bucket_for_change(&mut self, id: BucketId) -> &mut OpenBucket {
        let bucket = &mut self.buckets[id];
        if let Some(frame) = self.frames.last_mut().filter(|frame| id < frame.buckets) {
            frame.kept.entry(id).or_insert_with(|| Kept {
                root: bucket.root.clone(),
                sequence: bucket.sequence,
                changed: bucket.changed,
                fill: bucket.fill,
                nesting: bucket.nesting,
            });
        }
        bucket
    }

    /// Enters an open bucket into its parent's table.
    pub(crate) fn link(&mut self, parent: BucketId, name: Bytes, id: BucketId) {
        if let Some(frame) = self.frames.last_mut() {
            frame.links.push(Link::Added(parent, name.clone()));
        }
        self.buckets[parent].children.insert(name, id);
    }

    /// Takes an open bucket out of its parent's table.
    pub(crate) fn unlink(&mut self, parent: BucketId, name: &[u8]) {
        if let Some((name, id)) = self.buckets[parent].children.remove_entry(name)
            && let Some(frame) = self.frames.last_mut()
        {
            frame.links.push(Link::Removed(parent, name, id));
        }
    }
}
