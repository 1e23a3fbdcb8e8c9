//! Status, alarms, hashes, defragmentation.

use keelson_proto::rpc::etcdserverpb as pb;
use keelson_proto::rpc::etcdserverpb::alarm_request::AlarmAction;

use crate::call::Kind;
use crate::{Client, Error};

impl Client {
    /// What the member says of itself.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub async fn status(&self) -> Result<pb::StatusResponse, Error> {
        self.call(
            Kind::Read,
            pb::StatusRequest {},
            |wire, request| async move { wire.maintenance().status(request).await },
        )
        .await
    }

    /// The alarms that are raised.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub async fn alarms(&self) -> Result<pb::AlarmResponse, Error> {
        self.alarm(AlarmAction::Get, pb::AlarmMember::default())
            .await
    }

    /// Ends an alarm. Answers with it, or with none if it was not raised.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub async fn disarm(&self, alarm: pb::AlarmMember) -> Result<pb::AlarmResponse, Error> {
        self.alarm(AlarmAction::Deactivate, alarm).await
    }

    /// Lists, raises or ends alarms.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub async fn alarm(
        &self,
        action: AlarmAction,
        alarm: pb::AlarmMember,
    ) -> Result<pb::AlarmResponse, Error> {
        let request = pb::AlarmRequest {
            action: action.into(),
            member_id: alarm.member_id,
            alarm: alarm.alarm,
        };
        let kind = match action {
            AlarmAction::Get => Kind::Read,
            AlarmAction::Activate | AlarmAction::Deactivate => Kind::Write,
        };
        self.call(kind, request, |wire, request| async move {
            wire.maintenance().alarm(request).await
        })
        .await
    }

    /// The hash over the member's whole file.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub async fn hash(&self) -> Result<pb::HashResponse, Error> {
        self.call(Kind::Read, pb::HashRequest {}, |wire, request| async move {
            wire.maintenance().hash(request).await
        })
        .await
    }

    /// The hash over the keys up to `revision`; 0: the current one.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub async fn hash_kv(&self, revision: i64) -> Result<pb::HashKvResponse, Error> {
        let request = pb::HashKvRequest { revision };
        self.call(Kind::Read, request, |wire, request| async move {
            wire.maintenance().hash_kv(request).await
        })
        .await
    }

    /// Gives free space of the member's file back to the file system. This may take long:
    /// [`Client::with_timeout`].
    ///
    /// # Errors
    /// As [`Client::put`].
    pub async fn defragment(&self) -> Result<pb::DefragmentResponse, Error> {
        self.call(
            Kind::Write,
            pb::DefragmentRequest {},
            |wire, request| async move { wire.maintenance().defragment(request).await },
        )
        .await
    }
}
