//! Puts a message together from stored bytes and ranges that are still to be read.
//!
//! A message is a row of segments whose length is known before the first byte goes out. A short one
//! is made at once on the serving thread; a long one is made piece by piece, the next when HTTP/2 asks
//! for it (`INTERNALS.md` 4): on the reader pool, or on the serving thread while nothing waits for the
//! disk.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures_util::stream;
use keelson_proto::{ApiError, Code};
use keelson_store::range::{self, EmitError, Emitter, Plan, PlanError, Progress};
use keelson_store::{Error, Pin, Revision, Shared};

use tokio_util::task::AbortOnDropHandle;

use super::splice::{self, Answer, Chunk, Chunks, Ending, Framed, MESSAGE_MAX, PREFIX};
use super::status::Status;
use crate::pool::{HERE_MAX, Pool};
use crate::residency::Watched;

/// Most rows that a serving thread reads itself.
pub(super) const ROWS_AT_ONCE: usize = 64;

/// Most bytes that a serving thread puts together itself.
const BYTES_AT_ONCE: u64 = 1 << 20;

/// Bytes of a piece that the pool makes; what a stream may hold unsent. Handing it there and back costs
/// as much as making a quarter of it.
const PIECE: usize = 256 << 10;

/// After how many bytes of a piece that is made on a serving thread it is asked whether they waited.
const PART: usize = 16 << 10;

/// Room behind a piece for what its last row has more than fits, in bytes.
const ROW_ROOM: usize = 4 << 10;

/// How long an answer may hold compaction back; one that is not sent by then is reset.
const PIN_TIME_MAX: Duration = Duration::from_secs(5 * 60);

enum Segment {
    Bytes(Bytes),
    /// The body of a range response.
    Rows(Box<Emitter>),
}

/// A message in the making.
#[derive(Default)]
pub(super) struct Assembly {
    segments: VecDeque<Segment>,
    len: u64,
    rows: usize,
    /// Bytes of the pieces so far, with the prefix.
    made: u64,
    /// Whether a piece has waited for the disk: those after it are not made where others wait for them.
    waited: bool,
    /// Keeps compaction from what is still to be read.
    pin: Option<Pin>,
    /// Called when all is read, with the time that the pieces have taken.
    read: Option<Box<dyn FnOnce(Duration) + Send>>,
    reading: Duration,
}

/// A place in an assembly to which something is still to be written.
pub(super) struct Place(usize, u64);

impl Assembly {
    pub(super) fn new(pin: Option<Pin>) -> Assembly {
        Assembly {
            pin,
            ..Assembly::default()
        }
    }

    /// What holds the records that are read for it.
    pub(super) fn pin(&self) -> Option<&Pin> {
        self.pin.as_ref()
    }

