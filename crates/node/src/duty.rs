//! What a member does by itself: it tells its attributes, and, as leader, sets the cluster's version,
//! revokes leases that have expired, writes down what is left of long ones, and compacts.
//!
//! [`Duties`] decides, purely; the thread around it carries out.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use keelson_proto::ApiError;
use keelson_proto::ids::{LeaseId, MemberId, Term};
use keelson_proto::rpc::etcdserverpb::{
    AlarmRequest, AlarmType, CompactionRequest, InternalRaftRequest, LeaseCheckpointRequest,
    LeaseRevokeRequest, RequestHeader, alarm_request::AlarmAction,
};
use keelson_proto::rpc::membershippb::{
    Attributes, ClusterMemberAttrSetRequest, ClusterVersionSetRequest, DowngradeInfoSetRequest,
};
use keelson_store::auth;
use keelson_store::lease::{CHECKPOINTS_PER_REQUEST, EXPIRED_PER_CHECK, EXPIRY_CHECK_EVERY};
use keelson_store::member::Membership;
use semver::Version;

use crate::auto_compaction::Compactor;
use crate::links::Links;
use crate::mailbox::Taken;
use crate::monitor::{self, Wanted};
use crate::snapshot::{PURGE_EVERY, purge_old};
use crate::ticket::{Asker, Duty};
use crate::{AutoCompaction, Release};

/// How often a leader looks at the cluster's version.
const VERSION_EVERY: Duration = Duration::from_secs(4);

/// How soon it looks again while it has not heard of all members' releases.
const RELEASES_EVERY: Duration = Duration::from_millis(500);

/// How long the member waits before it tells its attributes again where that failed: whatever refuses
/// it at once is not to be asked in a loop.
const PUBLISH_PAUSE: Duration = Duration::from_millis(100);

/// How long the first attempt to tell them is waited for; each further one twice as long, up to the time
/// of a request. What a member that starts sends before its peers are connected is lost without a word,
/// and clients are served only when it has told them.
const PUBLISH_FIRST: Duration = Duration::from_secs(1);

/// How long a removed member goes on, so that others hear of it: etcd's time.
const REMOVED_FOR: Duration = Duration::from_secs(1);

/// The leader's deadlines count only while its consensus ticks at least this often, in
/// heartbeat intervals.
const STALE_TICKS: u32 = 3;

/// What the duties are told.
#[derive(Debug)]
pub(crate) enum DutyEvent {
    /// This member leads, or does no longer.
    Leads(bool),
    /// The first entry of the term in which this member leads was applied.
    FirstCommit,
    /// A request of this member came to an end.
    Done(Duty, Result<(), ApiError>),
    /// A snapshot of the leader has taken the place of the state.
    Restored,
    /// The entry was applied that removes this member.
    Removed,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Action {
    Publish,
    SetVersion(Version),
    /// Every member is of the version that the cluster was to be downgraded to.
    EndDowngrade,
    /// Look at the deadlines of leases.
    Leases,
    Compact(i64),
    Purge,
    /// The member was removed, and others have had time to hear of it.
    End,
}

/// What the duties look at.
struct Facts<'a> {
    now: Duration,
    revision: i64,
    membership: &'a Membership,
    /// This member.
    own: MemberId,
    /// What is known of the others' releases.
    release: &'a dyn Fn(MemberId) -> Release,
}

/// Decides what to do, and when. Pure.
#[derive(Debug)]
struct Duties {
    version: Version,
    retry: Duration,
    leads: bool,
    /// The first entry of the term was applied.
    settled: bool,
    /// When to tell name and client URLs, as long as that was not applied.
    publish_at: Option<Duration>,
    publish_wait: Duration,
    version_at: Duration,
    leases_at: Duration,
    purge_at: Duration,
    /// When the member ends that was removed.
    end_at: Option<Duration>,
    compactor: Compactor,
}

impl Duties {
    fn new(
        version: Version,
        retry: Duration,
        compaction: AutoCompaction,
        now: Duration,
        revision: i64,
    ) -> Duties {
        Duties {
            version,
            retry,
            leads: false,
            settled: false,
            publish_at: Some(now),
            publish_wait: PUBLISH_FIRST.min(retry),
            version_at: now,
            leases_at: now,
            purge_at: now + PURGE_EVERY,
            end_at: None,
            compactor: Compactor::new(compaction, now, revision),
        }
    }

