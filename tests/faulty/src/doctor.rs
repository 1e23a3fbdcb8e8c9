//! Spoils what was recorded: a verdict that passes it would pass anything.

use anyhow::ensure;
use keelson_sim::history::{Change, Operation, Request, Write};
use keelson_sim::watch_check::Sent;

use crate::verdict::{Recorded, judge};

/// Changes records, if they have what it takes.
type Spoil = fn(&mut Recorded) -> Option<()>;

/// Each way, with what it would be on a real cluster.
const WAYS: [(&str, Spoil); 7] = [
    ("an acknowledged write is lost", lose_a_write),
    ("a revision is missing", leave_a_revision_out),
    ("a write has happened twice", write_twice),
    ("a read is stale", read_what_was),
    ("a watcher misses an event", miss_an_event),
    ("a watcher gets an event twice", repeat_an_event),
    ("a watcher gets two events in the wrong order", swap_events),
];

/// Spoils the records in each way, and that each is found; how many ways there are.
///
/// # Errors
/// If one is not found, or cannot be done to these records.
pub fn check(recorded: &Recorded) -> anyhow::Result<usize> {
    for (name, spoil) in WAYS {
        let mut spoilt = recorded.clone();
        ensure!(spoil(&mut spoilt).is_some(), "cannot be recorded: {name}");
        ensure!(
            judge(&spoilt).is_err(),
            "nobody would have seen that {name}"
        );
    }
    Ok(WAYS.len())
}

fn is_put(operation: &Operation) -> bool {
    matches!(operation.request, Request::Write(Write::Put { .. }))
}

/// The operation in the middle of those that are `wanted` and were answered.
fn in_the_middle(recorded: &Recorded, wanted: impl Fn(&Operation) -> bool) -> Option<usize> {
    let operations = recorded.history.operations.iter().enumerate();
    let found: Vec<usize> = operations
        .filter(|(_, operation)| operation.answer.is_some() && wanted(operation))
        .map(|(number, _)| number)
        .collect();
    found.get(found.len() / 2).copied()
}

/// Members and watchers know nothing of a put, and what came later has the revision before its own.
fn lose_a_write(recorded: &mut Recorded) -> Option<()> {
    let number = in_the_middle(recorded, is_put)?;
    let (_, response) = recorded.history.operations[number].answer.as_ref()?;
    let lost = response.revision;
    let later = recorded.history.observed.split_off(&lost);
    for (revision, mut changes) in later.into_iter().skip(1) {
        for change in &mut changes {
            if let Change::Put(row) = change {
                row.mod_revision -= i64::from(row.mod_revision > lost);
                row.create_revision -= i64::from(row.create_revision > lost);
            }
        }
        recorded.history.observed.insert(revision - 1, changes);
    }
    recorded.last -= 1;
    recorded.watches.clear();
    Some(())
}

fn leave_a_revision_out(recorded: &mut Recorded) -> Option<()> {
    let middle = recorded.last / 2;
    recorded.history.observed.remove(&middle)?;
    Some(())
}

/// A put comes again at the end, and nobody has asked for it.
fn write_twice(recorded: &mut Recorded) -> Option<()> {
    let number = in_the_middle(recorded, is_put)?;
    let (_, response) = recorded.history.operations[number].answer.as_ref()?;
    let again = recorded.history.observed.get(&response.revision)?.clone();
    recorded.last += 1;
    recorded.history.observed.insert(recorded.last, again);
    recorded.watches.clear();
    Some(())
}

/// A linearizable read is answered with what an earlier one was.
fn read_what_was(recorded: &mut Recorded) -> Option<()> {
    let all = Request::Read {
        key: None,
        serializable: false,
    };
    let operations = &mut recorded.history.operations;
    let is_read = |operation: &&Operation| operation.request == all && operation.answer.is_some();
    let first = operations.iter().find(is_read)?.answer.clone()?.1;
    let last = operations.iter_mut().rev().find(|it| is_read(&&**it))?;
    let (_, response) = last.answer.as_mut()?;
    if response.revision == first.revision {
        return None;
    }
    *response = first;
    Some(())
}

/// The watcher that got most batches of events, and their places.
fn batches(recorded: &Recorded) -> Option<(usize, Vec<usize>)> {
    let of = |sent: &[Sent]| -> Vec<usize> {
        let is_events = |it: &usize| matches!(sent[*it], Sent::Events(_));
        (0..sent.len()).filter(is_events).collect()
    };
    let each = recorded.watches.iter().enumerate();
    let each = each.map(|(number, watched)| (number, of(&watched.watch.sent)));
    each.max_by_key(|(_, batches)| batches.len())
}

fn miss_an_event(recorded: &mut Recorded) -> Option<()> {
    let (watch, batches) = batches(recorded)?;
    let middle = *batches.get(batches.len() / 2)?;
    recorded.watches[watch].watch.sent.remove(middle);
    Some(())
}

fn repeat_an_event(recorded: &mut Recorded) -> Option<()> {
    let (watch, batches) = batches(recorded)?;
    let middle = *batches.get(batches.len() / 2)?;
    let sent = &mut recorded.watches[watch].watch.sent;
    let again = sent[middle].clone();
    sent.insert(middle + 1, again);
    Some(())
}

fn swap_events(recorded: &mut Recorded) -> Option<()> {
    let (watch, batches) = batches(recorded)?;
    let middle = batches.len() / 2;
    let (one, other) = (*batches.get(middle.checked_sub(1)?)?, *batches.get(middle)?);
    recorded.watches[watch].watch.sent.swap(one, other);
    Some(())
}
