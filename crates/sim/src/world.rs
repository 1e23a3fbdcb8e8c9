//! The scheduler: one queue of events under one clock, and nothing happens but by it.

use std::collections::BTreeMap;
use std::time::Duration;

use keelson_node::{Part, Reply, Turn};
use keelson_proto::ids::{MemberId, Term};

use crate::client::{Client, Lease};
use crate::clock::{MILLI, Moment, SECOND, TRUE_RATE, WorldTime};
use crate::copies::Copies;
use crate::history::Operation;
use crate::net::{Net, Parcel, Weather};
use crate::place::{self, Place, Told};
use crate::plan::Plan;
use crate::post::Stoppage;
use crate::random::Random;
use crate::safety::Safety;
use crate::trace::Trace;
use crate::watcher::Watching;

/// How often the states of members are compared.
const HASHES_EVERY: Moment = 900 * MILLI;
/// How often the operator looks whether a member that was to be added was.
const OPERATOR_EVERY: Moment = 300 * MILLI;
/// How often copies come that were kept, though nothing has changed.
const STIR_EVERY: Moment = 2 * SECOND;
/// The most events of one run: more is a run that goes nowhere.
const EVENTS_MAX: u64 = 3_000_000;

/// Why a run has failed.
pub(crate) type Failed = String;

/// Something that happens.
#[derive(Debug)]
pub(crate) enum Event {
    /// A part of a member has a turn.
    Turn { place: usize, life: u64, part: Part },
    /// Something arrives.
    Deliver(Box<Parcel>),
    /// A process that was asleep reads what has arrived.
    Read {
        place: usize,
        life: u64,
        parcel: Box<Parcel>,
    },
    /// Links that were stopped go on.
    Flow(usize),
    /// A client looks for something to do.
    Client(usize),
    /// A client waits no longer.
    Late { client: usize, generation: u32 },
    /// History for watchers that lag.
    Fetch { place: usize, life: u64 },
    /// A watcher looks for something to do.
    Watcher(usize),
    /// A fault of the plan.
    Fault(usize),
    /// Links are mended.
    Mend(Vec<(MemberId, MemberId)>),
    /// A member ends and starts again.
    Again(usize),
    /// A member starts.
    Start(usize),
    /// A disk has room again.
    Room(usize),
    /// A clock is right again.
    Right(usize),
    /// Copies come that were kept.
    Stir,
    /// The states of members are compared.
    Hashes,
    /// The operator looks after additions.
    Operator,
    /// The faults stop.
    Heal,
}

/// A cluster with its clients, and everything that happens to it.
pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) random: Random,
    pub(crate) now: Moment,
    pub(crate) time: WorldTime,
    queue: BTreeMap<(Moment, u64), Event>,
    sequence: u64,
    pub(crate) trace: Trace,
    pub(crate) net: Net,
    pub(crate) weather: Weather,
    pub(crate) copies: Copies,
    pub(crate) stoppages: Vec<Stoppage>,
    /// The last term in which somebody was seen to lead.
    led: Term,
    /// The rate of the fastest clock so far, per mille.
    pub(crate) fastest: u64,
    pub(crate) places: Vec<Place>,
    pub(crate) clients: Vec<Client>,
    /// All requests, those left out that were refused.
    pub(crate) operations: Vec<Option<Operation>>,
    /// Leases that were granted, by id.
    pub(crate) leases: BTreeMap<i64, Lease>,
    pub(crate) watchers: Vec<Watching>,
    pub(crate) safety: Safety,
    /// The faults have stopped.
    pub(crate) healed: bool,
    /// Answers that each place has given since: to clients of its own.
    pub(crate) served: BTreeMap<usize, u64>,
    /// Members that are to be added: they start once somebody knows of them.
    pub(crate) joining: Vec<(MemberId, usize)>,
    /// Values are never the same twice.
    pub(crate) unique: u64,
}

impl World {
    pub(crate) fn new(plan: &Plan, trace: Trace) -> Result<World, Failed> {
        let mut random = Random::new(plan.seed ^ 0x5eed);
        let mut world = World {
            random: random.fork(),
            plan: plan.clone(),
            now: 0,
            time: WorldTime::default(),
            queue: BTreeMap::new(),
            sequence: 0,
            trace,
            net: Net::default(),
            weather: plan.weather,
            copies: Copies::default(),
            stoppages: Vec::new(),
            led: Term(0),
            fastest: TRUE_RATE,
            places: Vec::new(),
            clients: Vec::new(),
            operations: Vec::new(),
            leases: BTreeMap::new(),
            watchers: Vec::new(),
            safety: Safety::default(),
            healed: false,
            served: BTreeMap::new(),
            joining: Vec::new(),
            unique: 0,
        };
        world.set_up()?;
        Ok(world)
    }