    /// Takes what happened; true if the member is published by it.
    fn take(&mut self, event: &DutyEvent, now: Duration) -> bool {
        match event {
            DutyEvent::Leads(leads) => {
                self.leads = *leads;
                self.settled = false;
            }
            DutyEvent::FirstCommit => {
                self.settled = true;
                self.version_at = now;
            }
            DutyEvent::Removed => {
                // A member that is gone tells nothing of itself any more.
                self.publish_at = None;
                self.end_at.get_or_insert(now + REMOVED_FOR);
            }
            DutyEvent::Done(Duty::Publish, Ok(())) => {
                let first = self.publish_at.is_some();
                self.publish_at = None;
                return first;
            }
            DutyEvent::Done(Duty::Publish, Err(_)) => {
                self.publish_at = self.publish_at.map(|at| at.min(now + PUBLISH_PAUSE));
            }
            DutyEvent::Done(Duty::Compaction, result) => {
                self.compactor
                    .done(now, matches!(result, Ok(()) | Err(ApiError::Compacted)));
            }
            DutyEvent::Done(
                Duty::ClusterVersion
                | Duty::EndDowngrade
                | Duty::LeaseRevoke
                | Duty::LeaseCheckpoint
                | Duty::CorruptAlarm,
                _,
            )
            | DutyEvent::Restored => {}
        }
        false
    }

    /// Takes that the state as of a snapshot has the attributes that are to be told; true if the member is
    /// published by it. The entry that told them lies before the snapshot, so it will not be applied here,
    /// and nobody would hear of it until the next attempt.
    fn found_attributes(&mut self) -> bool {
        self.publish_at.take().is_some()
    }

    /// What is due now.
    fn due(&mut self, facts: &Facts<'_>) -> Vec<Action> {
        let now = facts.now;
        let mut actions = Vec::new();
        if self.publish_at.is_some_and(|at| now >= at) {
            self.publish_at = Some(now + self.publish_wait);
            self.publish_wait = (self.publish_wait * 2).min(self.retry);
            actions.push(Action::Publish);
        }
        if self.settled && now >= self.version_at {
            self.version_at = now + VERSION_EVERY;
            let own = (facts.own, &self.version);
            match monitor::look(own, facts.membership, facts.release) {
                Wanted::Nothing => {}
                Wanted::Patience => self.version_at = now + RELEASES_EVERY,
                Wanted::Version(version) => actions.push(Action::SetVersion(version)),
                Wanted::EndDowngrade => actions.push(Action::EndDowngrade),
            }
        }
        if now >= self.leases_at {
            self.leases_at = now + Duration::from_millis(EXPIRY_CHECK_EVERY);
            actions.extend(self.settled.then_some(Action::Leases));
        }
        if now >= self.purge_at {
            self.purge_at = now + PURGE_EVERY;
            actions.push(Action::Purge);
        }
        if self.end_at.is_some_and(|at| now >= at) {
            // Once.
            self.end_at = Some(Duration::MAX);
            actions.push(Action::End);
        }
        let paused = !self.leads;
        actions.extend(
            self.compactor
                .look(now, facts.revision, paused)
                .map(Action::Compact),
        );
        actions
    }

    /// When something is due next.
    fn next(&self) -> Duration {
        let mut next = self.leases_at.min(self.purge_at);
        if self.settled {
            next = next.min(self.version_at);
        }
        let others = [self.publish_at, self.end_at, self.compactor.next()];
        others.into_iter().flatten().fold(next, Duration::min)
    }
}

/// What the thread does, a turn at a time.
pub(crate) struct DutyWorker {
    links: Arc<Links>,
    duties: Duties,
}

impl DutyWorker {
    pub(crate) fn new(links: Arc<Links>) -> DutyWorker {
        let config = &links.config;
        let duties = Duties::new(
            config.version.clone(),
            config.request_timeout(),
            config.auto_compaction,
            links.env.clock.now(),
            links.shared.revision(),
        );
        DutyWorker { links, duties }
    }

    /// Runs until the mailbox is closed.
    pub(crate) fn run(mut self) {
        let links = self.links.clone();
        let mut events = Vec::new();
        loop {
            let patience = self.next().saturating_sub(links.env.clock.now());
            if links.duty.take(&mut events, Some(patience)) == Taken::Closed {
                return;
            }
            self.turn(&mut events);
        }
    }

    /// When a turn is due even if nothing comes.
    pub(crate) fn next(&self) -> Duration {
        self.duties.next()
    }