    /// Its length in bytes, without the prefix.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn push(&mut self, bytes: impl Into<Bytes>) {
        let bytes = bytes.into();
        self.len += bytes.len() as u64;
        self.segments.push_back(Segment::Bytes(bytes));
    }

    /// Adds the rows, `more` and `count` of a range response.
    pub(super) fn push_rows(&mut self, shared: &Arc<Shared>, plan: Plan) {
        self.len += plan.body_len();
        self.rows = self.rows.saturating_add(plan.rows());
        self.segments
            .push_back(Segment::Rows(Box::new(plan.into_emitter(shared.clone()))));
    }

    /// Leaves room for what can be written only when all that follows is there.
    pub(super) fn place(&mut self) -> Place {
        self.segments.push_back(Segment::Bytes(Bytes::new()));
        Place(self.segments.len() - 1, self.len)
    }

    /// How much has been added since the place was made, in bytes.
    pub(super) fn len_since(&self, place: &Place) -> u64 {
        self.len - place.1
    }

    /// Writes to a place. Places are filled from the inside out.
    pub(super) fn fill(&mut self, place: Place, bytes: BytesMut) {
        self.len += bytes.len() as u64;
        if let Some(segment) = self.segments.get_mut(place.0) {
            *segment = Segment::Bytes(bytes.freeze());
        }
    }

    /// As [`Assembly::answer`]; `read` is called when everything has been read, with the time that it
    /// took beyond this call: none where there is but one piece.
    ///
    /// # Errors
    ///
    /// As [`Assembly::answer`].
    pub(super) fn answer_and(
        mut self,
        pool: &Arc<Pool>,
        read: impl FnOnce(Duration) + Send + 'static,
    ) -> Result<Answer, Status> {
        if self.is_short() {
            let answer = self.answer(pool)?;
            read(Duration::ZERO);
            return Ok(answer);
        }
        self.read = Some(Box::new(read));
        self.answer(pool)
    }

    /// Whether it is made at once.
    fn is_short(&self) -> bool {
        self.rows <= ROWS_AT_ONCE && self.len <= BYTES_AT_ONCE
    }

    /// The answer, behind its prefix.
    ///
    /// # Errors
    ///
    /// A message that is larger than clients read, or rows that are compacted meanwhile.
    pub(super) fn answer(mut self, pool: &Arc<Pool>) -> Result<Answer, Status> {
        if self.len > MESSAGE_MAX {
            return Err(too_large(self.len));
        }
        let total = PREFIX as u64 + self.len;
        if self.is_short() {
            let mut out = splice::begin(self.len, self.len as usize);
            while self.step(usize::MAX, &mut out).map_err(status_of)? {}
            assert_eq!(
                out.len() as u64,
                total,
                "a plan knows the length of its rows"
            );
            return Ok(Answer::Whole(Framed::finished(out)));
        }
        Ok(Answer::Pieces(self.pieces(Arc::clone(pool))))
    }

    /// Writes the next segment, or a part of it, until `out` holds about `most` bytes. False at the
    /// end.
    fn step(&mut self, most: usize, out: &mut BytesMut) -> Result<bool, EmitError> {
        match self.segments.front_mut() {
            None => return Ok(false),
            Some(Segment::Bytes(bytes)) => {
                let room = most.saturating_sub(out.len()).max(1).min(bytes.len());
                out.extend_from_slice(&bytes.split_to(room));
                if bytes.is_empty() {
                    self.segments.pop_front();
                }
            }
            Some(Segment::Rows(emitter)) => {
                let room = most.saturating_sub(out.len()).max(1);
                match emitter.next_chunk(room, out)? {
                    Progress::More => {}
                    Progress::Done => {
                        self.segments.pop_front();
                    }
                }
            }
        }
        Ok(true)
    }

    /// Makes the next piece, of about `most` bytes. Ends a short one early where it waits for the disk: the
    /// thread may be one that others need.
    fn piece(
        &mut self,
        mut out: BytesMut,
        most: usize,
        watched: &Watched,
    ) -> Result<Bytes, EmitError> {
        let begun = Instant::now();
        let left = (PREFIX as u64 + self.len).saturating_sub(self.made);
        out.reserve(usize::try_from(left).map_or(most, |left| left.min(most + ROW_ROOM)));
        let part = if most > HERE_MAX { most } else { PART };
        let mut next = part;
        while out.len() < most && self.step(next.min(most), &mut out)? {
            if out.len() >= next {
                next = out.len() + part;
                self.waited = self.waited || watched.has_waited();
                if self.waited && most <= HERE_MAX {
                    break;
                }
            }
        }
        self.made += out.len() as u64;
        self.reading += begun.elapsed();
        if self.segments.is_empty()
            && let Some(read) = self.read.take()
        {
            read(self.reading);
        }
        Ok(out.freeze())
    }

    /// How large the next piece is to be, in bytes.
    fn next_piece(&self, pool: &Pool) -> usize {
        if pool.reads_here() && !self.waited {
            HERE_MAX
        } else {
            PIECE
        }
    }

    fn pieces(self, pool: Arc<Pool>) -> Chunks {
        let head = splice::begin(self.len, 0);
        let held = Held::new(self);
        Box::pin(stream::try_unfold(
            (held, Some(head)),
            move |(held, head)| {
                let pool = Arc::clone(&pool);
                async move {
                    // The length has been promised, so nothing but a reset can say that it failed;
                    // before the first byte, there is a better answer.
                    let first = head.is_some();
                    let broken = |status: Status| {
                        if first {
                            Ending::Status(status)
                        } else {
                            Ending::Reset
                        }
                    };
                    let mut assembly = held.take().ok_or(Ending::Reset)?;
                    if assembly.segments.is_empty() {
                        return Ok(None);
                    }
                    let most = assembly.next_piece(&pool);
                    if !first && most <= HERE_MAX {
                        // A long answer leaves this thread to others between its pieces.
                        tokio::task::yield_now().await;
                    }
                    let out = head.unwrap_or_default();
                    let made = pool
                        .read(most, move |watched| {
                            let bytes = assembly.piece(out, most, watched);
                            (bytes, assembly)
                        })
                        .await;
                    let (bytes, assembly) = made.map_err(|error| broken(error.into()))?;
                    let bytes = bytes.map_err(|error| broken(status_of(error)))?;
                    held.put_back(assembly);
                    let chunk = if first {
                        Chunk::first(bytes)
                    } else {
                        Chunk::further(bytes)
                    };
                    Ok(Some((chunk, (held, None))))
                }
            },
        ))
    }
}

