//! Scripts about whole clusters: members, the messages between them, and what each has to do.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::{Arguments, Write as _};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, bail, ensure};
use bytes::{Bytes, BytesMut};
use keelson_proto::entry::{
    ConfChange, ConfChangeTransition, ConfChangeV2, ConfState, Entry, EntryKind, HardState,
    Snapshot,
};
use keelson_proto::ids::{LogIndex, MemberId, Term};
use keelson_proto::message::{Message, MessageKind};
use keelson_raft::{
    APPEND_THREAD, Config, EventSink, Level, MemoryStorage, Progress, RawNode, ReadOnlyOption,
    Storage, StorageError, confchange, describe, is_storage_thread,
};

use crate::raft_script::Command;
use crate::raft_script_confchange::changes;

/// The levels of log lines; `None` leaves out everything, log line or not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Verbosity {
    #[default]
    Debug,
    Info,
    Warn,
    Error,
    Fatal,
    None,
}

/// What a command prints, log lines in between.
#[derive(Debug, Default)]
struct Output {
    text: String,
    verbosity: Verbosity,
}

impl Output {
    fn print(&mut self, text: &str) {
        if self.verbosity != Verbosity::None {
            self.text.push_str(text);
        }
    }
}

/// The output, shared with the members, whose log lines go there.
#[derive(Clone, Debug, Default)]
struct SharedOutput(Arc<Mutex<Output>>);

