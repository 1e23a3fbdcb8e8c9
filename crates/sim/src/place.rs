//! A place for a member: its disk stays when the member goes.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use keelson_node::{Config, Env, Error, Part, Replies, Reply, Stepped, Ticket, Watchers};
use keelson_proto::ids::MemberId;
use keelson_store::EventRange;
use keelson_store::watch::Shard;

use crate::clock::{MemberClock, Moment, WorldTime};
use crate::disk::Disk;
use crate::net::Net;
use crate::random::Random;

/// What apply has told watchers.
#[derive(Debug)]
pub(crate) enum Told {
    Events(EventRange),
    Restored(i64),
}

/// Takes what a member says; the world empties it after each turn.
#[derive(Default)]
pub(crate) struct Desk {
    replies: Mutex<Vec<(Ticket, Reply)>>,
    told: Mutex<Vec<Told>>,
    removed: AtomicBool,
    /// Why the member cannot go on, as it has said.
    failed: Mutex<String>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no holder of this lock panics")
}

impl Desk {
    pub(crate) fn replies(&self) -> Vec<(Ticket, Reply)> {
        std::mem::take(&mut lock(&self.replies))
    }

    pub(crate) fn told(&self) -> Vec<Told> {
        std::mem::take(&mut lock(&self.told))
    }

    pub(crate) fn failure(&self) -> String {
        lock(&self.failed).clone()
    }

    pub(crate) fn is_removed(&self) -> bool {
        self.removed.load(Ordering::SeqCst)
    }
}

impl Replies for Desk {
    fn deliver(&self, _thread: u16, replies: Vec<(Ticket, Reply)>) {
        lock(&self.replies).extend(replies);
    }
}

impl Watchers for Desk {
    fn events(&self, batch: EventRange) {
        lock(&self.told).push(Told::Events(batch));
    }

    fn restored(&self, revision: i64) {
        lock(&self.told).push(Told::Restored(revision));
    }
}

/// A member that runs.
pub(crate) struct Running {
    pub(crate) stepped: Stepped,
    pub(crate) desk: Arc<Desk>,
    pub(crate) shard: Shard,
    /// When each part has its next turn.
    pub(crate) turns: [Option<Moment>; Part::ALL.len()],
    /// Whether a fetch of history is on its way.
    pub(crate) fetching: bool,
}

/// The place of a part in [`Part::ALL`].
pub(crate) fn number(part: Part) -> usize {
    match part {
        Part::Consensus => 0,
        Part::Log => 1,
        Part::Apply => 2,
        Part::Commit => 3,
        Part::Duty => 4,
        Part::Check => 5,
    }
}

/// A member's machine.
pub(crate) struct Place {
    pub(crate) config: Config,
    pub(crate) clock: MemberClock,
    /// Its time of day does not outlive the next start.
    pub(crate) forgets: bool,
    pub(crate) disk: Disk,
    pub(crate) own: Arc<Mutex<MemberId>>,
    pub(crate) running: Option<Running>,
    /// How often it has started.
    pub(crate) lives: u64,
    /// It was removed from the cluster, and starts no more.
    pub(crate) gone: bool,
    /// Nothing has a turn before this moment.
    pub(crate) paused_until: Moment,
    /// How long it stays away when its power goes.
    pub(crate) down: Moment,
    /// Until when its disk is slow, and how slow at most.
    pub(crate) slow: (Moment, Moment),
}

impl Place {
    pub(crate) fn new(config: Config, time: &WorldTime) -> Place {
        Place {
            config,
            clock: MemberClock::new(time.clone()),
            forgets: false,
            disk: Disk::new(),
            own: Arc::new(Mutex::new(MemberId::NONE)),
            running: None,
            lives: 0,
            gone: false,
            paused_until: 0,
            down: 0,
            slow: (0, 0),
        }
    }

    /// The member's id, once it has started.
    pub(crate) fn id(&self) -> MemberId {
        *lock(&self.own)
    }

    pub(crate) fn start(&mut self, net: &Net, random: &mut Random) -> Result<(), Error> {
        self.lives += 1;
        if std::mem::take(&mut self.forgets) {
            self.clock.forget();
        }
        self.clock.start();
        self.disk.begin_life();
        let desk = Arc::new(Desk::default());
        let (removed, failed) = (desk.clone(), desk.clone());
        let draws = Mutex::new(random.fork());
        let mut env = Env {
            clock: Arc::new(self.clock.clone()),
            random: Arc::new(move || lock(&draws).bits()),
            failed: Arc::new(move |reason| lock(&failed.failed).push_str(reason)),
            removed: Arc::new(move || removed.removed.store(true, Ordering::SeqCst)),
            ..Env::real()
        };
        self.disk.equip(&mut env);
        let stepped = Stepped::start(
            self.config.clone(),
            env,
            desk.clone(),
            desk.clone(),
            net.wire(self.own.clone(), self.lives),
        )?;
        let id = stepped.node().member_id();
        *lock(&self.own) = id;
        net.set_running(id, true);
        let mut shard = Shard::default();
        shard.open_at(stepped.node().shared().revision());
        self.running = Some(Running {
            stepped,
            desk,
            shard,
            turns: [None; Part::ALL.len()],
            fetching: false,
        });
        Ok(())
    }

    /// Ends the process, if it runs.
    pub(crate) fn kill(&mut self, net: &Net) {
        if let Some(running) = self.running.take() {
            net.set_running(self.id(), false);
            running.stepped.crash();
        }
    }
}

/// How the member of a number is told to begin.
pub(crate) fn config(name: &str, members: &[(String, Vec<String>)]) -> Config {
    let mut config = Config::new(name, Path::new("/data"), "");
    config.initial_cluster = members.to_vec();
    config.client_urls = vec![format!("http://{name}:2379")];
    config
}

/// The name of the member of a number.
pub(crate) fn name(number: usize) -> String {
    format!("m{number}")
}

/// Where others find it.
pub(crate) fn peer_urls(number: usize) -> Vec<String> {
    vec![format!("http://10.0.0.{}:2380", number + 1)]
}
