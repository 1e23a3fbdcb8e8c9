//! The reader pool: threads for everything that may wait for a disk or is long.
//!
//! Serving threads never read more than a short plan themselves, or a short piece of a longer one while
//! what is read is in memory ([`Pool::read`]). The rest comes here chunk by chunk, the shortest first, so
//! that a page never waits behind a whole list. What is queued and being read is bounded in bytes; who
//! comes too much waits for room.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use keelson_proto::ApiError;
use tokio::sync::{Semaphore, oneshot};

use crate::residency::{Residency, Watched};

/// Bytes that may be queued and in work, in KiB.
const BUDGET_KIB: u32 = 64 << 10;

/// Up to about how many bytes are read on the thread that asks for them. To hand a piece to another
/// thread and back costs as much as making one of this size.
pub(crate) const HERE_MAX: usize = 64 << 10;

type Work = Box<dyn FnOnce() + Send>;

/// The threads and their queue.
pub(crate) struct Pool {
    queue: Arc<Queue>,
    room: Semaphore,
    residency: Arc<Residency>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: BinaryHeap<Reverse<Job>>,
    next: u64,
    stopped: bool,
}

/// Ordered by cost, then by arrival.
struct Job {
    cost: u64,
    number: u64,
    work: Work,
}

impl PartialEq for Job {
    fn eq(&self, other: &Job) -> bool {
        (self.cost, self.number) == (other.cost, other.number)
    }
}

impl Eq for Job {}

impl PartialOrd for Job {
    fn partial_cmp(&self, other: &Job) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Job {
    fn cmp(&self, other: &Job) -> std::cmp::Ordering {
        (self.cost, self.number).cmp(&(other.cost, other.number))
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Work runs outside of the lock, so a poisoned state is still in order.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, cost: u64, work: Work) -> Result<(), ApiError> {
        let mut state = self.lock();
        if state.stopped {
            return Err(ApiError::Stopped);
        }
        let number = state.next;
        state.next += 1;
        state.waiting.push(Reverse(Job { cost, number, work }));
        drop(state);
        self.changed.notify_one();
        Ok(())
    }

    fn run(&self) {
        loop {
            let mut state = self.lock();
            let job = loop {
                if state.stopped {
                    return;
                }
                if let Some(Reverse(job)) = state.waiting.pop() {
                    break job;
                }
                state = self
                    .changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
            };
            drop(state);
            (job.work)();
        }
    }
}

impl Pool {
    /// # Errors
    ///
    /// Where the system gives no threads.
    pub(crate) fn start(threads: usize) -> io::Result<Pool> {
        Pool::start_with(threads, Residency::default())
    }

    /// As [`Pool::start`], where no read waits for the disk, whatever the machine does.
    #[cfg(test)]
    pub(crate) fn start_in_memory(threads: usize) -> io::Result<Pool> {
        Pool::start_with(threads, Residency::in_memory())
    }

    fn start_with(threads: usize, residency: Residency) -> io::Result<Pool> {
        let queue = Arc::new(Queue::default());
        let pool = Pool {
            queue: Arc::clone(&queue),
            room: Semaphore::new(BUDGET_KIB as usize),
            residency: Arc::new(residency),
            threads: Mutex::default(),
        };
        for number in 0..threads.max(1) {
            let queue = Arc::clone(&queue);
            let thread = std::thread::Builder::new()
                .name(format!("reader-{number}"))
                .spawn(move || queue.run())?;
            pool.handles().push(thread);
        }
        Ok(pool)
    }

    fn handles(&self) -> MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether [`Pool::read`] makes short reads on the thread that asks, as long as none waits for the disk.
    pub(crate) fn reads_here(&self) -> bool {
        self.residency.is_likely()
    }

    /// How many reads by [`Pool::read`] have waited for the disk.
    pub(crate) fn waited(&self) -> u64 {
        self.residency.waited()
    }

