//! What a member asks of others besides messages: who they are, which release they run, and what
//! only the leader can do.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, header};
use keelson_proto::ids::{ClusterId, LeaseId, MemberId};
use keelson_proto::rpc::{etcdserverpb, leasepb};
use prost::Message as _;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::Error;
use crate::body::Body;
use crate::dial::{self, Dialer, Limits};
use crate::handler::CLUSTER_ID;
use crate::tls::Tls;
use crate::url::PeerUrl;

/// The longest answer that is read, in bytes: a lease may have many keys.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Why a peer did not give what it was asked for.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ClientError {
    /// Refused: it said no, in these words, without the line's end.
    #[error("{text}")]
    Answer {
        /// The status of HTTP.
        status: u16,
        /// The body.
        text: String,
    },
    /// Failed: it was not reached, or broke off.
    #[error("{url}: {}", dial::root_cause(.source))]
    Io {
        /// Where.
        url: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Failed: it took longer than it may.
    #[error("{url}: context deadline exceeded")]
    Timeout {
        /// Where.
        url: String,
    },
    /// Corrupt: the answer is not what was asked for.
    #[error("{url}: {text}")]
    Unreadable {
        /// Where.
        url: String,
        /// Why.
        text: String,
    },
    /// Refused: the URL cannot be dialled.
    #[error(transparent)]
    Url(#[from] Error),
}

/// A member as another one describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MemberInfo {
    /// Its id.
    pub id: u64,
    /// Where peers reach it.
    #[serde(rename = "peerURLs")]
    pub peer_urls: Vec<String>,
    /// Whether it does not vote.
    #[serde(rename = "isLearner")]
    pub is_learner: bool,
    /// Its name; empty before it has started.
    pub name: String,
    /// Where clients reach it; none before it has started.
    #[serde(rename = "clientURLs")]
    pub client_urls: Vec<String>,
}

/// The answer to `/members`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MembersAnswer {
    /// The cluster of whoever answered.
    pub cluster: ClusterId,
    /// Its members.
    pub members: Vec<MemberInfo>,
}

/// The answer to `/version`, as texts: a cluster without a version says so in words.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct VersionAnswer {
    /// Its release.
    pub etcdserver: String,
    /// The version that its cluster has agreed on, or `not_decided`.
    pub etcdcluster: String,
    /// The version of its directory, or `unknown`; empty before 3.6.
    pub storage: String,
}

/// The answer to `/members/hashkv`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HashKv {
    /// The revision that the member is at.
    pub revision: i64,
    /// The hash.
    pub hash: u32,
    /// The compaction that it counts from.
    pub compact_revision: i64,
    /// The revision up to which it counts; 0 from members before 3.6.
    pub hash_revision: i64,
}

#[derive(Deserialize)]
struct HashKvWire {
    #[serde(default)]
    header: HashKvHeader,
    #[serde(default)]
    hash: u32,
    #[serde(default)]
    compact_revision: i64,
    #[serde(default)]
    hash_revision: i64,
}

#[derive(Default, Deserialize)]
struct HashKvHeader {
    #[serde(default)]
    revision: i64,
}

/// Asks peers. Each request has a connection of its own, and ends within the time that is given.
/// Works on any tokio runtime.
#[derive(Clone, Debug)]
pub struct PeerClient {
    dialer: Dialer,
}

/// One question.
struct Ask<'a> {
    method: Method,
    url: &'a str,
    path: &'a str,
    headers: HeaderMap,
    body: Bytes,
    timeout: Duration,
}

impl<'a> Ask<'a> {
    fn get(url: &'a str, path: &'a str, timeout: Duration) -> Ask<'a> {
        Ask {
            method: Method::GET,
            url,
            path,
            headers: HeaderMap::new(),
            body: Bytes::new(),
            timeout,
        }
    }

    fn unreadable(&self, error: impl std::fmt::Display) -> ClientError {
        ClientError::Unreadable {
            url: format!("{}{}", self.url, self.path),
            text: error.to_string(),
        }
    }
}

