//! Who gives consensus its turns: whoever has something for it takes the next one itself.
//!
//! A turn is short and never waits, so to wake a thread for it costs more than the turn. Whoever has left
//! something in the mailbox takes a turn for all that waits there: a serving thread for the requests that
//! it has read, the peers' thread for their messages, the log's thread for a write that is on the disk. A
//! thread of its own ([`Turns::run`]) keeps the beat, and sees to what comes from those who cannot wait for
//! a turn. It alone waits for the lock.
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
    /// on.
    ///
    /// To be called after something was added quietly, on a thread that may spend a few turns' time.
    pub(crate) fn take(&self) {
        self.take_unless(|| false);
    }

    /// As [`Turns::take`], by somebody who may have better things to do: asked before each turn, and then
    /// the own thread takes it.
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

    /// Keeps the beat until the mailbox is closed and empty.
    pub(crate) fn run(&self) {
        loop {
            let patience = self.lock().turner.as_ref().map(T::patience);
            let Some(patience) = patience else { return };
            if self.mailbox.wait(patience) == Taken::Closed {
                break;
            }
            self.turn(self.lock());
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
        let Seat { turner, inputs } = &mut *seat;
        let Some(current) = turner else { return };
        self.mailbox.take_now(inputs);
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
    panic!("a turn of consensus has panicked on another thread")
}

#[cfg(test)]
#[cfg(shuttle)]
mod interleave;
#[cfg(test)]
#[cfg(not(shuttle))]
mod tests;
