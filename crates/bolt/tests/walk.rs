//! A large file without a stored list of free pages is in use at once; its free pages are found
//! meanwhile.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::io;
use std::sync::{Arc, Condvar, Mutex};

use keelson_bolt::{Db, Error, MemStorage, Options, Storage, View, check};

/// Holds the walk's thread up until it is opened.
#[derive(Clone, Default)]
struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }

    fn pass(&self) {
        if std::thread::current().name() == Some("bolt-walk") {
            let mut open = self.0.0.lock().unwrap();
            while !*open {
                open = self.0.1.wait(open).unwrap();
            }
        }
    }
}

struct Gated(MemStorage, Gate);

struct GatedView(Arc<dyn View>, Gate);

impl View for GatedView {
    fn slice(&self, offset: u64, len: usize) -> Option<&[u8]> {
        self.1.pass();
        self.0.slice(offset, len)
    }
}

impl Storage for Gated {
    fn name(&self) -> String {
        self.0.name()
    }

    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_at(offset, data)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn sync_all(&self) -> io::Result<()> {
        self.0.sync_all()
    }

    fn view(&self, len: u64) -> io::Result<Arc<dyn View>> {
        Ok(Arc::new(GatedView(self.0.view(len)?, self.1.clone())))
    }

    fn map_len(&self, len: u64) -> u64 {
        self.0.map_len(len)
    }
}

fn options() -> Options {
    Options {
        no_freelist_sync: true,
        no_sync: true,
        ..Options::default()
    }
}

/// 12 MiB, of which two thirds are free.
fn large() -> MemStorage {
    let storage = MemStorage::new();
    let db = Db::open_storage(Box::new(storage.clone()), options()).unwrap();
    let mut tx = db.begin_write().unwrap();
    for name in [b"a", b"b", b"c"] {
        let mut bucket = tx.create_bucket(name).unwrap();
        bucket.set_fill_percent(1.0);
        for i in 0..1000u32 {
            bucket.put(&i.to_be_bytes(), &[1; 4000]).unwrap();
        }
    }
    tx.commit().unwrap();
    for name in [b"b", b"c"] {
        let mut tx = db.begin_write().unwrap();
        tx.delete_bucket(name).unwrap();
        tx.commit().unwrap();
    }
    storage
}

fn write(db: &Db, round: u32) {
    let mut tx = db.begin_write().unwrap();
    let mut bucket = tx.bucket_mut(b"a").unwrap();
    for i in (0..1000u32).skip(round as usize).step_by(10) {
        bucket.put(&i.to_be_bytes(), &[round as u8; 4000]).unwrap();
    }
    tx.commit().unwrap();
}

#[test]
fn the_database_works_while_its_free_pages_are_looked_for() {
    let storage = large();
    let gate = Gate::default();
    let gated = Gated(storage.clone(), gate.clone());
    let db = Db::open_storage(Box::new(gated), options()).unwrap();
    let before = db.stats();
    assert!(!before.freelist_known);
    assert_eq!(before.free_pages, 0);
    for round in 0..5 {
        write(&db, round);
        assert_eq!(check(&db.begin_read().unwrap()), []);
    }
    let grown = db.stats().size;
    assert!(grown > before.size, "it grows at its end");
    gate.open();
    db.wait_for_freelist().unwrap();
    let found = db.stats();
    assert!(found.freelist_known);
    assert!(found.free_pages > 2000, "{found:?}");
    for round in 5..10 {
        write(&db, round);
        // Now that they are known every page must be used or free.
        assert_eq!(check(&db.begin_read().unwrap()), []);
    }
    assert_eq!(db.stats().size, grown, "the free pages are used");
    drop(db);
    let db = Db::open_storage(Box::new(storage), options()).unwrap();
    let tx = db.begin_read().unwrap();
    let bucket = tx.bucket(b"a").unwrap().unwrap();
    for i in 0..1000u32 {
        let value = bucket.get(&i.to_be_bytes()).unwrap().unwrap();
        assert_eq!(value, [(i % 10) as u8; 4000]);
    }
}

#[test]
fn the_list_is_written_again_once_it_is_known() {
    let storage = large();
    let gate = Gate::default();
    let gated = Gated(storage.clone(), gate.clone());
    let stored = Options {
        no_freelist_sync: false,
        ..options()
    };
    let db = Db::open_storage(Box::new(gated), stored.clone()).unwrap();
    write(&db, 0);
    gate.open();
    db.wait_for_freelist().unwrap();
    write(&db, 1);
    let free = db.stats().free_pages + db.stats().pending_pages;
    drop(db);
    let db = Db::open_storage(Box::new(storage), stored).unwrap();
    assert!(db.stats().freelist_known, "it is read from the file");
    assert_eq!(db.stats().free_pages, free);
    assert_eq!(check(&db.begin_read().unwrap()), []);
}

