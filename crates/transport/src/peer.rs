//! One other member: which channel a message to it takes, and the tasks that keep the channels up.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use keelson_proto::ids::MemberId;
use keelson_proto::message::{Message, MessageKind};
use tokio::sync::mpsc::error::TrySendError;
use tokio::task::JoinHandle;

use crate::codec::StreamKind;
use crate::inbound::SnapshotBody;
use crate::outbox::{Outbox, Push};
use crate::peers::Context;
use crate::pipeline::{self, Pipeline};
use crate::stats::{PeerStats, add};
use crate::status::Status;
use crate::url::{PeerUrl, Picker};
use crate::{probe, snapshot, stream};

/// What everything that has to do with one peer shares.
pub(crate) struct Link {
    pub(crate) context: Arc<Context>,
    pub(crate) member: MemberId,
    pub(crate) picker: Picker,
    pub(crate) status: Status,
    pub(crate) stats: Arc<PeerStats>,
    stopped: AtomicBool,
}

impl Link {
    fn new(context: &Arc<Context>, member: MemberId, urls: Vec<PeerUrl>) -> Arc<Link> {
        let stats = context.stats.of(member);
        Arc::new(Link {
            context: Arc::clone(context),
            member,
            picker: Picker::new(urls),
            status: Status::new(member, Arc::clone(&stats)),
            stats,
            stopped: AtomicBool::new(false),
        })
    }

    pub(crate) fn local(&self) -> MemberId {
        self.context.config.member
    }

    pub(crate) fn report_unreachable(&self) {
        self.context.inbound.report_unreachable(self.member);
    }

    /// Between two signs of life on a stream: a third of what a reader waits for.
    pub(crate) fn heartbeat_interval(&self) -> Duration {
        self.context.config.read_timeout / 3
    }

    /// Whether nobody is to hear any more how things end.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stopped.load(Ordering::Relaxed) || self.context.is_stopping()
    }
}

/// Tasks that end with whoever started them.
#[derive(Debug, Default)]
struct Tasks(Mutex<Vec<JoinHandle<()>>>);

impl Tasks {
    fn keep(&self, task: JoinHandle<()>) {
        let mut tasks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.retain(|task| !task.is_finished());
        tasks.push(task);
    }

    fn abort(&self) {
        let mut tasks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for task in tasks.drain(..) {
            task.abort();
        }
    }
}

/// A member of the cluster.
pub(crate) struct Peer {
    link: Arc<Link>,
    message: Arc<Outbox>,
    append: Arc<Outbox>,
    pipeline: Pipeline,
    tasks: Tasks,
    probes: Tasks,
}

impl Peer {
    /// Starts to dial it.
    pub(crate) fn start(context: &Arc<Context>, member: MemberId, urls: Vec<PeerUrl>) -> Peer {
        tracing::info!("remote-peer-id" = %member, "starting remote peer");
        let link = Link::new(context, member, urls);
        let runtime = &context.runtime;
        let tasks = Tasks::default();
        let (pipeline, workers) = pipeline::start(&link);
        for worker in workers {
            tasks.keep(worker);
        }
        for kind in [StreamKind::Append, StreamKind::Message] {
            tasks.keep(runtime.spawn(stream::read(Arc::clone(&link), kind)));
        }
        let peer = Peer {
            link,
            message: Arc::new(Outbox::new(StreamKind::Message)),
            append: Arc::new(Outbox::new(StreamKind::Append)),
            pipeline,
            tasks,
            probes: Tasks::default(),
        };
        peer.probe();
        tracing::info!("remote-peer-id" = %member, "started remote peer");
        peer
    }

    fn probe(&self) {
        for kind in probe::KINDS {
            let probe = probe::run(Arc::clone(&self.link), kind);
            self.probes.keep(self.link.context.runtime.spawn(probe));
        }
    }

    pub(crate) fn link(&self) -> &Arc<Link> {
        &self.link
    }

