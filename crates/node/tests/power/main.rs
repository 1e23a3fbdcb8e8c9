//! One power cut hits log, `.snap` files and database at the same moment: at every write, sync and
//! change of a name that a whole member makes, what was not synced is lost, torn or reordered. The
//! member starts from what is left, has everything that it acknowledged and nothing but a prefix of
//! what it was asked for, goes on, and survives the next power cut.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod disk;
mod life;
mod script;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;

use disk::{Camera, Disk, Image, Photo, Progress};
use keelson_proto::rpc::etcdserverpb::InternalRaftRequest;
use life::{Life, State};
use script::Random;

/// The copy of the database that a defragmentation makes.
const COPY: &str = "/data/member/snap/db.tmp.defrag";

/// What a client does, and what an undisturbed member comes to by it.
struct Script {
    steps: Vec<InternalRaftRequest>,
    /// After so many steps.
    states: Vec<State>,
    /// Power cuts that left an unfinished copy of the database, which the next start removed.
    leftovers: AtomicUsize,
}

impl Script {
    fn new(seed: u64, length: usize) -> Script {
        let mut random = Random(seed);
        let disk = Disk::new(Image::empty(), None);
        let twin = Life::begin(&disk, Arc::default()).unwrap();
        let mut script = Script {
            steps: Vec::new(),
            states: vec![twin.state()],
            leftovers: AtomicUsize::new(0),
        };
        for step in 0..length {
            let request = random.request(script.states[step].revision);
            twin.propose(step, request.clone());
            twin.wait(step + 1);
            script.steps.push(request);
            script.states.push(twin.state());
        }
        twin.end();
        script
    }

    /// Carries out steps, some of them at once.
    fn run(&self, life: &Life, from: usize, to: usize, random: &mut Random) {
        let mut waiting = from;
        for step in from..to {
            life.propose(step, self.steps[step].clone());
            if random.below(3) == 0 {
                life.wait(step + 1);
                waiting = step + 1;
            }
            if random.below(9) == 0 {
                life.commit();
            }
            if random.below(40) == 0 {
                // The time is longer than anybody waits for an answer: what is under way would be
                // given up, and carried out all the same.
                life.wait(step + 1);
                waiting = step + 1;
                life.pass_time();
            }
            if random.below(30) == 0 {
                life.defragment();
            }
        }
        if waiting < to {
            life.wait(to);
        }
    }

    /// Starts from a photo, checks what is there, goes on for `more` steps; photographs one in
    /// `one_in` operations of that, and checks these too.
    fn check(&self, photo: Photo, more: usize, one_in: Option<u64>) {
        let Photo {
            image,
            acknowledged,
            proposed,
            label,
        } = photo;
        let progress = Arc::new(Progress::default());
        progress.acknowledged.store(acknowledged, Ordering::SeqCst);
        progress.proposed.store(proposed, Ordering::SeqCst);
        let (film, developed) = sync_channel(10_000);
        let mut random = Random(acknowledged as u64 * 7_919 + proposed as u64);
        let camera = one_in.map(|one_in| Camera {
            random: random.clone(),
            one_in,
            film,
            progress: progress.clone(),
            label: format!("{label}; then"),
        });
        let disk = Disk::new(image, camera);
        let leftover = disk.has(COPY);
        let life = Life::begin(&disk, progress.clone())
            .unwrap_or_else(|error| panic!("{label}: it does not start: {error}"));
        let state = life.state();
        let may = acknowledged..=proposed;
        let found = may.clone().find(|steps| self.states[*steps] == state);
        let Some(found) = found else {
            panic!(
                "{label}: none of the states after {may:?} steps: {state:?}, but {:?}",
                &self.states[may.clone()]
            );
        };
        // What could be read must not be lost any more.
        progress.acknowledged.fetch_max(found, Ordering::SeqCst);
        let durable = life.commit();
        assert_eq!(keelson_bolt::check(&durable.read), [], "{label}");
        drop(durable);
        if leftover {
            self.leftovers.fetch_add(1, Ordering::SeqCst);
            assert!(!disk.has(COPY), "{label}: the start removes it");
            if more > 0 {
                life.defragment();
                assert_eq!(life.state(), state, "{label}: after a defragmentation");
            }
        }
        let to = (found + more).min(self.steps.len());
        self.run(&life, found, to, &mut random);
        if more > 0 {
            assert_eq!(life.state(), self.states[to], "{label}, {to} steps");
        }
        life.end();
        drop(disk);
        for photo in developed.try_iter() {
            self.check(photo, 0, None);
        }
    }

