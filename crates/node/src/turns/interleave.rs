//! Threads in every order that a random scheduler thinks of. Nothing is due by itself here, so what nobody
//! takes stays where it is, and the test hangs: the scheduler says so. By hand, after a change of the
//! mailbox or of whose turn it is: everything is built once more for it.
//!
//! ```text
//! RUSTFLAGS="--cfg shuttle" cargo test -p keelson-node --lib interleave
//! ```

use shuttle::sync::atomic::{AtomicBool, Ordering};
use shuttle::thread;

use super::*;

const SCHEDULES: usize = 3_000;
const SENDERS: usize = 3;

/// Checks that each sender's items come in their order, and closes when all have come.
struct Keeper {
    next: [usize; SENDERS],
    items: [usize; SENDERS],
    mailbox: Arc<Mailbox<(usize, usize)>>,
    /// What a turn publishes, as `Links::awaits_apply` is.
    wants: Arc<AtomicBool>,
    ended: Arc<AtomicBool>,
}

impl Turner for Keeper {
    type Input = (usize, usize);

    fn turn(&mut self, inputs: &mut Vec<(usize, usize)>) -> Result<(), crate::Error> {
        assert!(!self.ended.load(Ordering::SeqCst));
        for (sender, item) in inputs.drain(..) {
            assert_eq!(self.next[sender], item, "of sender {sender}");
            self.next[sender] += 1;
        }
        self.wants.store(true, Ordering::SeqCst);
        if self.next == self.items {
            self.mailbox.close();
        }
        Ok(())
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(1)
    }

    fn fail(self, _: &crate::Error) {}

    fn finish(&mut self) {
        assert_eq!(self.next, self.items);
        assert!(!self.ended.swap(true, Ordering::SeqCst));
    }
}

/// How a sender adds its items.
#[derive(Clone, Copy)]
enum Sender {
    /// Quietly, and takes a turn.
    Turns,
    /// And has the own thread woken.
    Wakes,
    /// Quietly, unless it sees that it must not.
    Looks,
    /// Quietly, and helps; every other time the turner does not agree.
    Helps,
}

/// Each sender adds so many.
fn run(senders: [(Sender, usize); SENDERS]) {
    let mailbox = Arc::new(Mailbox::new(usize::MAX, u64::MAX));
    let wants = Arc::new(AtomicBool::new(false));
    let keeper = Keeper {
        next: [0; SENDERS],
        items: senders.map(|(_, items)| items),
        mailbox: mailbox.clone(),
        wants: wants.clone(),
        ended: Arc::new(AtomicBool::new(false)),
    };
    let turns = Arc::new(Turns::new(mailbox, keeper));
    let own = {
        let turns = turns.clone();
        thread::spawn(move || turns.run(|| {}))
    };
    let send = |(number, (sender, items)): (usize, (Sender, usize))| {
        let (turns, wants) = (turns.clone(), wants.clone());
        thread::spawn(move || {
            for item in 0..items {
                let wake = || match sender {
                    Sender::Turns | Sender::Helps => false,
                    Sender::Wakes => true,
                    Sender::Looks => wants.load(Ordering::SeqCst),
                };
                let added = turns.mailbox.push_quietly((number, item), 0, wake);
                assert_eq!(added, Ok(()));
                match sender {
                    Sender::Turns => turns.take_unless(|| false),
                    Sender::Helps => turns.help(|_| item % 2 == 0),
                    Sender::Wakes | Sender::Looks => {}
                }
            }
        })
    };
    let threads: Vec<_> = senders.into_iter().enumerate().map(send).collect();
    for thread in threads.into_iter().chain([own]) {
        assert!(thread.join().is_ok());
    }
    turns.take_unless(|| false);
    assert!(turns.lock().turner.is_none());
}

fn those_who_turn() {
    run([(Sender::Turns, 3), (Sender::Turns, 3), (Sender::Turns, 3)]);
}

fn one_of_each() {
    run([(Sender::Turns, 3), (Sender::Wakes, 3), (Sender::Looks, 0)]);
}

fn those_who_help() {
    run([(Sender::Helps, 3), (Sender::Helps, 3), (Sender::Wakes, 2)]);
}

/// Without the look after a turn, what was added before the turn said that it is wanted would be left lying.
fn one_that_looks_too_early() {
    run([(Sender::Turns, 1), (Sender::Turns, 0), (Sender::Looks, 1)]);
}

#[test]
fn nothing_is_left_lying_or_handled_out_of_its_order() {
    for scenario in [
        those_who_turn,
        one_of_each,
        those_who_help,
        one_that_looks_too_early,
    ] {
        shuttle::check_random(scenario, SCHEDULES);
    }
}

#[test]
fn nor_where_few_switches_of_threads_are_chosen_badly() {
    for scenario in [
        those_who_turn,
        one_of_each,
        those_who_help,
        one_that_looks_too_early,
    ] {
        shuttle::check_pct(scenario, SCHEDULES, 3);
    }
}
