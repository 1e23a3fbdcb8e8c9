//! The replicated state, which apply alone changes.

use std::sync::Arc;

use keelson_proto::entry::{ConfState, Entry};
use keelson_proto::ids::{LeaseId, LogIndex, Term};
use semver::Version;

use crate::alarm::Alarms;
use crate::auth::AuthState;
use crate::compaction::{CompactionJob, Pending, Slice};
use crate::index::{IndexWriter, KeyRange};
use crate::lease::Ticks;
use crate::member::Membership;
use crate::record::{self, Peek};
use crate::row::RowChange;
use crate::tail::{Boundary, EventRange, Sealed, Tail};
use crate::v2json::Dump;
use crate::{Error, OpCounts, Revision, Shared, quota, schema};

/// The space that requests may take.
#[derive(Clone, Copy, Debug)]
pub struct Quota {
    bytes: Option<u64>,
}

impl Quota {
    /// From the flag: 0 is the default of 2 GiB, a negative value is no quota.
    #[must_use]
    pub fn new(configured: i64) -> Quota {
        Quota {
            bytes: quota::effective(configured),
        }
    }

    /// Whether a database of `size` bytes has room for `cost` more.
    #[must_use]
    pub fn has_room(self, size: u64, cost: u64) -> bool {
        quota::fits(size, cost, self.bytes)
    }

    /// The quota in bytes; `None` for none.
    #[must_use]
    pub fn bytes(self) -> Option<u64> {
        self.bytes
    }
}

/// The state that entries change. There is one owner, which applies entries in order; everybody
/// else reads [`Shared`].
#[derive(Debug)]
pub struct Store {
    pub(crate) index: IndexWriter,
    pub(crate) tail: Tail,
    pub(crate) auth: AuthState,
    pub(crate) members: Arc<Membership>,
    pub(crate) alarms: Alarms,
    pub(crate) conf_state: ConfState,
    pub(crate) applied: (LogIndex, Term),
    /// The current main revision; published at the end of each entry.
    pub(crate) revision: i64,
    pub(crate) compact_revision: i64,
    pub(crate) scheduled_compact: i64,
    pub(crate) storage_version: Option<Version>,
    pub(crate) pending: Pending,
    /// Compactions that the commit thread has not reported finished.
    pub(crate) unfinished_compactions: usize,
    pub(crate) quota: Quota,
    /// How many learners the cluster may have.
    pub(crate) learners_max: usize,
    pub(crate) ops: OpCounts,
    /// The moment for deadlines of leases, which are no part of the replicated state.
    pub(crate) now: Ticks,
    pub(crate) shared: Arc<Shared>,
}

impl Store {
    /// The readers' side.
    #[must_use]
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// The last applied entry, and its term.
    #[must_use]
    pub fn applied(&self) -> (LogIndex, Term) {
        self.applied
    }

    /// The configuration as applied.
    #[must_use]
    pub fn conf_state(&self) -> &ConfState {
        &self.conf_state
    }

    /// The membership as applied.
    #[must_use]
    pub fn members(&self) -> &Arc<Membership> {
        &self.members
    }

    /// The release whose schema the file has; `None` for 3.5, and before the cluster's version was
    /// decided.
    #[must_use]
    pub fn storage_version(&self) -> Option<&Version> {
        self.storage_version.as_ref()
    }

    /// Whether a release before 3.6 keeps the membership elsewhere, so that the one in the file is not
    /// to be trusted: see [`Store::mend_members`].
    #[must_use]
    pub fn mirrors_membership(&self) -> bool {
        let version = self.members.version();
        self.storage_version.is_none()
            && version.is_some_and(|version| *version < Version::new(3, 6, 0))
    }