impl SharedOutput {
    fn with<T>(&self, use_it: impl FnOnce(&mut Output) -> T) -> T {
        use_it(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn print(&self, text: &str) {
        self.with(|output| output.print(text));
    }

    fn line(&self, text: &str) {
        self.print(&format!("{text}\n"));
    }
}

impl EventSink for SharedOutput {
    fn record(&mut self, level: Level, text: Arguments<'_>) {
        let (name, needed) = match level {
            Level::Debug => ("DEBUG", Verbosity::Debug),
            Level::Routine | Level::Info => ("INFO", Verbosity::Info),
            Level::Warn => ("WARN", Verbosity::Warn),
            Level::Error => ("ERROR", Verbosity::Error),
        };
        self.with(|output| {
            if output.verbosity <= needed {
                output.print(&format!("{name} {text}\n"));
            }
        });
    }
}

/// A storage that always has a snapshot of what was applied last.
#[derive(Debug)]
struct ScriptStorage {
    written: MemoryStorage,
    newest: Snapshot,
}

impl Storage for ScriptStorage {
    fn initial_state(&self) -> (HardState, ConfState) {
        self.written.initial_state()
    }
    fn entries(&self, lo: LogIndex, hi: LogIndex, max: u64) -> Result<Vec<Entry>, StorageError> {
        self.written.entries(lo, hi, max)
    }
    fn term(&self, index: LogIndex) -> Result<Term, StorageError> {
        self.written.term(index)
    }
    fn first_index(&self) -> LogIndex {
        self.written.first_index()
    }
    fn last_index(&self) -> LogIndex {
        self.written.last_index()
    }
    fn snapshot(&self) -> Result<Snapshot, StorageError> {
        Ok(self.newest.clone())
    }
}

#[derive(Debug)]
struct Member {
    node: RawNode<ScriptStorage>,
    config: Config,
    append_work: VecDeque<Message>,
    apply_work: VecDeque<Message>,
}

/// The cluster of one script.
#[derive(Debug, Default)]
pub struct Cluster {
    members: Vec<Member>,
    /// Messages under way.
    messages: Vec<Message>,
    output: SharedOutput,
}

/// One line a member: `1: StateProbe match=0 next=3`.
#[must_use]
pub fn progress_lines(progress: &BTreeMap<MemberId, Progress>) -> String {
    let line = |(id, progress): (&MemberId, &Progress)| format!("{}: {progress}\n", id.0);
    progress.iter().map(line).collect()
}

/// Commands.
impl Cluster {
    /// Runs one command; what it refuses is output too.
    ///
    /// # Errors
    ///
    /// If the command is not known.
    pub fn run(&mut self, command: &Command) -> anyhow::Result<String> {
        self.output.with(|output| output.text.clear());
        if let Err(refused) = self.run_named(command) {
            let refused = refused.to_string();
            // A refusal is shown however quiet the script is.
            self.output.with(|output| output.text += &refused);
        }
        let text = self.output.with(|output| std::mem::take(&mut output.text));
        Ok(if text.is_empty() {
            "ok".to_owned()
        } else {
            text
        })
    }

    fn run_named(&mut self, command: &Command) -> anyhow::Result<()> {
        match command.name.as_str() {
            "add-nodes" => self.add_nodes(command)?,
            "campaign" => self.member(command)?.node.campaign(),
            "compact" => self.compact(command)?,
            "deliver-msgs" => self.deliver(command)?,
            "process-ready" => self.each(command, "handling Ready", Cluster::process_ready)?,
            "process-append-thread" => {
                self.each(command, "processing append thread", Cluster::process_append)?;
            }
            "process-apply-thread" => {
                self.each(command, "processing apply thread", Cluster::process_apply)?;
            }
            "log-level" => {
                let level = command.arguments.first().context("a level is missing")?;
                self.set_verbosity(&level.key)?;
            }
            "raft-log" => self.print_log(command.first_number()?)?,
            "raft-state" => self.print_states(),
            "set-randomized-election-timeout" => {
                let ticks = command.value("timeout").context("no timeout")?.parse()?;
                let node = &mut self.member(command)?.node;
                node.set_randomized_election_timeout(ticks);
            }
            "stabilize" => self.stabilize(command)?,
            "status" => {
                let status = self.member(command)?.node.status();
                self.output.print(&progress_lines(&status.progress));
            }
            "tick-election" => {
                let member = self.member(command)?;
                (0..member.config.election_tick).for_each(|_| member.node.tick());
            }
            "tick-heartbeat" => {
                let member = self.member(command)?;
                (0..member.config.heartbeat_tick).for_each(|_| member.node.tick());
            }
            "transfer-leadership" => {
                let from = command.value("from").context("no from")?.parse()?;
                let to = command.value("to").context("no to")?.parse()?;
                let node = &mut self.numbered(from)?.node;
                node.transfer_leader(MemberId(to));
            }
            "forget-leader" => self.member(command)?.node.forget_leader(),
            "send-snapshot" => self.send_snapshot(command)?,
            "propose" => {
                let data = command.arguments.get(1).context("no data")?.key.clone();
                self.member(command)?.node.propose(Bytes::from(data))?;
            }
            "propose-conf-change" => self.propose_conf_change(command)?,
            "report-unreachable" => {
                let numbers = command.numbers()?;
                let [_, unreachable] = numbers[..] else {
                    bail!("must specify exactly two node indexes");
                };
                let node = &mut self.member(command)?.node;
                node.report_unreachable(MemberId(unreachable));
            }
            _ => bail!("unknown command"),
        }
        Ok(())
    }

    fn member(&mut self, command: &Command) -> anyhow::Result<&mut Member> {
        self.numbered(command.first_number()?)
    }

    fn numbered(&mut self, id: u64) -> anyhow::Result<&mut Member> {
        let position = usize::try_from(id)?.checked_sub(1);
        let member = position.and_then(|position| self.members.get_mut(position));
        member.with_context(|| format!("no member {id}"))
    }

    fn ids(&self) -> Vec<u64> {
        self.members
            .iter()
            .map(|member| member.config.id.0)
            .collect()
    }

    fn set_verbosity(&self, name: &str) -> anyhow::Result<()> {
        let verbosity = match name.to_ascii_lowercase().as_str() {
            "debug" => Verbosity::Debug,
            "info" => Verbosity::Info,
            "warn" => Verbosity::Warn,
            "error" => Verbosity::Error,
            "fatal" => Verbosity::Fatal,
            "none" => Verbosity::None,
            _ => bail!("log levels must be either of [DEBUG INFO WARN ERROR FATAL NONE]"),
        };
        self.output.with(|output| output.verbosity = verbosity);
        Ok(())
    }

    /// Runs `work` with its output moved to the right.
    fn indented<T>(&mut self, work: impl FnOnce(&mut Cluster) -> T) -> T {
        let before = self.output.with(|output| std::mem::take(&mut output.text));
        let result = work(self);
        self.output.with(|output| {
            let inner = std::mem::replace(&mut output.text, before);
            for line in inner.lines() {
                let _ = writeln!(output.text, "  {line}");
            }
        });
        result
    }

    /// Does `work` for every member that is named, under a heading if there are several.
    fn each(
        &mut self,
        command: &Command,
        what: &str,
        work: fn(&mut Cluster, u64) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let ids = command.numbers()?;
        if let [id] = ids[..] {
            return work(self, id);
        }
        for id in ids {
            self.output.line(&format!("> {id} {what}"));
            self.indented(|cluster| work(cluster, id))?;
        }
        Ok(())
    }

    fn add_nodes(&mut self, command: &Command) -> anyhow::Result<()> {
        let mut config = Config {
            election_tick: 3,
            heartbeat_tick: 1,
            max_size_per_message: u64::MAX,
            max_inflight_messages: usize::try_from(i32::MAX)?,
            check_quorum: false,
            pre_vote: false,
            async_storage_writes: false,
            ..Config::new(MemberId::NONE)
        };
        let mut snapshot = Snapshot::default();
        for argument in &command.arguments[1..] {
            let ids = || {
                let ids = argument.values.iter();
                ids.map(|id| anyhow::Ok(MemberId(id.parse()?)))
                    .collect::<anyhow::Result<Vec<_>>>()
            };
            let value = argument.values.first().context("a value is missing")?;
            match argument.key.as_str() {
                "voters" => snapshot.conf_state.voters = ids()?,
                "learners" => snapshot.conf_state.learners = ids()?,
                "inflight" => config.max_inflight_messages = value.parse()?,
                "index" => snapshot.index = LogIndex(value.parse()?),
                "content" => snapshot.data = Bytes::from(value.clone()),
                "async-storage-writes" => config.async_storage_writes = value.parse()?,
                "prevote" => config.pre_vote = value.parse()?,
                "checkquorum" => config.check_quorum = value.parse()?,
                "max-committed-size-per-ready" => {
                    config.max_committed_size_per_ready = value.parse()?;
                }
                "disable-conf-change-validation" => {
                    config.disable_conf_change_validation = value.parse()?;
                }
                "read-only" if value == "safe" => config.read_only = ReadOnlyOption::Safe,
                "read-only" if value == "lease-based" => {
                    config.read_only = ReadOnlyOption::LeaseBased;
                }
                "step-down-on-removal" => config.step_down_on_removal = value.parse()?,
                other => bail!("unknown argument {other}"),
            }
        }
        config.applied = snapshot.index;
        if snapshot != Snapshot::default() {
            ensure!(snapshot.index > LogIndex(1), "index must be > 1");
            snapshot.term = Term(1);
        }
        for _ in 0..command.first_number()? {
            self.add_member(&config, &snapshot)?;
        }
        Ok(())
    }

    fn add_member(&mut self, config: &Config, snapshot: &Snapshot) -> anyhow::Result<()> {
        let config = Config {
            id: MemberId(u64::try_from(self.members.len())? + 1),
            ..config.clone()
        };
        let storage = ScriptStorage {
            written: MemoryStorage::with_snapshot(snapshot.clone()),
            newest: snapshot.clone(),
        };
        let events = Box::new(self.output.clone());
        let node = RawNode::with_events(config.clone(), storage, Box::new(|_| 0), events)?;
        self.members.push(Member {
            node,
            config,
            append_work: VecDeque::new(),
            apply_work: VecDeque::new(),
        });
        Ok(())
    }

    fn compact(&mut self, command: &Command) -> anyhow::Result<()> {
        let numbers = command.numbers()?;
        let index = LogIndex(*numbers.get(1).context("an index is missing")?);
        let storage = self.member(command)?.node.storage_mut();
        storage.written.compact(index)?;
        self.print_log(command.first_number()?)
    }

    fn print_log(&mut self, id: u64) -> anyhow::Result<()> {
        let storage = &self.numbered(id)?.node.storage().written;
        let (first, last) = (storage.first_index(), storage.last_index());
        let text = if last < first {
            format!("log is empty: first index={first}, last index={last}")
        } else {
            describe::entries(&storage.entries(first, last.next(), u64::MAX)?)
        };
        self.output.print(&text);
        Ok(())
    }

    fn print_states(&self) {
        for member in &self.members {
            let status = member.node.status();
            let id = status.basic.id;
            let votes = if status.config.voters.contains(id) {
                "(Voter)"
            } else {
                "(Non-Voter)"
            };
            let soft_state = status.basic.soft_state;
            self.output.line(&format!(
                "{}: {} {votes} Term:{} Lead:{}",
                id.0,
                describe::role_name(soft_state.role),
                status.basic.hard_state.term,
                soft_state.lead.0
            ));
        }
    }

    fn send_snapshot(&mut self, command: &Command) -> anyhow::Result<()> {
        let numbers = command.numbers()?;
        let [from, to] = numbers[..] else {
            bail!("two members are needed");
        };
        let node = &self.numbered(from)?.node;
        let message = Message {
            kind: MessageKind::Snap,
            from: MemberId(from),
            to: MemberId(to),
            term: node.term(),
            snapshot: Some(Box::new(node.storage().snapshot()?)),
            ..Message::default()
        };
        self.output.print(&describe::message(&message));
        self.messages.push(message);
        Ok(())
    }

    fn propose_conf_change(&mut self, command: &Command) -> anyhow::Result<()> {
        let changes = changes(&command.input)?;
        let transition = match command.value("transition").unwrap_or("auto") {
            "auto" => ConfChangeTransition::Auto,
            "implicit" => ConfChangeTransition::JointImplicit,
            "explicit" => ConfChangeTransition::JointExplicit,
            other => bail!("unknown transition {other}"),
        };
        let node = &mut self.member(command)?.node;
        if command.value("v1") == Some("true") {
            let [single] = changes[..] else {
                bail!("v1 conf change can only have one operation and no transition");
            };
            node.propose_conf_change(ConfChange {
                kind: single.kind,
                member: single.member,
                ..ConfChange::default()
            })?;
        } else {
            node.propose_conf_change(ConfChangeV2 {
                transition,
                changes,
                ..ConfChangeV2::default()
            })?;
        }
        Ok(())
    }
}

/// The work of members.
impl Cluster {
    fn process_ready(&mut self, id: u64) -> anyhow::Result<()> {
        let output = self.output.clone();
        let member = self.numbered(id)?;
        let ready = member.node.ready();
        output.print(&describe::ready(&ready));
        let is_async = member.config.async_storage_writes;
        if !is_async {
            let state = ready.hard_state.unwrap_or_default();
            write(member, state, &ready.entries, ready.snapshot)?;
            apply(member, &ready.committed_entries)?;
        }
        for message in ready.messages {
            let member = self.numbered(id)?;
            if !is_storage_thread(message.to) {
                self.messages.push(message);
            } else if message.to == APPEND_THREAD {
                member.append_work.push_back(message);
            } else {
                member.apply_work.push_back(message);
            }
        }
        if !is_async {
            self.numbered(id)?.node.advance();
        }
        Ok(())
    }

    /// Takes the responses off a storage message and shows it.
    fn begin_work(&self, message: &mut Message) -> Vec<Message> {
        let responses = std::mem::take(&mut message.responses);
        self.output.line("Processing:");
        self.output.line(&describe::message(message));
        responses
    }

    fn end_work(&mut self, responses: Vec<Message>) {
        self.output.line("Responses:");
        for response in &responses {
            self.output.line(&describe::message(response));
        }
        self.messages.extend(responses);
    }

    fn process_append(&mut self, id: u64) -> anyhow::Result<()> {
        let Some(mut message) = self.numbered(id)?.append_work.pop_front() else {
            self.output.print("no append work to perform");
            return Ok(());
        };
        let responses = self.begin_work(&mut message);
        let state = HardState {
            term: message.term,
            vote: message.vote,
            commit: message.commit,
        };
        let snapshot = message.snapshot.map(|boxed| *boxed);
        write(self.numbered(id)?, state, &message.entries, snapshot)?;
        self.end_work(responses);
        Ok(())
    }

    fn process_apply(&mut self, id: u64) -> anyhow::Result<()> {
        let Some(mut message) = self.numbered(id)?.apply_work.pop_front() else {
            self.output.print("no apply work to perform");
            return Ok(());
        };
        let responses = self.begin_work(&mut message);
        apply(self.numbered(id)?, &message.entries)?;
        self.end_work(responses);
        Ok(())
    }

    fn deliver(&mut self, command: &Command) -> anyhow::Result<()> {
        let kind = match command.value("type") {
            None => None,
            Some(name) => {
                let mut kinds = MessageKind::ALL.into_iter();
                let kind = kinds.find(|&kind| describe::kind_name(kind) == name);
                Some(kind.with_context(|| format!("unknown message type {name}"))?)
            }
        };
        let mut delivered = 0;
        for argument in &command.arguments {
            if argument.values.is_empty() {
                delivered += self.deliver_to(argument.key.parse()?, kind, false)?;
            } else if argument.key == "drop" {
                for id in &argument.values {
                    delivered += self.deliver_to(id.parse()?, kind, true)?;
                }
            }
        }
        if delivered == 0 {
            self.output.line("no messages");
        }
        Ok(())
    }

    /// Delivers (or drops) what is under way to one member; says how much that was.
    fn deliver_to(
        &mut self,
        id: u64,
        kind: Option<MessageKind>,
        drop: bool,
    ) -> anyhow::Result<usize> {
        let is_local = |message: &Message| {
            message.from == message.to
                || is_storage_thread(message.from)
                || is_storage_thread(message.to)
        };
        let (now, later): (Vec<_>, Vec<_>) = std::mem::take(&mut self.messages)
            .into_iter()
            .partition(|message| {
                message.to == MemberId(id)
                    && !(drop && is_local(message))
                    && kind.is_none_or(|kind| message.kind == kind)
            });
        self.messages = later;
        let count = now.len();
        for message in now {
            let prefix = if drop { "dropped: " } else { "" };
            let text = describe::message(&message);
            self.output.line(&format!("{prefix}{text}"));
            if drop {
                continue;
            }
            if let Err(refused) = self.numbered(id)?.node.step(message) {
                self.output.line(&refused.to_string());
            }
        }
        Ok(count)
    }

    fn stabilize(&mut self, command: &Command) -> anyhow::Result<()> {
        let before = self.output.with(|output| output.verbosity);
        if let Some(level) = command.value("log-level") {
            self.set_verbosity(level)?;
        }
        let mut ids = command.numbers()?;
        if ids.is_empty() {
            ids = self.ids();
        }
        while self.stabilize_once(&ids)? {}
        self.output.with(|output| output.verbosity = before);
        Ok(())
    }

    /// Lets every member do each kind of work once; whether there was any.
    fn stabilize_once(&mut self, ids: &[u64]) -> anyhow::Result<bool> {
        let mut worked = false;
        for &id in ids {
            if self.numbered(id)?.node.has_ready() {
                self.output.line(&format!("> {id} handling Ready"));
                self.indented(|cluster| cluster.process_ready(id))?;
                worked = true;
            }
        }
        for &id in ids {
            if self.messages.iter().any(|message| message.to.0 == id) {
                self.output.line(&format!("> {id} receiving messages"));
                self.indented(|cluster| cluster.deliver_to(id, None, false))?;
                worked = true;
            }
        }
        for &id in ids {
            if !self.numbered(id)?.append_work.is_empty() {
                self.output
                    .line(&format!("> {id} processing append thread"));
                while !self.numbered(id)?.append_work.is_empty() {
                    self.indented(|cluster| cluster.process_append(id))?;
                }
                worked = true;
            }
        }
        for &id in ids {
            if !self.numbered(id)?.apply_work.is_empty() {
                self.output.line(&format!("> {id} processing apply thread"));
                while !self.numbered(id)?.apply_work.is_empty() {
                    self.indented(|cluster| cluster.process_apply(id))?;
                }
                worked = true;
            }
        }
        Ok(worked)
    }
}

fn write(
    member: &mut Member,
    state: HardState,
    entries: &[Entry],
    snapshot: Option<Snapshot>,
) -> anyhow::Result<()> {
    let storage = member.node.storage_mut();
    if !state.is_empty() {
        storage.written.set_hard_state(state);
    }
    match snapshot {
        Some(snapshot) => {
            ensure!(entries.is_empty(), "a snapshot and entries at once");
            storage.written.apply_snapshot(snapshot)?;
        }
        None => storage.written.append(entries),
    }
    Ok(())
}

/// Applies entries: the state is all their data, one after the other.
fn apply(member: &mut Member, entries: &[Entry]) -> anyhow::Result<()> {
    for entry in entries {
        let change = match entry.kind {
            EntryKind::Normal => None,
            EntryKind::ConfChange => {
                Some(confchange::as_v2(&ConfChange::decode(entry.data.clone())?))
            }
            EntryKind::ConfChangeV2 => Some(ConfChangeV2::decode(entry.data.clone())?),
        };
        let conf_state = match &change {
            Some(change) => Some(member.node.apply_conf_change(change)?),
            None => None,
        };
        let newest = &mut member.node.storage_mut().newest;
        let mut data = BytesMut::from(&newest.data[..]);
        data.extend_from_slice(
            change
                .as_ref()
                .map_or(&entry.data, |change| &change.context),
        );
        *newest = Snapshot {
            data: data.freeze(),
            conf_state: conf_state.unwrap_or_else(|| newest.conf_state.clone()),
            index: entry.index,
            term: entry.term,
        };
    }
    Ok(())
}
