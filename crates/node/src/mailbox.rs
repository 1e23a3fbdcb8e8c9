//! The one queue between threads: take all that waits, wake only a sleeper.
//!
//! A batch forms where the work waits: whoever takes gets everything that is there, in order, and no
//! stage before sends it smaller parcels. The queue is bounded by the weight of what waits; what a
//! weight is (bytes, items) is the owner's business. Messages whose number is bounded elsewhere, such
//! as answers to something that was asked for, pass the bound: so two threads that send to one another
//! cannot wait for one another.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::sync::{Condvar, Mutex, MutexGuard};

/// Why something was not taken in; the item comes back.
#[derive(Debug, PartialEq, Eq)]
pub enum Refused<T> {
    /// No room: to be tried again later, or refused in turn.
    Full(T),
    /// The queue is closed: nobody will take from it.
    Closed(T),
}

/// What a take found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// Something.
    Some,
    /// Nothing came within the time.
    TimedOut,
    /// Nothing is left and nothing will come.
    Closed,
}

impl Taken {
    fn of<T>(state: &State<T>) -> Taken {
        match (state.items.is_empty(), state.closed) {
            (false, _) => Taken::Some,
            (true, true) => Taken::Closed,
            (true, false) => Taken::TimedOut,
        }
    }
}

#[derive(Debug)]
struct State<T> {
    items: VecDeque<(T, u64)>,
    weight: u64,
    closed: bool,
    /// The taker sleeps, and nobody has woken it yet.
    asleep: bool,
    /// How many senders wait for room.
    senders: usize,
}

/// A bounded queue with any number of senders. One taker waits at it; others may take what is there.
#[derive(Debug)]
pub struct Mailbox<T> {
    state: Mutex<State<T>>,
    arrived: Condvar,
    room: Condvar,
    weight_max: u64,
    items_max: usize,
    depth: AtomicU64,
}

