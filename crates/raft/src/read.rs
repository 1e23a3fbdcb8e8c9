//! Reads that wait until a quorum has confirmed who leads.
//!
//! Reads are numbered as they come in. A heartbeat carries the number of the newest one; a member
//! that answers it confirms that one and all before it.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use keelson_proto::ids::{LogIndex, MemberId};
use keelson_proto::message::{Message, MessageKind};

use crate::events::event;
use crate::log::count;
use crate::quorum::JointConfig;
use crate::raft::Raft;
use crate::{ReadOnlyOption, Storage};

/// Reads that wait for a quorum. Beyond it they are dropped: whoever asks, asks again.
const WAITING_READS_MAX: usize = 1 << 16;

/// The answer to a read: once `index` is applied, the state may be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadState {
    /// What had been committed when the read came in, or later.
    pub index: LogIndex,
    /// What the read was asked for with.
    pub context: Bytes,
}

/// A read whose answer waits for a quorum.
#[derive(Debug)]
pub(crate) struct WaitingRead {
    /// The question, with the member that it came from.
    pub(crate) request: Message,
    /// What was committed when it came in.
    pub(crate) index: LogIndex,
}

/// The reads of one leadership, in order.
#[derive(Debug, Default)]
pub(crate) struct ReadQueue {
    waiting: VecDeque<WaitingRead>,
    /// How many reads were confirmed; the first one that waits has the next number.
    confirmed: u64,
    /// The newest read that each member has confirmed.
    acked: BTreeMap<MemberId, u64>,
}

impl ReadQueue {
    pub(crate) fn push(&mut self, request: Message, index: LogIndex) {
        self.waiting.push_back(WaitingRead { request, index });
    }

    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    fn issued(&self) -> u64 {
        self.confirmed + count(self.waiting.len())
    }

    /// What a heartbeat carries: the number of the newest read, little-endian; nothing if none waits.
    pub(crate) fn context(&self) -> Bytes {
        if self.waiting.is_empty() {
            Bytes::new()
        } else {
            Bytes::copy_from_slice(&self.issued().to_le_bytes())
        }
    }

    /// Takes note of the number that came back; one that was never sent confirms nothing.
    pub(crate) fn ack(&mut self, from: MemberId, context: &[u8]) {
        let Some(number) = context.first_chunk() else {
            return;
        };
        let number = u64::from_le_bytes(*number);
        if number <= self.issued() {
            let newest = self.acked.entry(from).or_default();
            *newest = number.max(*newest);
        }
    }

    /// Takes out the reads that a quorum has confirmed.
    pub(crate) fn confirm(&mut self, voters: &JointConfig) -> Vec<WaitingRead> {
        let quorum = voters.committed(|id| self.acked.get(&id).copied());
        let upto = quorum.min(self.issued());
        let news = usize::try_from(upto.saturating_sub(self.confirmed))
            .expect("no more than wait in memory");
        self.confirmed += count(news);
        self.waiting.drain(..news).collect()
    }
}

/// What a leader does with reads.
impl<S: Storage> Raft<S> {
    pub(crate) fn on_read(&mut self, request: Message) {
        let waiting = self.leadership.early_reads.len() + self.leadership.reads.len();
        if self.tracker.is_singleton() {
            self.answer_read(request, self.log.committed);
        } else if waiting >= WAITING_READS_MAX {
            event!(
                self.events,
                Warn,
                "{} has {waiting} reads waiting at term {}; dropping index reading msg",
                self.id,
                self.term
            );
        } else if self.has_committed_in_term() {
            self.start_read(request);
        } else {
            self.leadership.early_reads.push(request);
        }
    }

    /// Whether an entry of this term is committed: then a leader knows all that is committed.
    pub(crate) fn has_committed_in_term(&self) -> bool {
        self.log.term_or_zero(self.log.committed) == self.term
    }

    pub(crate) fn release_early_reads(&mut self) {
        if self.has_committed_in_term() {
            for request in std::mem::take(&mut self.leadership.early_reads) {
                self.start_read(request);
            }
        }
    }

    fn start_read(&mut self, request: Message) {
        let committed = self.log.committed;
        match self.config.read_only {
            ReadOnlyOption::Safe => {
                let reads = &mut self.leadership.reads;
                reads.push(request, committed);
                let context = reads.context();
                reads.ack(self.id, &context);
                self.broadcast_heartbeat();
            }
            ReadOnlyOption::LeaseBased => self.answer_read(request, committed),
        }
    }

    /// Answers a read, of this member or of another.
    pub(crate) fn answer_read(&mut self, request: Message, index: LogIndex) {
        if request.from.is_none() || request.from == self.id {
            let context = request.entries.into_iter().next();
            self.read_states.push(ReadState {
                index,
                context: context.unwrap_or_default().data,
            });
        } else {
            self.send(Message {
                kind: MessageKind::ReadIndexResp,
                to: request.from,
                index,
                entries: request.entries,
                ..Message::default()
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn three() -> JointConfig {
        JointConfig {
            incoming: (1..=3).map(MemberId).collect(),
            ..JointConfig::default()
        }
    }

    #[test]
    fn an_answer_confirms_all_reads_before_it() {
        let mut reads = ReadQueue::default();
        assert!(reads.context().is_empty());
        reads.push(Message::default(), LogIndex(5));
        let first = reads.context();
        reads.push(Message::default(), LogIndex(6));
        let second = reads.context();
        reads.ack(MemberId(1), &second);
        assert!(reads.confirm(&three()).is_empty());
        reads.ack(MemberId(2), &first);
        assert_eq!(reads.confirm(&three())[0].index, LogIndex(5));
        reads.ack(MemberId(3), &second);
        assert_eq!(reads.confirm(&three())[0].index, LogIndex(6));
        assert!(reads.context().is_empty());
    }

    #[test]
    fn numbers_that_were_never_sent_confirm_nothing() {
        let mut reads = ReadQueue::default();
        reads.push(Message::default(), LogIndex(5));
        reads.ack(MemberId(1), &9_u64.to_le_bytes());
        reads.ack(MemberId(2), &[1, 0, 0]);
        reads.ack(MemberId(3), &[]);
        assert!(reads.confirm(&three()).is_empty());
    }
}
