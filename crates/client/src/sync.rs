//! Following the cluster's members.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::sleep;

use crate::client::Shared;
use crate::{Client, Endpoint, Error};

/// The longest that one sync in the background may take: the reference client's.
const SYNC_TIMEOUT: Duration = Duration::from_secs(5);

impl Client {
    /// Asks for the members of the cluster and uses the client URLs of those that have started and
    /// are voters as endpoints from now on.
    ///
    /// # Errors
    /// As [`Client::put`]; [`Error::Endpoint`] if a member advertises a URL that cannot be used;
    /// [`Error::Answer`] if none advertises any. Then the endpoints stay as they are.
    pub async fn sync(&self) -> Result<(), Error> {
        let answer = self.member_list().await?;
        let mut endpoints: Vec<Endpoint> = Vec::new();
        for member in &answer.members {
            if !member.name.is_empty() && !member.is_learner {
                for url in &member.client_ur_ls {
                    endpoints.push(url.parse()?);
                }
            }
        }
        if endpoints.is_empty() {
            return Err(Error::Answer {
                what: "a list of members without a client URL",
            });
        }
        self.set_endpoints(endpoints)
    }

    /// Begins to sync at the interval of the options, until the last clone is dropped.
    pub(crate) fn keep_synced(&self) {
        if let Some(interval) = self.shared.options.auto_sync {
            let shared = Arc::downgrade(&self.shared);
            tokio::spawn(keep_synced(shared, interval));
        }
    }
}

async fn keep_synced(shared: Weak<Shared>, interval: Duration) {
    loop {
        sleep(interval).await;
        let Some(shared) = shared.upgrade() else {
            return;
        };
        if let Err(error) = Client::of(shared, SYNC_TIMEOUT).sync().await {
            tracing::debug!(%error, "endpoints not synced");
        }
    }
}
