//! What must hold at every step, whatever happens to the cluster.
//!
//! - one leader a term, and one vote of a member a term;
//! - log matching and state machine safety: a committed entry is the same on all members;
//! - a leader commits by counting what is of its own term, and what lies before only with it;
//! - leader completeness: who begins to lead has every entry that was committed in an earlier term;
//! - commit, apply, term and revision of a running member never go back; a member that has started
//!   again has not forgotten the term of what it had sent;
//! - a revision is the same bytes on all members, and revisions are dense;
//! - HashKV is equal wherever revision and compaction are, and no corruption check says otherwise.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use keelson_node::Stepped;
use keelson_proto::ids::{LogIndex, MemberId, Term};
use keelson_proto::message::{Message, MessageKind};
use keelson_proto::rpc::etcdserverpb::AlarmType;
use keelson_proto::rpc::mvccpb::KeyValue;
use keelson_raft::Storage as _;
use keelson_store::hash::hash_kv;
use keelson_store::{EventRange, EventRecord};
use prost::Message as _;

use crate::history::{Change, Row};
use crate::trace::Trace;

/// What was last seen of a running member.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    term: Term,
    committed: LogIndex,
    applied: LogIndex,
    revision: i64,
    /// Committed entries that were compared.
    compared: LogIndex,
    /// The last term in which it was seen to lead.
    led: Term,
    /// The last revision whose records came.
    events: i64,
}

/// The properties, and what they remember.
#[derive(Debug, Default)]
pub(crate) struct Safety {
    leaders: BTreeMap<Term, MemberId>,
    votes: BTreeMap<(MemberId, Term), MemberId>,
    /// The highest term that a member has spoken of.
    spoken: BTreeMap<MemberId, Term>,
    /// Committed entries: their terms, and what they hold.
    entries: BTreeMap<LogIndex, (Term, u64)>,
    seen: BTreeMap<MemberId, Seen>,
    observed: BTreeMap<i64, Vec<Change>>,
    hashes: BTreeMap<(i64, i64), u32>,
}

/// What breaks a property.
pub(crate) type Broken = String;

fn check(holds: bool, text: impl FnOnce() -> Broken) -> Result<(), Broken> {
    if holds { Ok(()) } else { Err(text()) }
}

impl Safety {
    /// What revisions changed, as members told of it.
    #[must_use]
    pub(crate) fn observed(&self) -> &BTreeMap<i64, Vec<Change>> {
        &self.observed
    }

    /// A member has started.
    ///
    /// # Errors
    ///
    /// It has forgotten a term.
    pub(crate) fn started(&mut self, stepped: &Stepped) -> Result<(), Broken> {
        let id = stepped.node().member_id();
        let revision = stepped.node().shared().revision();
        let seen = Seen {
            revision,
            events: revision,
            ..Seen::default()
        };
        self.seen.insert(id, seen);
        let term = stepped.core().view().term;
        let spoken = self.spoken.get(&id).copied().unwrap_or_default();
        check(term >= spoken, || {
            format!("member {id} comes back in term {term}, and had spoken of {spoken}")
        })
    }

    /// A member has sent a message.
    ///
    /// # Errors
    ///
    /// It has given two votes.
    pub(crate) fn sent(&mut self, message: &Message) -> Result<(), Broken> {
        let (from, term) = (message.from, message.term);
        let is_vote = message.kind == MessageKind::VoteResp && !message.reject;
        // Others may be sent before the own disk has the term: nothing hangs on them.
        if !matches!(
            message.kind,
            MessageKind::Vote
                | MessageKind::VoteResp
                | MessageKind::AppResp
                | MessageKind::App
                | MessageKind::Heartbeat
        ) {
            return Ok(());
        }
        let spoken = self.spoken.entry(from).or_default();
        *spoken = term.max(*spoken);
        if !is_vote {
            return Ok(());
        }
        let voted = *self.votes.entry((from, term)).or_insert(message.to);
        check(voted == message.to, || {
            format!(
                "member {from} votes for {} and for {voted} in term {term}",
                message.to
            )
        })
    }

    /// Looks at a member between two turns.
    ///
    /// # Errors
    ///
    /// The property that is broken, and how.
    pub(crate) fn look(&mut self, stepped: &Stepped) -> Result<(), Broken> {
        let node = stepped.node();
        let id = node.member_id();
        let view = stepped.core().view();
        let (applied, _) = node.shared().applied();
        let revision = node.shared().revision();
        let seen = self.seen.entry(id).or_default();
        let before = *seen;
        *seen = Seen {
            term: view.term,
            committed: view.committed,
            applied,
            revision,
            ..before
        };
        check(
            view.term >= before.term
                && view.committed >= before.committed
                && applied >= before.applied
                && revision >= before.revision,
            || format!("member {id} went back: {before:?}, then {view:?}, applied {applied}"),
        )?;
        check(applied <= view.committed, || {
            format!(
                "member {id} has applied {applied}, and {} is committed",
                view.committed
            )
        })?;
        let last = stepped.core().log().last_index();
        check(applied <= last, || {
            format!("member {id} has applied {applied}, and its log holds {last}")
        })?;
        let counted = view.leads && before.led == view.term && view.committed > before.committed;
        check(!counted || stepped.core().has_committed_in_term(), || {
            format!(
                "the leader {id} of term {} has committed {} of an earlier term by counting",
                view.term, view.committed
            )
        })?;
        if view.leads && before.led != view.term {
            self.leads(id, view.term, stepped)?;
        }
        // What is committed and not applied may stand in the log as an older entry, for a moment.
        self.compare(id, applied, stepped)
    }

