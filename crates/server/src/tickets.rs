//! How an answer finds its way back to the handler that waits for it.
//!
//! Each serving thread has a slab of slots. A handler reserves one, gives its ticket away with the
//! request, and waits on [`Awaited`]. Answers come in batches: one call of
//! [`Replies::deliver`] a batch and thread, which wakes one task on that thread's
//! runtime; the task fills the slots and wakes the handlers locally. So a batch costs one wake-up
//! across threads, however many requests it answers.
//!
//! 1. A slot's generation rises when it is given back, so an answer that comes late names another
//!    generation and is dropped.
//! 2. A slot is given back exactly when its [`Awaited`] is dropped, answered or not.

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use keelson_node::{Replies, Reply, Ticket};
use tokio::sync::Notify;

type Batch = Vec<(Ticket, Reply)>;

thread_local! {
    /// The number of this serving thread, once it takes turns.
    static TURNING: Cell<Option<u16>> = const { Cell::new(None) };
}

/// The slots of all serving threads.
pub(crate) struct Tickets {
    threads: Box<[Slab]>,
}

#[derive(Default)]
struct Slab {
    slots: Mutex<Slots>,
    inbox: Mutex<Vec<Batch>>,
    arrived: Notify,
    /// Something of this thread waits for a turn of consensus.
    asked: AtomicBool,
    turn: Notify,
}

#[derive(Default)]
struct Slots {
    slots: Vec<Slot>,
    free: Vec<u32>,
}

struct Slot {
    generation: u32,
    state: State,
}

enum State {
    Free,
    Waiting(Option<Waker>),
    Answered(Reply),
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing in here panics while it holds a lock; a poisoned one is still in order.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Tickets {
    /// Slabs for so many serving threads.
    pub(crate) fn new(threads: u16) -> Tickets {
        Tickets {
            threads: (0..threads).map(|_| Slab::default()).collect(),
        }
    }

    fn slab(&self, thread: u16) -> &Slab {
        self.threads
            .get(usize::from(thread))
            .expect("tickets name threads that were made with them")
    }

    /// Reserves a slot of a thread.
    pub(crate) fn reserve(self: &Arc<Tickets>, thread: u16) -> Awaited {
        let mut slots = lock(&self.slab(thread).slots);
        let slot = slots.free.pop().unwrap_or_else(|| {
            slots.slots.push(Slot {
                generation: 0,
                state: State::Free,
            });
            u32::try_from(slots.slots.len() - 1).expect("fewer than 2^32 requests in flight")
        });
        let entry = slots.get(slot);
        entry.state = State::Waiting(None);
        let ticket = Ticket {
            thread,
            slot,
            generation: entry.generation,
        };
        drop(slots);
        Awaited {
            tickets: Arc::clone(self),
            ticket,
        }
    }

    /// Fills the slots of a thread as answers arrive; runs on that thread's runtime, without end.
    pub(crate) async fn deliveries(&self, thread: u16) {
        let slab = self.slab(thread);
        loop {
            slab.arrived.notified().await;
            slab.fill();
        }
    }

    /// Calls `turn` after what a thread's handlers have asked; runs on that thread's runtime, without
    /// end, and as a task of its own: it stands behind the tasks that were ready when the first one
    /// asked, so that one turn is for all of them.
    pub(crate) async fn turns(self: Arc<Tickets>, thread: u16, turn: impl Fn()) {
        let slab = self.slab(thread);
        TURNING.set(Some(thread));
        loop {
            slab.turn.notified().await;
            slab.asked.store(false, Ordering::SeqCst);
            turn();
        }
    }
}

impl Slots {
    fn get(&mut self, slot: u32) -> &mut Slot {
        self.slots
            .get_mut(slot as usize)
            .expect("slots are never taken away")
    }
}

impl Slab {
    fn fill(&self) {
        let batches = std::mem::take(&mut *lock(&self.inbox));
        let mut wakers = Vec::with_capacity(batches.iter().map(Vec::len).sum());
        let mut slots = lock(&self.slots);
        for (ticket, reply) in batches.into_iter().flatten() {
            let slot = slots.get(ticket.slot);
            if slot.generation != ticket.generation {
                continue;
            }
            if let State::Waiting(waker) =
                std::mem::replace(&mut slot.state, State::Answered(reply))
            {
                wakers.extend(waker);
            }
        }
        drop(slots);
        for waker in wakers {
            waker.wake();
        }
    }
}

impl Replies for Tickets {
    fn deliver(&self, thread: u16, replies: Batch) {
        let slab = self.slab(thread);
        lock(&slab.inbox).push(replies);
        slab.arrived.notify_one();
    }

