//! The table of commands, and the texts made from it.

use std::fmt::Write as _;

use anyhow::Result;

use super::args::Call;
use super::{Output, bench, content, pages, surgery, version, whole};

/// A command or a group of them.
pub(super) struct Command {
    pub(super) name: &'static str,
    /// What stands behind the name in the line of usage.
    usage: &'static str,
    short: &'static str,
    /// Instead of `short` in the command's own help.
    long: &'static str,
    pub(super) arity: Arity,
    /// By name.
    pub(super) flags: &'static [Flag],
    commands: &'static [Command],
    pub(super) run: fn(&Call, &mut Output<'_>) -> Result<()>,
}

/// How many arguments a command takes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Arity {
    /// None: it has commands of its own.
    Group,
    Any,
    Exactly(usize),
    AtLeast(usize),
    Between(usize, usize),
}

pub(super) struct Flag {
    pub(super) name: &'static str,
    pub(super) short: Option<char>,
    pub(super) kind: Kind,
    pub(super) default: &'static str,
    pub(super) required: bool,
    about: &'static str,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Bool,
    Text,
    Texts,
    Int,
    Uint,
    Uint32,
    Float,
}

impl Command {
    pub(super) fn is_group(&self) -> bool {
        self.arity == Arity::Group
    }

    pub(super) fn is_root(&self) -> bool {
        self.name.is_empty()
    }
}

const FORMATS: &str = "Output format one of: auto|ascii-encoded|hex|bytes|redacted";

const fn flag(name: &'static str, kind: Kind, about: &'static str) -> Flag {
    Flag {
        name,
        short: None,
        kind,
        default: "",
        required: false,
        about,
    }
}

const fn with_default(
    name: &'static str,
    kind: Kind,
    default: &'static str,
    about: &'static str,
) -> Flag {
    Flag {
        default,
        ..flag(name, kind, about)
    }
}

const fn required(name: &'static str, kind: Kind, about: &'static str) -> Flag {
    Flag {
        required: true,
        ..flag(name, kind, about)
    }
}

const OUTPUT: Flag = required("output", Kind::Text, "path to the filePath db file");

