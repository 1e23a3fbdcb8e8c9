//! Leases.

use keelson_proto::rpc::etcdserverpb as pb;

use crate::call::Kind;
use crate::{Client, Error};

impl Client {
    /// A lease of `ttl` seconds; `id` 0 lets the server choose. The server may raise the time:
    /// the answer says what was granted.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub async fn lease_grant(&self, ttl: i64, id: i64) -> Result<pb::LeaseGrantResponse, Error> {
        let request = pb::LeaseGrantRequest { ttl, id };
        self.call(Kind::Write, request, |wire, request| async move {
            wire.lease().lease_grant(request).await
        })
        .await
    }

    /// Ends a lease and deletes its keys.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub async fn lease_revoke(&self, id: i64) -> Result<pb::LeaseRevokeResponse, Error> {
        let request = pb::LeaseRevokeRequest { id };
        self.call(Kind::Write, request, |wire, request| async move {
            wire.lease().lease_revoke(request).await
        })
        .await
    }

    /// The seconds that a lease has left, -1 if there is none, and with `keys` the keys under it.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub async fn lease_time_to_live(
        &self,
        id: i64,
        keys: bool,
    ) -> Result<pb::LeaseTimeToLiveResponse, Error> {
        let request = pb::LeaseTimeToLiveRequest { id, keys };
        self.call(Kind::Read, request, |wire, request| async move {
            wire.lease().lease_time_to_live(request).await
        })
        .await
    }

    /// The leases that the serving member knows.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub async fn lease_list(&self) -> Result<pb::LeaseLeasesResponse, Error> {
        self.call(
            Kind::Read,
            pb::LeaseLeasesRequest {},
            |wire, request| async move { wire.lease().lease_leases(request).await },
        )
        .await
    }
}
