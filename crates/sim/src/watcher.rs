//! The world's side of watchers: where they watch, what they get, and that they go on elsewhere.

use keelson_store::watch::{self, Fetched, Filters, Flow, Handle, Spec, State, StreamId, Target};
use keelson_store::{EventRange, EventRecord};

use crate::clock::MILLI;
use crate::history::Change;
use crate::safety;
use crate::watch_check::{Sent, Watch};
use crate::world::{Event, Failed, World};

/// Bytes of history that are fetched at once: little, so that it takes several times.
const FETCH_BYTES: usize = 2_000;
/// Watchers that are fed at once.
const JOBS_MAX: usize = 8;

/// A watcher, over all places where it has watched.
#[derive(Debug)]
pub(crate) struct Watching {
    /// What it has got since compaction last passed it.
    pub(crate) watch: Watch,
    /// What it had got before.
    pub(crate) ended: Vec<Watch>,
    /// Where it watches: place, life, handle.
    at: Option<(usize, u64, Handle)>,
    /// Its stream has no room.
    blocked: bool,
    /// What it wants next.
    next: i64,
}

impl Watching {
    /// The watcher of a number: the first one sees everything, others less.
    pub(crate) fn new(number: usize) -> Watching {
        let (key, range_end) = match number {
            0 => (vec![0], vec![0]),
            1 => (b"k0".to_vec(), Vec::new()),
            _ => (b"k1".to_vec(), b"k5".to_vec()),
        };
        Watching {
            watch: Watch {
                key,
                range_end,
                start: 2,
                sent: Vec::new(),
            },
            ended: Vec::new(),
            at: None,
            blocked: false,
            next: 2,
        }
    }

    fn got(&mut self, events: Vec<(i64, Change)>) {
        if let Some((revision, _)) = events.last() {
            self.next = revision + 1;
            self.watch.sent.push(Sent::Events(events));
        }
    }

    /// Compaction has passed it: it begins anew behind that.
    fn begin_anew(&mut self, start: i64) {
        let fresh = Watch {
            start,
            sent: Vec::new(),
            ..self.watch.clone()
        };
        self.ended.push(std::mem::replace(&mut self.watch, fresh));
        self.next = start;
        self.at = None;
        self.blocked = false;
    }
}

/// What one delivery brings.
fn changes(events: &[&EventRecord]) -> Result<Vec<(i64, Change)>, Failed> {
    let change = |event: &&EventRecord| Ok((event.revision.main, safety::change(event)?));
    events.iter().map(change).collect()
}

impl World {
    /// A watcher looks for something to do.
    pub(crate) fn watcher(&mut self, number: usize) {
        let delay = self.random.between(50 * MILLI, 400 * MILLI);
        self.after(delay, Event::Watcher(number));
        let Some((place, handle)) = self.watched(number) else {
            self.begin_watch(number);
            return;
        };
        let watching = &mut self.watchers[number];
        let Some(running) = &mut self.places[place].running else {
            return;
        };
        if watching.blocked {
            watching.blocked = false;
            running.shard.resume(handle);
        } else if self.random.chance(100) {
            // It goes on elsewhere.
            running.shard.remove(handle);
            watching.at = None;
        } else if running.shard.progress_due(handle) {
            let revision = running.shard.last();
            watching.watch.sent.push(Sent::Progress(revision));
            watching.next = watching.next.max(revision + 1);
        }
        self.arouse(place);
    }

    /// Where a watcher watches, if that member still runs.
    fn watched(&self, number: usize) -> Option<(usize, Handle)> {
        let (place, life, handle) = self.watchers[number].at?;
        let spot = &self.places[place];
        (spot.running.is_some() && spot.lives == life).then_some((place, handle))
    }

    fn begin_watch(&mut self, number: usize) {
        let Some(place) = self.some_place() else {
            return;
        };
        let life = self.places[place].lives;
        let watching = &mut self.watchers[number];
        let Some(running) = &mut self.places[place].running else {
            return;
        };
        let spec = Spec {
            key: watching.watch.key.clone().into(),
            range_end: watching.watch.range_end.clone().into(),
            filters: Filters::default(),
            start: watching.next,
        };
        let handle = running.shard.add(StreamId(number as u64), 0, spec);
        watching.at = Some((place, life, handle));
        watching.blocked = false;
        watching.watch.sent.push(Sent::Resumed(watching.next));
        self.trace.line(format_args!(
            "{} watcher {number} at m{place} from {}",
            self.now, watching.next
        ));
        self.arouse(place);
    }

    /// A batch comes to the watchers of a member.
    pub(crate) fn watch_events(&mut self, place: usize, batch: &EventRange) -> Result<(), Failed> {
        let Some(running) = &mut self.places[place].running else {
            return Ok(());
        };
        let (watchers, random) = (&mut self.watchers, &mut self.random);
        let mut failed = None;
        running.shard.events(batch, &mut |target, _, events| {
            let Some(watching) = watching(watchers, target) else {
                return Flow::Taken;
            };
            if random.chance(30) {
                watching.blocked = true;
                return Flow::Full;
            }
            match changes(events) {
                Ok(events) => watching.got(events),
                Err(error) => failed = Some(error),
            }
            Flow::Taken
        });
        failed.map_or(Ok(()), Err)
    }

    /// History comes to the watchers of a member that lag.
    pub(crate) fn fetch(&mut self, place: usize, life: u64) -> Result<(), Failed> {
        let spot = &mut self.places[place];
        let current = spot.lives == life;
        let Some(running) = spot.running.as_mut().filter(|_| current) else {
            return Ok(());
        };
        running.fetching = false;
        let jobs = running.shard.jobs(JOBS_MAX);
        let shared = running.stepped.node().shared();
        let chunks = watch::fetch(shared, jobs, FETCH_BYTES).map_err(|error| error.to_string())?;
        for chunk in chunks {
            let handle = chunk.target.handle;
            let watching = watching(&mut self.watchers, chunk.target);
            match (chunk.fetched, watching) {
                (Fetched::Events { events, upto, .. }, Some(watching)) => {
                    let borrowed: Vec<&EventRecord> = events.iter().collect();
                    running.shard.fetched(handle, upto, !events.is_empty());
                    watching.got(changes(&borrowed)?);
                }
                (Fetched::Events { events, upto, .. }, None) => {
                    running.shard.fetched(handle, upto, !events.is_empty());
                }
                (Fetched::Compacted { revision }, watching) => {
                    running.shard.compacted(handle);
                    running.shard.remove(handle);
                    if let Some(watching) = watching {
                        watching.begin_anew(revision);
                    }
                }
            }
        }
        self.arouse(place);
        Ok(())
    }

    /// Whether all watchers have everything that there is.
    pub(crate) fn watchers_are_synced(&self, revision: i64) -> bool {
        (0..self.watchers.len()).all(|number| {
            self.watched(number).is_some_and(|(place, handle)| {
                let running = self.places[place].running.as_ref();
                running.is_some_and(|running| {
                    running.shard.last() == revision
                        && running.shard.state(handle) == Some(State::Synced)
                        && !self.watchers[number].blocked
                })
            })
        })
    }
}

/// The watcher that a delivery is for, if it is still there.
fn watching(watchers: &mut [Watching], target: Target) -> Option<&mut Watching> {
    let number = usize::try_from(target.stream.0).ok()?;
    let watching = watchers.get_mut(number)?;
    let (_, _, handle) = watching.at?;
    (handle == target.handle).then_some(watching)
}
