//! The hashes of other members' histories, which the corruption checks compare.
//!
//! # Source
//!
//! `spec/formats.md` 5.6.

use std::time::Duration;

use keelson_node::Node;
use keelson_node::corrupt::{self, Answer, OwnHash, PeerAnswer, PeerHash};
use keelson_proto::ids::ClusterId;
use keelson_store::hash::{HashKv, hash_kv};
use keelson_transport::{ClientError, PeerClient};

use super::Links;
use crate::Error;

/// Asks a member, at each of its URLs until one answers. It may take so long in all.
pub(super) async fn ask(
    client: &PeerClient,
    cluster: ClusterId,
    urls: &[String],
    revision: i64,
    patience: Duration,
) -> PeerAnswer {
    let each = async {
        for url in urls {
            match client.hash_kv(url, cluster, revision, patience).await {
                Ok(told) => {
                    return PeerAnswer::Hash(PeerHash {
                        revision: told.revision,
                        hash: HashKv {
                            hash: told.hash,
                            compact_revision: told.compact_revision,
                            hash_revision: told.hash_revision,
                        },
                    });
                }
                Err(ClientError::Answer {
                    status: 400 | 412, ..
                }) => return PeerAnswer::Refused,
                Err(error) => {
                    tracing::warn!(address = %url, revision, %error, "failed hash kv request");
                }
            }
        }
        PeerAnswer::Silent
    };
    let answer = tokio::time::timeout(patience, each).await;
    answer.unwrap_or(PeerAnswer::Silent)
}

/// Compares a member that starts with those that run, before it takes part (the gate
/// `InitialCorruptCheck`). Those that cannot be compared say nothing against it.
///
/// # Errors
///
/// [`Error::Corrupt`].
pub(crate) async fn at_start(links: &Links, node: &Node) -> Result<(), Error> {
    let member = node.member_id();
    let patience = node.config().request_timeout();
    tracing::info!(
        "local-member-id" = %member,
        ?patience,
        "starting initial corruption check"
    );
    let hash = hash_kv(node.shared(), 0)
        .map_err(|error| Error::Corrupt(format!("{member} failed to fetch hash ({error})")))?;
    let others = links.shared.lock().members.clone();
    let asked = others.iter().map(|(id, urls)| async move {
        let cluster = node.cluster_id();
        let answer = ask(&links.client, cluster, urls, hash.hash_revision, patience).await;
        (*id, answer)
    });
    let answers: Vec<Answer> = futures_util::future::join_all(asked).await;
    let own = OwnHash {
        member,
        hash,
        revision: node.shared().revision(),
    };
    corrupt::at_start(&own, &answers)
        .map_err(|_| Error::Corrupt(format!("{member} found data inconsistency with peers")))?;
    tracing::info!(
        "local-member-id" = %member,
        "initial corruption checking passed; no corruption"
    );
    Ok(())
}