    /// Reads what `work` reads from the store, about `cost` bytes: on this thread where that is short
    /// and the reads before it have not waited for the disk, else as [`Pool::run`].
    ///
    /// # Errors
    ///
    /// As [`Pool::run`].
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        cost: usize,
        work: impl FnOnce(&Watched) -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        if cost <= HERE_MAX && self.reads_here() {
            if self.room.is_closed() {
                return Err(ApiError::Stopped);
            }
            return Ok(self.residency.watch(work));
        }
        let residency = Arc::clone(&self.residency);
        self.run(cost as u64, move || residency.watch(work)).await
    }

    /// Runs `work`, which will hold about `cost` bytes, on a thread of the pool.
    ///
    /// The work runs to its end once it has begun, also where nobody waits for it any more.
    ///
    /// # Errors
    ///
    /// [`ApiError::Stopped`] when the pool has stopped.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        cost: u64,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let kib = u32::try_from(cost.div_ceil(1024))
            .unwrap_or(u32::MAX)
            .clamp(1, BUDGET_KIB);
        let _room = self
            .room
            .acquire_many(kib)
            .await
            .map_err(|_| ApiError::Stopped)?;
        let (done, result) = oneshot::channel();
        self.queue.push(
            cost,
            Box::new(move || {
                // Nobody may wait any more; then the result is dropped here.
                drop(done.send(work()));
            }),
        )?;
        result.await.map_err(|_| ApiError::Stopped)
    }

    /// Ends the threads after what they are at; what waits is dropped.
    pub(crate) fn stop(&self) {
        self.room.close();
        let waiting = {
            let mut state = self.queue.lock();
            state.stopped = true;
            std::mem::take(&mut state.waiting)
        };
        drop(waiting);
        self.queue.changed.notify_all();
        for thread in std::mem::take(&mut *self.handles()) {
            // A thread that panicked has said so already.
            drop(thread.join());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::residency::QUICK_READS;

    #[tokio::test]
    async fn the_shortest_work_is_done_first() {
        let pool = Arc::new(Pool::start(1).unwrap());
        let (open, gate) = mpsc::channel::<()>();
        let (begun, begins) = mpsc::channel::<()>();
        let blocked = tokio::spawn({
            let pool = Arc::clone(&pool);
            async move {
                pool.run(1, move || {
                    begun.send(()).unwrap();
                    gate.recv().unwrap();
                })
                .await
            }
        });
        tokio::task::yield_now().await;
        begins.recv().unwrap();
        let (log, logged) = mpsc::channel();
        let mut jobs = Vec::new();
        for cost in [3000u64, 1000, 2000] {
            let (pool, log) = (Arc::clone(&pool), log.clone());
            jobs.push(tokio::spawn(async move {
                pool.run(cost, move || log.send(cost).unwrap()).await
            }));
            tokio::task::yield_now().await;
        }
        open.send(()).unwrap();
        blocked.await.unwrap().unwrap();
        for job in jobs {
            job.await.unwrap().unwrap();
        }
        assert_eq!(
            logged.try_iter().collect::<Vec<_>>(),
            vec![1000, 2000, 3000]
        );
        pool.stop();
    }

    #[tokio::test]
    async fn short_reads_are_made_by_who_asks_once_a_row_has_not_waited_for_the_disk() {
        let pool = Pool::start_in_memory(1).unwrap();
        let here = std::thread::current().id();
        let reader = async |cost| pool.read(cost, |_| std::thread::current().id()).await;
        for _ in 0..QUICK_READS {
            assert_ne!(reader(HERE_MAX).await, Ok(here));
        }
        assert_eq!(reader(HERE_MAX).await, Ok(here));
        assert_ne!(reader(HERE_MAX + 1).await, Ok(here));
        assert_eq!(pool.waited(), 0);
        pool.stop();
        assert_eq!(reader(1).await, Err(ApiError::Stopped));
    }

    #[tokio::test]
    async fn a_stopped_pool_refuses_work() {
        let pool = Pool::start(2).unwrap();
        assert_eq!(pool.run(5, || 7).await, Ok(7));
        pool.stop();
        assert_eq!(pool.run(5, || 7).await, Err(ApiError::Stopped));
    }
}
