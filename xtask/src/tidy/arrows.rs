//! Which crate may know which: arrows between the floors point down only, and some crates of
//! others are not for us, or not for a core.

use cargo_metadata::{DependencyKind, Metadata};

use super::Finding;

/// One dependency of a member of the workspace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Edge {
    pub(super) from: String,
    pub(super) to: String,
    /// Only for tests.
    pub(super) dev: bool,
}

/// Floors of the design, lowest first. An arrow goes from a higher floor to a lower one.
///
/// The simulator is for tests alone, and stands on `node` and what is below.
const FLOORS: [(&str, u8); 12] = [
    ("proto", 1),
    ("raft", 2),
    ("bolt", 2),
    ("wal", 2),
    ("store", 3),
    ("transport", 3),
    ("client", 3),
    ("node", 4),
    ("bench", 4),
    ("sim", 5),
    ("server", 5),
    ("cli", 6),
];

/// Where a crate must not know one that stands lower: from, to.
const BLIND: [(&str, &str); 15] = [
    ("store", "raft"),
    ("store", "wal"),
    ("transport", "bolt"),
    ("transport", "wal"),
    ("client", "raft"),
    ("client", "bolt"),
    ("client", "wal"),
    ("bench", "store"),
    ("bench", "bolt"),
    ("bench", "wal"),
    ("bench", "raft"),
    ("sim", "transport"),
    ("sim", "client"),
    ("sim", "bench"),
    ("cli", "sim"),
];

/// Crates of tests and tools: they may use everything, and nothing that ships uses them.
const TOOLS: [&str; 7] = [
    "harness", "counts", "floor", "e2e", "recorded", "faulty", "xtask",
];
/// Those whose own tests may start members.
const MAY_USE_HARNESS: [&str; 4] = ["server", "cli", "client", "bench"];

/// The standard library has what they give.
const BANNED: [&str; 3] = ["lazy_static", "once_cell", "chrono"];
/// Crates without sockets and async.
const CORES: [&str; 6] = ["raft", "bolt", "wal", "store", "node", "sim"];
/// What a core must not use, with everything that begins so.
const NOT_IN_CORES: [&str; 6] = ["tokio", "tonic", "hyper", "axum", "futures", "async-"];

/// The dependencies of all members, without the prefix of our own names.
pub(super) fn edges(metadata: &Metadata) -> Vec<Edge> {
    let mut edges = Vec::new();
    for package in metadata.workspace_packages() {
        for dependency in &package.dependencies {
            let dev = dependency.kind == DependencyKind::Development;
            edges.push(Edge {
                from: package.name.to_string(),
                to: dependency.name.clone(),
                dev,
            });
        }
    }
    edges
}

pub(super) fn check(edges: &[Edge]) -> Vec<Finding> {
    edges.iter().filter_map(check_one).collect()
}

fn check_one(edge: &Edge) -> Option<Finding> {
    let place = format!("{} -> {}", edge.from, edge.to);
    let fail = |text: String| Some(Finding::fail(&place, text));
    if BANNED.contains(&edge.to.as_str()) {
        return fail("the standard library or our own code does this".to_owned());
    }
    let from = edge.from.strip_prefix("keelson-")?;
    let Some(to) = edge.to.strip_prefix("keelson-") else {
        let barred =
            CORES.contains(&from) && NOT_IN_CORES.iter().any(|name| edge.to.starts_with(name));
        return barred
            .then(|| fail("a core has no sockets and no async".to_owned()))
            .flatten();
    };
    if TOOLS.contains(&from) {
        return None;
    }
    if TOOLS.contains(&to) {
        let allowed = edge.dev && to == "harness" && MAY_USE_HARNESS.contains(&from);
        return (!allowed)
            .then(|| fail("this is for tests alone".to_owned()))
            .flatten();
    }
    let floor = |name: &str| {
        FLOORS
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, f)| *f)
    };
    match (floor(from), floor(to)) {
        (Some(above), Some(below)) if above > below => BLIND
            .contains(&(from, to))
            .then(|| fail(format!("{from} must not know {to}")))
            .flatten(),
        (Some(above), Some(below)) => fail(format!(
            "arrows point down only: floor {above} to floor {below}"
        )),
        (None, _) => fail(format!("{from} has no floor in tidy's table")),
        (_, None) => fail(format!("{to} has no floor in tidy's table")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(from: &str, to: &str, dev: bool) -> Option<String> {
        let edge = Edge {
            from: format!("keelson-{from}"),
            to: to.to_owned(),
            dev,
        };
        check_one(&edge).map(|finding| finding.text)
    }

    #[test]
    fn arrows_point_down_in_tests_too() {
        assert_eq!(text("server", "keelson-node", false), None);
        assert_eq!(text("cli", "keelson-bench", false), None);
        assert!(
            text("node", "keelson-server", false)
                .unwrap()
                .contains("point down only")
        );
        assert!(
            text("raft", "keelson-wal", true)
                .unwrap()
                .contains("point down only")
        );
        assert_eq!(
            text("store", "keelson-raft", true).unwrap(),
            "store must not know raft"
        );
        assert_eq!(text("sim", "keelson-node", false), None);
        assert!(text("sim", "keelson-server", true).is_some());
        assert!(text("cli", "keelson-sim", true).is_some());
        assert!(
            text("extra", "keelson-wal", false)
                .unwrap()
                .contains("has no floor")
        );
    }

    #[test]
    fn tools_are_for_tests_alone() {
        assert_eq!(text("e2e", "keelson-server", true), None);
        assert_eq!(text("cli", "keelson-harness", true), None);
        assert!(text("cli", "keelson-harness", false).is_some());
        assert!(text("node", "keelson-harness", true).is_some());
    }

    #[test]
    fn some_crates_of_others_are_barred() {
        assert!(text("server", "once_cell", false).is_some());
        assert!(text("node", "tokio", true).is_some());
        assert!(text("store", "tokio-util", false).is_some());
        assert_eq!(text("server", "tokio", false), None);
        assert_eq!(text("bolt", "memmap2", false), None);
    }
}