#[test]
fn the_last_handle_ends_the_search() {
    let gate = Gate::default();
    let db = Db::open_storage(Box::new(Gated(large(), gate.clone())), options()).unwrap();
    let reader = db.begin_read().unwrap();
    let dropping = std::thread::spawn(move || drop(db));
    gate.open();
    dropping.join().unwrap();
    assert!(
        reader.bucket(b"a").unwrap().is_some(),
        "a reader outlives it"
    );
}

#[test]
fn damage_that_the_search_finds_stops_the_writer_and_no_reader() {
    let mut contents = large().contents();
    // All leaves of two elements, which the root is not, become pages of no known type.
    for page in contents.chunks_exact_mut(4096).skip(2) {
        if page[8] == 2 && page[10] == 2 {
            page[8] = 0x40;
        }
    }
    let db = Db::open_storage(Box::new(MemStorage::with_contents(&contents)), options()).unwrap();
    assert!(matches!(db.wait_for_freelist(), Err(Error::Corrupt { .. })));
    assert!(matches!(db.begin_write(), Err(Error::Corrupt { .. })));
    assert!(db.begin_read().unwrap().bucket(b"a").is_ok());
    let waiting = Options {
        walk_in_background: false,
        ..options()
    };
    let opened = Db::open_storage(Box::new(MemStorage::with_contents(&contents)), waiting);
    assert!(matches!(opened, Err(Error::Corrupt { .. })));
}

/// Puts `value` over some keys; whether the commit was reported as done.
fn overwrite(db: &Db, value: u8) -> bool {
    let mut tx = db.begin_write().unwrap();
    let mut bucket = tx.bucket_mut(b"a").unwrap();
    for i in (0..1000u32).step_by(200) {
        bucket.put(&i.to_be_bytes(), &[value; 4000]).unwrap();
    }
    tx.commit().is_ok()
}

/// What [`overwrite`] has put there last; all its keys must agree.
fn overwritten(db: &Db) -> u8 {
    let tx = db.begin_read().unwrap();
    assert_eq!(check(&tx), []);
    let bucket = tx.bucket(b"a").unwrap().unwrap();
    let first = bucket.get(&0u32.to_be_bytes()).unwrap().unwrap()[0];
    for i in (0..1000u32).step_by(200) {
        let value = bucket.get(&i.to_be_bytes()).unwrap().unwrap();
        assert_eq!(value, [first; 4000], "one commit, whole");
    }
    first
}

/// The power goes at every write and sync of a commit, before the search has ended and after it.
fn survive(no_freelist_sync: bool, searched: bool) {
    let options = Options {
        no_freelist_sync,
        ..Options::default()
    };
    let base = large();
    let mut seed = 1u64;
    let mut random = move || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        seed >> 16
    };
    for cut in 0.. {
        let storage = base.copy();
        let gate = Gate::default();
        let gated = Gated(storage.clone(), gate.clone());
        let db = Db::open_storage(Box::new(gated), options.clone()).unwrap();
        assert!(overwrite(&db, 2), "beside the search");
        if searched {
            gate.open();
            db.wait_for_freelist().unwrap();
        }
        storage.cut_after(Some(cut));
        let done = overwrite(&db, 3);
        for _ in 0..3 {
            let crashed = storage.crash(&mut random);
            let db = Db::open_storage(Box::new(crashed.clone()), options.clone()).unwrap();
            let found = overwritten(&db);
            let allowed: &[u8] = if done { &[3] } else { &[2, 3] };
            assert!(allowed.contains(&found), "cut {cut}: {found}");
            // And it goes on from there, whatever the file says of its free pages.
            db.wait_for_freelist().unwrap();
            assert!(overwrite(&db, 4));
            assert_eq!(overwritten(&db), 4);
        }
        gate.open();
        if done {
            // Pages and meta are written, each with its sync.
            assert!(cut >= 4, "the commit is only {cut} operations");
            return;
        }
    }
}

#[test]
fn a_crash_before_the_search_has_ended_leaves_one_of_the_last_two_states() {
    for no_freelist_sync in [false, true] {
        survive(no_freelist_sync, false);
    }
}

#[test]
fn a_crash_at_the_first_commit_after_the_search_leaves_one_of_the_last_two_states() {
    for no_freelist_sync in [false, true] {
        survive(no_freelist_sync, true);
    }
}
