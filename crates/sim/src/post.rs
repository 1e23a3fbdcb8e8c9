//! The world's side of the network: what becomes of everything that members send to one another.

use std::io::Read as _;
use std::sync::Arc;

use keelson_node::OutgoingSnapshot;
use keelson_node::corrupt::{PeerAnswer, PeerHash};
use keelson_proto::ids::{MemberId, Term};
use keelson_proto::message::{Message, MessageKind};
use keelson_store::hash::hash_kv;

use crate::clock::{MILLI, Moment, SECOND};
use crate::net::{Parcel, Question};
use crate::trace::Trace;
use crate::world::{Event, Failed, World};

/// Of so many snapshots a copy is kept, of a thousand, where copies of messages are kept at all.
const SNAPSHOTS_KEPT: u64 = 700;
/// What a stopped link holds at most; what comes then is lost.
const HELD_MAX: usize = 512;
/// How soon after something has changed copies come that do not fit any more.
const SOON: Moment = 30 * MILLI;

/// Links that are stopped, and what waits there.
#[derive(Debug, Default)]
pub(crate) struct Stoppage {
    links: Vec<(MemberId, MemberId)>,
    waiting: Vec<Parcel>,
    /// It ends when somebody leads in a later term than this.
    until_term: Option<Term>,
    over: bool,
}

impl World {
    pub(crate) fn send(&mut self, from: MemberId, parcel: Parcel) -> Result<(), Failed> {
        let kept = self.weather.kept;
        match parcel {
            Parcel::Message(message) => {
                self.safety.sent(&message)?;
                // A proposal that comes twice is two proposals.
                if message.kind != MessageKind::Prop && self.random.chance(kept) {
                    self.copies.keep(message.clone(), &mut self.random);
                }
                if !self.net.passes(from, message.to) {
                    return Ok(());
                }
                for delay in self.weather.fate(message.kind, &mut self.random) {
                    let copy = Parcel::Message(message.clone());
                    self.after(delay, Event::Deliver(Box::new(copy)));
                }
            }
            Parcel::Snapshot(snapshot) => {
                if kept > 0 && self.random.chance(SNAPSHOTS_KEPT) {
                    let (message, body) = (snapshot.message().clone(), body(&snapshot)?);
                    self.copies.keep_snapshot(message, body, &mut self.random);
                }
                if self.random.chance(self.weather.lost) {
                    snapshot.finish(false);
                    return Ok(());
                }
                let usual = 10 * self.weather.delay;
                let delay = self.weather.delay(usual, &mut self.random);
                self.after(delay, Event::Deliver(Box::new(Parcel::Snapshot(snapshot))));
            }
            parcel => {
                if !self.random.chance(self.weather.lost) {
                    let delay = self.weather.delay(self.weather.delay, &mut self.random);
                    self.after(delay, Event::Deliver(Box::new(parcel)));
                }
            }
        }
        Ok(())
    }

    /// Something comes to the machine of a member.
    pub(crate) fn arrive(&mut self, parcel: Parcel) -> Result<(), Failed> {
        let (from, to) = parcel.route();
        if !self.net.passes(from, to) {
            parcel.lose();
            return Ok(());
        }
        if self.net.is_held(from, to) {
            let stops = |it: &&mut Stoppage| !it.over && it.links.contains(&(from, to));
            if let Some(stoppage) = self.stoppages.iter_mut().find(stops)
                && stoppage.waiting.len() < HELD_MAX
            {
                stoppage.waiting.push(parcel);
            } else {
                parcel.lose();
            }
            return Ok(());
        }
        let target = self
            .places
            .iter()
            .position(|it| it.id() == to && it.running.is_some());
        let Some(place) = target else {
            parcel.lose();
            return Ok(());
        };
        let spot = &self.places[place];
        if spot.paused_until <= self.now {
            return self.take_in(place, parcel);
        }
        if !self.plan.buffers {
            parcel.lose();
            return Ok(());
        }
        // It waits in the machine until the process reads on.
        let delay = spot.paused_until - self.now + self.random.below(MILLI);
        let life = spot.lives;
        let parcel = Box::new(parcel);
        self.after(
            delay,
            Event::Read {
                place,
                life,
                parcel,
            },
        );
        Ok(())
    }

    /// A process reads what has waited for it, if it is still the same one.
    pub(crate) fn read_on(
        &mut self,
        place: usize,
        life: u64,
        parcel: Parcel,
    ) -> Result<(), Failed> {
        let spot = &self.places[place];
        if spot.lives != life || spot.running.is_none() {
            parcel.lose();
            return Ok(());
        }
        self.take_in(place, parcel)
    }

