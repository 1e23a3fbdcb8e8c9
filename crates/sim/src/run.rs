//! One run of a plan, and what came of it.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::plan::Plan;
use crate::trace::Trace;
use crate::world::World;

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Report {
    /// Everything that happened, as a number.
    pub trace: u64,
    /// How many things that were.
    pub lines: u64,
    /// What happened, where it was asked for.
    pub shown: Vec<String>,
    /// What went wrong, if anything did.
    pub failure: Option<String>,
}

/// Runs a plan. `shown`: everything that happens is kept, in words.
#[must_use]
pub fn run(plan: &Plan, shown: bool) -> Report {
    let trace = if shown {
        Trace::shown()
    } else {
        Trace::default()
    };
    let mut kept = None;
    let caught = catch_unwind(AssertUnwindSafe(|| {
        let world = kept.insert(World::new(plan, trace)?);
        world.run()
    }));
    let failure = match caught {
        Ok(result) => result.err(),
        Err(panic) => Some(format!("an invariant is broken: {}", text(&*panic))),
    };
    let trace = kept.as_mut().map(|world| std::mem::take(&mut world.trace));
    // A member in the midst of a broken invariant may break another one at its end.
    if catch_unwind(AssertUnwindSafe(|| drop(kept))).is_err() && failure.is_none() {
        return Report {
            failure: Some("a member cannot end".to_owned()),
            ..report(trace, None)
        };
    }
    report(trace, failure)
}

fn report(trace: Option<Trace>, failure: Option<String>) -> Report {
    let trace = trace.unwrap_or_default();
    Report {
        trace: trace.value(),
        lines: trace.lines(),
        shown: trace.into_lines(),
        failure,
    }
}

/// Runs a plan twice: the same must happen.
#[must_use]
pub fn run_twice(plan: &Plan) -> Report {
    let first = run(plan, false);
    let second = run(plan, false);
    if first.failure.is_none() && (first.trace, first.lines) != (second.trace, second.lines) {
        return Report {
            failure: Some("two runs of this seed differ".to_owned()),
            ..second
        };
    }
    first
}

fn text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string))
        .unwrap_or_else(|| "without words".to_owned())
}
