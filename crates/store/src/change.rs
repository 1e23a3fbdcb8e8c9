//! The changes of one entry to keys, under one main revision.

use keelson_proto::ids::LeaseId;
use keelson_proto::rpc::etcdserverpb::{DeleteRangeRequest, PutRequest};

use crate::index::KeyRange;
use crate::tail::Record;
use crate::{Error, OpCounts, Revision, Store, record};

/// Changes under the main revision that follows the current one.
///
/// Each changed key takes one sub revision, in execution order. If nothing is changed, no revision
/// is spent. Nothing is visible to readers before [`Change::finish`].
pub(crate) struct Change<'a> {
    pub(crate) store: &'a mut Store,
    main: i64,
    sub: u32,
    /// What was counted before this.
    ops: OpCounts,
}

/// What was deleted.
#[derive(Debug, Default)]
pub(crate) struct Deleted {
    /// How many keys.
    pub(crate) count: i64,
    /// Where their values stand, in key order, but for those that compaction has lost.
    pub(crate) prevs: Vec<Revision>,
}

/// What a put did.
pub(crate) struct PutDone {
    /// Where the previous value stands, if the key was alive and compaction has not lost that.
    pub(crate) prev: Option<Revision>,
}

impl<'a> Change<'a> {
    pub(crate) fn begin(store: &'a mut Store) -> Change<'a> {
        let main = store.revision + 1;
        Change {
            ops: store.ops,
            store,
            main,
            sub: 0,
        }
    }

    /// What a read between the changes so far and the next one sees.
    pub(crate) fn at(&self) -> Revision {
        Revision {
            main: self.main,
            sub: self.sub,
        }
        .before()
    }

    /// The revision that headers name now: the new one as soon as something was changed.
    pub(crate) fn revision(&self) -> i64 {
        if self.sub == 0 {
            self.main - 1
        } else {
            self.main
        }
    }

    /// Makes the changes visible.
    pub(crate) fn finish(self) -> i64 {
        let revision = self.revision();
        self.store.revision = revision;
        self.store.ops.end_phase(self.ops);
        revision
    }

    fn next(&mut self) -> Revision {
        let revision = Revision {
            main: self.main,
            sub: self.sub,
        };
        self.sub += 1;
        revision
    }

    /// Sets a key. The lease and the presence of a key whose value or lease is kept have been
    /// checked.
    ///
    /// # Errors
    ///
    /// A failing file, where the previous value had to be read.
    pub(crate) fn put(&mut self, request: &PutRequest) -> Result<PutDone, Error> {
        let PutRequest {
            key,
            value,
            lease,
            prev_kv,
            ignore_value,
            ignore_lease,
        } = request;
        let kept = if *ignore_value || *ignore_lease {
            match self.store.index.reader().get(key, self.at()) {
                Some(state) => self.store.shared.view().record(state.rev)?,
                None => None,
            }
        } else {
            None
        };
        let kept = kept
            .as_deref()
            .map(|bytes| self.store.peek(bytes))
            .transpose()?;
        let value: &[u8] = match &kept {
            Some(kept) if *ignore_value => kept.value,
            _ => value,
        };
        let lease = match &kept {
            Some(kept) if *ignore_lease => kept.lease,
            _ => *lease,
        };
        let revision = self.next();
        let store = &mut *self.store;
        store.ops.puts += 1;
        store.ops.put_bytes += (key.len() + value.len()) as u64;
        store.ops.ranges += u64::from(*prev_kv || *ignore_value || *ignore_lease);
        let mut len = 0;
        let state = store.index.put_with(key, revision, |create, version| {
            len = record::encoded_len(
                key.len(),
                create,
                revision.main,
                version,
                value.len(),
                lease,
            );
            u32::try_from(len).expect("requests are bounded far below 4 GiB")
        });
        let bytes = store.tail.encode(len, |slab| {
            record::encode(
                key,
                state.create,
                revision.main,
                state.version,
                value,
                lease,
                slab,
            );
        });
        store.tail.push(
            revision,
            Record {
                bytes,
                tombstone: false,
            },
        );
        store.attach(LeaseId(lease), key);
        Ok(PutDone { prev: state.prev })
    }

    /// Deletes every key of a range, in key order.
    pub(crate) fn delete_range(&mut self, request: &DeleteRangeRequest) -> Deleted {
        self.store.ops.deletes += 1;
        self.store.ops.ranges += u64::from(request.prev_kv);
        let range = KeyRange::new(&request.key, &request.range_end);
        let keys = match range {
            // Looked up once only, by `delete`.
            KeyRange::Single(key) => vec![key.to_vec()],
            KeyRange::Range { .. } => self.store.index.reader().alive(range),
        };
        let mut deleted = Deleted::default();
        for key in &keys {
            self.delete(key, &mut deleted);
        }
        deleted
    }

    /// Deletes a key, if it is alive.
    pub(crate) fn delete(&mut self, key: &[u8], deleted: &mut Deleted) {
        let at = self.at();
        if !self.store.index.reader().is_alive(key, at) {
            return;
        }
        let revision = self.next();
        let store = &mut *self.store;
        deleted.count += 1;
        deleted.prevs.extend(store.index.tombstone(key, revision));
        let len = record::tombstone_len(key.len());
        let bytes = store
            .tail
            .encode(len, |slab| record::encode_tombstone(key, slab));
        store.tail.push(
            revision,
            Record {
                bytes,
                tombstone: true,
            },
        );
        store.attach(LeaseId::NONE, key);
    }
}
