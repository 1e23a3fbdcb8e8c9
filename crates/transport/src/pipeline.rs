//! Messages by one request each: what is used while there is no stream.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode, header};
use keelson_proto::ids::MemberId;
use keelson_proto::message::Message;
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinHandle;

use crate::body::Body;
use crate::dial::{self, Limits};
use crate::peer::Link;
use crate::stats::add;
use crate::url::PeerUrl;

/// How many requests to one peer are under way at once; etcd's number.
const WORKERS: usize = 4;

/// How many messages wait for a request; etcd's number.
const MESSAGES_MAX: usize = 64;

/// How long one request may take: the other end may wait for a leader before it answers.
const POST_TIMEOUT: Duration = Duration::from_secs(10);

/// An answer to a message is a line at most.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// Where messages wait.
pub(crate) type Pipeline = mpsc::Sender<Message>;

/// Why a peer did not take what it was sent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PostError {
    #[error("the member has been permanently removed from the cluster")]
    Removed,
    #[error("incompatible version")]
    Incompatible,
    #[error("cluster ID mismatch")]
    OtherCluster,
    #[error("{0}")]
    Answer(String),
    #[error("{}", dial::root_cause(.0))]
    Io(#[from] io::Error),
}

/// Starts the workers of one peer.
pub(crate) fn start(link: &Arc<Link>) -> (Pipeline, Vec<JoinHandle<()>>) {
    let (sender, receiver) = mpsc::channel(MESSAGES_MAX);
    let receiver = Arc::new(Mutex::new(receiver));
    let runtime = &link.context.runtime;
    let workers = (0..WORKERS)
        .map(|_| runtime.spawn(work(Arc::clone(link), Arc::clone(&receiver))))
        .collect();
    tracing::info!(
        "local-member-id" = %link.local(),
        "remote-peer-id" = %link.member,
        "started HTTP pipelining with remote peer"
    );
    (sender, workers)
}

async fn work(link: Arc<Link>, receiver: Arc<Mutex<mpsc::Receiver<Message>>>) {
    let mut kept: Option<Kept> = None;
    loop {
        let Some(message) = receiver.lock().await.recv().await else {
            return;
        };
        let bytes = message.encode();
        let length = bytes.len() as u64;
        let posted = tokio::time::timeout(POST_TIMEOUT, post(&link, &mut kept, bytes)).await;
        let timeout = || Err(io::Error::new(io::ErrorKind::TimedOut, "i/o timeout").into());
        match posted.unwrap_or_else(|_| timeout()) {
            Ok(()) => {
                link.status.activate();
                add(&link.stats.sent_bytes, length);
            }
            Err(error) => {
                kept = None;
                link.status
                    .deactivate("pipeline", "write", &error.to_string());
                link.report_unreachable();
                add(&link.stats.send_failures, 1);
                if matches!(error, PostError::Removed) {
                    link.context.inbound.removed_from_cluster();
                }
            }
        }
    }
}

/// A connection that a worker keeps between messages.
struct Kept {
    url: Arc<PeerUrl>,
    link: dial::Link,
}

async fn post(link: &Arc<Link>, kept: &mut Option<Kept>, bytes: Bytes) -> Result<(), PostError> {
    let url = link.picker.pick();
    let result = exchange(link, kept, &url, bytes).await;
    if result.is_err() {
        link.picker.unreachable(&url);
    }
    result
}

async fn exchange(
    link: &Arc<Link>,
    kept: &mut Option<Kept>,
    url: &Arc<PeerUrl>,
    bytes: Bytes,
) -> Result<(), PostError> {
    if let Some(mut old) = kept.take()
        && old.url == *url
        && !old.link.sender.is_closed()
        && dial::ready(&mut old.link).await.is_ok()
    {
        // The other end closes what was idle, perhaps this very moment: that is no failure of the
        // message, and consensus bears one that arrives twice.
        if let Ok(answer) = send(link, &mut old.link, url, bytes.clone()).await {
            *kept = Some(old);
            return check(link.member, &link.context, answer);
        }
    }
    let mut fresh = link.context.dialer.open(url, Limits::default()).await?;
    let answer = send(link, &mut fresh, url, bytes).await?;
    *kept = Some(Kept {
        url: Arc::clone(url),
        link: fresh,
    });
    check(link.member, &link.context, answer)
}

/// An answer, read to its end.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) cluster: String,
    pub(crate) text: Bytes,
    pub(crate) url: String,
}

impl Answer {
    pub(crate) async fn read(
        response: http::Response<hyper::body::Incoming>,
        url: &PeerUrl,
        path: &str,
    ) -> io::Result<Answer> {
        let (head, body) = response.into_parts();
        let cluster = head.headers.get(crate::handler::CLUSTER_ID);
        let cluster = cluster.and_then(|value| value.to_str().ok());
        Ok(Answer {
            status: head.status,
            cluster: cluster.unwrap_or_default().to_owned(),
            text: dial::read_answer(body, ANSWER_BYTES_MAX).await?,
            url: format!("{}{path}", url.as_str()),
        })
    }
}

async fn send(
    link: &Link,
    connection: &mut dial::Link,
    url: &PeerUrl,
    bytes: Bytes,
) -> io::Result<Answer> {
    let request = link
        .context
        .request(Method::POST, url, "/raft")
        .header(header::CONTENT_TYPE, "application/protobuf")
        .body(Body::of(bytes))
        .map_err(io::Error::other)?;
    let response = connection.sender.send_request(request);
    let response = response.await.map_err(io::Error::other)?;
    Answer::read(response, url, "/raft").await
}

/// What an answer to a message or a snapshot says.
pub(crate) fn check(
    member: MemberId,
    context: &crate::peers::Context,
    answer: Answer,
) -> Result<(), PostError> {
    let text = String::from_utf8_lossy(&answer.text);
    match answer.status {
        StatusCode::NO_CONTENT => Ok(()),
        StatusCode::FORBIDDEN => Err(PostError::Removed),
        StatusCode::PRECONDITION_FAILED => match text.trim_end_matches('\n') {
            "incompatible version" => {
                tracing::error!("remote-peer-id" = %member, "request sent was ignored by peer");
                Err(PostError::Incompatible)
            }
            "cluster ID mismatch" => {
                tracing::error!(
                    "remote-peer-id" = %member,
                    "remote-peer-cluster-id" = answer.cluster,
                    "local-member-cluster-id" = %context.config.cluster,
                    "request sent was ignored due to cluster ID mismatch"
                );
                Err(PostError::OtherCluster)
            }
            text => Err(PostError::Answer(format!(
                "unhandled error {text:?} when precondition failed"
            ))),
        },
        status => Err(PostError::Answer(format!(
            "unexpected http status {} while posting to {:?}: {}",
            status.canonical_reason().unwrap_or_default(),
            answer.url,
            text.trim_end_matches('\n')
        ))),
    }
}