    fn take_in(&mut self, place: usize, parcel: Parcel) -> Result<(), Failed> {
        let now = self.now;
        let Some(running) = &self.places[place].running else {
            return Ok(());
        };
        let node = running.stepped.node();
        match parcel {
            Parcel::Message(message) => {
                describe(&mut self.trace, now, &message);
                // What a member refuses is lost, as on a socket.
                let _refused = node.step(message);
            }
            Parcel::Snapshot(snapshot) => {
                let message = snapshot.message().clone();
                let taken = node.receive_snapshot(message, &mut snapshot.reader());
                self.trace.line(format_args!(
                    "{now} snapshot {} {} to {} {}",
                    snapshot.index(),
                    snapshot.message().from,
                    snapshot.message().to,
                    taken.is_ok()
                ));
                let sender = snapshot.message().from;
                snapshot.finish(taken.is_ok());
                let sender = self.places.iter().position(|it| it.id() == sender);
                if let Some(sender) = sender {
                    self.arouse(sender);
                }
                self.stir();
            }
            Parcel::Copy(message, body) => {
                let index = message.snapshot.as_ref().map(|snapshot| snapshot.index);
                let taken = node.receive_snapshot(message, &mut &body[..]);
                self.trace.line(format_args!(
                    "{now} late snapshot {index:?} to m{place} {}",
                    taken.is_ok()
                ));
            }
            Parcel::Ask(question) => self.answer_question(place, question),
            Parcel::Hash(question, answer) => {
                if self.places[place].lives == question.life {
                    node.report_hash(question.round, question.to, answer);
                }
            }
        }
        self.collect(place)
    }

    /// A member says what its history hashes to, as `GET /members/hashkv` does.
    fn answer_question(&mut self, place: usize, question: Question) {
        let Some(running) = &self.places[place].running else {
            return;
        };
        let shared = running.stepped.node().shared();
        let answer = match hash_kv(shared, question.revision) {
            Ok(hash) => PeerAnswer::Hash(PeerHash {
                revision: shared.revision(),
                hash,
            }),
            Err(_) => PeerAnswer::Refused,
        };
        let delay = self.weather.delay(self.weather.delay, &mut self.random);
        self.after(
            delay,
            Event::Deliver(Box::new(Parcel::Hash(question, answer))),
        );
    }

    /// Something has changed, so that what was sent before may not fit any more: now it comes.
    pub(crate) fn stir(&mut self) {
        for parcel in self.copies.draw(&mut self.random) {
            let most = [SOON, SOON, SECOND][self.random.index(3)];
            let delay = self.random.below(most);
            self.after(delay, Event::Deliver(Box::new(parcel)));
        }
    }

    /// Stops links, or those of the leader until somebody else leads.
    pub(crate) fn stop_links(
        &mut self,
        links: Vec<(MemberId, MemberId)>,
        until_term: Option<Term>,
        time: Moment,
    ) {
        for (from, to) in &links {
            self.net.hold(*from, *to);
        }
        self.stoppages.push(Stoppage {
            links,
            until_term,
            ..Stoppage::default()
        });
        let time = time.min(self.plan.heal_at.saturating_sub(self.now));
        self.after(time, Event::Flow(self.stoppages.len() - 1));
    }

    /// Stopped links go on: everything that has waited comes, in order.
    pub(crate) fn flow(&mut self, number: usize) {
        let stoppage = &mut self.stoppages[number];
        if std::mem::replace(&mut stoppage.over, true) {
            return;
        }
        let (links, waiting) = (
            std::mem::take(&mut stoppage.links),
            std::mem::take(&mut stoppage.waiting),
        );
        for (from, to) in links {
            self.net.release(from, to);
        }
        self.trace.line(format_args!(
            "{} links go on, {} waited",
            self.now,
            waiting.len()
        ));
        let mut delay = 0;
        for parcel in waiting {
            delay += self.random.below(MILLI / 4);
            self.after(delay, Event::Deliver(Box::new(parcel)));
        }
    }

    /// Somebody leads in a term in which nobody was seen to lead before.
    pub(crate) fn is_led_anew(&mut self, term: Term) {
        for number in 0..self.stoppages.len() {
            let stoppage = &self.stoppages[number];
            if !stoppage.over && stoppage.until_term.is_some_and(|before| before < term) {
                let delay = self.random.below(4 * SOON);
                self.after(delay, Event::Flow(number));
            }
        }
        self.stir();
    }
}

/// The bytes of a snapshot's file.
fn body(snapshot: &OutgoingSnapshot) -> Result<Arc<[u8]>, Failed> {
    let mut body = Vec::new();
    let read = snapshot.reader().read_to_end(&mut body);
    read.map_err(|error| format!("a snapshot cannot be read: {error}"))?;
    Ok(Arc::from(body))
}

fn describe(trace: &mut Trace, now: Moment, message: &Message) {
    trace.line(format_args!(
        "{now} {:?} {} to {} term {} index {} of {} commit {} entries {} reject {}",
        message.kind,
        message.from,
        message.to,
        message.term,
        message.index,
        message.log_term,
        message.commit,
        message.entries.len(),
        message.reject,
    ));
}
