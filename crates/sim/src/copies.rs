//! Copies of what was sent, kept to come at a worse time: in a later term, in another life of who gets
//! them, behind another snapshot.
//!
//! A message may wait that long: in the queue of a sender that sleeps, in a connection that nobody reads
//! from, and a snapshot comes by a connection of its own.

use crate::net::Parcel;
use crate::random::Random;

/// Copies that are kept at a time.
const COPIES_MAX: usize = 48;

/// The copies of one world.
#[derive(Debug, Default)]
pub(crate) struct Copies {
    kept: Vec<Parcel>,
}

impl Copies {
    /// Keeps one; another one may have to go for it.
    pub(crate) fn keep(&mut self, parcel: Parcel, random: &mut Random) {
        if self.kept.len() < COPIES_MAX {
            self.kept.push(parcel);
        } else {
            let place = random.index(COPIES_MAX);
            self.kept[place] = parcel;
        }
    }

    /// Some of them, in any order; a part of those stays for another time, too.
    pub(crate) fn draw(&mut self, random: &mut Random) -> Vec<Parcel> {
        let mut drawn = Vec::new();
        let mut at = 0;
        while at < self.kept.len() {
            if !random.chance(250) {
                at += 1;
                continue;
            }
            match (&self.kept[at], random.chance(500)) {
                (Parcel::Message(message), true) => drawn.push(Parcel::Message(message.clone())),
                (Parcel::Copy(message, body), true) => {
                    drawn.push(Parcel::Copy(message.clone(), body.clone()));
                }
                _ => {
                    drawn.push(self.kept.swap_remove(at));
                    continue;
                }
            }
            at += 1;
        }
        drawn
    }

    /// Keeps none of them any longer.
    pub(crate) fn clear(&mut self) {
        self.kept.clear();
    }
}

#[cfg(test)]
mod tests {
    use keelson_proto::ids::Term;
    use keelson_proto::message::Message;

    use super::*;

    #[test]
    fn old_copies_are_drawn_long_after_they_were_kept() {
        let mut random = Random::new(3);
        let mut copies = Copies::default();
        for term in 0..2 * COPIES_MAX as u64 {
            let message = Message {
                term: Term(term),
                ..Message::default()
            };
            copies.keep(Parcel::Message(message), &mut random);
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
        assert!(drawn.iter().any(|term| *term < COPIES_MAX as u64));
        let all = drawn.len();
        drawn.dedup();
        assert!(drawn.len() < all, "some came twice");
        assert!(copies.draw(&mut random).is_empty(), "all have gone");
    }
}
