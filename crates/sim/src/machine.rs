//! What goes wrong with a member's machine: its disk is full, its clock is not right.

use keelson_proto::ids::MemberId;

use crate::clock::{MILLI, Moment, SECOND};
use crate::world::{Event, Failed, World};

/// What a member must say that has no room: the system's words.
const NO_SPACE: &str = "No space left on device";

/// How soon whoever looks after a member starts it again.
const AGAIN_WITHIN: (Moment, Moment) = (50 * MILLI, SECOND);

impl World {
    /// A member ends by itself: only for want of room, and it must say so.
    pub(crate) fn gives_up(
        &mut self,
        place: usize,
        error: &keelson_node::Error,
    ) -> Result<(), Failed> {
        let spot = &self.places[place];
        if !spot.disk.has_refused() {
            return Err(format!("member {place} cannot go on: {error}"));
        }
        let told = spot.running.as_ref().map(|it| it.desk.failure());
        says_full(place, &told.unwrap_or_default())?;
        // What it said before reaches others.
        self.collect(place)?;
        self.kill(place);
        self.start_again(place);
        Ok(())
    }

    /// A member has not started: only for want of room, and it must say so.
    pub(crate) fn starts_later(
        &mut self,
        place: usize,
        error: &keelson_node::Error,
    ) -> Result<(), Failed> {
        says_full(place, &error.to_string())?;
        self.start_again(place);
        Ok(())
    }

    fn start_again(&mut self, place: usize) {
        // After a sync that has failed, nobody knows what the disk has of it.
        let spot = &mut self.places[place];
        if spot.disk.has_failed_to_sync() && self.random.chance(500) {
            spot.disk = spot.disk.crash(&mut self.random);
        }
        let delay = self.random.between(AGAIN_WITHIN.0, AGAIN_WITHIN.1);
        self.after(delay, Event::Start(place));
    }

    /// A member could not do what it was asked for: only for want of room.
    pub(crate) fn failed(&self, place: usize, error: &str) -> Result<(), Failed> {
        let disk = &self.places[place].disk;
        if disk.is_cut() {
            return Ok(());
        }
        if !disk.has_refused() {
            return Err(format!("member {place} could not carry out: {error}"));
        }
        says_full(place, error)
    }

    /// A clock runs at so many thousandths of the world's speed.
    pub(crate) fn set_rate(&mut self, place: usize, rate: u64) {
        self.fastest = self.fastest.max(rate);
        self.places[place].clock.set_rate(rate);
        self.arouse(place);
    }

    /// The links from a member to the others, or to it.
    pub(crate) fn links_of(&self, place: usize, incoming: bool) -> Vec<(MemberId, MemberId)> {
        let own = self.places[place].id();
        let others = self.places.iter().map(|it| it.id());
        others
            .filter(|other| *other != own)
            .map(|other| if incoming { (other, own) } else { (own, other) })
            .collect()
    }

    /// Nothing of what the leader sends arrives until somebody else leads, or time is up; it may be asleep
    /// meanwhile.
    pub(crate) fn hold_leader(&mut self, pause: bool, time: Moment) {
        let Some(leader) = self.leader() else { return };
        let spot = &mut self.places[leader];
        let Some(running) = &spot.running else { return };
        let term = running.stepped.core().view().term;
        if pause {
            spot.paused_until = self.now + time;
        }
        let links = self.links_of(leader, false);
        self.stop_links(links, Some(term), time);
    }
}

/// Whether somebody who reads this knows what to do.
pub(crate) fn says_full(place: usize, text: &str) -> Result<(), Failed> {
    if text.contains(NO_SPACE) {
        return Ok(());
    }
    Err(format!(
        "the disk of member {place} was full, and it does not say so: {text}"
    ))
}
