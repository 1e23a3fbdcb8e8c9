//! The search for a linear order, for histories that revisions do not order by themselves.
//!
//! # Source
//!
//! Wing and Gong's depth-first search over the entries of a history, with Lowe's cache of (requests
//! that are in the order, state) pairs that lead nowhere.

use std::collections::{BTreeMap, BTreeSet};

use crate::history::{Change, Model, Operation, Request};
use crate::linear::Verdict;

/// How long a search may go on, and how much it may remember.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Requests that are tried.
    pub steps: u64,
    /// Pairs that are remembered.
    pub cached: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            steps: 2_000_000,
            cached: 200_000,
        }
    }
}

/// A set of requests.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Bits(Vec<u64>);

impl Bits {
    fn new(len: usize) -> Bits {
        Bits(vec![0; len.div_ceil(64)])
    }

    fn set(&mut self, at: usize, on: bool) {
        let mask = 1 << (at % 64);
        if on {
            self.0[at / 64] |= mask;
        } else {
            self.0[at / 64] &= !mask;
        }
    }

    fn has(&self, at: usize) -> bool {
        self.0[at / 64] & (1 << (at % 64)) != 0
    }
}

/// A step that was taken: which request, and the state before it.
struct Taken {
    number: usize,
    before: Model,
}

struct Search<'a> {
    operations: &'a [Operation],
    /// By call.
    order: Vec<usize>,
    done: Bits,
    answered_left: usize,
    model: Model,
    /// What was tried, and led nowhere.
    cache: BTreeSet<(Bits, Model)>,
    /// Answered requests by the revision that they name: no write may pass one that is not in the
    /// order.
    by_revision: BTreeMap<i64, Vec<usize>>,
}

/// Checks a history without revisions from elsewhere. Serializable reads are left out: their place in
/// the order is not bound by time.
#[must_use]
pub fn check(operations: &[Operation], limits: Limits) -> Verdict {
    let counts = |operation: &Operation| match &operation.request {
        Request::Read { serializable, .. } => !serializable && operation.answer.is_some(),
        _ => true,
    };
    let operations: Vec<Operation> = operations.iter().filter(|it| counts(it)).cloned().collect();
    Search::new(&operations).run(limits)
}

impl<'a> Search<'a> {
    fn new(operations: &'a [Operation]) -> Search<'a> {
        let mut order: Vec<usize> = (0..operations.len()).collect();
        order.sort_by_key(|number| (operations[*number].called, *number));
        let mut by_revision: BTreeMap<i64, Vec<usize>> = BTreeMap::new();
        for (number, operation) in operations.iter().enumerate() {
            if let Some((_, response)) = &operation.answer {
                by_revision
                    .entry(response.revision)
                    .or_default()
                    .push(number);
            }
        }
        Search {
            answered_left: operations.iter().filter(|it| it.answer.is_some()).count(),
            done: Bits::new(operations.len()),
            operations,
            order,
            model: Model::default(),
            cache: BTreeSet::new(),
            by_revision,
        }
    }

    fn run(mut self, limits: Limits) -> Verdict {
        let mut stack: Vec<Taken> = Vec::new();
        let mut steps = 0;
        // Where to go on among the candidates of the current state.
        let mut from = 0;
        loop {
            if self.answered_left == 0 {
                return Verdict::Linearizable;
            }
            steps += 1;
            if steps > limits.steps || self.cache.len() > limits.cached {
                return Verdict::Unknown;
            }
            match self.next(from) {
                Some((place, changes)) => {
                    let taken = self.take(self.order[place], &changes);
                    if self.cache.insert((self.done.clone(), self.model.clone())) {
                        stack.push(taken);
                        from = 0;
                    } else {
                        self.take_back(taken);
                        from = place + 1;
                    }
                }
                None => {
                    let Some(taken) = stack.pop() else {
                        return Verdict::Violation(format!(
                            "no order explains the answers; the search ended with {} of {} unexplained",
                            self.answered_left,
                            self.operations.len()
                        ));
                    };
                    let place = self.order.iter().position(|it| *it == taken.number);
                    from = place.map_or(0, |place| place + 1);
                    self.take_back(taken);
                }
            }
        }
    }

    /// The next request that can come next: nothing that is not in the order was answered before its
    /// call, and the answer is right.
    fn next(&self, from: usize) -> Option<(usize, Vec<Change>)> {
        let open = |number: &&usize| !self.done.has(**number);
        let deadline = self.order.iter().filter(open).filter_map(|number| {
            let answer = self.operations[*number].answer.as_ref();
            answer.map(|(at, _)| *at)
        });
        let deadline = deadline.min().unwrap_or(u64::MAX);
        // A write may not leave answers of its own state behind.
        let left = |revision: i64| {
            let mut before = self.by_revision.range(..=revision);
            before.any(|(_, numbers)| numbers.iter().any(|number| !self.done.has(*number)))
        };
        let stale = left(self.model.revision);
        for (place, number) in self.order.iter().enumerate().skip(from) {
            let operation = &self.operations[*number];
            if operation.called > deadline {
                return None;
            }
            if self.done.has(*number) {
                continue;
            }
            let changes = self.model.changes_of(&operation.request);
            if stale && !changes.is_empty() {
                continue;
            }
            let fits = match &operation.answer {
                Some((_, response)) => self.model.agrees(&operation.request, response, &changes),
                // Without changes it makes no difference whether it happened.
                None => !changes.is_empty(),
            };
            if fits {
                return Some((place, changes));
            }
        }
        None
    }

    fn take(&mut self, number: usize, changes: &[Change]) -> Taken {
        let before = self.model.clone();
        self.done.set(number, true);
        if !changes.is_empty() {
            self.model.apply(changes);
        }
        self.answered_left -= usize::from(self.operations[number].answer.is_some());
        Taken { number, before }
    }

    fn take_back(&mut self, taken: Taken) {
        self.done.set(taken.number, false);
        self.model = taken.before;
        let answered = self.operations[taken.number].answer.is_some();
        self.answered_left += usize::from(answered);
    }
}
