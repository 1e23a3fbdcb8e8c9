//! Carries out what a plan says: faults, and what an operator does.

use keelson_node::{Beginning, Order, Ticket};
use keelson_proto::entry::{ConfChange, ConfChangeKind};
use keelson_proto::ids::MemberId;
use keelson_store::member::Member;

use crate::clock::{MILLI, Moment, SECOND};
use crate::machine::says_full;
use crate::net::Weather;
use crate::place::{self, Told};
use crate::plan::Fault;
use crate::workload::OPERATOR;
use crate::world::{Event, Failed, World};

/// Members of a cluster, with those that are gone, at most.
const PLACES_MAX: usize = 7;

const OPERATORS: Ticket = Ticket {
    thread: 0,
    slot: OPERATOR,
    generation: 0,
};

impl World {
    /// Starts a member, unless it runs or is gone.
    pub(crate) fn start(&mut self, place: usize) -> Result<(), Failed> {
        let spot = &mut self.places[place];
        if spot.running.is_some() || spot.gone {
            return Ok(());
        }
        let started = spot.start(&self.net, &mut self.random);
        self.trace.line(format_args!(
            "{} m{place} starts: {}",
            self.now,
            started.is_ok()
        ));
        if let Err(error) = started {
            let spot = &mut self.places[place];
            if spot.disk.is_cut() {
                spot.disk = spot.disk.crash(&mut self.random);
                self.after(100 * MILLI, Event::Start(place));
                return Ok(());
            }
            if spot.disk.has_refused() {
                return self.starts_later(place, &error);
            }
            if matches!(error, keelson_node::Error::Removed { .. }) {
                // It died between the entry that removes it and its own end.
                spot.gone = true;
                return Ok(());
            }
            return Err(format!("member {place} does not start: {error}"));
        }
        if let Some(running) = &self.places[place].running {
            self.safety.started(&running.stepped)?;
        }
        self.stir();
        self.collect(place)
    }

    /// Ends the process of a member.
    pub(crate) fn kill(&mut self, place: usize) {
        self.places[place].kill(&self.net);
        self.give_up_on(place);
        self.trace.line(format_args!("{} m{place} ends", self.now));
    }

    /// The power of a member goes.
    pub(crate) fn power_off(&mut self, place: usize) {
        let down = self.places[place].down;
        self.kill(place);
        let spot = &mut self.places[place];
        spot.disk = spot.disk.crash(&mut self.random);
        self.after(down, Event::Start(place));
    }

    pub(crate) fn fault(&mut self, number: usize) -> Result<(), Failed> {
        let (_, fault) = self.plan.faults[number].clone();
        self.trace
            .line(format_args!("{} fault {fault:?}", self.now));
        let count = self.places.len();
        match fault {
            Fault::Power { place, after, down } => self.cut(place % count, after, down),
            Fault::Blackout { down } => {
                for place in 0..count {
                    self.cut(place, None, down);
                }
            }
            Fault::LeaderPower { after, down } => {
                if let Some(leader) = self.leader() {
                    self.cut(leader, Some(after), down);
                }
            }
            Fault::Kill { place, down } => {
                self.kill(place % count);
                self.after(down, Event::Start(place % count));
            }
            Fault::Stop { place, down } => self.stop(place % count, down)?,
            Fault::Pause { place, time } => {
                self.places[place % count].paused_until = self.now + time;
            }
            Fault::SlowDisk { place, sync, time } => {
                self.places[place % count].slow = (self.now + time, sync);
            }
            Fault::Partition {
                side,
                one_way,
                time,
            } => {
                let on_side = |number: usize| side >> (number % 64) & 1 == 1;
                self.part(&on_side, one_way, time);
            }
            Fault::IsolateLeader { time } => {
                if let Some(leader) = self.leader() {
                    self.part(&|number| number == leader, false, time);
                }
            }
            Fault::Lag { place, time } => self.lag(place % count, time),
            Fault::Weather(weather) => self.weather = weather,
            Fault::MoveLeader { place } => self.move_leader(place % count)?,
            Fault::Commit { place } => {
                if let Some(running) = &self.places[place % count].running {
                    let _refused = running.stepped.node().order(Order::Commit, None);
                }
                self.collect(place % count)?;
            }
            Fault::Add { learner } => self.add(learner)?,
            Fault::Promote => self.promote()?,
            Fault::HoldLeader { pause, time } => self.hold_leader(pause, time),
            Fault::Hold {
                place,
                incoming,
                time,
            } => {
                let links = self.links_of(place % count, incoming);
                self.stop_links(links, None, time);
            }
            Fault::FullDisk {
                place,
                writes,
                syncs,
                time,
            } => {
                let random = self.random.fork();
                let time = time.min(self.plan.heal_at.saturating_sub(self.now));
                self.places[place % count].disk.fill(writes, syncs, random);
                self.after(time, Event::Room(place % count));
            }
            Fault::Defragment { place } => {
                if let Some(running) = &self.places[place % count].running {
                    let node = running.stepped.node();
                    let _refused = node.order(Order::Defragment, Some(OPERATORS));
                }
                self.collect(place % count)?;
            }
            Fault::ClockRate { place, rate, time } => {
                self.set_rate(place % count, rate);
                let time = time.min(self.plan.heal_at.saturating_sub(self.now));
                self.after(time, Event::Right(place % count));
            }
            Fault::ClockJump { place, by } => self.places[place % count].clock.jump(by),
            Fault::ClockForgets { place, down } => {
                self.places[place % count].forgets = true;
                self.kill(place % count);
                self.after(down, Event::Start(place % count));
            }
            Fault::Remove { place } => self.remove(place % count)?,
        }
        Ok(())
    }