impl PeerClient {
    /// `dial_timeout` bounds a connection; for `https` URLs there has to be `tls`.
    #[must_use]
    pub fn new(tls: Option<Arc<Tls>>, dial_timeout: Duration) -> PeerClient {
        PeerClient {
            dialer: Dialer {
                tls,
                timeout: dial_timeout,
            },
        }
    }

    /// Who the members are, as one of them sees it. Its answer may be old.
    ///
    /// # Errors
    ///
    /// [`ClientError`]
    pub async fn members(
        &self,
        url: &str,
        timeout: Duration,
    ) -> Result<MembersAnswer, ClientError> {
        let ask = Ask::get(url, "/members", timeout);
        let (headers, body) = self.ask(&ask).await?;
        let cluster = headers.get(CLUSTER_ID).and_then(|id| id.to_str().ok());
        let cluster = cluster.and_then(|id| u64::from_str_radix(id, 16).ok());
        let cluster = cluster.ok_or_else(|| ask.unreadable("the answer names no cluster"))?;
        Ok(MembersAnswer {
            cluster: ClusterId(cluster),
            members: serde_json::from_slice(&body).map_err(|error| ask.unreadable(error))?,
        })
    }

    /// Which release a member runs.
    ///
    /// # Errors
    ///
    /// [`ClientError`]
    pub async fn version(
        &self,
        url: &str,
        timeout: Duration,
    ) -> Result<VersionAnswer, ClientError> {
        let ask = Ask::get(url, "/version", timeout);
        let (_, body) = self.ask(&ask).await?;
        serde_json::from_slice(&body).map_err(|error| ask.unreadable(error))
    }

    /// Whether the cluster is being taken to an older release.
    ///
    /// # Errors
    ///
    /// [`ClientError`]; members before 3.5 do not know the question.
    pub async fn downgrade_enabled(
        &self,
        url: &str,
        timeout: Duration,
    ) -> Result<bool, ClientError> {
        let ask = Ask::get(url, "/downgrade/enabled", timeout);
        let (_, body) = self.ask(&ask).await?;
        match &body[..] {
            b"true" => Ok(true),
            b"false" => Ok(false),
            _ => Err(ask.unreadable("the answer is neither true nor false")),
        }
    }

    /// Asks the leader to make a voter of a learner; gives the members afterwards.
    ///
    /// # Errors
    ///
    /// [`ClientError::Answer`] with the reason where it refuses: 404 for an unknown member, 412 for
    /// one that is no learner or not ready.
    pub async fn promote(
        &self,
        url: &str,
        member: MemberId,
        token: Option<&str>,
        timeout: Duration,
    ) -> Result<Vec<MemberInfo>, ClientError> {
        let path = format!("/members/promote/{}", member.0);
        let mut ask = Ask::get(url, &path, timeout);
        ask.method = Method::POST;
        if let Some(token) = token {
            let value = token.parse().map_err(|error| ask.unreadable(error))?;
            ask.headers.insert(header::AUTHORIZATION, value);
        }
        let (_, body) = self.ask(&ask).await?;
        serde_json::from_slice(&body).map_err(|error| ask.unreadable(error))
    }

    /// Asks the leader to renew a lease; gives its time to live, in seconds.
    ///
    /// # Errors
    ///
    /// [`ClientError::Answer`]: 404 for an unknown lease, 408 while the leader catches up.
    pub async fn renew_lease(
        &self,
        url: &str,
        lease: LeaseId,
        timeout: Duration,
    ) -> Result<i64, ClientError> {
        let request = etcdserverpb::LeaseKeepAliveRequest { id: lease.0 };
        let ask = posted(url, "/leases", request.encode_to_vec(), timeout);
        let (_, body) = self.ask(&ask).await?;
        let answer = etcdserverpb::LeaseKeepAliveResponse::decode(body)
            .map_err(|error| ask.unreadable(error))?;
        if answer.id != lease.0 {
            return Err(ask.unreadable("renew id mismatch"));
        }
        Ok(answer.ttl)
    }