    /// Checks photos until there are no more; returns after what they were taken.
    fn develop(&self, photos: &Mutex<Receiver<Photo>>) -> Vec<String> {
        let mut labels = Vec::new();
        loop {
            let photo = photos.lock().unwrap().recv();
            let Ok(photo) = photo else {
                return labels;
            };
            labels.push(photo.label.clone());
            self.check(photo, 6, Some(60));
        }
    }
}

/// A life of `length` steps, photographed all along. Returns after what the photos were taken.
fn survive(seed: u64, length: usize) -> Vec<String> {
    let script = &Script::new(seed, length);
    let progress = Arc::new(Progress::default());
    let (film, photos) = sync_channel(8);
    let photos = Arc::new(Mutex::new(photos));
    thread::scope(|scope| {
        let workers: Vec<_> = (0..3)
            .map(|_| {
                let photos = photos.clone();
                scope.spawn(move || script.develop(&photos))
            })
            .collect();
        // From here on the workers alone have the photos: should they all fail, nobody waits.
        drop(photos);
        let camera = Camera {
            random: Random(seed),
            one_in: 1,
            film,
            progress: progress.clone(),
            label: format!("seed {seed}"),
        };
        let disk = Disk::new(Image::empty(), Some(camera));
        let life = Life::begin(&disk, progress).unwrap();
        script.run(&life, 0, length, &mut Random(seed));
        life.end();
        drop(disk);
        let labels = workers.into_iter().map(|it| it.join().unwrap());
        let labels = labels.flatten().collect();
        assert!(script.leftovers.load(Ordering::SeqCst) > 0);
        labels
    })
}

#[test]
fn a_power_cut_at_any_moment_takes_nothing_that_was_acknowledged() {
    let labels: Vec<String> = (0..2).flat_map(|seed| survive(seed, 120)).collect();
    assert!(labels.len() > 1_000, "only {} power cuts", labels.len());
    for rare in [
        "write /data/member/snap/db",
        "resize /data/member/snap/db",
        "before sync /data/member/snap/db",
        "create /data/member/snap/db.tmp.defrag",
        "write /data/member/snap/db.tmp.defrag",
        "before sync /data/member/snap/db.tmp.defrag",
        ": rename /data/member/snap/db.tmp.defrag",
        ".snap",
        "rename /data/member/wal/",
        "remove /data/member/wal/0",
        "remove /data/member/snap/0",
    ] {
        let cut = labels.iter().any(|label| label.contains(rare));
        assert!(cut, "no power cut at {rare}");
    }
}

/// Runs a script until the member ends because there is no space for some files, and again on the
/// same disk when there is.
fn run_full(script: &Script, names: &'static str) {
    let disk = Disk::new(Image::empty(), None);
    let progress = Arc::new(Progress::default());
    let life = Life::begin(&disk, progress.clone()).unwrap();
    script.run(&life, 0, 20, &mut Random(5));
    disk.fill(Some(names));
    let reason = (20..script.steps.len()).find_map(|step| {
        let reason = life.try_step(step, script.steps[step].clone());
        life.order_commit();
        reason
    });
    let reason = reason.unwrap_or_else(|| panic!("{names}: nobody noticed"));
    assert!(reason.contains("no storage space"), "{names}: {reason}");
    let acknowledged = progress.acknowledged.load(Ordering::SeqCst);
    assert!(acknowledged >= 20, "{names}: {acknowledged}");
    assert_eq!(life.failures().len(), 1, "{names}: it is told once");
    life.end();
    // As long as there is no space there is an error, or a member that serves.
    if let Ok(life) = Life::begin(&disk, progress.clone()) {
        life.end();
    }
    disk.fill(None);
    let life = Life::begin(&disk, progress.clone()).unwrap();
    let state = life.state();
    let proposed = progress.proposed.load(Ordering::SeqCst);
    let found = (acknowledged..=proposed).find(|steps| script.states[*steps] == state);
    let found = found.unwrap_or_else(|| panic!("{names}: {acknowledged}..={proposed}: {state:?}"));
    script.run(&life, found, script.steps.len(), &mut Random(6));
    assert_eq!(Some(&life.state()), script.states.last(), "{names}");
    assert_eq!(keelson_bolt::check(&life.commit().read), [], "{names}");
    life.end();
}

#[test]
fn a_full_disk_ends_the_member_with_one_reason_and_takes_nothing_that_was_acknowledged() {
    let script = Script::new(3, 80);
    for names in ["/wal/", "/snap/db", ".snap", "/data"] {
        run_full(&script, names);
    }
}
