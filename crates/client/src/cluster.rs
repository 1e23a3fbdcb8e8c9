//! Members.

use keelson_proto::rpc::etcdserverpb as pb;

use crate::call::Kind;
use crate::{Client, Error};

impl Client {
    /// The members of the cluster, as a quorum knows them.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub async fn member_list(&self) -> Result<pb::MemberListResponse, Error> {
        let request = pb::MemberListRequest { linearizable: true };
        self.call(Kind::Read, request, |wire, request| async move {
            wire.cluster().member_list(request).await
        })
        .await
    }
}
