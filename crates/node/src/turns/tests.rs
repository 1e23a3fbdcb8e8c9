//! Each rule on its own; `interleave.rs` has them together, in every order.

use std::sync::mpsc;
use std::thread::JoinHandle;

use super::*;

const NEVER: Duration = Duration::from_secs(3_600);

/// Keeps what it was given.
struct Keeper {
    got: Vec<u32>,
    patience: Duration,
    /// Adds something to its own mailbox in each turn, so often: as somebody else could in that moment.
    adds: usize,
    mailbox: Arc<Mailbox<u32>>,
    fails: bool,
    turns: usize,
    ended: mpsc::Sender<(Vec<u32>, &'static str)>,
}

impl Turner for Keeper {
    type Input = u32;

    fn turn(&mut self, inputs: &mut Vec<u32>) -> Result<(), crate::Error> {
        self.turns += 1;
        self.got.append(inputs);
        if self.fails {
            return Err(crate::Error::NotReady);
        }
        if self.adds > 0 {
            self.adds -= 1;
            self.mailbox.push_quietly(9, 0, || false).unwrap();
        }
        Ok(())
    }

    fn patience(&self) -> Duration {
        self.patience
    }

    fn fail(self, _: &crate::Error) {
        self.mailbox.close_and_discard();
        self.ended.send((self.got, "failed")).unwrap();
    }