    fn asked(&self, thread: u16) -> bool {
        // Whoever asks for another thread does not know how busy that one is.
        let turns = TURNING.get() == Some(thread);
        let slab = self.slab(thread);
        if turns && !slab.asked.swap(true, Ordering::SeqCst) {
            slab.turn.notify_one();
        }
        turns
    }
}

/// An answer that is on its way.
pub(crate) struct Awaited {
    tickets: Arc<Tickets>,
    ticket: Ticket,
}

impl Awaited {
    /// What names the slot to whoever will answer.
    pub(crate) fn ticket(&self) -> Ticket {
        self.ticket
    }
}

impl Future for Awaited {
    type Output = Reply;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Reply> {
        let mut slots = lock(&self.tickets.slab(self.ticket.thread).slots);
        let slot = slots.get(self.ticket.slot);
        match std::mem::replace(&mut slot.state, State::Waiting(None)) {
            State::Answered(reply) => Poll::Ready(reply),
            State::Waiting(Some(waker)) if waker.will_wake(cx.waker()) => {
                slot.state = State::Waiting(Some(waker));
                Poll::Pending
            }
            State::Waiting(_) | State::Free => {
                slot.state = State::Waiting(Some(cx.waker().clone()));
                Poll::Pending
            }
        }
    }
}

impl Drop for Awaited {
    fn drop(&mut self) {
        let mut slots = lock(&self.tickets.slab(self.ticket.thread).slots);
        let slot = slots.get(self.ticket.slot);
        slot.generation = slot.generation.wrapping_add(1);
        let unread = std::mem::replace(&mut slot.state, State::Free);
        slots.free.push(self.ticket.slot);
        drop(slots);
        // Outside of the lock: an answer may hold pins, whose release takes locks of its own.
        drop(unread);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn poll(awaited: &mut Awaited) -> Poll<Reply> {
        Pin::new(awaited).poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn an_answer_reaches_the_handler_that_waits_for_it() {
        let tickets = Arc::new(Tickets::new(2));
        let mut first = tickets.reserve(1);
        let mut second = tickets.reserve(1);
        assert!(poll(&mut first).is_pending());
        tickets.deliver(1, vec![(second.ticket(), Reply::Done)]);
        tickets.slab(1).fill();
        assert!(poll(&mut first).is_pending());
        assert!(matches!(poll(&mut second), Poll::Ready(Reply::Done)));
    }

    #[test]
    fn a_late_answer_is_dropped() {
        let tickets = Arc::new(Tickets::new(1));
        let gone = tickets.reserve(0);
        let ticket = gone.ticket();
        drop(gone);
        let mut next = tickets.reserve(0);
        assert_eq!(next.ticket().slot, ticket.slot);
        tickets.deliver(0, vec![(ticket, Reply::Done)]);
        tickets.slab(0).fill();
        assert!(poll(&mut next).is_pending());
    }

    #[test]
    fn slots_are_used_again() {
        let tickets = Arc::new(Tickets::new(1));
        for _ in 0..1000 {
            drop((tickets.reserve(0), tickets.reserve(0)));
        }
        assert_eq!(lock(&tickets.slab(0).slots).slots.len(), 2);
    }

    #[tokio::test]
    async fn one_turn_is_for_all_that_was_asked_by_tasks_that_were_ready_together() {
        let tickets = Arc::new(Tickets::new(1));
        let log = Arc::new(Mutex::new(Vec::new()));
        let turned = Arc::clone(&log);
        let turns = tokio::spawn(Arc::clone(&tickets).turns(0, move || lock(&turned).push("turn")));
        tokio::task::yield_now().await;
        let asks = (0..3).map(|_| {
            let (tickets, log) = (Arc::clone(&tickets), Arc::clone(&log));
            tokio::spawn(async move {
                lock(&log).push("asked");
                assert!(tickets.asked(0));
            })
        });
        for ask in asks.collect::<Vec<_>>() {
            ask.await.unwrap();
        }
        tokio::task::yield_now().await;
        assert_eq!(*lock(&log), ["asked", "asked", "asked", "turn"]);
        let (foreign, other) = (Arc::clone(&tickets), Tickets::new(2));
        let asked = std::thread::spawn(move || foreign.asked(0)).join().unwrap();
        assert!(!asked, "another thread");
        assert!(!other.asked(1), "another thread's ticket");
        turns.abort();
    }

    #[tokio::test]
    async fn a_batch_wakes_every_handler_that_it_answers() {
        let tickets = Arc::new(Tickets::new(1));
        let deliveries = tokio::spawn({
            let tickets = Arc::clone(&tickets);
            async move { tickets.deliveries(0).await }
        });
        let awaited: Vec<_> = (0..100).map(|_| tickets.reserve(0)).collect();
        let batch = awaited.iter().map(|a| (a.ticket(), Reply::Done)).collect();
        let other = Arc::clone(&tickets);
        std::thread::spawn(move || other.deliver(0, batch));
        for awaited in awaited {
            assert!(matches!(awaited.await, Reply::Done));
        }
        deliveries.abort();
    }
}
