//! Storage in memory that can lose power: what a disk holds after a crash is drawn from what was
//! written and not yet synced.

use std::io;
use std::sync::{Arc, OnceLock};

use crate::storage::{Storage, View};
use crate::sync::{Mutex, lock};

/// Bytes that are copied together when one of them is written.
const CHUNK: usize = 4096;
/// Smallest part of a write that a disk writes whole.
const SECTOR: usize = 512;
/// Start of a page that crosses chunks: pages are at least this large.
const SLOT: usize = 1024;

type Chunks = Arc<Vec<Arc<[u8; CHUNK]>>>;

/// Pages in memory, with a journal of what a crash could still undo. Clones share the contents.
///
/// It is deterministic: what a crash leaves depends only on the writes and the numbers passed in.
#[derive(Clone, Debug, Default)]
pub struct MemStorage {
    state: Arc<Mutex<State>>,
}

/// Contents as chunks, shared with the views that look at them.
#[derive(Clone, Debug, Default)]
struct Image {
    chunks: Chunks,
    len: u64,
}

#[derive(Debug, Default)]
struct State {
    now: Image,
    /// The contents at the last sync.
    durable: Image,
    /// What happened since.
    journal: Vec<Change>,
    view: Option<Arc<MemView>>,
    writes: u64,
    syncs: u64,
    /// Operations (writes, syncs, length changes) until all of them fail.
    left: Option<u64>,
}

#[derive(Clone, Debug)]
enum Change {
    Write { offset: u64, data: Vec<u8> },
    Len(u64),
}

impl Image {
    fn set_len(&mut self, len: u64) {
        let count = usize::try_from(len)
            .expect("it fits memory")
            .div_ceil(CHUNK);
        let chunks = Arc::make_mut(&mut self.chunks);
        chunks.resize_with(count, || Arc::new([0; CHUNK]));
        // What is cut off reads as zero should the storage grow again.
        let used = usize::try_from(len).expect("it fits memory") % CHUNK;
        if len < self.len && used != 0 {
            Arc::make_mut(&mut chunks[count - 1])[used..].fill(0);
        }
        self.len = len;
    }