/// An assembly whose client may be slow: what it pins is given up when its time is over, also if
/// nobody asks for the next piece.
struct Held {
    slot: Arc<Mutex<Slot>>,
    _timer: AbortOnDropHandle<()>,
}

enum Slot {
    Here(Box<Assembly>),
    /// The next piece is being made.
    Out,
    /// Its time is over.
    Expired,
}

impl Held {
    fn new(assembly: Assembly) -> Held {
        let slot = Arc::new(Mutex::new(Slot::Here(Box::new(assembly))));
        let expiring = Arc::clone(&slot);
        let timer = tokio::spawn(async move {
            tokio::time::sleep(PIN_TIME_MAX).await;
            *lock(&expiring) = Slot::Expired;
        });
        Held {
            slot,
            _timer: AbortOnDropHandle::new(timer),
        }
    }

    /// The assembly, to make a piece of it; `None` when its time is over.
    fn take(&self) -> Option<Box<Assembly>> {
        let mut slot = lock(&self.slot);
        match std::mem::replace(&mut *slot, Slot::Out) {
            Slot::Here(assembly) => Some(assembly),
            Slot::Out | Slot::Expired => {
                *slot = Slot::Expired;
                None
            }
        }
    }

    fn put_back(&self, assembly: Box<Assembly>) {
        let mut slot = lock(&self.slot);
        if matches!(*slot, Slot::Out) {
            *slot = Slot::Here(assembly);
        }
    }
}

fn lock(slot: &Mutex<Slot>) -> MutexGuard<'_, Slot> {
    // Nothing in here panics while it holds the lock.
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads stored records that `pin` holds, here or on the pool, as many as there are.
///
/// # Errors
///
/// Where they cannot be read any more.
pub(super) async fn records(
    shared: &Arc<Shared>,
    pool: &Pool,
    revisions: Vec<Revision>,
    pin: Option<Pin>,
) -> Result<Vec<Bytes>, Status> {
    if revisions.len() <= ROWS_AT_ONCE {
        return records_now(shared, &revisions, pin.as_ref());
    }
    let shared = Arc::clone(shared);
    let cost = revisions.len() as u64 * 1024;
    pool.run(cost, move || records_now(&shared, &revisions, pin.as_ref()))
        .await?
}

/// As [`records`], on this thread.
///
/// # Errors
///
/// As [`records`].
pub(super) fn records_now(
    shared: &Shared,
    revisions: &[Revision],
    pin: Option<&Pin>,
) -> Result<Vec<Bytes>, Status> {
    revisions
        .iter()
        .map(|revision| range::held_record(shared, *revision, pin).map_err(status_of))
        .collect()
}

/// What a client is told when rows cannot be read.
pub(super) fn status_of(error: EmitError) -> Status {
    match error {
        EmitError::Store(error) => failed(&error),
        // Whatever else comes to be: what was to be read is not there.
        _ => ApiError::Compacted.into(),
    }
}