    /// Takes in what came, and carries out what is due.
    pub(crate) fn turn(&mut self, events: &mut Vec<DutyEvent>) {
        let now = self.links.env.clock.now();
        let membership = self.links.shared.members();
        for event in events.drain(..) {
            match &event {
                DutyEvent::Done(Duty::Compaction, result) => self.log_compaction(result),
                DutyEvent::Done(Duty::Publish, Err(error)) => self.not_published(error),
                _ => {}
            }
            let restored = matches!(event, DutyEvent::Restored);
            if self.duties.take(&event, now)
                || (restored && self.is_told(&membership) && self.duties.found_attributes())
            {
                self.published();
            }
        }
        let revision = self.links.shared.revision();
        let facts = Facts {
            now,
            revision,
            membership: &membership,
            own: self.links.identity.member,
            release: &|member| self.links.peers.release(member),
        };
        for action in self.duties.due(&facts) {
            self.carry_out(action, &membership);
        }
    }

    /// Whether these members know the attributes of this one.
    fn is_told(&self, membership: &Membership) -> bool {
        let config = &self.links.config;
        membership
            .member(self.links.identity.member)
            .is_some_and(|own| own.name == config.name && own.client_urls == config.client_urls)
    }

    fn published(&self) {
        let links = &self.links;
        tracing::info!(
            "local-member-id" = %links.identity.member,
            "local-member-attributes" = ?(&links.config.name, &links.config.client_urls),
            "cluster-id" = %links.identity.cluster,
            "publish-timeout" = ?links.config.request_timeout(),
            "published local member to cluster through raft"
        );
        links.set_ready();
    }

    fn not_published(&self, error: &ApiError) {
        let links = &self.links;
        tracing::warn!(
            "local-member-id" = %links.identity.member,
            "local-member-attributes" = ?(&links.config.name, &links.config.client_urls),
            "publish-timeout" = ?links.config.request_timeout(),
            %error,
            "failed to publish local member to cluster through raft"
        );
    }

    fn carry_out(&mut self, action: Action, membership: &Membership) {
        match action {
            Action::Publish => self.publish(),
            Action::SetVersion(version) => self.set_version(&version, membership),
            Action::EndDowngrade => self.end_downgrade(membership),
            Action::Leases => self.leases(),
            Action::Compact(revision) => self.compact(revision),
            Action::End => self.end(),
            Action::Purge => purge_old(&self.links.config, &self.links.env.files),
        }
    }

    fn end(&self) {
        let links = &self.links;
        tracing::warn!(
            "local-member-id" = %links.identity.member,
            error = "the member has been permanently removed from the cluster",
            "server error"
        );
        tracing::warn!("data-dir used by this member must be removed");
        (links.env.removed)();
    }

    /// Whether it is on its way.
    fn propose(&self, request: InternalRaftRequest, duty: Duty) -> bool {
        self.propose_in(None, request, duty)
    }

    /// As [`DutyWorker::propose`]; with a term it is worth nothing in another one.
    fn propose_in(&self, only_in: Option<Term>, request: InternalRaftRequest, duty: Duty) -> bool {
        match self.try_propose(only_in, request, duty) {
            Ok(()) => true,
            Err(error) => {
                tracing::debug!(%error, ?duty, "could not propose");
                false
            }
        }
    }

    fn try_propose(
        &self,
        only_in: Option<Term>,
        request: InternalRaftRequest,
        duty: Duty,
    ) -> Result<(), ApiError> {
        let now = self.links.env.clock.now();
        let asker = Asker::Duty(duty, now);
        self.links.propose_in(only_in, request, asker).map(drop)
    }

    fn publish(&mut self) {
        let config = &self.links.config;
        let request = InternalRaftRequest {
            cluster_member_attr_set: Some(ClusterMemberAttrSetRequest {
                member_id: self.links.identity.member.0,
                member_attributes: Some(Attributes {
                    name: config.name.clone(),
                    client_urls: config.client_urls.clone(),
                }),
            }),
            ..InternalRaftRequest::default()
        };
        if let Err(error) = self.try_propose(None, request, Duty::Publish) {
            self.not_published(&error);
            let failed = DutyEvent::Done(Duty::Publish, Err(error));
            self.duties.take(&failed, self.links.env.clock.now());
        }
    }

    fn set_version(&self, version: &Version, membership: &Membership) {
        let short = format!("{}.{}", version.major, version.minor);
        match membership.version() {
            None => tracing::info!(
                "cluster-version" = short,
                "setting up initial cluster version using v3 API"
            ),
            Some(from) => tracing::info!(
                from = format!("{}.{}", from.major, from.minor),
                to = short,
                "updating cluster version using v3 API"
            ),
        }
        let request = InternalRaftRequest {
            cluster_version_set: Some(ClusterVersionSetRequest {
                ver: version.to_string(),
            }),
            ..InternalRaftRequest::default()
        };
        self.propose(request, Duty::ClusterVersion);
    }

