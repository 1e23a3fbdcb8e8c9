//! Many callers, one commit.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::thread;

use crate::Error;
use crate::db::Db;
use crate::sync::{Condvar, Mutex, lock, wait};
use crate::write_tx::{Hand, WriteTx};

/// Callers that came while one of them waits for the writer's place or runs the others. There are
/// at most as many as threads.
#[derive(Default)]
pub(crate) struct Queue {
    /// `None`: the next caller leads.
    waiting: Mutex<Option<Vec<Arc<Turn>>>>,
}

/// Where a caller waits for the transaction, and then for the commit.
#[derive(Default)]
struct Turn {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
enum State {
    #[default]
    Waiting,
    /// It may work with the transaction.
    Given(Box<Hand>),
    /// It has worked, and whether there is something to be kept.
    Returned(Box<Hand>, bool),
    Ended(Result<(), Arc<Error>>),
}

impl Turn {
    fn set(&self, state: State) {
        *lock(&self.state) = state;
        self.changed.notify_all();
    }

    /// Waits until `take` finds what it wants.
    fn wait<T>(&self, mut take: impl FnMut(State) -> Result<T, State>) -> T {
        let mut state = lock(&self.state);
        loop {
            match take(std::mem::take(&mut *state)) {
                Ok(taken) => return taken,
                Err(other) => *state = other,
            }
            state = wait(&self.changed, state);
        }
    }

    fn end(&self) -> Result<(), Arc<Error>> {
        self.wait(|state| match state {
            State::Ended(result) => Ok(result),
            other => Err(other),
        })
    }
}

/// The callers whose changes wait for the commit. If the leader is unwound they are told.
#[derive(Default)]
struct Kept {
    turns: Vec<Arc<Turn>>,
}

impl Kept {
    fn end(&mut self, result: &Result<(), Arc<Error>>) {
        for turn in self.turns.drain(..) {
            turn.set(State::Ended(result.clone()));
        }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.end(&Err(Arc::new(Error::Poisoned)));
    }
}

/// A function's result, or its panic.
type Outcome<T, E> = thread::Result<Result<T, E>>;

impl Db {
    /// Runs `change` in a write transaction together with those of other threads that call this at
    /// the same time, and returns when they are committed. Each runs once, on its own thread, in a
    /// [`Savepoint`] of its own: one that gives an error, or panics, is undone and harms no other.
    ///
    /// Nothing is waited for to fill a batch: while one is written and synced, the callers that
    /// come meanwhile form the next. Alone, a caller pays what a transaction of its own costs.
    ///
    /// `change` must not begin a write transaction or a batch itself: it would wait for ever.
    ///
    /// # Errors
    /// What `change` gives; what [`Db::begin_write`] and [`WriteTx::commit`] give, and then none
    /// of the batch is kept.
    ///
    /// [`Savepoint`]: crate::Savepoint
    pub fn batch<T, E: From<Error>>(
        &self,
        change: impl FnOnce(&mut WriteTx<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        match self.shared.batch.enter() {
            Some(turn) => follow(&turn, change),
            None => self.lead(change),
        }
    }

    /// How many callers of [`Db::batch`] wait for another one to run them.
    #[must_use]
    pub fn waiting_in_batch(&self) -> usize {
        lock(&self.shared.batch.waiting)
            .as_ref()
            .map_or(0, Vec::len)
    }

    fn lead<T, E: From<Error>>(
        &self,
        change: impl FnOnce(&mut WriteTx<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let queue = &self.shared.batch;
        let mut kept = Kept::default();
        let hand = match self.shared.begin_hand() {
            Ok(hand) => hand,
            Err(error) => {
                while let Some(turns) = queue.take() {
                    kept.turns.extend(turns);
                }
                let result = Err(Arc::new(error));
                kept.end(&result);
                return Err(failed(result));
            }
        };
        let (mut hand, own) = run(hand, change);
        let mut any = matches!(own, Ok(Ok(_)));
        while let Some(turns) = queue.take() {
            for turn in turns {
                turn.set(State::Given(hand));
                let used;
                (hand, used) = turn.wait(|state| match state {
                    State::Returned(hand, used) => Ok((hand, used)),
                    other => Err(other),
                });
                if used {
                    any = true;
                    kept.turns.push(turn);
                }
            }
        }
        let result = if any {
            WriteTx::of(hand).commit().map(drop).map_err(Arc::new)
        } else {
            drop(hand);
            Ok(())
        };
        kept.end(&result);
        match own {
            Ok(Ok(value)) if result.is_ok() => Ok(value),
            Ok(Ok(_)) => Err(failed(result)),
            Ok(Err(error)) => Err(error),
            Err(panic) => resume_unwind(panic),
        }
    }
}

impl Queue {
    /// A place among those who wait; `None` if the caller is to lead.
    fn enter(&self) -> Option<Arc<Turn>> {
        let mut waiting = lock(&self.waiting);
        match &mut *waiting {
            Some(waiting) => {
                let turn = Arc::new(Turn::default());
                waiting.push(turn.clone());
                Some(turn)
            }
            None => {
                *waiting = Some(Vec::new());
                None
            }
        }
    }

    /// Those who have come since; `None` if there are none, and then the next caller leads.
    fn take(&self) -> Option<Vec<Arc<Turn>>> {
        let mut waiting = lock(&self.waiting);
        let turns = waiting.take().filter(|turns| !turns.is_empty());
        if turns.is_some() {
            *waiting = Some(Vec::new());
        }
        turns
    }
}

/// The error of a whole batch, for one of its callers.
fn failed<E: From<Error>>(result: Result<(), Arc<Error>>) -> E {
    let error = result.expect_err("called for a failure");
    E::from(Arc::try_unwrap(error).unwrap_or_else(Error::Batch))
}

/// Runs one function in a savepoint.
fn run<T, E>(
    hand: Box<Hand>,
    change: impl FnOnce(&mut WriteTx<'_>) -> Result<T, E>,
) -> (Box<Hand>, Outcome<T, E>) {
    let mut tx = WriteTx::of(hand);
    let mut savepoint = tx.savepoint();
    // The savepoint puts right whatever the panic left behind.
    let outcome = catch_unwind(AssertUnwindSafe(|| change(&mut savepoint)));
    if matches!(outcome, Ok(Ok(_))) {
        savepoint.release();
    } else {
        drop(savepoint);
    }
    (tx.into_hand(), outcome)
}

/// Waits for the transaction, works, and waits for the commit.
fn follow<T, E: From<Error>>(
    turn: &Turn,
    change: impl FnOnce(&mut WriteTx<'_>) -> Result<T, E>,
) -> Result<T, E> {
    let given = turn.wait(|state| match state {
        State::Given(hand) => Ok(Ok(hand)),
        State::Ended(result) => Ok(Err(result)),
        other => Err(other),
    });
    let hand = match given {
        Ok(hand) => hand,
        Err(result) => return Err(failed(result)),
    };
    let (hand, outcome) = run(hand, change);
    let used = matches!(outcome, Ok(Ok(_)));
    turn.set(State::Returned(hand, used));
    match outcome {
        Ok(Ok(value)) => match turn.end() {
            Ok(()) => Ok(value),
            result => Err(failed(result)),
        },
        Ok(Err(error)) => Err(error),
        Err(panic) => resume_unwind(panic),
    }
}
