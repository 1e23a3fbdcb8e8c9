//! What versions are told: our own, and the etcd that programs may take this for.

use keelson_server::config::ETCD_VERSION;

/// The version of this program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// `keelson version`.
#[must_use]
pub fn own() -> String {
    format!("keelson {VERSION}\nCompatible with etcd {ETCD_VERSION}\n")
}

/// `etcd --version`: four lines, of which programs read the first.
#[must_use]
pub fn as_etcd() -> String {
    let (system, machine) = (go_system(), go_machine());
    format!(
        "etcd Version: {ETCD_VERSION}\nGit SHA: keelson-{VERSION}\nGo Version: none (Rust)\n\
         Go OS/Arch: {system}/{machine}\n"
    )
}

fn go_system() -> &'static str {
    match std::env::consts::OS {
        "macos" => "darwin",
        system => system,
    }
}

fn go_machine() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "powerpc64" => "ppc64le",
        machine => machine,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_is_what_programs_look_for() {
        let text = as_etcd();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!((lines[0], lines.len()), ("etcd Version: 3.7.1", 4));
        assert!(lines[1].starts_with("Git SHA: ") && lines[3].starts_with("Go OS/Arch: "));
        assert!(own().starts_with("keelson 0."));
    }
}
