//! Hashing of passwords, beside the serving threads and never in the way of what else waits there.
//!
//! Each serving thread's runtime has a few threads for what blocks: passwords are hashed on them, and
//! certificates are read for connections that begin. A login takes long by intent, and clients send as
//! many as they like; so a serving thread has fewer of them in work than it has such threads, and the
//! rest waits in turn, for no longer than its client does.

use std::sync::Arc;

use keelson_proto::ApiError;
use tokio::sync::Semaphore;

use crate::serving::BLOCKING_THREADS;

/// What a serving thread has in work at once: one of its threads is left to others.
const AT_ONCE: usize = BLOCKING_THREADS - 1;

/// The turns of all serving threads.
pub(crate) struct Hashing {
    threads: Box<[Arc<Semaphore>]>,
}

impl Hashing {
    /// For so many serving threads.
    pub(crate) fn new(threads: u16) -> Hashing {
        let turns = || Arc::new(Semaphore::new(AT_ONCE));
        Hashing {
            threads: (0..threads).map(|_| turns()).collect(),
        }
    }

    /// Runs `work`, which takes as long as a hash, beside the serving thread of that number, from which
    /// this is called. Work that has begun keeps its turn to its end, also where nobody waits for it.
    ///
    /// # Errors
    ///
    /// [`ApiError::Stopped`] when the thread ends.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        thread: u16,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let turns = self.threads.get(usize::from(thread));
        let turns = Arc::clone(turns.ok_or(ApiError::Stopped)?);
        let turn = turns.acquire_owned().await;
        let turn = turn.map_err(|_| ApiError::Stopped)?;
        let working = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            work()
        });
        working.await.map_err(|_| ApiError::Stopped)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    /// A serving thread as far as it matters here.
    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(BLOCKING_THREADS)
            .build()
            .unwrap()
    }

    #[test]
    fn what_else_blocks_does_not_wait_behind_hundreds_of_logins() {
        runtime().block_on(async {
            let hashing = Arc::new(Hashing::new(1));
            let (open, gate) = mpsc::channel::<()>();
            let gate = Arc::new(std::sync::Mutex::new(gate));
            let login = || {
                let (hashing, gate) = (Arc::clone(&hashing), Arc::clone(&gate));
                tokio::spawn(async move {
                    let work = move || gate.lock().unwrap().recv().is_err();
                    hashing.run(0, work).await
                })
            };
            let logins: Vec<_> = (0..300).map(|_| login()).collect();
            let (given_up, mut rest): (Vec<_>, Vec<_>) = logins
                .into_iter()
                .enumerate()
                .partition(|(number, _)| *number < 100);
            tokio::task::yield_now().await;
            // Whoever gives up leaves what has begun to its end.
            for (_, login) in given_up {
                login.abort();
                assert!(login.await.unwrap_err().is_cancelled());
            }
            tokio::task::yield_now().await;
            let other = tokio::task::spawn_blocking(|| 7);
            let other = tokio::time::timeout(Duration::from_secs(120), other).await;
            assert_eq!(other.expect("it waits for no login").unwrap(), 7);
            drop(open);
            while let Some((_, login)) = rest.pop() {
                assert_eq!(login.await.unwrap(), Ok(true));
            }
        });
    }
}