    fn write(&mut self, offset: u64, mut data: &[u8]) {
        if offset + data.len() as u64 > self.len {
            self.set_len(offset + data.len() as u64);
        }
        let mut at = usize::try_from(offset).expect("it fits memory");
        let chunks = Arc::make_mut(&mut self.chunks);
        while !data.is_empty() {
            let inside = at % CHUNK;
            let n = data.len().min(CHUNK - inside);
            Arc::make_mut(&mut chunks[at / CHUNK])[inside..inside + n].copy_from_slice(&data[..n]);
            data = &data[n..];
            at += n;
        }
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> usize {
        let have = self.len.saturating_sub(offset).min(buf.len() as u64);
        let have = usize::try_from(have).expect("not more than the buffer");
        let mut done = 0;
        while done < have {
            // `offset + done` is below the length, which is in memory.
            let at = usize::try_from(offset).expect("it fits memory") + done;
            let inside = at % CHUNK;
            let n = (have - done).min(CHUNK - inside);
            buf[done..done + n].copy_from_slice(&self.chunks[at / CHUNK][inside..inside + n]);
            done += n;
        }
        have
    }
}

impl State {
    /// Counts an operation; fails if the power is gone.
    fn step(&mut self) -> io::Result<()> {
        match &mut self.left {
            Some(0) => Err(io::Error::other("the power is gone")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn apply(&mut self, change: Change) {
        match &change {
            Change::Write { offset, data } => self.now.write(*offset, data),
            Change::Len(len) => self.now.set_len(*len),
        }
        self.journal.push(change);
        self.view = None;
    }
}

impl MemStorage {
    /// Empty storage.
    #[must_use]
    pub fn new() -> MemStorage {
        MemStorage::default()
    }

    /// Storage with these contents, all of them durable.
    #[must_use]
    pub fn with_contents(contents: &[u8]) -> MemStorage {
        let mut image = Image::default();
        image.write(0, contents);
        MemStorage::of(image)
    }

    fn of(image: Image) -> MemStorage {
        let state = State {
            durable: image.clone(),
            now: image,
            ..State::default()
        };
        MemStorage {
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// A copy of the contents as they read now.
    #[must_use]
    pub fn contents(&self) -> Vec<u8> {
        let state = lock(&self.state);
        let mut out = vec![0; usize::try_from(state.now.len).expect("it is in memory")];
        state.now.read(0, &mut out);
        out
    }

    /// A copy of its own with the same contents, all of them durable.
    #[must_use]
    pub fn copy(&self) -> MemStorage {
        MemStorage::of(lock(&self.state).now.clone())
    }

    /// Writes and length changes, and syncs, since the storage was made.
    #[must_use]
    pub fn operations(&self) -> (u64, u64) {
        let state = lock(&self.state);
        (state.writes, state.syncs)
    }

    /// Lets `operations` more writes, length changes and syncs pass; every one after them fails
    /// and does nothing. `None`: none fails.
    pub fn cut_after(&self, operations: Option<u64>) {
        lock(&self.state).left = operations;
    }

    /// What a disk could hold if the power went now: everything synced, and of what was not synced
    /// an arbitrary part, in any order, torn at sectors of 512 bytes. `random` gives the numbers
    /// that decide.
    #[must_use]
    pub fn crash(&self, random: &mut dyn FnMut() -> u64) -> MemStorage {
        let state = lock(&self.state);
        let mut image = state.durable.clone();
        let mut order: Vec<&Change> = state.journal.iter().collect();
        for i in (1..order.len()).rev() {
            order.swap(i, below(random(), i + 1));
        }
        // Sometimes nearly all arrives, sometimes next to nothing.
        let keep = random() % 5;
        for change in order {
            match change {
                Change::Len(len) if random() % 4 < keep => image.set_len(*len),
                Change::Len(_) => {}
                Change::Write { offset, data } => {
                    let torn = random().is_multiple_of(4);
                    let whole = random() % 4 < keep;
                    write_sectors(&mut image, *offset, data, |_| {
                        if torn {
                            random().is_multiple_of(2)
                        } else {
                            whole
                        }
                    });
                }
            }
        }
        MemStorage::of(image)
    }
}

/// A number below `bound`, from a random one.
fn below(random: u64, bound: usize) -> usize {
    usize::try_from(random % bound as u64).expect("below a usize")
}

/// Writes those sectors of `data` that `keep` says.
fn write_sectors(image: &mut Image, offset: u64, data: &[u8], mut keep: impl FnMut(u64) -> bool) {
    let mut done = 0;
    while done < data.len() {
        let at = offset + done as u64;
        let to_edge = SECTOR - below(at, SECTOR);
        let n = to_edge.min(data.len() - done);
        if keep(at / SECTOR as u64) {
            image.write(at, &data[done..done + n]);
        }
        done += n;
    }
}

impl Storage for MemStorage {
    fn name(&self) -> String {
        "memory".to_owned()
    }

    fn len(&self) -> io::Result<u64> {
        Ok(lock(&self.state).now.len)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        Ok(lock(&self.state).now.read(offset, buf))
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = lock(&self.state);
        state.step()?;
        state.writes += 1;
        state.apply(Change::Write {
            offset,
            data: data.to_vec(),
        });
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = lock(&self.state);
        state.step()?;
        state.writes += 1;
        state.apply(Change::Len(len));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = lock(&self.state);
        state.step()?;
        state.syncs += 1;
        state.durable = state.now.clone();
        state.journal.clear();
        Ok(())
    }

    fn sync_all(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn view(&self, _len: u64) -> io::Result<Arc<dyn View>> {
        let mut state = lock(&self.state);
        if let Some(view) = &state.view {
            return Ok(view.clone());
        }
        let slots = usize::try_from(state.now.len)
            .expect("it is in memory")
            .div_ceil(SLOT);
        let view = Arc::new(MemView {
            image: state.now.clone(),
            joined: (0..slots).map(|_| OnceLock::new()).collect(),
        });
        state.view = Some(view.clone());
        Ok(view)
    }

    fn map_len(&self, len: u64) -> u64 {
        // It grows to just what is needed.
        len
    }
}

/// The contents as of one moment.
#[derive(Debug)]
struct MemView {
    image: Image,
    /// Pages that cross chunks, joined when first asked for, by [`SLOT`].
    joined: Box<[OnceLock<Box<[u8]>>]>,
}

impl View for MemView {
    fn slice(&self, offset: u64, len: usize) -> Option<&[u8]> {
        if offset.checked_add(len as u64)? > self.image.len {
            return None;
        }
        let at = usize::try_from(offset).ok()?;
        let inside = at % CHUNK;
        if inside + len <= CHUNK {
            let Some(chunk) = self.image.chunks.get(at / CHUNK) else {
                return (len == 0).then_some(&[]);
            };
            return Some(&chunk[inside..inside + len]);
        }
        let joined = self.joined.get(at / SLOT)?.get_or_init(|| {
            let mut bytes = vec![0; len];
            self.image.read(offset, &mut bytes);
            bytes.into()
        });
        // A page's length is in its header, which cannot change in a view, so every caller asks
        // for the same.
        joined.get(..len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counter() -> impl FnMut() -> u64 {
        let mut state = 1u64;
        move || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            state >> 33
        }
    }

    #[test]
    fn what_is_synced_survives_and_what_is_not_may_be_lost_or_torn() {
        let storage = MemStorage::new();
        storage.write_at(0, &[1; 4096]).unwrap();
        storage.sync_data().unwrap();
        storage.write_at(4096, &[2; 4096]).unwrap();
        let mut random = counter();
        let (mut lost, mut torn, mut kept) = (0, 0, 0);
        for _ in 0..200 {
            let after = storage.crash(&mut random).contents();
            assert!(after[..4096].iter().all(|b| *b == 1));
            match after[4096..].iter().filter(|b| **b == 2).count() {
                0 => lost += 1,
                4096 => kept += 1,
                _ => torn += 1,
            }
        }
        assert!(lost > 0 && torn > 0 && kept > 0, "{lost} {torn} {kept}");
    }

    #[test]
    fn a_view_keeps_its_moment() {
        let storage = MemStorage::with_contents(&[7; 10_000]);
        let view = storage.view(0).unwrap();
        storage.write_at(1024, &[8; 8192]).unwrap();
        assert!(view.slice(1024, 8192).unwrap().iter().all(|b| *b == 7));
        assert!(
            storage
                .view(0)
                .unwrap()
                .slice(1024, 8192)
                .unwrap()
                .iter()
                .all(|b| *b == 8)
        );
        assert!(view.slice(9_999, 2).is_none());
    }

    #[test]
    fn operations_fail_after_the_cut_and_change_nothing() {
        let storage = MemStorage::new();
        storage.cut_after(Some(1));
        storage.write_at(0, b"a").unwrap();
        assert!(storage.write_at(1, b"b").is_err());
        assert!(storage.sync_data().is_err());
        assert_eq!(storage.contents(), b"a");
    }
}
