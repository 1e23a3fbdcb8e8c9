//! Makes a failing plan smaller: what is left is what the failure needs.

use crate::plan::Plan;
use crate::run::run;

/// Runs that shrinking may take.
const RUNS_MAX: usize = 200;

/// Leaves out faults, clients and watchers as long as the plan still fails. Gives back the smaller plan
/// and how it fails.
#[must_use]
pub fn shrink(plan: &Plan, failure: String) -> (Plan, String) {
    shrink_by(plan, failure, &mut |plan| run(plan, false).failure)
}

/// As [`shrink`], with another way to run a plan.
pub fn shrink_by(
    plan: &Plan,
    failure: String,
    fails: &mut dyn FnMut(&Plan) -> Option<String>,
) -> (Plan, String) {
    let mut best = (plan.clone(), failure);
    let mut runs = 0;
    loop {
        let mut smaller = false;
        for candidate in candidates(&best.0) {
            if runs == RUNS_MAX {
                return best;
            }
            runs += 1;
            if let Some(failure) = fails(&candidate) {
                best = (candidate, failure);
                smaller = true;
                break;
            }
        }
        if !smaller {
            return best;
        }
    }
}

/// Plans that are a little smaller, the smallest first.
fn candidates(plan: &Plan) -> Vec<Plan> {
    let mut found = Vec::new();
    let count = plan.faults.len();
    for (from, to) in [(0, count / 2), (count / 2, count)] {
        if to - from > 1 {
            let mut candidate = plan.clone();
            candidate.faults.drain(from..to);
            found.push(candidate);
        }
    }
    for number in 0..count {
        let mut candidate = plan.clone();
        candidate.faults.remove(number);
        found.push(candidate);
    }
    if plan.clients > 1 {
        found.push(Plan {
            clients: plan.clients - 1,
            ..plan.clone()
        });
    }
    if plan.watchers > 0 {
        found.push(Plan {
            watchers: plan.watchers - 1,
            ..plan.clone()
        });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Fault;

    #[test]
    fn what_a_failure_does_not_need_is_left_out() {
        let mut plan = Plan::new(1);
        plan.faults = (0..12)
            .map(|place| (place as u64, Fault::Commit { place }))
            .collect();
        let needed = |plan: &Plan| {
            let has = |wanted| {
                let mut faults = plan.faults.iter();
                faults.any(|(_, fault)| *fault == Fault::Commit { place: wanted })
            };
            (has(3) && has(8)).then(|| "it fails".to_owned())
        };
        let (small, failure) = shrink_by(&plan, "as before".to_owned(), &mut |it| needed(it));
        assert_eq!(failure, "it fails");
        assert_eq!(small.faults.len(), 2);
        assert_eq!((small.clients, small.watchers), (1, 0));
    }
}