impl<T> Mailbox<T> {
    /// An empty queue that holds at most so many items of at most this weight together; one item
    /// always fits into an empty queue.
    #[must_use]
    pub fn new(items_max: usize, weight_max: u64) -> Mailbox<T> {
        Mailbox {
            state: Mutex::new(State {
                items: VecDeque::new(),
                weight: 0,
                closed: false,
                asleep: false,
                senders: 0,
            }),
            arrived: Condvar::new(),
            room: Condvar::new(),
            weight_max,
            items_max,
            depth: AtomicU64::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().expect("no holder of this lock panics")
    }

    fn has_room(&self, state: &State<T>, weight: u64) -> bool {
        state.items.is_empty()
            || (state.items.len() < self.items_max
                && state.weight.saturating_add(weight) <= self.weight_max)
    }

    fn add(&self, state: MutexGuard<'_, State<T>>, item: T, weight: u64) {
        self.add_and_wake(state, item, weight, || true);
    }

    fn add_and_wake(
        &self,
        mut state: MutexGuard<'_, State<T>>,
        item: T,
        weight: u64,
        wake: impl FnOnce() -> bool,
    ) {
        state.items.push_back((item, weight));
        state.weight += weight;
        self.depth
            .store(state.items.len() as u64, Ordering::Relaxed);
        let sleeper = state.asleep && wake();
        self.wake_if(sleeper, state);
    }

    /// Once is enough: until the taker runs, others find it awake.
    fn wake_if(&self, sleeper: bool, mut state: MutexGuard<'_, State<T>>) {
        state.asleep &= !sleeper;
        drop(state);
        if sleeper {
            self.arrived.notify_one();
        }
    }

    /// Whether an item of this weight would be let in now.
    pub fn would_take(&self, weight: u64) -> bool {
        self.has_room(&self.lock(), weight)
    }

    /// Adds an item if there is room. Never blocks: for serving threads.
    ///
    /// # Errors
    ///
    /// [`Refused`], with the item.
    pub fn try_push(&self, item: T, weight: u64) -> Result<(), Refused<T>> {
        self.try_push_quietly(item, weight, || true)
    }

    /// As [`Mailbox::try_push`], but wakes only as [`Mailbox::push_quietly`] does.
    ///
    /// # Errors
    ///
    /// [`Refused`], with the item.
    pub fn try_push_quietly(
        &self,
        item: T,
        weight: u64,
        wake: impl FnOnce() -> bool,
    ) -> Result<(), Refused<T>> {
        let state = self.lock();
        if state.closed {
            return Err(Refused::Closed(item));
        }
        if !self.has_room(&state, weight) {
            return Err(Refused::Full(item));
        }
        self.add_and_wake(state, item, weight, wake);
        Ok(())
    }

    /// Adds an item, and waits for room before: for threads that may block.
    ///
    /// # Errors
    ///
    /// The item, if the queue is closed.
    pub fn push(&self, item: T, weight: u64) -> Result<(), T> {
        let mut state = self.lock();
        while !state.closed && !self.has_room(&state, weight) {
            state.senders += 1;
            state = self
                .room
                .wait(state)
                .expect("no holder of this lock panics");
            state.senders -= 1;
        }
        if state.closed {
            return Err(item);
        }
        self.add(state, item, weight);
        Ok(())
    }

    /// Adds an item whether or not there is room: for what is bounded elsewhere.
    ///
    /// # Errors
    ///
    /// The item, if the queue is closed.
    pub fn push_always(&self, item: T, weight: u64) -> Result<(), T> {
        let state = self.lock();
        if state.closed {
            return Err(item);
        }
        self.add(state, item, weight);
        Ok(())
    }

    /// As [`Mailbox::push_always`], but a taker that sleeps is woken only if `wake` says so: for what
    /// can wait until it wakes by itself. `wake` is asked under the queue's lock, so whatever a taker
    /// sets before it takes, or looks whether there is something, is seen.
    ///
    /// # Errors
    ///
    /// The item, if the queue is closed.
    pub fn push_quietly(&self, item: T, weight: u64, wake: impl FnOnce() -> bool) -> Result<(), T> {
        let state = self.lock();
        if state.closed {
            return Err(item);
        }
        self.add_and_wake(state, item, weight, wake);
        Ok(())
    }

    /// Takes all that waits, in order, behind what `into` holds; if nothing does, waits for it, at
    /// most for `timeout` if there is one.
    pub fn take(&self, into: &mut Vec<T>, timeout: Option<Duration>) -> Taken {
        self.take_up_to(usize::MAX, into, timeout)
    }

    /// As [`Mailbox::take`], but at most `max` items; the rest goes on counting as waiting.
    pub fn take_up_to(&self, max: usize, into: &mut Vec<T>, timeout: Option<Duration>) -> Taken {
        let state = self.sleep(timeout);
        let found = Taken::of(&state);
        self.hand_out(state, max, into);
        found
    }

    /// Takes all that is there, in order, behind what `into` holds. Never waits.
    pub fn take_now(&self, into: &mut Vec<T>) {
        self.hand_out(self.lock(), usize::MAX, into);
    }

    /// As [`Mailbox::take_now`], but only what was left quietly: nothing where the taker is awake or has
    /// been woken, since it is on its way to all that is there.
    pub fn take_quiet(&self, into: &mut Vec<T>) {
        let state = self.lock();
        if state.asleep {
            self.hand_out(state, usize::MAX, into);
        }
    }

    /// Waits until something is there, at most for `timeout`, and leaves it there: for a taker that has to
    /// take a lock first.
    pub fn wait(&self, timeout: Duration) -> Taken {
        Taken::of(&self.sleep(Some(timeout)))
    }

    /// Wakes the taker if something is there for which it was not woken.
    pub fn wake(&self) {
        let state = self.lock();
        let sleeper = state.asleep && !state.items.is_empty();
        self.wake_if(sleeper, state);
    }

    /// Whether something is there for which the taker, who sleeps, was not woken.
    pub fn is_quiet(&self) -> bool {
        let state = self.lock();
        state.asleep && !state.items.is_empty()
    }

    /// Whether nothing waits. Unlike [`Mailbox::depth`] exact: what was added before is seen.
    pub fn is_empty(&self) -> bool {
        self.lock().items.is_empty()
    }

    /// The state once something is there, or the time is up.
    fn sleep(&self, timeout: Option<Duration>) -> MutexGuard<'_, State<T>> {
        let state = self.lock();
        if !state.items.is_empty() || state.closed {
            return state;
        }
        // Said under the lock: whoever adds something either sees the sleeper or is seen by it.
        let empty = |state: &mut State<T>| {
            state.asleep = state.items.is_empty() && !state.closed;
            state.asleep
        };
        let mut state = match timeout {
            None => self
                .arrived
                .wait_while(state, empty)
                .expect("no holder of this lock panics"),
            Some(timeout) => {
                self.arrived
                    .wait_timeout_while(state, timeout, empty)
                    .expect("no holder of this lock panics")
                    .0
            }
        };
        state.asleep = false;
        state
    }

