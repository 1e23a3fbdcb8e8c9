//! Whether a history of clients is linearizable: there is an order of all requests, each between its
//! call and its answer, in which a single store would have given the same answers. Requests without an
//! answer may have happened or not.
//!
//! The store gives each write a revision, and each answer tells one. So most histories order themselves:
//! they are checked by revision first, in one pass. What is left is revisions of which nobody knows who
//! wrote them; only then there is a search ([`crate::search`]).
//!
//! Serializable reads must show the state of the revision that they name, whenever that was.

use std::collections::BTreeMap;

use crate::history::{Change, History, Model, Operation, Request, Write};
use crate::search::{self, Limits};

/// What came of a check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There is such an order.
    Linearizable,
    /// There is none, and why.
    Violation(String),
    /// The search was given up at its limits.
    Unknown,
}

/// Checks a history.
#[must_use]
pub fn check(history: &History, limits: Limits) -> Verdict {
    match by_revision(history) {
        Ok(true) => Verdict::Linearizable,
        Ok(false) => search::check(&history.operations, limits),
        Err(reason) => Verdict::Violation(reason),
    }
}

/// An operation with its place in the history.
type Numbered<'a> = (usize, &'a Operation);

/// Those that name a revision, by it.
struct ByRevision<'a> {
    answered: BTreeMap<i64, Vec<Numbered<'a>>>,
    /// Those of which nobody knows whether they happened, and were not found so far.
    pending: Vec<Numbered<'a>>,
    last: i64,
}