    pub(crate) fn outbox(&self, kind: StreamKind) -> &Arc<Outbox> {
        match kind {
            StreamKind::Message => &self.message,
            StreamKind::Append => &self.append,
        }
    }

    /// Sends a message over the best channel there is now: appends over their own stream, the rest
    /// over the other, and without either by a request of its own.
    pub(crate) fn send(&self, message: Message) {
        let mut message = message;
        if message.kind == MessageKind::App {
            match self.append.push(message) {
                Push::Queued => return,
                Push::Full(message) => return self.drop_full(&message, "streamMsgAppV2"),
                Push::NoStream(back) => message = back,
            }
        }
        match self.message.push(message) {
            Push::Queued => {}
            Push::Full(message) => self.drop_full(&message, "streamMsg"),
            Push::NoStream(message) => match self.pipeline.try_send(message) {
                Ok(()) => {}
                Err(TrySendError::Full(message) | TrySendError::Closed(message)) => {
                    self.drop_full(&message, "pipeline");
                }
            },
        }
    }

    fn drop_full(&self, message: &Message, channel: &str) {
        self.link.report_unreachable();
        add(&self.link.stats.send_failures, 1);
        tracing::warn!(
            "message-type" = ?message.kind,
            "local-member-id" = %self.link.local(),
            from = %message.from,
            "remote-peer-id" = %self.link.member,
            "remote-peer-name" = channel,
            "remote-peer-active" = self.link.status.since().is_some(),
            "dropped internal Raft message since sending buffer is full"
        );
    }

    /// Sends a snapshot in a request of its own; its body hears how it ends.
    pub(crate) fn send_snapshot(&self, message: Message, body: Box<dyn SnapshotBody>) {
        let send = snapshot::send(Arc::clone(&self.link), message, body);
        self.tasks.keep(self.link.context.runtime.spawn(send));
    }

    /// It is reached under other URLs from now on.
    pub(crate) fn update(&self, urls: Vec<PeerUrl>) {
        self.link.picker.replace(urls);
        self.probes.abort();
        self.probe();
    }

    pub(crate) fn stop(&self) {
        tracing::info!("remote-peer-id" = %self.link.member, "stopping remote peer");
        self.link.stopped.store(true, Ordering::Relaxed);
        self.message.close();
        self.append.close();
        self.probes.abort();
        self.tasks.abort();
        self.link.status.retire();
        tracing::info!("remote-peer-id" = %self.link.member, "stopped remote peer");
    }
}

/// Somebody who speaks with this member and is not known to be of the cluster yet: answers go to it
/// by requests, so that one who joins can catch up.
pub(crate) struct Remote {
    link: Arc<Link>,
    pipeline: Pipeline,
    tasks: Tasks,
}

impl Remote {
    pub(crate) fn start(context: &Arc<Context>, member: MemberId, urls: Vec<PeerUrl>) -> Remote {
        let link = Link::new(context, member, urls);
        let tasks = Tasks::default();
        let (pipeline, workers) = pipeline::start(&link);
        for worker in workers {
            tasks.keep(worker);
        }
        Remote {
            link,
            pipeline,
            tasks,
        }
    }

    pub(crate) fn send(&self, message: Message) {
        if let Err(TrySendError::Full(message) | TrySendError::Closed(message)) =
            self.pipeline.try_send(message)
        {
            add(&self.link.stats.send_failures, 1);
            tracing::warn!(
                "message-type" = ?message.kind,
                "local-member-id" = %self.link.local(),
                from = %message.from,
                "remote-peer-id" = %self.link.member,
                "remote-peer-active" = self.link.status.since().is_some(),
                "dropped Raft message since sending buffer is full (overloaded network)"
            );
        }
    }

    pub(crate) fn stop(&self) {
        self.link.stopped.store(true, Ordering::Relaxed);
        self.tasks.abort();
        self.link.status.retire();
    }
}