    fn hand_out(&self, mut state: MutexGuard<'_, State<T>>, max: usize, into: &mut Vec<T>) {
        let count = state.items.len().min(max);
        if count == 0 {
            return;
        }
        let mut weight = 0;
        into.extend(state.items.drain(..count).map(|(item, its)| {
            weight += its;
            item
        }));
        state.weight -= weight;
        self.depth
            .store(state.items.len() as u64, Ordering::Relaxed);
        let waits = state.senders > 0;
        drop(state);
        if waits {
            self.room.notify_all();
        }
    }

    /// Lets nothing more in; what is there can still be taken.
    pub fn close(&self) {
        self.lock().closed = true;
        self.arrived.notify_all();
        self.room.notify_all();
    }

    /// Lets nothing more in, and throws away what is there.
    pub fn close_and_discard(&self) {
        let mut state = self.lock();
        state.closed = true;
        let discarded = std::mem::take(&mut state.items);
        state.weight = 0;
        self.depth.store(0, Ordering::Relaxed);
        drop(state);
        drop(discarded);
        self.arrived.notify_all();
        self.room.notify_all();
    }

    /// Returns when the taker sleeps.
    #[cfg(test)]
    #[cfg(not(shuttle))]
    pub(crate) fn until_asleep(&self) {
        while !self.lock().asleep {
            std::thread::yield_now();
        }
    }

    /// How many items wait, for metrics.
    #[must_use]
    pub fn depth(&self) -> u64 {
        self.depth.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
#[cfg(not(shuttle))]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn all(mailbox: &Mailbox<u32>) -> Vec<u32> {
        let mut items = Vec::new();
        mailbox.take(&mut items, Some(Duration::ZERO));
        items
    }

    #[test]
    fn a_take_gets_all_that_waits_in_order() {
        let mailbox = Mailbox::new(10, 10);
        for item in 0..4 {
            mailbox.try_push(item, 1).unwrap();
        }
        assert_eq!(mailbox.depth(), 4);
        assert_eq!(all(&mailbox), [0, 1, 2, 3]);
        assert_eq!(mailbox.depth(), 0);
        let mut none = Vec::new();
        assert_eq!(
            mailbox.take(&mut none, Some(Duration::ZERO)),
            Taken::TimedOut
        );
    }

    #[test]
    fn a_full_queue_refuses_by_weight_and_by_number() {
        let mailbox = Mailbox::new(3, 10);
        mailbox.try_push(1, 8).unwrap();
        assert_eq!(mailbox.try_push(2, 3), Err(Refused::Full(2)));
        mailbox.try_push(3, 1).unwrap();
        mailbox.try_push(4, 1).unwrap();
        assert_eq!(mailbox.try_push(5, 0), Err(Refused::Full(5)));
        mailbox.push_always(6, 100).unwrap();
        assert_eq!(all(&mailbox), [1, 3, 4, 6]);
        mailbox.try_push(7, 10).unwrap();
    }

    #[test]
    fn an_item_larger_than_the_bound_fits_into_an_empty_queue() {
        let mailbox = Mailbox::new(3, 10);
        mailbox.try_push(1, 1_000).unwrap();
        assert_eq!(mailbox.try_push(2, 0), Err(Refused::Full(2)));
    }

    #[test]
    fn what_is_taken_in_parts_still_counts_until_it_is_taken() {
        let mailbox = Mailbox::new(10, 2);
        mailbox.try_push(1, 1).unwrap();
        mailbox.try_push(2, 1).unwrap();
        let mut items = Vec::new();
        assert_eq!(mailbox.take_up_to(1, &mut items, None), Taken::Some);
        assert_eq!(items, [1]);
        mailbox.try_push(3, 1).unwrap();
        assert_eq!(mailbox.try_push(4, 1), Err(Refused::Full(4)));
    }

