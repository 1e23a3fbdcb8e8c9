//! The help of the server's flags, and their table in the documentation.

use std::fmt::Write;

use keelson_server::config::FeatureGates;

use super::{FLAGS, Flag, Group, Key, Target};

impl Group {
    /// All shown parts, in order.
    const SHOWN: [Group; 9] = [
        Group::Member,
        Group::Clustering,
        Group::Security,
        Group::Auth,
        Group::Monitoring,
        Group::Logging,
        Group::Tracing,
        Group::Features,
        Group::Unsafe,
    ];

    /// Its title.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Group::Member => "Member",
            Group::Clustering => "Clustering",
            Group::Security => "Security",
            Group::Auth => "Auth",
            Group::Monitoring => "Profiling and Monitoring",
            Group::Logging => "Logging",
            Group::Tracing => "Distributed tracing",
            Group::Features => "Features",
            Group::Unsafe => "Unsafe feature",
            Group::Hidden => "Without effect",
        }
    }
}

/// How the server is called, for a program of that name.
#[must_use]
pub fn usage(program: &str) -> String {
    format!(
        "Usage:

  {program} [flags]
    Start a member.

  {program} --version
    Show the version.

  {program} -h | --help
    Show the flags.

  {program} --config-file
    Path of the configuration file. With it, other flags and environment variables are ignored.
    Durations are whole nanoseconds in the file (600000000000 is 10m); text such as \"10m\" is for
    the command line alone.

"
    )
}

/// The flags by their groups. What this release refuses is marked.
#[must_use]
pub fn help() -> String {
    let mut text = String::new();
    for group in Group::SHOWN {
        let _ = writeln!(text, "\n{}:", group.title());
        for flag in FLAGS.iter().filter(|flag| flag.group == group) {
            let _ = writeln!(text, "  --{} '{}'", flag.name, flag.default);
            let _ = writeln!(text, "    {}{}", flag.help, remark(flag));
            if flag.name == "feature-gates" {
                for (name, stage, default) in FeatureGates::known() {
                    let _ = writeln!(text, "    {name}=true|false ({stage} - default={default})");
                }
            }
        }
    }
    text.push_str(
        "\nCAUTIOUS with unsafe flag! It may break the guarantees given by the consensus \
         protocol!\n",
    );
    text
}

fn remark(flag: &Flag) -> &'static str {
    match flag.target {
        Target::NotYet(_) => " (Not supported yet.)",
        _ => "",
    }
}

/// The flags as tables of Markdown, one for each group.
#[must_use]
pub fn markdown() -> String {
    let mut text = String::new();
    for group in Group::SHOWN {
        let _ = writeln!(text, "## {}\n", group.title());
        text.push_str("| flag | default | key in the file | meaning |\n|---|---|---|---|\n");
        for flag in FLAGS.iter().filter(|flag| flag.group == group) {
            let key = match flag.key {
                Key::Name => format!("`{}`", flag.name),
                Key::At(path) => format!("`{path}`"),
                Key::None => String::new(),
            };
            let default = match flag.default {
                "" => String::new(),
                default => format!("`{default}`"),
            };
            let help = flag.help.replace('|', "\\|");
            let name = flag.name;
            let remark = remark(flag);
            let _ = writeln!(text, "| `--{name}` | {default} | {key} | {help}{remark} |");
        }
        text.push('\n');
    }
    text
}
