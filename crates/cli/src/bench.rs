//! `keelson bench`: load on a server, and what it costs.

use std::io::{self, Write as _};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use keelson_bench::{DEFAULT_ENDPOINT, Spec, Work};

/// Operations when neither their number nor a time is given.
const TOTAL: u64 = 10_000;

/// The sub-command with its works.
#[must_use]
pub fn command() -> Command {
    Command::new("bench")
        .about("Put load on a server and measure it")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(common(Command::new("put").about("Write single keys")))
        .subcommand(reading(Command::new("get").about("Read single keys")))
        .subcommand(
            reading(Command::new("list").about("Read many keys at once"))
                .arg(
                    number(
                        "page",
                        "Keys of a page, each client walking its own; 0: all keys at once",
                    )
                    .default_value("100"),
                )
                .arg(
                    Arg::new("stream")
                        .long("stream")
                        .action(ArgAction::SetTrue)
                        .help("Read all keys as a stream of pieces; needs --page 0"),
                ),
        )
        .subcommand(reading(Command::new("count").about("Count all keys")))
        .subcommand(
            populating(Command::new("mixed").about("Write and read single keys"))
                .arg(number("writes", "Puts among 100 operations").default_value("20")),
        )
        .subcommand(populating(Command::new("update").about(
            "Read a key and write it in a transaction if it is unchanged, as Kubernetes does",
        )))
        .subcommand(common(
            Command::new("keep-alive").about("Renew leases, each client its own"),
        ))
        .subcommand(common(
            Command::new("lease").about("Grant a lease, put a key with it, revoke it"),
        ))
        .subcommand(
            common(Command::new("lag").about(
                "Write single keys beside watchers that come again and again from far behind",
            ))
            .arg(number("watchers", "Watchers, each of one key").default_value("10"))
            .arg(number("behind", "Revisions that they are behind").default_value("100000"))
            .arg(
                number(
                    "every",
                    "Milliseconds after which each of them comes again; with 0 when it has caught up",
                )
                .default_value("0"),
            ),
        )
        .subcommand(
            common(Command::new("watch").about("Write keys that many watchers see"))
                .arg(number("watchers", "Watchers, each of all keys").default_value("100"))
                .arg(number("streams", "Streams that carry them").default_value("10")),
        )
}

/// Runs what `command` has parsed and prints what was seen.
///
/// # Errors
/// A value out of its bounds, a server that cannot be reached, no operation that succeeded.
pub fn run(matches: &ArgMatches) -> anyhow::Result<()> {
    let (name, matches) = matches.subcommand().context("a work is needed")?;
    let spec = spec(name, matches)?;
    let report = keelson_bench::run(&spec)?;
    let text = if matches.get_flag("json") {
        report.json()? + "\n"
    } else {
        report.to_string()
    };
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(())
}

fn common(command: Command) -> Command {
    command
        .arg(
            Arg::new("endpoint")
                .long("endpoint")
                .value_name("URL")
                .help(
                    "Where a member is: http://host:port or unix:///path; connections are spread \
                     over all that are given",
                )
                .action(ArgAction::Append)
                .default_value(DEFAULT_ENDPOINT),
        )
        .arg(
            Arg::new("user")
                .long("user")
                .value_name("NAME:PASSWORD")
                .help("Who to authenticate as"),
        )
        .arg(number("connections", "Connections").default_value("1"))
        .arg(number("clients", "Clients, each with one operation at a time").default_value("16"))
        .arg(number(
            "total",
            "Operations to do (10000 if there is no duration)",
        ))
        .arg(
            Arg::new("duration")
                .long("duration")
                .value_name("SECONDS")
                .value_parser(value_parser!(f64))
                .help("Begin no operation after this time"),
        )
        .arg(number(
            "rate",
            "Begin so many operations a second, whether earlier ones are done or not",
        ))
        .arg(number("key-size", "Bytes of a key").default_value("32"))
        .arg(number("value-size", "Bytes of a value").default_value("256"))
        .arg(number("keys", "Different keys").default_value("10000"))
        .arg(
            number(
                "pid",
                "A member's process, for CPU time and memory; several are added up",
            )
            .action(ArgAction::Append),
        )
        .arg(number("threads", "Threads of the generator").default_value("1"))
        .arg(
            number(
                "idle-connections",
                "Connections beside those, over which nothing goes",
            )
            .default_value("0"),
        )
        .arg(
            number(
                "idle-watchers",
                "Watchers beside the load, each of a key that nobody writes",
            )
            .default_value("0"),
        )
        .arg(
            Arg::new("json")
                .long("json")
                .action(ArgAction::SetTrue)
                .help("Print the report as JSON"),
        )
}