/// A command without flags on one file.
const fn command(
    name: &'static str,
    usage: &'static str,
    short: &'static str,
    arity: Arity,
    run: fn(&Call, &mut Output<'_>) -> Result<()>,
) -> Command {
    Command {
        name,
        usage,
        short,
        long: "",
        arity,
        flags: &[],
        commands: &[],
        run,
    }
}

const fn group(name: &'static str, short: &'static str, commands: &'static [Command]) -> Command {
    Command {
        commands,
        ..command(name, "", short, Arity::Group, nothing)
    }
}

fn nothing(_: &Call, _: &mut Output<'_>) -> Result<()> {
    Ok(())
}

const FILE: &str = "<bbolt-file>";

static ROOT: Command = group(
    "",
    "A simple command line tool for inspecting bbolt databases",
    &[
        Command {
            flags: &[
                flag("batch-size", Kind::Int, ""),
                flag("blockprofile", Kind::Text, ""),
                with_default("count", Kind::Int, "1000", ""),
                flag("cpuprofile", Kind::Text, ""),
                with_default("fill-percent", Kind::Float, "0.5", ""),
                flag("gobench-output", Kind::Bool, ""),
                flag(
                    "initial-mmap-size",
                    Kind::Int,
                    "Set initial mmap size in bytes for database file.",
                ),
                with_default("key-size", Kind::Int, "8", ""),
                flag("memprofile", Kind::Text, ""),
                flag("no-sync", Kind::Bool, ""),
                with_default("page-size", Kind::Int, "4096", "Set page size in bytes."),
                flag("path", Kind::Text, ""),
                with_default("profile-mode", Kind::Text, "rw", ""),
                with_default("read-mode", Kind::Text, "seq", ""),
                with_default("value-size", Kind::Int, "32", ""),
                flag("work", Kind::Bool, ""),
                with_default("write-mode", Kind::Text, "seq", ""),
            ],
            ..command(
                "bench",
                "",
                "run synthetic benchmark against bbolt",
                Arity::Any,
                bench::bench,
            )
        },
        command(
            "buckets",
            FILE,
            "print a list of buckets in bbolt database",
            Arity::Exactly(1),
            content::buckets,
        ),
        Command {
            flags: &[flag(
                "from-page",
                Kind::Uint,
                "check db integrity starting from the given page ID",
            )],
            ..command(
                "check",
                FILE,
                "verify integrity of bbolt database data",
                Arity::Exactly(1),
                whole::check,
            )
        },
        Command {
            long: "compact opens a database at source path and walks it recursively, copying keys\nas they are found from all buckets, to a newly created database at the destination path.\nThe original database is left untouched.",
            flags: &[
                flag("no-sync", Kind::Bool, ""),
                Flag {
                    short: Some('o'),
                    ..required("output", Kind::Text, "")
                },
                with_default("tx-max-size", Kind::Int, "65536", ""),
            ],
            ..command(
                "compact",
                "[options] -o <dst-bbolt-file> <src-bbolt-file>",
                "creates a compacted copy of the database from source path to the destination path, preserving the original.",
                Arity::AtLeast(1),
                whole::compact,
            )
        },
        command(
            "dump",
            "<bbolt-file> pageid [pageid...]",
            "prints a hexadecimal dump of one or more pages of bbolt database.",
            Arity::AtLeast(2),
            pages::dump,
        ),
        Command {
            flags: &[
                with_default(
                    "format",
                    Kind::Text,
                    "auto",
                    "Output format one of: auto|ascii-encoded|hex|bytes|redacted (default: auto)",
                ),
                with_default(
                    "parse-format",
                    Kind::Text,
                    "ascii-encoded",
                    "Input format one of: ascii-encoded|hex",
                ),
            ],
            ..command(
                "get",
                "PATH [BUCKET..] KEY",
                "get the value of a key from a (sub)bucket in a bbolt database",
                Arity::AtLeast(3),
                content::get,
            )
        },
        command(
            "help",
            "[command]",
            "Help about any command",
            Arity::Any,
            nothing,
        ),
        command(
            "info",
            FILE,
            "prints basic information about the bbolt database.",
            Arity::Exactly(1),
            whole::info,
        ),
        command(
            "inspect",
            FILE,
            "inspect the structure of the database",
            Arity::Exactly(1),
            content::inspect,
        ),
        Command {
            flags: &[Flag {
                short: Some('f'),
                ..with_default("format", Kind::Text, "auto", FORMATS)
            }],
            ..command(
                "keys",
                "<bbolt-file> <buckets>",
                "print a list of keys in the given (sub)bucket in bbolt database",
                Arity::AtLeast(2),
                content::keys,
            )
        },
        Command {
            flags: &[
                flag("all", Kind::Bool, "List all pages."),
                with_default(
                    "format-value",
                    Kind::Text,
                    "auto",
                    "Output format one of: auto|ascii-encoded|hex|bytes|redacted. Applies to values on the leaf page.",
                ),
            ],
            ..command(
                "page",
                "<bbolt-file> [pageid...]",
                "page prints one or more pages in human readable format.",
                Arity::AtLeast(1),
                pages::page,
            )
        },
        Command {
            flags: &[
                with_default("format", Kind::Text, "auto", FORMATS),
                flag("key-only", Kind::Bool, "Print only the key"),
                flag("value-only", Kind::Bool, "Print only the value"),
            ],
            ..command(
                "page-item",
                "[options] <bbolt-file> pageid itemid",
                "print a page item key and value in a bbolt database",
                Arity::Exactly(3),
                pages::page_item,
            )
        },
        Command {
            long: "Pages prints a table of pages with their type (meta, leaf, branch, freelist).\nLeaf and branch pages will show a key count in the \"items\" column while the\nfreelist will show the number of free pages in the \"items\" column.\n\nThe \"overflow\" column shows the number of blocks that the page spills over\ninto. Normally there is no overflow but large keys and values can cause\na single page to take up multiple blocks.",
            ..command(
                "pages",
                FILE,
                "print a list of pages in bbolt database",
                Arity::Exactly(1),
                pages::pages,
            )
        },
        command(
            "shrink",
            FILE,
            "move pages into free ones and cut the end of the file, in place",
            Arity::Exactly(1),
            whole::shrink,
        ),
        Command {
            long: "Counts pages, keys and buckets of the top-level buckets, or of those whose names begin\nwith a prefix, by reading all of them. To find errors in a database use check.",
            ..command(
                "stats",
                FILE,
                "print stats of bbolt database",
                Arity::Between(1, 2),
                content::stats,
            )
        },
        group("surgery", "surgery related commands", SURGERY),
        command(
            "version",
            "",
            "print the current version of bbolt",
            Arity::Any,
            |_, output| version(output),
        ),
    ],
);

const SURGERY: &[Command] = &[
    Command {
        flags: &[OUTPUT, required("pageId", Kind::Uint, "page Id")],
        ..command(
            "clear-page",
            FILE,
            "Clears all elements from the given page, which can be a branch or leaf page",
            Arity::Exactly(1),
            surgery::clear_page,
        )
    },
    Command {
        flags: &[
            required(
                "from-index",
                Kind::Int,
                "start element index (included) to clear, starting from 0",
            ),
            OUTPUT,
            required("pageId", Kind::Uint, "page id"),
            required(
                "to-index",
                Kind::Int,
                "end element index (excluded) to clear, starting from 0, -1 means to the end of page",
            ),
        ],
        ..command(
            "clear-page-elements",
            FILE,
            "Clears elements from the given page, which can be a branch or leaf page",
            Arity::Exactly(1),
            surgery::clear_page_elements,
        )
    },
    Command {
        flags: &[
            required("from-page", Kind::Uint, "source page Id"),
            OUTPUT,
            required("to-page", Kind::Uint, "destination page Id"),
        ],
        ..command(
            "copy-page",
            FILE,
            "Copy page from the source page Id to the destination page Id",
            Arity::Exactly(1),
            surgery::copy_page,
        )
    },
    group(
        "freelist",
        "freelist related surgery commands",
        &[
            Command {
                flags: &[OUTPUT],
                ..command(
                    "abandon",
                    FILE,
                    "Abandon the freelist from both meta pages",
                    Arity::Exactly(1),
                    surgery::abandon_freelist,
                )
            },
            Command {
                flags: &[OUTPUT],
                ..command(
                    "rebuild",
                    FILE,
                    "Rebuild the freelist",
                    Arity::Exactly(1),
                    surgery::rebuild_freelist,
                )
            },
        ],
    ),
    group(
        "meta",
        "meta page related surgery commands",
        &[
            Command {
                flags: &[
                    flag(
                        "fields",
                        Kind::Texts,
                        "comma separated list of fields (supported fields: pageSize, root, freelist and pgid) to be updated, and each item is a colon-separated key-value pair",
                    ),
                    flag(
                        "meta-page",
                        Kind::Uint32,
                        "the meta page ID to operate on, valid values are 0 and 1",
                    ),
                    OUTPUT,
                ],
                ..command(
                    "update",
                    FILE,
                    "Update fields in meta pages",
                    Arity::Exactly(1),
                    surgery::update_meta,
                )
            },
            command(
                "validate",
                FILE,
                "Validate both meta pages",
                Arity::Exactly(1),
                surgery::validate_meta,
            ),
        ],
    ),
    Command {
        flags: &[OUTPUT],
        ..command(
            "revert-meta-page",
            FILE,
            "Revert the meta page to revert the changes performed by the latest transaction",
            Arity::Exactly(1),
            surgery::revert_meta_page,
        )
    },
];

/// The command that `arguments` begin with, its full name, and the arguments behind it.
pub(super) fn find<'a>(
    program: &str,
    arguments: &'a [String],
) -> (&'static Command, String, &'a [String]) {
    let mut arguments = arguments;
    let mut help = false;
    if arguments.first().is_some_and(|first| first == "help") {
        arguments = &arguments[1..];
        help = true;
    }
    let mut at = &ROOT;
    let mut path = program.to_owned();
    while let Some((first, rest)) = arguments.split_first() {
        let Some(inner) = at.commands.iter().find(|inner| inner.name == first) else {
            break;
        };
        at = inner;
        path = format!("{path} {first}");
        arguments = rest;
    }
    // `help X` is `X --help`.
    (at, path, if help { &[] } else { arguments })
}