    fn end_downgrade(&self, membership: &Membership) {
        tracing::info!(
            "cluster-version" = membership.downgrade().target_version,
            "the cluster has been downgraded"
        );
        let request = InternalRaftRequest {
            downgrade_info_set: Some(DowngradeInfoSetRequest::default()),
            ..InternalRaftRequest::default()
        };
        self.propose(request, Duty::EndDowngrade);
    }

    /// Whether consensus has ticked of late: a leader that was asleep may be none.
    fn is_awake(&self) -> bool {
        let ticked = Duration::from_millis(self.links.published.ticked.load(Ordering::Acquire));
        let age = self.links.env.clock.now().saturating_sub(ticked);
        age <= STALE_TICKS * self.links.config.heartbeat
    }

    fn leases(&self) {
        if !self.is_awake() {
            tracing::warn!("Ignore the lease revoking request because the raft loop did not tick");
            return;
        }
        // Another leader has given the leases their time anew, and clients renew them there: what this one
        // finds is nothing to that one, even if this one does not know of it yet.
        let Some(term) = self.links.gate.leads() else {
            return;
        };
        let now = self.links.env.ticks();
        let (expired, checkpoints) = {
            let mut deadlines = self.links.shared.deadlines();
            let expired = deadlines.expired(now, EXPIRED_PER_CHECK);
            (
                expired,
                deadlines.due_checkpoints(now, CHECKPOINTS_PER_REQUEST),
            )
        };
        let header = (!expired.is_empty()).then(|| self.as_root()).flatten();
        for LeaseId(id) in expired {
            let request = InternalRaftRequest {
                header: header.clone(),
                lease_revoke: Some(LeaseRevokeRequest { id }),
                ..InternalRaftRequest::default()
            };
            if self.propose_in(Some(term), request, Duty::LeaseRevoke) {
                self.links.stats.leases_expired.add(1);
            }
        }
        if !checkpoints.is_empty() {
            let request = InternalRaftRequest {
                lease_checkpoint: Some(LeaseCheckpointRequest { checkpoints }),
                ..InternalRaftRequest::default()
            };
            self.propose_in(Some(term), request, Duty::LeaseCheckpoint);
        }
    }

    /// In whose name the keys of an expired lease are deleted while authentication is on: every member
    /// asks, when it applies the entry, whether that user may write them, and nobody may not.
    fn as_root(&self) -> Option<RequestHeader> {
        let auth = self.links.shared.auth();
        auth.enabled().then(|| RequestHeader {
            id: 0,
            username: auth::ROOT.to_owned(),
            auth_revision: auth.revision(),
        })
    }

    fn compact(&mut self, revision: i64) {
        let mode = self.links.config.auto_compaction;
        match mode {
            AutoCompaction::Periodic(period) => tracing::info!(
                revision,
                "compact-period" = ?period,
                "starting auto periodic compaction"
            ),
            AutoCompaction::Revision(retention) => tracing::info!(
                revision,
                "revision-compaction-retention" = retention,
                "starting auto revision compaction"
            ),
            AutoCompaction::Off => {}
        }
        let request = InternalRaftRequest {
            compaction: Some(CompactionRequest {
                revision,
                physical: false,
            }),
            ..InternalRaftRequest::default()
        };
        if !self.propose(request, Duty::Compaction) {
            self.duties
                .compactor
                .done(self.links.env.clock.now(), false);
        }
    }

    fn log_compaction(&self, result: &Result<(), ApiError>) {
        let name = match self.links.config.auto_compaction {
            AutoCompaction::Periodic(_) => "periodic",
            AutoCompaction::Revision(_) => "revision",
            AutoCompaction::Off => return,
        };
        match result {
            Ok(()) | Err(ApiError::Compacted) => tracing::info!("completed auto {name} compaction"),
            Err(error) => tracing::warn!(%error, "failed auto {name} compaction"),
        }
    }
}

/// The request that says that this member is out of space.
pub(crate) fn no_space_alarm(member: MemberId) -> InternalRaftRequest {
    InternalRaftRequest {
        alarm: Some(AlarmRequest {
            action: AlarmAction::Activate.into(),
            member_id: member.0,
            alarm: AlarmType::Nospace.into(),
        }),
        ..InternalRaftRequest::default()
    }
}

#[cfg(test)]
mod tests;