    fn finish(&mut self) {
        let got = std::mem::take(&mut self.got);
        self.ended.send((got, "finished")).unwrap();
    }
}

type Ended = mpsc::Receiver<(Vec<u32>, &'static str)>;

fn keeper(adjust: impl FnOnce(&mut Keeper)) -> (Arc<Turns<Keeper>>, Ended) {
    let (sender, ended) = mpsc::channel();
    let mailbox = Arc::new(Mailbox::new(usize::MAX, u64::MAX));
    let mut keeper = Keeper {
        got: Vec::new(),
        patience: NEVER,
        adds: 0,
        mailbox: mailbox.clone(),
        fails: false,
        turns: 0,
        ended: sender,
    };
    adjust(&mut keeper);
    (Arc::new(Turns::new(mailbox, keeper)), ended)
}

fn run(turns: &Arc<Turns<Keeper>>) -> JoinHandle<()> {
    let turns = turns.clone();
    let builder = std::thread::Builder::new();
    builder.spawn(move || turns.run(|| {})).unwrap()
}

fn until_empty(turns: &Turns<Keeper>) {
    for _ in 0..60_000 {
        if turns.mailbox.is_empty() {
            return;
        }
        std::thread::park_timeout(Duration::from_millis(1));
    }
    panic!("nobody takes what waits");
}

/// Closes the mailbox, and gives what there was when the own thread had ended.
fn finished(turns: &Turns<Keeper>, own: JoinHandle<()>, ended: &Ended) -> Vec<u32> {
    turns.mailbox.close();
    own.join().unwrap();
    let (got, how) = ended.recv().unwrap();
    assert_eq!(how, "finished");
    got
}

fn count(turns: &Turns<Keeper>) -> usize {
    turns
        .lock()
        .turner
        .as_ref()
        .map_or(0, |keeper| keeper.turns)
}

#[test]
fn what_comes_in_the_middle_of_a_turn_is_taken_by_whoever_took_that_turn() {
    let (turns, _ended) = keeper(|keeper| keeper.adds = TURNS_MAX - 1);
    turns.mailbox.push_quietly(1, 0, || false).unwrap();
    turns.take_unless(|| false);
    assert!(turns.mailbox.is_empty());
    assert_eq!(count(&turns), TURNS_MAX);
}

#[test]
fn after_some_turns_the_own_thread_is_woken_to_go_on() {
    let (turns, ended) = keeper(|keeper| keeper.adds = TURNS_MAX + 3);
    let own = run(&turns);
    turns.mailbox.until_asleep();
    turns.mailbox.push_quietly(1, 0, || false).unwrap();
    turns.take_unless(|| false);
    until_empty(&turns);
    assert_eq!(finished(&turns, own, &ended).len(), TURNS_MAX + 4);
}

#[test]
fn who_is_busy_leaves_its_turn_to_the_own_thread() {
    let (turns, ended) = keeper(|_| {});
    turns.mailbox.push_quietly(1, 0, || false).unwrap();
    turns.take_unless(|| true);
    assert_eq!(count(&turns), 0);
    let own = run(&turns);
    until_empty(&turns);
    turns.mailbox.until_asleep();
    turns.mailbox.push_quietly(2, 0, || false).unwrap();
    turns.take_unless(|| true);
    until_empty(&turns);
    assert_eq!(finished(&turns, own, &ended), vec![1, 2]);
}

#[test]
fn what_is_added_loudly_is_seen_to_by_the_own_thread() {
    let (turns, ended) = keeper(|_| {});
    let own = run(&turns);
    turns.mailbox.push_always(1, 0).unwrap();
    until_empty(&turns);
    turns.mailbox.push_quietly(2, 0, || false).unwrap();
    assert_eq!(finished(&turns, own, &ended), vec![1, 2]);
}

#[test]
fn who_finds_the_lock_held_does_not_wait_for_it() {
    let (turns, _ended) = keeper(|_| {});
    let held = turns.lock();
    turns.mailbox.push_quietly(1, 0, || false).unwrap();
    turns.take_unless(|| false);
    assert!(!turns.mailbox.is_empty());
    drop(held);
    turns.take_unless(|| false);
    assert!(turns.mailbox.is_empty());
}

#[test]
fn a_turn_is_taken_without_input_only_when_it_is_due() {
    let (turns, _ended) = keeper(|_| {});
    turns.turn(turns.lock());
    assert_eq!(count(&turns), 0);
    let (turns, _ended) = keeper(|keeper| keeper.patience = Duration::ZERO);
    turns.turn(turns.lock());
    assert_eq!(count(&turns), 1);
}

#[test]
fn a_turn_that_fails_is_the_last_one() {
    let (turns, ended) = keeper(|keeper| {
        keeper.fails = true;
        keeper.patience = Duration::ZERO;
    });
    turns.mailbox.push_quietly(1, 0, || false).unwrap();
    turns.take_unless(|| false);
    assert_eq!(ended.recv().unwrap(), (vec![1], "failed"));
    turns.turn(turns.lock());
    turns.run(|| {});
    assert!(
        ended.recv().is_err(),
        "it neither turned nor ended once more"
    );
}

#[test]
fn there_is_no_turn_after_the_end() {
    let (turns, ended) = keeper(|keeper| keeper.patience = Duration::ZERO);
    turns.mailbox.close();
    turns.run(|| {});
    assert_eq!(ended.recv().unwrap(), (vec![], "finished"));
    turns.turn(turns.lock());
    assert!(turns.lock().turner.is_none());
}

/// Sends the own thread to sleep, and leaves something quietly.
fn sleeping(adjust: impl FnOnce(&mut Keeper)) -> (Arc<Turns<Keeper>>, Ended, JoinHandle<()>) {
    let (turns, ended) = keeper(adjust);
    let own = run(&turns);
    turns.mailbox.until_asleep();
    turns.mailbox.push_quietly(1, 0, || false).unwrap();
    (turns, ended, own)
}

#[test]
fn a_helper_takes_what_was_left_quietly_and_leaves_the_own_thread_asleep() {
    let (turns, ended, own) = sleeping(|_| {});
    turns.help(|_| true);
    assert!(turns.mailbox.is_empty());
    assert_eq!(count(&turns), 1);
    turns.help(|_| panic!("there is nothing to help with"));
    assert_eq!(finished(&turns, own, &ended), vec![1]);
}

#[test]
fn a_helper_takes_one_turn_and_has_the_own_thread_woken_for_what_came_meanwhile() {
    let (turns, ended, own) = sleeping(|keeper| keeper.adds = 1);
    turns.help(|_| true);
    until_empty(&turns);
    assert_eq!(finished(&turns, own, &ended), vec![1, 9]);
}

#[test]
fn where_the_turner_does_not_agree_the_own_thread_is_woken() {
    let (turns, ended, own) = sleeping(|_| {});
    turns.help(|_| false);
    until_empty(&turns);
    assert_eq!(finished(&turns, own, &ended), vec![1]);
}

#[test]
fn a_helper_that_finds_the_lock_held_has_the_own_thread_woken() {
    let (turns, ended, own) = sleeping(|_| {});
    let held = turns.lock();
    turns.help(|_| panic!("it is somebody else's turn"));
    drop(held);
    until_empty(&turns);
    assert_eq!(finished(&turns, own, &ended), vec![1]);
}

#[test]
fn nobody_helps_with_what_the_own_thread_was_woken_for() {
    let (turns, _ended) = keeper(|_| {});
    turns.mailbox.push_always(1, 0).unwrap();
    turns.help(|_| panic!("the own thread is awake"));
    assert!(!turns.mailbox.is_empty());
}