/// The help of a command.
pub(super) fn help(command: &Command, path: &str) -> String {
    let about = if command.long.is_empty() {
        command.short
    } else {
        command.long
    };
    format!("{about}\n\n{}", usage(command, path))
}

/// How a command is used.
pub(super) fn usage(command: &Command, path: &str) -> String {
    let mut text = format!("Usage:\n  {path}");
    if command.is_group() {
        text += " [command]\n\nAvailable Commands:\n";
        let names = command.commands.iter().map(|inner| inner.name.len());
        // At least eleven columns, as in every such text.
        let width = names.max().unwrap_or(0).max(11);
        for inner in command.commands {
            let _ = writeln!(text, "  {:width$} {}", inner.name, inner.short);
        }
    } else {
        if !command.usage.is_empty() {
            text += &format!(" {}", command.usage);
        }
        text += " [flags]\n";
    }
    text += "\nFlags:\n";
    text += &flags(command, path);
    if command.is_group() {
        let _ = writeln!(
            text,
            "\nUse \"{path} [command] --help\" for more information about a command."
        );
    }
    text
}

fn flags(command: &Command, path: &str) -> String {
    let name = if command.is_root() {
        path
    } else {
        command.name
    };
    let mut rows = vec![(
        "help",
        "  -h, --help".to_owned(),
        format!("help for {name}"),
    )];
    if command.is_root() {
        rows.push((
            "version",
            "  -v, --version".to_owned(),
            format!("version for {name}"),
        ));
    }
    for flag in command.flags {
        let mut left = match flag.short {
            Some(short) => format!("  -{short}, --{}", flag.name),
            None => format!("      --{}", flag.name),
        };
        left += match flag.kind {
            Kind::Bool => "",
            Kind::Text => " string",
            Kind::Texts => " strings",
            Kind::Int => " int",
            Kind::Uint => " uint",
            Kind::Uint32 => " uint32",
            Kind::Float => " float",
        };
        let mut about = flag.about.to_owned();
        if !flag.default.is_empty() {
            about += &match flag.kind {
                Kind::Text => format!(" (default {:?})", flag.default),
                _ => format!(" (default {})", flag.default),
            };
        }
        rows.push((flag.name, left, about));
    }
    rows.sort_by_key(|(name, ..)| *name);
    let width = rows
        .iter()
        .map(|(_, left, _)| left.len())
        .max()
        .unwrap_or(0);
    rows.iter()
        .fold(String::new(), |mut text, (_, left, about)| {
            let _ = writeln!(text, "{left:width$}   {about}");
            text
        })
}