    /// The membership after the configuration changes among these entries, which are the next ones: see
    /// [`Membership::after`].
    #[must_use]
    pub fn members_after<'a>(&self, entries: impl IntoIterator<Item = &'a Entry>) -> Membership {
        self.members.after(entries, self.learners_max)
    }

    /// Makes the membership anew from a dump of the v2 store and the entries between it and the last
    /// applied one, and puts it in place of the one in the file; whether they differ. For the start of
    /// a member whose file [mirrors](Store::mirrors_membership) it, before the first entry.
    pub fn mend_members(&mut self, dump: Dump, entries: &[Entry]) -> bool {
        let members = Membership::from_v2(dump, entries, &self.members, self.learners_max);
        let rows = members.rows_after(&self.members);
        if rows.is_empty() {
            return false;
        }
        self.conf_state = members.conf_state();
        self.members = Arc::new(members);
        self.shared.members.store(self.members.clone());
        self.tail.change_rows(rows);
        self.publish();
        true
    }

    /// Says what time it is on this member, for the deadlines of leases that are granted from now
    /// on. What entries do to the replicated state does not depend on it.
    pub fn set_now(&mut self, now: Ticks) {
        self.now = now;
    }

    /// What has been appended to the tail since this was last asked for.
    pub fn take_events(&mut self) -> Option<EventRange> {
        self.tail.take_events()
    }

    /// Operations since this was last asked for, those of entries that were refused included.
    pub fn take_ops(&mut self) -> OpCounts {
        std::mem::take(&mut self.ops)
    }

    /// Bytes that the open segment holds.
    #[must_use]
    pub fn open_bytes(&self) -> u64 {
        self.tail.bytes()
    }

    /// Seals the open segment at the last applied entry, for the commit thread. From now on changes
    /// go to the next segment, which readers see already.
    pub fn seal(&mut self) -> Sealed {
        let boundary = Boundary {
            index: self.applied.0,
            term: self.applied.1,
            revision: self.revision,
            conf_state: self.conf_state.clone(),
            members: self.members.clone(),
        };
        let sealed = self.tail.seal(boundary);
        let open = self.tail.open().clone();
        self.shared.change_view(|view| view.with_open(open.clone()));
        self.shared.add_sealed_bytes(sealed.bytes());
        self.shared.set_tail_bytes(0);
        sealed
    }

    /// Takes the state of another store, that of a snapshot of the leader, in place of its own. Readers go
    /// on with what they have: records of revisions that both states know are the same in both, and those
    /// that the new one has compacted are refused. Leases have no deadlines until they are promoted.
    ///
    /// # Panics
    ///
    /// If the other one is behind: a snapshot never goes back.
    pub fn take_over(&mut self, fresh: Store) {
        assert!(
            fresh.applied.0 >= self.applied.0 && fresh.revision >= self.revision,
            "a snapshot never goes back: {} to {}, revision {} to {}",
            self.applied.0,
            fresh.applied.0,
            self.revision,
            fresh.revision
        );
        let Store {
            index,
            tail,
            auth,
            members,
            alarms,
            conf_state,
            applied,
            revision,
            compact_revision,
            scheduled_compact,
            storage_version,
            pending,
            unfinished_compactions,
            quota,
            learners_max,
            ops: _,
            now: _,
            shared,
        } = fresh;
        let own = &mut self.index;
        self.shared.take_over(&shared, || own.take_over(&index));
        self.tail = tail;
        self.auth = auth;
        self.members = members;
        self.alarms = alarms;
        self.conf_state = conf_state;
        self.applied = applied;
        self.revision = revision;
        self.compact_revision = compact_revision;
        self.scheduled_compact = scheduled_compact;
        self.storage_version = storage_version;
        self.pending = pending;
        self.unfinished_compactions = unfinished_compactions;
        self.quota = quota;
        self.learners_max = learners_max;
    }

    /// Says how many learners the cluster may have; 1 unless this is called. It must be the same on all
    /// members, as it decides what becomes of entries.
    pub fn set_learners_max(&mut self, learners_max: usize) {
        self.learners_max = learners_max;
    }

    /// Prunes one slice of a compaction; to be called between batches.
    pub fn compact_slice(&mut self) -> Slice {
        let oldest_pin = self.shared.oldest_pin();
        self.pending.slice(&mut self.index, oldest_pin)
    }

    /// Lets the next compaction go on past the readers that hold it: what they have not read yet may
    /// be gone. How many there were.
    pub fn break_pins(&mut self) -> usize {
        let below = self.pending.front();
        below.map_or(0, |main| self.shared.break_pins(main))
    }

    /// Notes that the commit thread has finished a compaction.
    pub fn compaction_finished(&mut self) {
        assert!(
            self.unfinished_compactions > 0,
            "a compaction finishes once"
        );
        self.unfinished_compactions -= 1;
    }

    /// Whether compactions are on their way.
    #[must_use]
    pub fn is_compacting(&self) -> bool {
        self.unfinished_compactions > 0
    }

    /// Whether a compaction to `main` leaves any record at or below it.
    pub(crate) fn keeps_any(&self, main: i64) -> bool {
        let reader = self.index.reader();
        reader.count(KeyRange::all(), Revision::end_of(main)) > 0
            || !reader.keep_of_compaction(main).is_empty()
    }

    pub(crate) fn begin_compaction(&mut self, job: CompactionJob) {
        self.compact_revision = job.revision;
        self.shared.publish_compaction(job.revision);
        self.unfinished_compactions += 1;
        self.pending.push(&mut self.index, job);
    }

    /// Hangs a key on a lease, or on none.
    pub(crate) fn attach(&mut self, lease: LeaseId, key: &[u8]) {
        if lease.is_none() && self.shared.leases().lease_of(key).is_none() {
            return;
        }
        let attached = self.shared.leases_mut().attach(key, lease);
        assert!(
            attached.is_ok(),
            "the lease of a put has been looked up before"
        );
    }

    pub(crate) fn peek<'b>(&self, bytes: &'b [u8]) -> Result<Peek<'b>, Error> {
        peek(bytes)
    }

    /// Checkpoints are written down from cluster version 3.6 on.
    pub(crate) fn persists_checkpoints(&self) -> bool {
        self.members
            .version()
            .is_some_and(|version| *version >= Version::new(3, 6, 0))
    }

    /// Brings the schema version of the file to that of the cluster.
    pub(crate) fn migrate_storage_version(&mut self) {
        let Some(cluster) = self.members.version() else {
            return;
        };
        let wanted = Version::new(cluster.major, cluster.minor, 0);
        if wanted < Version::new(3, 5, 0) || self.storage_version.as_ref() == Some(&wanted) {
            return;
        }
        let value = (wanted >= Version::new(3, 6, 0)).then(|| wanted.to_string().into_bytes());
        let key = schema::STORAGE_VERSION.to_vec();
        self.storage_version = value.is_some().then_some(wanted);
        self.tail.change_rows(vec![RowChange {
            bucket: schema::META,
            key,
            value,
        }]);
        self.shared
            .storage_version
            .store(Arc::new(self.storage_version.clone()));
    }

    /// Makes what an entry changed visible to readers.
    pub(crate) fn publish(&mut self) {
        self.shared.set_tail_bytes(self.tail.bytes());
        self.shared.publish_revision(self.revision);
        self.shared.publish_applied(self.applied.0, self.applied.1);
    }
}

/// Decodes a stored record.
pub(crate) fn peek(bytes: &[u8]) -> Result<Peek<'_>, Error> {
    record::peek(bytes).map_err(|source| Error::CorruptRow {
        bucket: schema::KEY,
        key: Vec::new(),
        reason: source.to_string(),
    })
}
