//! The counts that were accepted: a line for each operation, in a file that is committed.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use anyhow::Context as _;

use crate::{Count, OPERATIONS};

/// Bytes may differ by one part in so many: the size of a type is no news.
const BYTES_SLACK: u64 = 50;

/// How the code that was counted had been built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Build {
    /// As the table's counts: they must be equal, better ones are to be accepted too.
    Debug,
    /// Optimised, which leaves out some allocations: nothing may be worse.
    Release,
}

/// Counts by the name of the operation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table(BTreeMap<String, Count>);

impl Table {
    /// Adds an operation.
    ///
    /// # Panics
    ///
    /// If there is one of that name.
    pub fn add(&mut self, name: &str, count: Count) {
        let before = self.0.insert(name.to_owned(), count);
        assert!(before.is_none(), "two operations are called {name}");
    }

    /// What `found` has that this table does not say, a line each.
    #[must_use]
    pub fn differences(&self, found: &Table, build: Build) -> Vec<String> {
        let mut lines = Vec::new();
        for (name, now) in &found.0 {
            match self.0.get(name) {
                None => lines.push(format!("{name}: not in the table, {}", text(*now))),
                Some(was) => lines.extend(difference(name, *was, *now, build)),
            }
        }
        let gone = self.0.keys().filter(|name| !found.0.contains_key(*name));
        lines.extend(gone.map(|name| format!("{name}: in the table, but no such operation")));
        lines
    }
}

fn difference(name: &str, was: Count, now: Count, build: Build) -> Option<String> {
    let slack = was.bytes / BYTES_SLACK;
    let worse = now.allocations > was.allocations || now.bytes > was.bytes + slack;
    let better = now.allocations < was.allocations || now.bytes + slack < was.bytes;
    let verdict = match (worse, better) {
        (false, false) => return None,
        (false, true) if build == Build::Release => return None,
        (true, false) => "worse",
        (false, true) => "better",
        (true, true) => "other",
    };
    Some(format!(
        "{name}: {verdict}\n    was {}\n    is  {}",
        text(was),
        text(now)
    ))
}

fn text(count: Count) -> String {
    let each = |total: u64| total as f64 / OPERATIONS as f64;
    format!(
        "{:.2} allocations and {:.0} bytes an operation ({} and {} in {OPERATIONS})",
        each(count.allocations),
        each(count.bytes),
        count.allocations,
        count.bytes
    )
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "# What {OPERATIONS} operations allocate in a debug build: how often, how many bytes."
        )?;
        writeln!(f, "# Written by: UPDATE=1 cargo test -p keelson-counts")?;
        for (name, count) in &self.0 {
            writeln!(f, "{name:<64} {:>8} {:>10}", count.allocations, count.bytes)?;
        }
        Ok(())
    }
}

impl FromStr for Table {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Table> {
        let mut table = Table::default();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let wrong = || format!("a line of the table is not `name allocations bytes`: {line}");
            let (rest, bytes) = line.trim_end().rsplit_once(' ').with_context(wrong)?;
            let (name, allocations) = rest.trim_end().rsplit_once(' ').with_context(wrong)?;
            let count = Count {
                allocations: allocations.parse().with_context(wrong)?,
                bytes: bytes.parse().with_context(wrong)?,
            };
            table.add(name.trim_end(), count);
        }
        Ok(table)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(allocations: u64, bytes: u64) -> Table {
        let mut table = Table::default();
        let count = Count { allocations, bytes };
        table.add("core: operation", count);
        table
    }

    #[test]
    fn a_table_is_read_as_it_was_written() {
        let written = table(120, 4_000);
        assert_eq!(written.to_string().parse::<Table>().unwrap(), written);
        assert!("no counts".parse::<Table>().is_err());
    }

    #[test]
    fn one_allocation_more_or_less_is_a_difference_and_optimised_code_may_have_fewer() {
        let accepted = table(500, 4_000);
        let verdict = |allocations, bytes, build| {
            let lines = accepted.differences(&table(allocations, bytes), build);
            lines
                .first()
                .and_then(|line| line.lines().next().map(str::to_owned))
        };
        let said = |word: &str| Some(format!("core: operation: {word}"));
        assert_eq!(verdict(500, 4_000, Build::Debug), None);
        assert_eq!(verdict(500, 4_080, Build::Debug), None, "two in a hundred");
        assert_eq!(verdict(500, 4_081, Build::Debug), said("worse"));
        assert_eq!(verdict(501, 4_000, Build::Debug), said("worse"));
        assert_eq!(verdict(499, 4_000, Build::Debug), said("better"));
        assert_eq!(verdict(499, 5_000, Build::Debug), said("other"));
        assert_eq!(verdict(400, 3_000, Build::Release), None);
        assert_eq!(verdict(501, 4_000, Build::Release), said("worse"));
    }

    #[test]
    fn an_operation_that_one_side_lacks_is_a_difference() {
        let (accepted, none) = (table(1, 1), Table::default());
        assert_eq!(none.differences(&accepted, Build::Release).len(), 1);
        assert_eq!(accepted.differences(&none, Build::Release).len(), 1);
    }
}