impl<'a> ByRevision<'a> {
    fn new(history: &'a History) -> ByRevision<'a> {
        let mut answered: BTreeMap<i64, Vec<Numbered<'a>>> = BTreeMap::new();
        let mut pending = Vec::new();
        for (number, operation) in history.operations.iter().enumerate() {
            match &operation.answer {
                Some((_, response)) => answered
                    .entry(response.revision)
                    .or_default()
                    .push((number, operation)),
                None => pending.push((number, operation)),
            }
        }
        let revisions = [answered.keys().last(), history.observed.keys().last()];
        let last = revisions.into_iter().flatten().max();
        ByRevision {
            last: last.copied().unwrap_or(1),
            answered,
            pending,
        }
    }
}

/// Replays a history in the order of revisions. False if some revisions are nobody's, so far as is
/// known.
///
/// # Errors
///
/// Why the history is not linearizable.
fn by_revision(history: &History) -> Result<bool, String> {
    let mut found = ByRevision::new(history);
    let floors = Floors::new(&history.operations);
    if let Some((revision, _)) = found.answered.range(..1).next() {
        return Err(format!("an answer names revision {revision}"));
    }
    let mut model = Model::default();
    agree(&model, found.answered.get(&1), &floors)?;
    for revision in 2..=found.last {
        let answered = found.answered.remove(&revision).unwrap_or_default();
        let observed = history.observed.get(&revision);
        let mut writers = Vec::new();
        let mut others = Vec::new();
        for numbered in answered {
            let (_, operation) = numbered;
            let changes = model.changes_of(&operation.request);
            let wrote = !changes.is_empty()
                && operation
                    .answer
                    .as_ref()
                    .is_some_and(|(_, it)| model.agrees(&operation.request, it, &changes));
            if wrote && writers.is_empty() {
                writers.push((numbered, changes));
            } else if wrote && must_write(&operation.request) {
                return Err(format!(
                    "two requests have written revision {revision}: {:?} and {operation:?}",
                    writers[0].0.1
                ));
            } else {
                others.push(numbered);
            }
        }
        let changes = match (writers.pop(), observed) {
            (Some(((number, operation), changes)), _) => {
                floors.check_write(number, operation, revision)?;
                changes
            }
            (None, Some(observed)) => {
                explain(&model, observed, &mut found.pending, &floors)?;
                observed.clone()
            }
            (None, None) => return Ok(false),
        };
        if let Some(observed) = observed
            && sorted(observed) != sorted(&changes)
        {
            return Err(format!(
                "revision {revision} was answered for {changes:?}, but it is {observed:?}"
            ));
        }
        model.apply(&changes);
        agree(&model, Some(&others), &floors)?;
    }
    Ok(true)
}

fn sorted(changes: &[Change]) -> Vec<&Change> {
    let mut changes: Vec<&Change> = changes.iter().collect();
    changes.sort();
    changes
}

/// Whether a request changes something in any state.
fn must_write(request: &Request) -> bool {
    matches!(request, Request::Write(Write::Put { .. }))
}

/// Checks answers that name the revision of the model and have not made it.
fn agree(
    model: &Model,
    answered: Option<&Vec<Numbered<'_>>>,
    floors: &Floors,
) -> Result<(), String> {
    for (number, operation) in answered.into_iter().flatten() {
        let Some((_, response)) = &operation.answer else {
            continue;
        };
        let agrees = model.agrees(&operation.request, response, &[]);
        let changes = model.changes_of(&operation.request);
        if !agrees || !changes.is_empty() {
            return Err(format!(
                "at revision {} a single store would not have answered {operation:?}",
                model.revision
            ));
        }
        floors.check_read(*number, operation, response.revision)?;
    }
    Ok(())
}

/// Finds who has made changes that nobody was answered for: a request without an answer, or a lease
/// that has run out.
fn explain(
    model: &Model,
    observed: &[Change],
    pending: &mut Vec<Numbered<'_>>,
    floors: &Floors,
) -> Result<(), String> {
    let revision = model.revision + 1;
    let wanted = sorted(observed);
    let author = pending.iter().position(|(number, operation)| {
        sorted(&model.changes_of(&operation.request)) == wanted
            && floors.check_write(*number, operation, revision).is_ok()
    });
    if let Some(author) = author {
        pending.remove(author);
        return Ok(());
    }
    let expired = |change: &Change| match change {
        Change::Delete(key) => model.get(key).is_some_and(|row| row.lease != 0),
        Change::Put(_) => false,
    };
    if observed.iter().all(expired) {
        return Ok(());
    }
    Err(format!(
        "nobody has asked for what revision {revision} changed, or not at that time: {observed:?}"
    ))
}

/// What each request must not be before: the highest revision that an answer before its call named.
struct Floors {
    /// By the place in the history.
    floors: Vec<i64>,
}

impl Floors {
    fn new(operations: &[Operation]) -> Floors {
        let mut moments: Vec<(u64, bool, usize)> = Vec::new();
        for (number, operation) in operations.iter().enumerate() {
            // Of one moment the call comes first: requests that touch are not ordered.
            moments.push((operation.called, true, number));
            if let Some((at, _)) = &operation.answer
                && !is_serializable(&operation.request)
            {
                moments.push((*at, false, number));
            }
        }
        moments.sort_by_key(|(at, is_call, number)| (*at, !is_call, *number));
        let mut floors = vec![0; operations.len()];
        let mut floor = 0;
        for (_, is_call, number) in moments {
            if is_call {
                floors[number] = floor;
            } else if let Some((_, response)) = &operations[number].answer {
                floor = floor.max(response.revision);
            }
        }
        Floors { floors }
    }

    fn check_write(
        &self,
        number: usize,
        operation: &Operation,
        revision: i64,
    ) -> Result<(), String> {
        let floor = self.floors[number];
        if revision > floor {
            return Ok(());
        }
        Err(format!(
            "revision {floor} was known before this was asked for, which became {revision}: {operation:?}"
        ))
    }

    fn check_read(
        &self,
        number: usize,
        operation: &Operation,
        revision: i64,
    ) -> Result<(), String> {
        let floor = self.floors[number];
        if revision >= floor || is_serializable(&operation.request) {
            return Ok(());
        }
        Err(format!(
            "revision {floor} was known before this was asked for, which saw {revision}: {operation:?}"
        ))
    }
}

fn is_serializable(request: &Request) -> bool {
    matches!(
        request,
        Request::Read {
            serializable: true,
            ..
        }
    )
}

#[cfg(test)]
mod tests;
