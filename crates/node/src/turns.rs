//! Turns that are taken by whoever has something for them.
//!
//! To wake a thread for a turn that is short and never waits costs more than the turn. Whoever has left
//! something in the mailbox takes a turn for all that waits there. A thread of its own ([`Turns::run`])
//! keeps the beat, and sees to what comes from those who cannot wait for a turn, and to turns that may be
//! long. It alone waits for the lock. Who takes turns of what is in `seats.rs`.
//!
//! 1. One turn at a time, under the lock. What waits is taken out under it too, so it is handled in the
//!    order in which it came.
//! 2. Who finds the lock held leaves what it has: the holder looks again after it has let go. Both look
//!    into the mailbox under the mailbox's own lock, so either the holder sees what was left, or the other
//!    one came later and finds the lock free, or held by somebody who looks later still. The same look
//!    finds what was added quietly in the middle of a turn, by somebody who has not yet seen what the turn
//!    publishes (`Links::awaits_apply`).
//! 3. Nobody turns for others without end: after [`TURNS_MAX`] the own thread is woken to go on.
//! 4. After a turn that failed, and after the end, there are no more.
//! 5. Where only some turns are short, what they are for is left quietly, all else wakes the own thread.
//!    Others [`help`](Turns::help) with what the own thread was not woken for, and with nothing else: both
//!    are told apart under the mailbox's lock.

use std::sync::Arc;
use std::time::Duration;

use crate::mailbox::{Mailbox, Taken};
use crate::sync::{Mutex, MutexGuard, TryLockError};

/// Turns that one thread takes in a row. So few where interleavings are checked that the end is reached.
const TURNS_MAX: usize = if cfg!(shuttle) { 2 } else { 4 };

/// What is given turns.
pub(crate) trait Turner {
    type Input;

    /// Handles what came, and what is due.
    ///
    /// # Errors
    ///
    /// That it cannot go on: this was its last turn.
    fn turn(&mut self, inputs: &mut Vec<Self::Input>) -> Result<(), crate::Error>;

    /// How long it can be left alone if nothing comes.
    fn patience(&self) -> Duration;

    /// After a turn that failed: sees to it that nothing more is added to its mailbox.
    fn fail(self, error: &crate::Error);

    /// Nothing more will come.
    fn finish(&mut self);
}

/// Somebody who is given turns, behind a lock, and the mailbox before it.
pub(crate) struct Turns<T: Turner> {
    mailbox: Arc<Mailbox<T::Input>>,
    seat: Mutex<Seat<T>>,
}

struct Seat<T: Turner> {
    /// Until the last turn.
    turner: Option<T>,
    /// Empty between turns.
    inputs: Vec<T::Input>,
}

impl<T: Turner> Turns<T> {
    pub(crate) fn new(mailbox: Arc<Mailbox<T::Input>>, turner: T) -> Turns<T> {
        let seat = Seat {
            turner: Some(turner),
            inputs: Vec::new(),
        };
        Turns {
            mailbox,
            seat: Mutex::new(seat),
        }
    }

    /// Sees to it that what waits gets its turn: takes it, unless somebody else is at it, who then goes
    /// on. `is_busy` is asked before each turn: whoever has better things to do leaves it to the own
    /// thread.
    ///
    /// To be called after something was added quietly, on a thread that may spend a few turns' time.
    pub(crate) fn take_unless(&self, is_busy: impl Fn() -> bool) {
        for _ in 0..TURNS_MAX {
            if self.mailbox.is_empty() {
                return;
            }
            if is_busy() {
                break;
            }
            match self.seat.try_lock() {
                Ok(seat) => self.turn(seat),
                Err(TryLockError::WouldBlock) => return,
                Err(TryLockError::Poisoned(_)) => broken(),
            }
        }
        self.mailbox.wake();
    }

    /// Takes one turn for what was left quietly while the own thread sleeps, where the turner agrees to be
    /// turned by others now; else, and for what comes meanwhile, wakes that thread.
    pub(crate) fn help(&self, agrees: impl FnOnce(&T) -> bool) {
        if !self.mailbox.is_quiet() {
            return;
        }
        match self.seat.try_lock() {
            Ok(mut seat) => {
                let Seat { turner, inputs } = &mut *seat;
                if turner.as_ref().is_some_and(agrees) {
                    self.mailbox.take_quiet(inputs);
                    self.turn_for_inputs(seat);
                }
            }
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Poisoned(_)) => broken(),
        }
        self.mailbox.wake();
    }

    /// Keeps the beat until the mailbox is closed and empty. `after` is called after each turn, without
    /// the lock.
    pub(crate) fn run(&self, after: impl Fn()) {
        loop {
            let patience = self.lock().turner.as_ref().map(T::patience);
            let Some(patience) = patience else { return };
            if self.mailbox.wait(patience) == Taken::Closed {
                break;
            }
            self.turn(self.lock());
            after();
        }
        // Whoever is in the middle of the last turn ends it first.
        let turner = self.lock().turner.take();
        if let Some(mut turner) = turner {
            turner.finish();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Seat<T>> {
        self.seat.lock().unwrap_or_else(|_| broken())
    }

    /// One turn for all that waits, and lets go of the lock.
    fn turn(&self, mut seat: MutexGuard<'_, Seat<T>>) {
        if seat.turner.is_some() {
            self.mailbox.take_now(&mut seat.inputs);
            self.turn_for_inputs(seat);
        }
    }

    /// One turn for what was taken out, and lets go of the lock.
    fn turn_for_inputs(&self, mut seat: MutexGuard<'_, Seat<T>>) {
        let Seat { turner, inputs } = &mut *seat;
        let Some(current) = turner else { return };
        // What was waited for may have been taken along by another thread.
        if inputs.is_empty() && !current.patience().is_zero() {
            return;
        }
        let turned = current.turn(inputs);
        let failed = if turned.is_err() { turner.take() } else { None };
        drop(seat);
        // Without the lock: this calls others, who may want to end the member.
        if let (Some(turner), Err(error)) = (failed, turned) {
            turner.fail(&error);
        }
    }
}

/// The state is in the middle of a turn, and nothing is known about it.
#[expect(
    clippy::panic,
    reason = "there is nothing to go on with, and the other panic was told"
)]
fn broken() -> ! {
    panic!("a turn has panicked on another thread")
}

#[cfg(test)]
#[cfg(shuttle)]
mod interleave;
#[cfg(test)]
#[cfg(not(shuttle))]
mod tests;