/// What a client is told when a range cannot be planned.
pub(super) fn refusal_of(error: PlanError) -> Status {
    match error {
        PlanError::Refused(error) => error.into(),
        PlanError::Store(error) => failed(&error),
        error => Status::new(Code::Unknown, error.to_string()),
    }
}

/// The file has failed or is damaged: logged where it is seen, and told as it is.
pub(super) fn failed(error: &Error) -> Status {
    tracing::error!(%error, "failed to read the database");
    Status::new(Code::Unknown, error.to_string())
}

pub(super) fn too_large(len: u64) -> Status {
    Status::new(
        Code::ResourceExhausted,
        format!("grpc: trying to send message larger than max ({len} vs. {MESSAGE_MAX})"),
    )
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::StreamExt as _;

    use super::*;
    use crate::residency::Residency;

    #[tokio::test]
    async fn a_long_answer_that_is_made_here_leaves_the_thread_to_others_between_its_pieces() {
        let pool = Arc::new(Pool::start_in_memory(1).unwrap());
        while !pool.reads_here() {
            pool.read(1, |_| ()).await.unwrap();
        }
        let text = Bytes::from(vec![7; 2 * BYTES_AT_ONCE as usize]);
        let mut assembly = Assembly::default();
        assembly.push(text.clone());
        let Ok(Answer::Pieces(mut pieces)) = assembly.answer(&pool) else {
            unreachable!("it is too long to be made at once");
        };
        let turns = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&turns);
        let others = AbortOnDropHandle::new(tokio::spawn(async move {
            loop {
                counted.fetch_add(1, Ordering::Relaxed);
                tokio::task::yield_now().await;
            }
        }));
        let (mut made, mut all) = (0, BytesMut::new());
        while let Some(piece) = pieces.next().await {
            made += 1;
            all.extend_from_slice(piece.unwrap().bytes());
        }
        drop(others);
        assert!(made > text.len() / HERE_MAX, "{made} pieces");
        assert!(turns.load(Ordering::Relaxed) >= made / 2);
        assert!(all[PREFIX..] == text);
        pool.stop();
    }

    #[tokio::test]
    async fn a_piece_that_waits_for_the_disk_ends_early_and_the_rest_is_left_to_the_pool() {
        let pool = Arc::new(Pool::start_in_memory(1).unwrap());
        while !pool.reads_here() {
            pool.read(1, |_| ()).await.unwrap();
        }
        let mut assembly = Assembly::default();
        for _ in 0..1000 {
            assembly.push(vec![7; 1000]);
        }
        assert_eq!(assembly.next_piece(&pool), HERE_MAX);
        let quick = Residency::in_memory();
        let mut piece = |residency: &Residency, most| {
            let made = residency.watch(|read| assembly.piece(BytesMut::new(), most, read));
            (made.unwrap().len(), assembly.next_piece(&pool))
        };
        assert_eq!(piece(&quick, HERE_MAX), (HERE_MAX, HERE_MAX));
        assert_eq!(piece(&Residency::on_disk(), HERE_MAX), (PART, PIECE));
        // Nobody needs a thread of the pool.
        assert_eq!(piece(&Residency::on_disk(), PIECE), (PIECE, PIECE));
        assert_eq!(piece(&quick, PIECE), (PIECE, PIECE));
        pool.stop();
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_is_not_sent_in_time_is_given_up_with_what_it_pins() {
        let held = Held::new(Assembly::default());
        tokio::time::sleep(PIN_TIME_MAX / 2).await;
        let assembly = held.take().unwrap();
        held.put_back(assembly);
        tokio::time::sleep(PIN_TIME_MAX).await;
        assert!(matches!(*lock(&held.slot), Slot::Expired));
        assert!(held.take().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_piece_that_is_made_while_the_time_runs_out_is_the_last() {
        let held = Held::new(Assembly::default());
        let assembly = held.take().unwrap();
        tokio::time::sleep(PIN_TIME_MAX * 2).await;
        held.put_back(assembly);
        assert!(held.take().is_none());
    }
}
