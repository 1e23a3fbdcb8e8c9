//! Copies of what was sent, kept to come at a worse time: in a later term, in another life of who gets
//! them, behind another snapshot.
//!
//! A message may wait that long: in the queue of a sender that sleeps, in a connection that nobody reads
//! from, and a snapshot comes by a connection of its own.

use std::sync::Arc;

use keelson_proto::message::Message;

use crate::net::Parcel;
use crate::random::Random;

/// Copies of messages that are kept at a time.
const MESSAGES_MAX: usize = 48;
/// Copies of snapshots that are kept at a time.
const SNAPSHOTS_MAX: usize = 6;

/// The copies of one world.
#[derive(Debug, Default)]
pub(crate) struct Copies {
    messages: Vec<Message>,
    snapshots: Vec<(Message, Arc<[u8]>)>,
}

impl Copies {
    /// Keeps a message; another one may have to go for it.
    pub(crate) fn keep(&mut self, message: Message, random: &mut Random) {
        keep(&mut self.messages, message, MESSAGES_MAX, random);
    }

    /// Keeps a snapshot, with what its file holds.
    pub(crate) fn keep_snapshot(&mut self, message: Message, body: Arc<[u8]>, random: &mut Random) {
        keep(&mut self.snapshots, (message, body), SNAPSHOTS_MAX, random);
    }

    /// Some of them; a part of those stays for another time, too.
    pub(crate) fn draw(&mut self, random: &mut Random) -> Vec<Parcel> {
        let messages = draw(&mut self.messages, 250, random);
        let snapshots = draw(&mut self.snapshots, 400, random);
        let messages = messages.into_iter().map(Parcel::Message);
        let snapshots = snapshots
            .into_iter()
            .map(|(message, body)| Parcel::Copy(message, body));
        messages.chain(snapshots).collect()
    }

    /// Keeps none of them any longer.
    pub(crate) fn clear(&mut self) {
        self.messages.clear();
        self.snapshots.clear();
    }
}

fn keep<T>(kept: &mut Vec<T>, one: T, most: usize, random: &mut Random) {
    if kept.len() < most {
        kept.push(one);
    } else {
        let place = random.index(most);
        kept[place] = one;
    }
}

fn draw<T: Clone>(kept: &mut Vec<T>, per_mille: u64, random: &mut Random) -> Vec<T> {
    let mut drawn = Vec::new();
    kept.retain(|one| {
        let taken = random.chance(per_mille);
        if taken {
            drawn.push(one.clone());
        }
        !taken || random.chance(500)
    });
    drawn
}

#[cfg(test)]
mod tests {
    use keelson_proto::ids::Term;

    use super::*;

    #[test]
    fn old_copies_are_drawn_long_after_they_were_kept() {
        let mut random = Random::new(3);
        let mut copies = Copies::default();
        for term in 0..2 * MESSAGES_MAX as u64 {
            let message = Message {
                term: Term(term),
                ..Message::default()
            };
            copies.keep(message, &mut random);
        }
        let mut drawn = Vec::new();
        for _ in 0..50 {
            for parcel in copies.draw(&mut random) {
                if let Parcel::Message(message) = parcel {
                    drawn.push(message.term.0);
                }
            }
        }
        drawn.sort_unstable();
        assert!(drawn.iter().any(|term| *term < MESSAGES_MAX as u64));
        let all = drawn.len();
        drawn.dedup();
        assert!(drawn.len() < all, "some came twice");
        assert!(copies.draw(&mut random).is_empty(), "all have gone");
    }
}
