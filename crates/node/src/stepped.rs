//! A member without threads: whoever holds it gives turns to its parts, in any order.
//!
//! For simulations. A turn does exactly what a part's thread does between two waits, so every order of
//! turns is one that threads could have come to. Nothing here waits, sleeps or starts a thread.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::apply::ApplyRequest;
use crate::checker::CheckEvent;
use crate::core::{Core, Input};
use crate::duty::DutyEvent;
use crate::log::LogRequest;
use crate::mailbox::Mailbox;
use crate::node::Workers;
use crate::turns::Turner as _;
use crate::{Config, Env, Error, Node, Peers, Replies, Watchers};

/// What a member's threads are called where it has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The consensus loop, with its ticks.
    Consensus,
    /// The writer of the log.
    Log,
    /// The only one that changes the store.
    Apply,
    /// The file's only writer.
    Commit,
    /// What a member does by itself.
    Duty,
    /// The corruption checks of a leader.
    Check,
}

impl Part {
    /// All of them.
    pub const ALL: [Part; 6] = [
        Part::Consensus,
        Part::Log,
        Part::Apply,
        Part::Commit,
        Part::Duty,
        Part::Check,
    ];
}

/// What a turn came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Something was done.
    Worked,
    /// Nothing had come, and nothing was due.
    Idle,
    /// There is something to do, but another part is to come first: apply where two segments wait for
    /// the commit part.
    Blocked,
}

/// A member whose parts run when they are given a turn.
pub struct Stepped {
    node: Node,
    workers: Workers,
    inputs: Vec<Input>,
    writes: Vec<LogRequest>,
    applies: Vec<ApplyRequest>,
    events: Vec<DutyEvent>,
    checks: Vec<CheckEvent>,
}

impl Stepped {
    /// Starts a member in its data directory, as [`Node::start_with_peers`] does, but for the threads.
    ///
    /// # Errors
    ///
    /// As [`Node::start`].
    pub fn start(
        config: Config,
        env: Env,
        replies: Arc<dyn Replies>,
        watchers: Arc<dyn Watchers>,
        peers: Arc<dyn Peers>,
    ) -> Result<Stepped, Error> {
        let (node, mut workers) = Node::assemble(config, env, replies, watchers, peers)?;
        workers.applier.never_wait();
        workers.consensus.begin()?;
        Ok(Stepped {
            node,
            workers,
            inputs: Vec::new(),
            writes: Vec::new(),
            applies: Vec::new(),
            events: Vec::new(),
            checks: Vec::new(),
        })
    }

    /// The member as the serving side sees it. Calls that wait for a thread never return:
    /// [`Node::wait_ready`].
    #[must_use]
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// What consensus knows, to be looked at between turns.
    #[must_use]
    pub fn core(&self) -> &Core {
        self.workers.consensus.core()
    }

    /// Whether something waits for a part.
    #[must_use]
    pub fn has_mail(&self, part: Part) -> bool {
        let links = self.node.links();
        let depth = match part {
            Part::Consensus => links.consensus.depth(),
            Part::Log => links.log.depth(),
            Part::Apply => links.apply.depth(),
            Part::Commit => links.commit.depth(),
            Part::Duty => links.duty.depth(),
            Part::Check => links.check.depth(),
        };
        depth > 0
    }

    /// When a part wants a turn even if nothing comes, by the member's clock; `None` if never.
    #[must_use]
    pub fn next(&self, part: Part) -> Option<Duration> {
        let workers = &self.workers;
        match part {
            Part::Consensus => Some(workers.consensus.next()),
            Part::Log => None,
            Part::Apply => workers.applier.next(),
            Part::Commit => workers.commits.next(),
            Part::Duty => Some(workers.duty.next()),
            Part::Check => workers.checker.next(),
        }
    }

    /// Gives a part a turn: it takes all that waits for it, carries it out, and does what is due. After
    /// [`Turn::Blocked`] nothing was taken: it is to be tried again.
    ///
    /// # Errors
    ///
    /// Why the member cannot go on; it has ended, as after [`Stepped::crash`].
    pub fn turn(&mut self, part: Part) -> Result<Turn, Error> {
        let links = self.node.links().clone();
        if links.is_killed() {
            return Ok(Turn::Idle);
        }
        let now = links.env.clock.now();
        let has_work = self.has_mail(part) || self.next(part).is_some_and(|at| at <= now);
        let workers = &mut self.workers;
        let done = match part {
            Part::Consensus => {
                take(&links.consensus, &mut self.inputs);
                workers.consensus.turn(&mut self.inputs)
            }
            Part::Log => {
                take(&links.log, &mut self.writes);
                workers.log.turn(&mut self.writes).map_err(Error::from)
            }
            Part::Apply if workers.applier.is_blocked() => return Ok(Turn::Blocked),
            Part::Apply => {
                take(&links.apply, &mut self.applies);
                workers.applier.turn(&mut self.applies)
            }
            Part::Commit => {
                let mut one = Vec::new();
                if links.commit.depth() > 0 {
                    links.commit.take_up_to(1, &mut one, Some(Duration::ZERO));
                }
                workers.commits.turn(one.pop())
            }
            Part::Duty => {
                take(&links.duty, &mut self.events);
                workers.duty.turn(&mut self.events);
                Ok(())
            }
            Part::Check => {
                take(&links.check, &mut self.checks);
                workers.checker.turn(&mut self.checks);
                Ok(())
            }
        };
        match done {
            Ok(()) if has_work => Ok(Turn::Worked),
            Ok(()) => Ok(Turn::Idle),
            Err(error) => {
                links.fail(&error);
                Err(error)
            }
        }
    }

    /// Ends the member where it stands, as a crash of the process would.
    pub fn crash(self) {
        self.node.kill();
    }

    /// Stops in order, as [`Node::stop`].
    ///
    /// # Errors
    ///
    /// As [`Stepped::turn`].
    pub fn stop(mut self) -> Result<(), Error> {
        let links = self.node.links().clone();
        links.stopping.store(true, Ordering::SeqCst);
        links.duty.close();
        links.check.close();
        while self.has_mail(Part::Consensus) {
            self.turn(Part::Consensus)?;
        }
        self.workers.consensus.finish();
        links.consensus.close();
        while self.has_mail(Part::Apply) {
            self.turn(Part::Commit)?;
            self.turn(Part::Apply)?;
        }
        self.workers.applier.finish();
        for part in [Part::Commit, Part::Log] {
            while self.has_mail(part) {
                self.turn(part)?;
            }
        }
        self.node.kill();
        Ok(())
    }
}

/// Takes all that is there. Never waits.
fn take<T>(mailbox: &Mailbox<T>, into: &mut Vec<T>) {
    if mailbox.depth() > 0 {
        mailbox.take(into, Some(Duration::ZERO));
    }
}