fn reading(command: Command) -> Command {
    populating(command).arg(
        Arg::new("serializable")
            .long("serializable")
            .action(ArgAction::SetTrue)
            .help("Read what the member has, without asking whether it is the latest"),
    )
}

fn populating(command: Command) -> Command {
    common(command).arg(
        Arg::new("no-populate")
            .long("no-populate")
            .action(ArgAction::SetTrue)
            .help("Read the keys that are there, without writing them first"),
    )
}

fn number(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name)
        .long(name)
        .value_name("N")
        .value_parser(value_parser!(u64))
        .help(help)
}

fn spec(name: &str, matches: &ArgMatches) -> anyhow::Result<Spec> {
    let given = |name: &str| matches.get_one::<u64>(name).copied();
    let or_zero = |name: &str| given(name).unwrap_or(0);
    let size =
        |name: &str| usize::try_from(or_zero(name)).with_context(|| format!("{name} is too large"));
    let work = match name {
        "put" => Work::Put,
        "get" => Work::Get {
            serializable: matches.get_flag("serializable"),
        },
        "list" => Work::List {
            page: or_zero("page"),
            serializable: matches.get_flag("serializable"),
            stream: matches.get_flag("stream"),
        },
        "count" => Work::Count {
            serializable: matches.get_flag("serializable"),
        },
        "mixed" => Work::Mixed {
            writes: or_zero("writes"),
        },
        "update" => Work::Update,
        "keep-alive" => Work::KeepAlive,
        "lease" => Work::Lease,
        "lag" => Work::Lag {
            watchers: size("watchers")?,
            behind: or_zero("behind"),
            every: Duration::from_millis(or_zero("every")),
        },
        _ => Work::Watch {
            watchers: size("watchers")?,
            streams: size("streams")?,
        },
    };
    let populates = matches!(name, "get" | "list" | "count" | "mixed" | "update");
    let mut spec = Spec::new(work);
    spec.populate = !(populates && matches.get_flag("no-populate"));
    if let Some(endpoints) = matches.get_many::<String>("endpoint") {
        spec.endpoints = endpoints.cloned().collect();
    }
    if let Some(user) = matches.get_one::<String>("user") {
        let (name, password) = user
            .split_once(':')
            .context("user must be a name and a password with a colon between them")?;
        spec.user = Some((name.to_owned(), password.to_owned()));
    }
    spec.duration = matches
        .get_one::<f64>("duration")
        .map(|seconds| {
            ensure!(
                seconds.is_finite() && *seconds > 0.0 && *seconds <= 3600.0,
                "duration must be above 0 and at most 3600 s"
            );
            Ok(Duration::from_secs_f64(*seconds))
        })
        .transpose()?;
    spec.total = given("total").or(spec.duration.is_none().then_some(TOTAL));
    spec.rate = given("rate");
    spec.connections = size("connections")?;
    spec.clients = size("clients")?;
    spec.threads = size("threads")?;
    spec.idle_connections = size("idle-connections")?;
    spec.idle_watchers = size("idle-watchers")?;
    spec.key_size = size("key-size")?;
    spec.value_size = size("value-size")?;
    spec.keys = or_zero("keys");
    let pids = matches.get_many::<u64>("pid").unwrap_or_default();
    let pids = pids.map(|pid| u32::try_from(*pid).context("pid is too large"));
    spec.pids = pids.collect::<anyhow::Result<_>>()?;
    Ok(spec)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> anyhow::Result<Spec> {
        let words = std::iter::once("bench").chain(line.split_whitespace());
        let matches = command().try_get_matches_from(words)?;
        let (name, matches) = matches.subcommand().context("a work")?;
        spec(name, matches)
    }

    #[test]
    fn the_command_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn without_a_number_or_a_time_a_run_is_short() {
        assert_eq!(parsed("put").unwrap().total, Some(TOTAL));
        assert_eq!(parsed("put --duration 2").unwrap().total, None);
        let both = parsed("get --duration 0.5 --total 7 --serializable").unwrap();
        assert_eq!(both.total, Some(7));
        assert_eq!(both.duration, Some(Duration::from_millis(500)));
        assert_eq!(both.work, Work::Get { serializable: true });
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for line in [
            "",
            "put --clients x",
            "put --user joe",
            "put --duration -1",
            "fly",
        ] {
            assert!(parsed(line).is_err(), "{line}");
        }
    }
}