    fn set_up(&mut self) -> Result<(), Failed> {
        let members: Vec<(String, Vec<String>)> = (0..self.plan.members)
            .map(|number| (place::name(number), place::peer_urls(number)))
            .collect();
        for number in 0..self.plan.members {
            self.add_place(number, &members);
        }
        for number in 0..self.plan.members {
            self.start(number)?;
        }
        for client in 0..self.plan.clients {
            self.clients.push(Client::default());
            self.after(SECOND / 4, Event::Client(client));
        }
        for watcher in 0..self.plan.watchers {
            let watching = Watching::new(watcher);
            self.watchers.push(watching);
            self.after(SECOND / 3, Event::Watcher(watcher));
        }
        for number in 0..self.plan.faults.len() {
            let (at, _) = self.plan.faults[number];
            self.after(at, Event::Fault(number));
        }
        self.after(HASHES_EVERY, Event::Hashes);
        self.after(OPERATOR_EVERY, Event::Operator);
        self.after(STIR_EVERY, Event::Stir);
        self.after(self.plan.heal_at, Event::Heal);
        Ok(())
    }

    pub(crate) fn add_place(&mut self, number: usize, members: &[(String, Vec<String>)]) {
        let mut config = place::config(&place::name(number), members);
        config.pre_vote = self.plan.pre_vote;
        config.snapshot_count = self.plan.snapshot_count;
        config.wal_segment_bytes = self.plan.segment_bytes;
        config.max_snapshots = 2;
        config.max_wals = 2;
        config.reader_patience = Duration::from_secs(2);
        config.corrupt_check = self.plan.checks.map(Duration::from_micros);
        config.compact_hash_check = config.corrupt_check.map(|every| every / 2);
        self.places.push(Place::new(config, &self.time));
    }

    /// Has something happen so much later.
    pub(crate) fn after(&mut self, delay: Moment, event: Event) {
        self.sequence += 1;
        self.queue.insert((self.now + delay, self.sequence), event);
    }

    /// Runs until the cluster serves again after its faults, and checks what clients saw.
    pub(crate) fn run(&mut self) -> Result<(), Failed> {
        let mut events = 0;
        while let Some(((at, _), event)) = self.queue.pop_first() {
            events += 1;
            if events > EVENTS_MAX {
                return Err(format!("{EVENTS_MAX} events, and no end"));
            }
            self.now = at;
            self.time.set(at);
            self.carry_out(event)
                .map_err(|failed| format!("at {} us: {failed}", self.now))?;
            if self.healed && self.is_settled()? {
                return self.conclude();
            }
        }
        Err("nothing happens any more".to_owned())
    }

    fn carry_out(&mut self, event: Event) -> Result<(), Failed> {
        match event {
            Event::Turn { place, life, part } => self.turn(place, life, part),
            Event::Deliver(parcel) => self.arrive(*parcel),
            Event::Read {
                place,
                life,
                parcel,
            } => self.read_on(place, life, *parcel),
            Event::Flow(number) => {
                self.flow(number);
                Ok(())
            }
            Event::Client(client) => self.client(client),
            Event::Late { client, generation } => {
                self.late(client, generation);
                Ok(())
            }
            Event::Fetch { place, life } => self.fetch(place, life),
            Event::Watcher(watcher) => {
                self.watcher(watcher);
                Ok(())
            }
            Event::Fault(number) => self.fault(number),
            Event::Mend(links) => {
                for (from, to) in links {
                    self.net.mend(from, to);
                }
                Ok(())
            }
            Event::Again(place) => {
                self.again(place);
                Ok(())
            }
            Event::Start(place) => self.start(place),
            Event::Room(place) => {
                self.places[place].disk.make_room();
                Ok(())
            }
            Event::Right(place) => {
                self.set_rate(place, TRUE_RATE);
                Ok(())
            }
            Event::Stir => {
                self.after(STIR_EVERY, Event::Stir);
                self.stir();
                Ok(())
            }
            Event::Hashes => {
                self.after(HASHES_EVERY, Event::Hashes);
                self.compare_hashes()
            }
            Event::Operator => {
                self.after(OPERATOR_EVERY, Event::Operator);
                self.look_after_additions()
            }
            Event::Heal => self.heal(),
        }
    }

    fn turn(&mut self, place: usize, life: u64, part: Part) -> Result<(), Failed> {
        let now = self.now;
        let spot = &mut self.places[place];
        let current = spot.lives == life;
        let Some(running) = spot.running.as_mut().filter(|_| current) else {
            return Ok(());
        };
        if running.turns[place::number(part)] != Some(now) {
            // Another moment was chosen since.
            return Ok(());
        }
        running.turns[place::number(part)] = None;
        if spot.paused_until > now {
            let until = spot.paused_until;
            running.turns[place::number(part)] = Some(until);
            self.after(until - now, Event::Turn { place, life, part });
            return Ok(());
        }
        let turn = running.stepped.turn(part);
        self.trace
            .line(format_args!("{now} m{place} {part:?} {}", said(&turn)));
        if let Err(error) = turn
            && !spot.disk.is_cut()
        {
            return self.gives_up(place, &error);
        }
        self.collect(place)
    }