    fn leads(&mut self, id: MemberId, term: Term, stepped: &Stepped) -> Result<(), Broken> {
        let leader = *self.leaders.entry(term).or_insert(id);
        check(leader == id, || {
            format!("two leaders in term {term}: {leader} and {id}")
        })?;
        if let Some(seen) = self.seen.get_mut(&id) {
            seen.led = term;
        }
        let log = stepped.core().log();
        let last = stepped.core().last_index();
        for (index, (committed_in, _)) in self.entries.range(log.first_index()..) {
            if *committed_in >= term {
                continue;
            }
            let found = log.term(*index).ok();
            let has = found.map_or(*index > log.last_index() && *index <= last, |found| {
                found == *committed_in
            });
            check(has, || {
                format!("the leader {id} of term {term} lacks the committed entry {index}")
            })?;
        }
        Ok(())
    }

    /// Compares committed entries with those of others.
    fn compare(&mut self, id: MemberId, upto: LogIndex, stepped: &Stepped) -> Result<(), Broken> {
        let seen = self.seen.entry(id).or_default();
        let log = stepped.core().log();
        let from = seen.compared.next().max(log.first_index());
        if from > upto {
            return Ok(());
        }
        seen.compared = upto;
        let Ok(entries) = log.entries(from, upto.next(), u64::MAX) else {
            return Ok(());
        };
        for entry in entries {
            let mut content = Trace::default();
            content.bytes(&entry.data);
            write!(content, "{:?}", entry.kind).map_err(|error| error.to_string())?;
            let is = (entry.term, content.value());
            let known = *self.entries.entry(entry.index).or_insert(is);
            check(known == is, || {
                format!(
                    "member {id} has committed another entry {} than others: of terms {} and {}",
                    entry.index, is.0, known.0
                )
            })?;
        }
        Ok(())
    }

    /// A member's apply has told of records. Gives back the changes.
    ///
    /// # Errors
    ///
    /// They are not what another member has had, or leave a gap.
    pub(crate) fn events(&mut self, id: MemberId, batch: &EventRange) -> Result<(), Broken> {
        let seen = self.seen.entry(id).or_default();
        check(batch.from == seen.events + 1, || {
            format!(
                "member {id} has revision {} and then {}",
                seen.events, batch.from
            )
        })?;
        seen.events = batch.to;
        let mut next = batch.from;
        for group in batch
            .records
            .chunk_by(|a, b| a.revision.main == b.revision.main)
        {
            let main = group[0].revision.main;
            check(main == next, || {
                format!("member {id} has no revision {next}, but {main}")
            })?;
            next = main + 1;
            let changes: Vec<Change> = group.iter().map(change).collect::<Result<_, _>>()?;
            let known = self.observed.entry(main).or_insert_with(|| changes.clone());
            check(*known == changes, || {
                format!("revision {main} is {changes:?} on member {id}, and {known:?} elsewhere")
            })?;
        }
        check(next == batch.to + 1, || {
            format!("member {id} has told of no revision {next}")
        })
    }

    /// A member's state went on to this revision by a snapshot.
    pub(crate) fn restored(&mut self, id: MemberId, revision: i64) {
        self.seen.entry(id).or_default().events = revision;
    }

    /// No member's state was ever damaged, so no check may say so.
    ///
    /// # Errors
    ///
    /// One has.
    pub(crate) fn alarms(&self, stepped: &Stepped) -> Result<(), Broken> {
        let node = stepped.node();
        let corrupt = node.shared().alarms().is_active(AlarmType::Corrupt);
        check(!corrupt, || {
            format!(
                "member {} is told of a damage that is none",
                node.member_id()
            )
        })
    }

    /// Compares the hash of a member's state with what others had.
    ///
    /// # Errors
    ///
    /// It differs, or cannot be computed.
    pub(crate) fn hash(&mut self, stepped: &Stepped, revision: i64) -> Result<(), Broken> {
        let node = stepped.node();
        let id = node.member_id();
        let Ok(hash) = hash_kv(node.shared(), revision) else {
            // Compacted, or not that far.
            return Ok(());
        };
        let place = (hash.hash_revision, hash.compact_revision);
        let known = *self.hashes.entry(place).or_insert(hash.hash);
        check(known == hash.hash, || {
            format!(
                "HashKV of member {id} at revision {} (compacted {}) is {}, and {known} elsewhere",
                place.0, place.1, hash.hash
            )
        })
    }
}

/// A record as a change.
///
/// # Errors
///
/// It is no record.
pub(crate) fn change(event: &EventRecord) -> Result<Change, Broken> {
    let kv = KeyValue::decode(&event.record.bytes[..]).map_err(|error| error.to_string())?;
    if event.record.tombstone {
        return Ok(Change::Delete(kv.key.to_vec()));
    }
    Ok(Change::Put(row(&kv)))
}

/// A stored key as a row.
#[must_use]
pub(crate) fn row(kv: &KeyValue) -> Row {
    Row {
        key: kv.key.to_vec(),
        value: kv.value.to_vec(),
        create_revision: kv.create_revision,
        mod_revision: kv.mod_revision,
        version: kv.version,
        lease: kv.lease,
    }
}