    fn cut(&mut self, place: usize, after: Option<u64>, down: Moment) {
        let spot = &mut self.places[place];
        if spot.running.is_none() {
            return;
        }
        spot.down = down;
        match after {
            Some(changes) if changes > 0 => spot.disk.cut_after(changes),
            _ => self.power_off(place),
        }
    }

    fn stop(&mut self, place: usize, down: Moment) -> Result<(), Failed> {
        if let Some(running) = self.places[place].running.take() {
            self.net.set_running(self.places[place].id(), false);
            let id = running.stepped.node().member_id();
            let stopped = running.stepped.stop();
            // What it has applied at its end others may never tell of.
            for told in running.desk.told() {
                if let Told::Events(batch) = told {
                    self.safety.events(id, &batch)?;
                    self.look_at_leases(&batch)?;
                }
            }
            if self.places[place].disk.is_cut() {
                self.power_off(place);
                return Ok(());
            }
            if let Err(error) = stopped {
                if !self.places[place].disk.has_refused() {
                    return Err(format!("member {place} does not stop: {error}"));
                }
                says_full(place, &error.to_string())?;
            }
            self.give_up_on(place);
            for (from, parcel) in self.net.take() {
                drop((from, parcel));
            }
            self.after(down, Event::Start(place));
        }
        Ok(())
    }

    fn part(&mut self, on_side: &dyn Fn(usize) -> bool, one_way: bool, time: Moment) {
        let mut links = Vec::new();
        for from in 0..self.places.len() {
            for to in 0..self.places.len() {
                let crosses = on_side(from) && !on_side(to);
                let back = !one_way && on_side(to) && !on_side(from);
                if crosses || back {
                    links.push((self.places[from].id(), self.places[to].id()));
                }
            }
        }
        for (from, to) in &links {
            self.net.cut(*from, *to);
        }
        let time = time.min(self.plan.heal_at.saturating_sub(self.now));
        self.after(time, Event::Mend(links));
    }

    /// Cuts a member off, and has the others forget, by a start, what their snapshots hold.
    fn lag(&mut self, place: usize, time: Moment) {
        self.part(&|number| number == place, false, time);
        for other in 0..self.places.len() {
            if other == place {
                continue;
            }
            let at = self.now + time * 2 / 3;
            if at < self.plan.heal_at {
                self.after(time * 2 / 3, Event::Again(other));
            }
        }
    }

    /// The process of a member ends, and starts again at once.
    pub(crate) fn again(&mut self, place: usize) {
        if self.places[place].running.is_some() {
            self.kill(place);
            self.after(MILLI, Event::Start(place));
        }
    }

    fn move_leader(&mut self, to: usize) -> Result<(), Failed> {
        let Some(leader) = self.leader() else {
            return Ok(());
        };
        let id = self.places[to].id();
        if let Some(running) = &self.places[leader].running {
            let _refused = running.stepped.node().order(Order::MoveLeader(id), None);
        }
        self.collect(leader)
    }