    /// Takes what a member has said, looks at it, and gives its parts their next turns.
    pub(crate) fn collect(&mut self, place: usize) -> Result<(), Failed> {
        for (from, parcel) in self.net.take() {
            self.send(from, parcel)?;
        }
        let Some(running) = &self.places[place].running else {
            return Ok(());
        };
        let (replies, told) = (running.desk.replies(), running.desk.told());
        let removed = running.desk.is_removed();
        let id = running.stepped.node().member_id();
        for told in told {
            match told {
                Told::Events(batch) => {
                    self.safety.events(id, &batch)?;
                    self.look_at_leases(&batch)?;
                    self.watch_events(place, &batch)?;
                }
                Told::Restored(revision) => {
                    self.safety.restored(id, revision);
                    if let Some(running) = &mut self.places[place].running {
                        running.shard.skip_to(revision);
                    }
                }
            }
        }
        for (ticket, reply) in replies {
            if let Reply::Failed(error) = &reply {
                self.failed(place, error)?;
            }
            self.answer(place, ticket, &reply);
        }
        if let Some(running) = &self.places[place].running {
            self.safety.look(&running.stepped)?;
            let view = running.stepped.core().view();
            if view.leads && view.term > self.led {
                self.led = view.term;
                self.is_led_anew(view.term);
            }
        }
        if removed {
            self.places[place].gone = true;
            self.kill(place);
        } else if self.places[place].disk.is_cut() {
            self.power_off(place);
        }
        self.arouse(place);
        Ok(())
    }

    /// Gives the parts of a member their next turns.
    pub(crate) fn arouse(&mut self, place: usize) {
        let mut turns = Vec::new();
        let now = self.now;
        let spot = &mut self.places[place];
        let life = spot.lives;
        let Some(running) = &mut spot.running else {
            return;
        };
        for part in Part::ALL {
            let next = running.stepped.next(part).map(|own| spot.clock.moment(own));
            let mail = running.stepped.has_mail(part);
            let due = next.is_some_and(|at| at <= now);
            let at = if mail || due {
                let slow = (spot.slow.0 > now).then_some(spot.slow.1);
                now + delay(part, self.plan.sync, slow, &mut self.random)
            } else if let Some(next) = next {
                next
            } else {
                continue;
            };
            let turn = &mut running.turns[place::number(part)];
            if turn.is_none_or(|before| at < before) {
                *turn = Some(at);
                turns.push((at, part));
            }
        }
        let fetch = running.shard.wants_history() && !running.fetching;
        running.fetching |= fetch;
        for (at, part) in turns {
            self.after(at - now, Event::Turn { place, life, part });
        }
        if fetch {
            let delay = self.random.between(MILLI, 30 * MILLI);
            self.after(delay, Event::Fetch { place, life });
        }
    }

    fn compare_hashes(&mut self) -> Result<(), Failed> {
        let running = self.places.iter().filter_map(|it| it.running.as_ref());
        let revisions = running
            .clone()
            .map(|it| it.stepped.node().shared().revision());
        let Some(revision) = revisions.min() else {
            return Ok(());
        };
        for running in running {
            self.safety.hash(&running.stepped, revision)?;
            self.safety.alarms(&running.stepped)?;
        }
        self.trace
            .line(format_args!("{} hashes at {revision}", self.now));
        Ok(())
    }

    /// A member that leads, as far as it knows.
    pub(crate) fn leader(&self) -> Option<usize> {
        let leads = |place: &&Place| {
            let running = place.running.as_ref();
            running.is_some_and(|running| running.stepped.node().is_leader())
        };
        // Of two, the one of the later term.
        let term = |place: &Place| {
            let running = place.running.as_ref();
            running.map(|running| running.stepped.core().view().term)
        };
        let leader = self
            .places
            .iter()
            .filter(leads)
            .max_by_key(|place| term(place))?;
        self.places
            .iter()
            .position(|place| place.id() == leader.id())
    }

    /// A member that runs and has time, drawn.
    pub(crate) fn some_place(&mut self) -> Option<usize> {
        let now = self.now;
        let able = |place: &Place| place.running.is_some() && place.paused_until <= now;
        let able: Vec<usize> = (0..self.places.len())
            .filter(|number| able(&self.places[*number]))
            .collect();
        (!able.is_empty()).then(|| able[self.random.index(able.len())])
    }
}

/// How long it takes until a part takes its mail.
fn delay(part: Part, sync: Moment, slow: Option<Moment>, random: &mut Random) -> Moment {
    match part {
        Part::Consensus => random.between(5, 200),
        Part::Log => random.between(50, slow.unwrap_or(sync)),
        Part::Apply if random.chance(5) => random.between(MILLI, 300 * MILLI),
        Part::Apply => random.between(5, 2 * MILLI),
        Part::Commit => random.between(100, slow.unwrap_or(20 * MILLI)),
        Part::Duty | Part::Check => random.between(5, MILLI),
    }
}

fn said(turn: &Result<Turn, keelson_node::Error>) -> &'static str {
    match turn {
        Ok(Turn::Worked) => "worked",
        Ok(Turn::Idle) => "idle",
        Ok(Turn::Blocked) => "blocked",
        Err(_) => "ended",
    }
}