    /// Asks the leader how long a lease still lives.
    ///
    /// # Errors
    ///
    /// As [`PeerClient::renew_lease`].
    pub async fn lease_time_to_live(
        &self,
        url: &str,
        lease: LeaseId,
        keys: bool,
        timeout: Duration,
    ) -> Result<etcdserverpb::LeaseTimeToLiveResponse, ClientError> {
        let request = leasepb::LeaseInternalRequest {
            lease_time_to_live_request: Some(etcdserverpb::LeaseTimeToLiveRequest {
                id: lease.0,
                keys,
            }),
        };
        let ask = posted(url, "/leases/internal", request.encode_to_vec(), timeout);
        let (_, body) = self.ask(&ask).await?;
        let answer = leasepb::LeaseInternalResponse::decode(body)
            .map_err(|error| ask.unreadable(error))?
            .lease_time_to_live_response;
        match answer {
            Some(answer) if answer.id == lease.0 => Ok(answer),
            _ => Err(ask.unreadable("TTL id mismatch")),
        }
    }

    /// Asks a member for the hash of its keys at a revision; 0 for its newest.
    ///
    /// # Errors
    ///
    /// [`ClientError::Answer`]: 400 for a revision that is compacted or in the future, 412 from a
    /// member of another cluster.
    pub async fn hash_kv(
        &self,
        url: &str,
        cluster: ClusterId,
        revision: i64,
        timeout: Duration,
    ) -> Result<HashKv, ClientError> {
        let mut ask = Ask::get(url, "/members/hashkv", timeout);
        ask.body = format!("{{\"revision\":{revision}}}").into();
        let id = cluster.to_string();
        let id = id.parse().map_err(|error| ask.unreadable(error))?;
        ask.headers.insert(CLUSTER_ID, id);
        let (headers, body) = self.ask(&ask).await?;
        let answered = headers.get(CLUSTER_ID).and_then(|id| id.to_str().ok());
        if answered.is_some_and(|id| id != cluster.to_string()) {
            return Err(ask.unreadable("cluster ID mismatch"));
        }
        let wire: HashKvWire =
            serde_json::from_slice(&body).map_err(|error| ask.unreadable(error))?;
        Ok(HashKv {
            revision: wire.header.revision,
            hash: wire.hash,
            compact_revision: wire.compact_revision,
            hash_revision: wire.hash_revision,
        })
    }

    async fn ask(&self, ask: &Ask<'_>) -> Result<(HeaderMap, Bytes), ClientError> {
        let url = || format!("{}{}", ask.url, ask.path);
        let parsed = PeerUrl::parse(ask.url)?;
        let exchange = tokio::time::timeout(ask.timeout, self.exchange(ask, &parsed)).await;
        let (status, headers, body) = exchange
            .map_err(|_| ClientError::Timeout { url: url() })?
            .map_err(|source| ClientError::Io { url: url(), source })?;
        if status != StatusCode::OK {
            let text = String::from_utf8_lossy(&body);
            return Err(ClientError::Answer {
                status: status.as_u16(),
                text: text.trim_end_matches('\n').to_owned(),
            });
        }
        Ok((headers, body))
    }

    async fn exchange(
        &self,
        ask: &Ask<'_>,
        url: &PeerUrl,
    ) -> io::Result<(StatusCode, HeaderMap, Bytes)> {
        let mut connection = self.dialer.open(url, Limits::default()).await?;
        let mut request = Request::builder()
            .method(ask.method.clone())
            .uri(ask.path)
            .header(header::HOST, url.authority())
            .body(Body::of(ask.body.clone()))
            .map_err(io::Error::other)?;
        request.headers_mut().extend(ask.headers.clone());
        let response = connection.sender.send_request(request).await;
        let (head, body) = response.map_err(io::Error::other)?.into_parts();
        let body = dial::read_answer(body, ANSWER_BYTES_MAX).await?;
        Ok((head.status, head.headers, body))
    }
}

fn posted<'a>(url: &'a str, path: &'a str, body: Vec<u8>, timeout: Duration) -> Ask<'a> {
    let mut ask = Ask::get(url, path, timeout);
    ask.method = Method::POST;
    ask.body = body.into();
    let kind = header::HeaderValue::from_static("application/protobuf");
    ask.headers.insert(header::CONTENT_TYPE, kind);
    ask
}
