//! From a request to the log: ids, limits, backlog.

use std::sync::atomic::{AtomicU64, Ordering};

use keelson_proto::entry::ConfChange;
use keelson_proto::ids::{MemberId, RequestId, Term};
use keelson_proto::rpc::etcdserverpb::InternalRaftRequest;
use keelson_proto::{ApiError, request};

use crate::budget;
use crate::core::{Content, Input, Proposal};
use crate::links::Links;
use crate::mailbox::Refused;
use crate::ticket::{Asker, Waiter};

/// Low bits of a request id that count; the member's lowest 16 bits stand above them.
const COUNTER_BITS: u32 = 48;

/// Ids of requests, and what is on its way to the log.
#[derive(Debug)]
pub(crate) struct Proposals {
    prefix: u64,
    counter: AtomicU64,
    /// Bytes between a handler and the own log.
    in_flight: AtomicU64,
}

impl Proposals {
    /// Ids must not repeat over members and restarts: the member's low bits, and a counter that starts
    /// anywhere.
    ///
    /// etcd starts it at the time of day (`spec/formats.md` 6.3). A time of day may come twice: then a
    /// request of an earlier life, applied late, would answer another one of this life, and an old read
    /// index a new read.
    pub(crate) fn new(member: MemberId, random: u64) -> Proposals {
        Proposals {
            prefix: member.0 << COUNTER_BITS,
            counter: AtomicU64::new(random & ((1 << COUNTER_BITS) - 1)),
            in_flight: AtomicU64::new(0),
        }
    }

    pub(crate) fn next_id(&self) -> RequestId {
        let count = self.counter.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        RequestId(self.prefix | (count & ((1 << COUNTER_BITS) - 1)))
    }

    /// Takes in so many bytes if the budget allows; one request always fits alone.
    fn admit(&self, bytes: u64) -> bool {
        let before = self.in_flight.fetch_add(bytes, Ordering::Relaxed);
        let fits = before == 0 || before + bytes <= budget::PROPOSALS_BYTES;
        if !fits {
            self.release(bytes);
        }
        fits
    }

    pub(crate) fn release(&self, bytes: u64) {
        self.in_flight.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub(crate) fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::Relaxed)
    }
}

impl Links {
    /// Puts a request on its way: fills in its id and checks the limits of etcd's proposal path.
    ///
    /// # Source
    ///
    /// `spec/api.md` 2.1, "Proposal path".
    pub(crate) fn propose(
        &self,
        request: InternalRaftRequest,
        asker: Asker,
    ) -> Result<RequestId, ApiError> {
        self.propose_in(None, request, asker)
    }

    /// As [`Links::propose`]; with a term it is dropped unless this member still leads in that one.
    pub(crate) fn propose_in(
        &self,
        only_in: Option<Term>,
        mut request: InternalRaftRequest,
        asker: Asker,
    ) -> Result<RequestId, ApiError> {
        let priority = request.lease_revoke.is_some();
        self.check_backlog(priority)?;
        let id = self.proposals.next_id();
        request.header.get_or_insert_default().id = id.0;
        let data = request::encode(&request);
        if data.len() > self.config.max_request_bytes {
            return Err(ApiError::RequestTooLarge);
        }
        let physical = request
            .compaction
            .is_some_and(|compaction| compaction.physical);
        let waiter = Waiter { asker, physical };
        self.submit(Proposal {
            id,
            content: Content::Request(data),
            only_in,
            waiter: Some(waiter),
        })?;
        Ok(id)
    }

    pub(crate) fn propose_conf_change(
        &self,
        mut change: ConfChange,
        asker: Asker,
    ) -> Result<RequestId, ApiError> {
        self.check_backlog(false)?;
        let id = self.proposals.next_id();
        change.id = id.0;
        let waiter = Waiter {
            asker,
            physical: false,
        };
        let content = Content::ConfChange(change);
        self.submit(Proposal {
            id,
            content,
            only_in: None,
            waiter: Some(waiter),
        })?;
        Ok(id)
    }

    fn check_backlog(&self, priority: bool) -> Result<(), ApiError> {
        if self.is_stopping() {
            return Err(ApiError::Stopped);
        }
        let limit = if priority {
            budget::BACKLOG_ENTRIES_PRIORITY
        } else {
            budget::BACKLOG_ENTRIES
        };
        let committed = self.published.committed();
        let (applied, _) = self.shared.applied();
        if committed.0 > applied.0 + limit {
            return Err(ApiError::TooManyRequests);
        }
        Ok(())
    }

    fn submit(&self, proposal: Proposal) -> Result<(), ApiError> {
        let bytes = proposal.content.bytes();
        if !self.proposals.admit(bytes) {
            return Err(ApiError::TooManyRequests);
        }
        let thread = match proposal.waiter.map(|waiter| waiter.asker) {
            Some(Asker::Ticket(ticket)) => Some(ticket.thread),
            _ => None,
        };
        self.ask(Input::Propose(proposal), thread)
            .inspect_err(|_| self.proposals.release(bytes))
    }

    /// Leaves something for the next turn of consensus, and sees to it that there is one: by the serving
    /// thread that it comes from, if it does from one.
    pub(crate) fn ask(&self, input: Input, thread: Option<u16>) -> Result<(), ApiError> {
        let left = self.consensus.try_push_quietly(input, 0, || false);
        left.map_err(|refused| match refused {
            Refused::Full(_) => ApiError::TooManyRequests,
            Refused::Closed(_) => ApiError::Stopped,
        })?;
        if !thread.is_some_and(|thread| self.replies.asked(thread)) {
            self.consensus.wake();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_members_bits_then_a_counter_from_a_random_start() {
        let member = MemberId(0xddd6_62f5_2eee_fd7b);
        let proposals = Proposals::new(member, 0x0123_ffff_ffff_fffe);
        assert_eq!(proposals.next_id(), RequestId(0xfd7b_ffff_ffff_ffff));
        assert_eq!(proposals.next_id(), RequestId(0xfd7b_0000_0000_0000));
    }

    #[test]
    fn a_full_budget_admits_nothing_but_a_request_alone() {
        let proposals = Proposals::new(MemberId(1), 0);
        assert!(proposals.admit(budget::PROPOSALS_BYTES + 1));
        assert!(!proposals.admit(1));
        proposals.release(budget::PROPOSALS_BYTES + 1);
        assert_eq!(proposals.in_flight(), 0);
        assert!(proposals.admit(1));
    }
}
