//! Members, and which of them leads.

use keelson_proto::rpc::etcdserverpb as pb;

pub use keelson_proto::rpc::etcdserverpb::downgrade_request::DowngradeAction;

use crate::call::Kind;
use crate::{Client, Error};

impl Client {
    /// The members of the cluster, as a quorum knows them.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub async fn member_list(&self) -> Result<pb::MemberListResponse, Error> {
        self.members(true).await
    }

    /// The members of the cluster: as a quorum knows them with `linearizable`, else as the member
    /// that answers does, which works without a quorum.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub async fn members(&self, linearizable: bool) -> Result<pb::MemberListResponse, Error> {
        let request = pb::MemberListRequest { linearizable };
        self.call(Kind::Read, request, |wire, request| async move {
            wire.cluster().member_list(request).await
        })
        .await
    }

    /// Makes room for a member at `peer_urls`: a voter, or with `learner` one that only follows.
    /// The member itself is started after that.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub async fn member_add(
        &self,
        peer_urls: Vec<String>,
        learner: bool,
    ) -> Result<pb::MemberAddResponse, Error> {
        let request = pb::MemberAddRequest {
            peer_ur_ls: peer_urls,
            is_learner: learner,
        };
        self.call(Kind::Write, request, |wire, request| async move {
            wire.cluster().member_add(request).await
        })
        .await
    }

    /// Removes a member for good; its directory is of no more use to the cluster.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub async fn member_remove(&self, id: u64) -> Result<pb::MemberRemoveResponse, Error> {
        let request = pb::MemberRemoveRequest { id };
        self.call(Kind::Write, request, |wire, request| async move {
            wire.cluster().member_remove(request).await
        })
        .await
    }

    /// Tells the cluster that a member is at other peer URLs.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub async fn member_update(
        &self,
        id: u64,
        peer_urls: Vec<String>,
    ) -> Result<pb::MemberUpdateResponse, Error> {
        let request = pb::MemberUpdateRequest {
            id,
            peer_ur_ls: peer_urls,
        };
        self.call(Kind::Write, request, |wire, request| async move {
            wire.cluster().member_update(request).await
        })
        .await
    }

    /// Makes a voter of a learner, which must have caught up.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub async fn member_promote(&self, id: u64) -> Result<pb::MemberPromoteResponse, Error> {
        let request = pb::MemberPromoteRequest { id };
        self.call(Kind::Write, request, |wire, request| async move {
            wire.cluster().member_promote(request).await
        })
        .await
    }

    /// Hands leadership to the member `id`. Only the leader takes this: [`Client::only`].
    ///
    /// # Errors
    /// As [`Client::put`].
    pub async fn move_leader(&self, id: u64) -> Result<pb::MoveLeaderResponse, Error> {
        let request = pb::MoveLeaderRequest { target_id: id };
        self.call(Kind::Write, request, |wire, request| async move {
            wire.maintenance().move_leader(request).await
        })
        .await
    }

    /// Checks, begins or calls off the way back to `version`, as `3.6.0`; none is needed to call it
    /// off.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub async fn downgrade(
        &self,
        action: DowngradeAction,
        version: &str,
    ) -> Result<pb::DowngradeResponse, Error> {
        let request = pb::DowngradeRequest {
            action: action.into(),
            version: version.to_owned(),
        };
        self.call(Kind::Write, request, |wire, request| async move {
            wire.maintenance().downgrade(request).await
        })
        .await
    }
}
