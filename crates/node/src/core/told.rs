//! Messages that say what another one has said, or says at once.
//!
//! A leader that commits tells so by an append without entries, and each member answers that by telling once
//! more how far its log is. Under load these are half of all messages, and each costs both ends a wake-up.
//!
//! 1. An acknowledgement that repeats the last one, of the same term to the same member, waits for the next
//!    tick. One that answers an append with entries never does: the leader may be waiting for it, if the one
//!    before was lost.
//! 2. An append without entries is left out where another append goes to the same member with it. Any message
//!    may be lost, so none needs to be sent.

use keelson_proto::ids::{LogIndex, MemberId, Term};
use keelson_proto::message::{Message, MessageKind};

/// What the leader was told last of the own log.
#[derive(Debug, Default)]
pub(super) struct Told {
    last: Option<(MemberId, Term, LogIndex)>,
    /// What waits for the next tick.
    held: Option<Message>,
}

impl Told {
    /// Sees a message that came in.
    pub(super) fn heard(&mut self, message: &Message) {
        if message.kind == MessageKind::App && !message.entries.is_empty() {
            self.last = None;
        }
    }

    /// A message that is to go out, unless it is held.
    pub(super) fn pass(&mut self, message: Message) -> Option<Message> {
        if message.kind != MessageKind::AppResp {
            return Some(message);
        }
        let said = (!message.reject).then_some((message.to, message.term, message.index));
        if said.is_some() && said == self.last {
            self.held = Some(message);
            return None;
        }
        self.last = said;
        self.held = None;
        Some(message)
    }

    /// What was held; a tick has passed.
    pub(super) fn release(&mut self) -> Option<Message> {
        self.held.take()
    }
}

/// Leaves out what the messages after it say as well. Linear in the number of messages, of which a turn may
/// have thousands to the same few members.
pub(super) fn spare(messages: &mut Vec<Message>) {
    let is_append = |message: &Message| message.kind == MessageKind::App;
    let is_empty = |message: &Message| is_append(message) && message.entries.is_empty();
    if messages.len() < 2 || !messages.iter().any(is_empty) {
        return;
    }
    let mut followed: Vec<(MemberId, Term)> = Vec::new();
    messages.reverse();
    messages.retain(|message| {
        let whose = (message.to, message.term);
        let is_followed = followed.contains(&whose);
        if is_append(message) && !is_followed {
            followed.push(whose);
        }
        !(is_followed && is_empty(message))
    });
    messages.reverse();
}

#[cfg(test)]
mod tests {
    use keelson_proto::entry::Entry;

    use super::*;

    fn acknowledges(to: u64, term: u64, index: u64) -> Message {
        Message {
            kind: MessageKind::AppResp,
            to: MemberId(to),
            term: Term(term),
            index: LogIndex(index),
            ..Message::default()
        }
    }

    fn append(to: u64, commit: u64, entries: usize) -> Message {
        Message {
            kind: MessageKind::App,
            to: MemberId(to),
            commit: LogIndex(commit),
            entries: vec![Entry::default(); entries],
            ..Message::default()
        }
    }

    #[test]
    fn an_acknowledgement_that_says_nothing_new_waits_for_the_tick() {
        let mut told = Told::default();
        assert!(told.pass(acknowledges(1, 1, 5)).is_some());
        assert!(told.pass(acknowledges(1, 1, 5)).is_none());
        assert!(told.pass(acknowledges(1, 1, 5)).is_none());
        assert_eq!(told.release(), Some(acknowledges(1, 1, 5)));
        assert_eq!(told.release(), None);
    }

    #[test]
    fn what_is_new_goes_out_at_once_and_takes_the_place_of_what_was_held() {
        let mut told = Told::default();
        assert!(told.pass(acknowledges(1, 1, 5)).is_some());
        assert!(told.pass(acknowledges(1, 1, 5)).is_none());
        assert!(told.pass(acknowledges(1, 1, 6)).is_some());
        assert_eq!(told.release(), None);
        assert!(told.pass(acknowledges(1, 2, 6)).is_some(), "another term");
        assert!(told.pass(acknowledges(2, 2, 6)).is_some(), "another leader");
    }

    #[test]
    fn an_append_with_entries_is_answered_at_once_and_so_is_one_that_does_not_fit() {
        let mut told = Told::default();
        assert!(told.pass(acknowledges(1, 1, 5)).is_some());
        told.heard(&append(9, 5, 1));
        assert!(told.pass(acknowledges(1, 1, 5)).is_some());
        told.heard(&append(9, 5, 0));
        assert!(told.pass(acknowledges(1, 1, 5)).is_none());
        let refused = Message {
            reject: true,
            ..acknowledges(1, 1, 5)
        };
        assert!(told.pass(refused.clone()).is_some());
        assert!(told.pass(refused).is_some());
        assert!(told.pass(acknowledges(1, 1, 5)).is_some());
    }

    #[test]
    fn an_empty_append_is_left_out_before_another_one_to_the_same_member() {
        let mut messages = vec![
            append(1, 4, 0),
            append(2, 4, 0),
            append(1, 4, 2),
            append(1, 5, 0),
            append(1, 5, 1),
        ];
        spare(&mut messages);
        assert_eq!(
            messages,
            [append(2, 4, 0), append(1, 4, 2), append(1, 5, 1)]
        );
        let mut alone = vec![append(1, 4, 0)];
        spare(&mut alone);
        assert_eq!(alone.len(), 1);
    }
}