    #[test]
    fn a_closed_queue_gives_out_what_it_holds_and_lets_nothing_in() {
        let mailbox = Mailbox::new(3, 10);
        mailbox.try_push(1, 1).unwrap();
        mailbox.close();
        assert_eq!(mailbox.try_push(2, 1), Err(Refused::Closed(2)));
        assert_eq!(mailbox.push(2, 1), Err(2));
        assert_eq!(mailbox.push_always(2, 1), Err(2));
        let mut items = Vec::new();
        assert_eq!(mailbox.take(&mut items, None), Taken::Some);
        assert_eq!(mailbox.take(&mut items, None), Taken::Closed);
        assert_eq!(items, [1]);
    }

    #[test]
    fn a_sender_waits_for_room_and_a_taker_for_items() {
        let mailbox = Arc::new(Mailbox::new(10, 1));
        let sender = mailbox.clone();
        let thread = std::thread::Builder::new()
            .spawn(move || (0..1_000).try_for_each(|item| sender.push(item, 1)))
            .unwrap();
        let mut items = Vec::new();
        while items.len() < 1_000 {
            assert_eq!(mailbox.take(&mut items, None), Taken::Some);
        }
        thread.join().unwrap().unwrap();
        assert!(items.is_sorted());
    }

    #[test]
    fn a_quiet_item_is_found_by_the_next_take() {
        let mailbox = Mailbox::new(10, 10);
        mailbox.push_quietly(1, 1, || false).unwrap();
        assert_eq!(all(&mailbox), [1]);
        mailbox.close();
        assert_eq!(mailbox.push_quietly(2, 1, || true), Err(2));
    }

    #[test]
    fn a_look_leaves_what_waits_where_it_is() {
        let mailbox = Mailbox::new(10, 10);
        assert_eq!(mailbox.wait(Duration::ZERO), Taken::TimedOut);
        mailbox.push_quietly(1, 1, || false).unwrap();
        assert_eq!(mailbox.wait(Duration::ZERO), Taken::Some);
        assert!(!mailbox.is_empty());
        let mut items = Vec::new();
        mailbox.take_now(&mut items);
        mailbox.take_now(&mut items);
        assert_eq!(items, [1]);
        mailbox.close();
        assert_eq!(mailbox.wait(Duration::ZERO), Taken::Closed);
    }

    #[test]
    fn a_sleeper_is_woken_for_what_was_left_quietly() {
        let mailbox = Arc::new(Mailbox::new(10, 10));
        let taker = mailbox.clone();
        let thread = std::thread::Builder::new()
            .spawn(move || {
                let mut items = Vec::new();
                (taker.take(&mut items, None), items)
            })
            .unwrap();
        mailbox.until_asleep();
        mailbox.wake();
        assert!(mailbox.lock().asleep, "woken for nothing");
        mailbox.push_quietly(1, 1, || false).unwrap();
        assert!(mailbox.lock().asleep);
        mailbox.wake();
        assert_eq!(thread.join().unwrap(), (Taken::Some, vec![1]));
    }

    #[test]
    fn what_a_sleeper_was_woken_for_is_left_to_it() {
        let mailbox = Mailbox::new(10, 10);
        let mut items = Vec::new();
        mailbox.push_quietly(1, 1, || false).unwrap();
        mailbox.take_quiet(&mut items);
        assert!(items.is_empty(), "nobody sleeps");
        mailbox.take_now(&mut items);
        mailbox.lock().asleep = true;
        mailbox.push_quietly(2, 1, || false).unwrap();
        mailbox.push_quietly(3, 1, || false).unwrap();
        assert!(mailbox.is_quiet());
        mailbox.take_quiet(&mut items);
        assert_eq!(items, [1, 2, 3]);
        assert!(!mailbox.is_quiet());
        mailbox.push_quietly(4, 1, || false).unwrap();
        mailbox.push_always(5, 1).unwrap();
        assert!(!mailbox.is_quiet());
        mailbox.take_quiet(&mut items);
        assert_eq!(items, [1, 2, 3]);
    }

    #[test]
    fn a_sender_that_waits_learns_that_the_queue_is_closed() {
        let mailbox = Arc::new(Mailbox::new(1, 1));
        mailbox.try_push(0, 1).unwrap();
        let sender = mailbox.clone();
        let thread = std::thread::Builder::new()
            .spawn(move || sender.push(1, 1))
            .unwrap();
        mailbox.close_and_discard();
        assert_eq!(thread.join().unwrap(), Err(1));
        assert_eq!(mailbox.depth(), 0);
    }
}