    fn add(&mut self, learner: bool) -> Result<(), Failed> {
        if self.places.len() + self.joining.len() >= PLACES_MAX {
            return Ok(());
        }
        let number = self.places.len() + self.joining.len();
        let urls = place::peer_urls(number);
        let member = Member::new(String::new(), urls, "", Some(self.time.seconds()), learner);
        let kind = if learner {
            ConfChangeKind::AddLearnerNode
        } else {
            ConfChangeKind::AddNode
        };
        let change = ConfChange {
            kind,
            member: member.id,
            context: member.add_context().into(),
            ..ConfChange::default()
        };
        self.joining.push((member.id, number));
        self.change(change)
    }

    fn promote(&mut self) -> Result<(), Failed> {
        let Some(leader) = self.leader() else {
            return Ok(());
        };
        let Some(running) = &self.places[leader].running else {
            return Ok(());
        };
        let members = running.stepped.node().shared().members();
        let Some(learner) = members.members().find(|it| it.is_learner) else {
            return Ok(());
        };
        let change = ConfChange {
            kind: ConfChangeKind::AddNode,
            member: learner.id,
            context: Member::promote_context(learner.id).into(),
            ..ConfChange::default()
        };
        self.change(change)
    }

    /// Removes a member, if enough of them are left.
    fn remove(&mut self, place: usize) -> Result<(), Failed> {
        let Some(leader) = self.leader() else {
            return Ok(());
        };
        let Some(running) = &self.places[leader].running else {
            return Ok(());
        };
        let members = running.stepped.node().shared().members();
        if members.voters().count() < 3 {
            return Ok(());
        }
        let change = ConfChange {
            kind: ConfChangeKind::RemoveNode,
            member: self.places[place].id(),
            ..ConfChange::default()
        };
        self.change(change)
    }

    fn change(&mut self, change: ConfChange) -> Result<(), Failed> {
        let Some(place) = self.some_place() else {
            return Ok(());
        };
        if let Some(running) = &self.places[place].running {
            let node = running.stepped.node();
            let _refused = node.propose_conf_change(change, OPERATORS);
        }
        self.collect(place)
    }

    /// Starts members that were added, once somebody knows of them.
    pub(crate) fn look_after_additions(&mut self) -> Result<(), Failed> {
        for at in 0..self.joining.len() {
            let (id, _) = self.joining[at];
            let running = self.places.iter().filter_map(|it| it.running.as_ref());
            let nodes = running.map(|running| running.stepped.node());
            let known = nodes
                .filter(|node| node.shared().members().member(id).is_some())
                .map(|node| node.cluster_id())
                .next();
            if let Some(cluster) = known {
                self.joining.remove(at);
                let number = self.places.len();
                self.add_place(number, &[]);
                self.places[number].config.beginning = Beginning::Join {
                    cluster,
                    member: id,
                };
                return self.start(number);
            }
        }
        Ok(())
    }

    /// The faults stop: everybody runs, all links are mended, and each member gets a client of its own.
    pub(crate) fn heal(&mut self) -> Result<(), Failed> {
        self.trace
            .line(format_args!("{} the faults stop", self.now));
        self.healed = true;
        self.weather = Weather::fair();
        self.copies.clear();
        for place in 0..self.places.len() {
            let now = self.now;
            let spot = &mut self.places[place];
            spot.paused_until = spot.paused_until.min(now);
            spot.slow = (0, 0);
            spot.disk.spare();
            spot.disk.make_room();
            self.start(place)?;
            self.arouse(place);
        }
        for _ in 0..self.places.len() {
            self.add_probe();
        }
        Ok(())
    }

    /// Members that others know to be removed and that have not heard of it end here.
    pub(crate) fn end_removed(&mut self) {
        let mut removed: Vec<MemberId> = Vec::new();
        for running in self.places.iter().filter_map(|it| it.running.as_ref()) {
            let members = running.stepped.node().shared().members();
            removed.extend(members.removed());
        }
        for place in 0..self.places.len() {
            let spot = &self.places[place];
            if spot.running.is_some() && removed.contains(&spot.id()) {
                self.places[place].gone = true;
                self.kill(place);
            }
        }
    }
}

/// How long a cluster may take until it serves again.
pub(crate) const SERVES_WITHIN: Moment = 40 * SECOND;
