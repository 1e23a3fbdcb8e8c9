//! The client: endpoints, a token, time-outs.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use keelson_proto::ApiError;
use keelson_proto::rpc::etcdserverpb::AuthenticateRequest;
use tokio::time::{Instant, timeout};
use tonic::metadata::{Ascii, MetadataValue};

use crate::balancer::{Balancer, Choice};
use crate::call::{Kind, Limit, Wire};
use crate::endpoint::Endpoint;
use crate::{Error, Tls};

/// The longest that another endpoint is waited for, when one has failed.
const ELSEWHERE: Duration = Duration::from_secs(1);

/// How a [`Client`] behaves.
#[derive(Clone)]
#[non_exhaustive]
pub struct Options {
    /// The longest that making a connection to one endpoint may take.
    pub connect_timeout: Duration,
    /// The longest that a call may take, with its retries. [`Client::with_timeout`] changes it for
    /// single calls. Streams have no limit over all, but each step has this one where a server owes
    /// an answer.
    pub call_timeout: Duration,
    /// After so much silence on a connection that has open streams it is pinged, and given up if
    /// that is not answered within 6 s; `None`: no pings. Servers close connections that ping more
    /// often than every 5 s.
    pub keep_alive: Option<Duration>,
    /// Name and password to authenticate with; the token is renewed when it runs out.
    pub user: Option<(String, String)>,
    /// As [`Client::with_require_leader`].
    pub require_leader: bool,
    /// TLS of endpoints that want it.
    pub tls: Option<Tls>,
    /// Interval at which [`Client::sync`] is called in the background; `None`: never.
    pub auto_sync: Option<Duration>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            connect_timeout: Duration::from_secs(5),
            call_timeout: Duration::from_secs(10),
            keep_alive: Some(Duration::from_secs(10)),
            user: None,
            require_leader: false,
            tls: None,
            auto_sync: None,
        }
    }
}

/// A client of a cluster. Clones share its connections and token.
///
/// Calls go to the endpoints in turn. One that cannot be reached is left out, and tried again after
/// a while; a call waits as long as none can. Reads are repeated on the next endpoint while servers
/// are not available, writes only if no server began with them (api.md 3.4).
#[derive(Clone)]
pub struct Client {
    pub(crate) shared: Arc<Shared>,
    pub(crate) timeout: Duration,
    pub(crate) require_leader: bool,
    /// The endpoints of this clone; `None`: all.
    only: Option<Choice>,
}

pub(crate) struct Shared {
    pub(crate) balancer: Balancer,
    pub(crate) options: Options,
    token: RwLock<Option<MetadataValue<Ascii>>>,
    /// Whether a token was asked for; on a server without auth there is none to be had.
    asked: AtomicBool,
    /// Held while a token is fetched, so that many calls fetch one.
    renewing: tokio::sync::Mutex<()>,
}

impl Client {
    /// Connects to `endpoints`, one or several with commas between, with the default [`Options`].
    ///
    /// # Errors
    /// [`Error::Endpoint`] if one cannot be understood, [`Error::Connect`] or
    /// [`Error::Unreachable`] if nothing answers at any.
    pub async fn connect(endpoints: &str) -> Result<Client, Error> {
        Client::connect_with(endpoints, Options::default()).await
    }

    /// Connects to `endpoints`, and authenticates if `options` name a user. Servers on which auth
    /// is disabled are used without a token.
    ///
    /// # Errors
    /// As [`Client::connect`]; [`Error::Tls`]; and those of [`Client::authenticate`].
    pub async fn connect_with(endpoints: &str, options: Options) -> Result<Client, Error> {
        Client::connect_to(Endpoint::list(endpoints)?, options).await
    }

    /// As [`Client::connect_with`], with endpoints that are understood already.
    ///
    /// # Errors
    /// As [`Client::connect_with`].
    pub async fn connect_to(endpoints: Vec<Endpoint>, options: Options) -> Result<Client, Error> {
        if let Some(tls) = &options.tls {
            tls.config().await.map_err(|cause| Error::Tls {
                cause: Arc::new(cause),
            })?;
        }
        let client = Client::over(endpoints, options)?;
        client.shared.balancer.connect(&client.choice()).await?;
        if client.shared.options.user.is_some() {
            client.renew_token(None, client.deadline()).await?;
        }
        client.keep_synced();
        Ok(client)
    }

    /// A client that connects, and authenticates, with its first call. It does not follow the
    /// cluster's members by itself ([`Options::auto_sync`]).
    ///
    /// # Errors
    /// [`Error::Endpoint`] if one of `endpoints` cannot be understood.
    pub fn lazy(endpoints: &str, options: Options) -> Result<Client, Error> {
        Client::over(Endpoint::list(endpoints)?, options)
    }

    fn over(endpoints: Vec<Endpoint>, options: Options) -> Result<Client, Error> {
        let balancer = Balancer::new(endpoints, options.clone())?;
        let timeout = options.call_timeout;
        let shared = Shared {
            balancer,
            options,
            token: RwLock::new(None),
            asked: AtomicBool::new(false),
            renewing: tokio::sync::Mutex::new(()),
        };
        Ok(Client::of(Arc::new(shared), timeout))
    }

    /// A clone of the client that `shared` belongs to.
    pub(crate) fn of(shared: Arc<Shared>, timeout: Duration) -> Client {
        Client {
            timeout,
            require_leader: shared.options.require_leader,
            only: None,
            shared,
        }
    }

    /// The same client with another time-out of calls.
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Client {
        Client {
            timeout,
            ..self.clone()
        }
    }

    /// The same client, whose calls fail at once, and whose streams end, on a member that knows no
    /// leader: one that is cut off from the others does not keep them. A [`crate::Watcher`] goes on
    /// at another endpoint.
    #[must_use]
    pub fn with_require_leader(&self, require_leader: bool) -> Client {
        Client {
            require_leader,
            ..self.clone()
        }
    }

    /// The same client that asks `endpoint` and no other: what a member says of itself (status,
    /// hashes, a snapshot) makes no sense of whoever is next. It need not be among the client's
    /// endpoints.
    #[must_use]
    pub fn only(&self, endpoint: Endpoint) -> Client {
        Client {
            only: Some(self.shared.balancer.only(endpoint)),
            ..self.clone()
        }
    }

    /// The same client without `endpoint`, on which something has just failed, if another one can be
    /// had soon.
    pub(crate) async fn elsewhere(&self, endpoint: &str) -> Client {
        let all = self.choice();
        let others = all.iter().filter(|one| one.name() != endpoint);
        let others: Choice = others.cloned().collect();
        let connected = timeout(ELSEWHERE, self.shared.balancer.connect(&others)).await;
        if others.is_empty() || !matches!(connected, Ok(Ok(()))) {
            return self.clone();
        }
        Client {
            only: Some(others),
            ..self.clone()
        }
    }

    /// Where this client connects to.
    #[must_use]
    pub fn endpoints(&self) -> Vec<Endpoint> {
        let choice = self.choice();
        choice.iter().map(|one| one.endpoint().clone()).collect()
    }

    /// Connects to `endpoints` from now on, this and all its clones but those of [`Client::only`].
    /// Calls and streams on other endpoints run on.
    ///
    /// # Errors
    /// [`Error::Endpoint`] if there is none; then nothing changes.
    pub fn set_endpoints(&self, endpoints: Vec<Endpoint>) -> Result<(), Error> {
        self.shared.balancer.replace(endpoints)
    }

    /// What calls choose from.
    pub(crate) fn choice(&self) -> Choice {
        match &self.only {
            Some(only) => Arc::clone(only),
            None => self.shared.balancer.all(),
        }
    }

    /// Sends `token` with every call from now on; `None`: no token.
    ///
    /// # Errors
    /// [`Error::Token`] if it cannot be metadata.
    pub fn set_token(&self, token: Option<&str>) -> Result<(), Error> {
        let value = token
            .map(|token| MetadataValue::try_from(token).map_err(|_| Error::Token))
            .transpose()?;
        *self
            .shared
            .token
            .write()
            .unwrap_or_else(PoisonError::into_inner) = value;
        Ok(())
    }

    pub(crate) fn token(&self) -> Option<MetadataValue<Ascii>> {
        self.shared
            .token
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Fetches a token for the user of the options, unless another call has replaced `used` since.
    pub(crate) async fn renew_token(
        &self,
        used: Option<&MetadataValue<Ascii>>,
        until: Instant,
    ) -> Result<(), Error> {
        let Some((name, password)) = &self.shared.options.user else {
            return Ok(());
        };
        let _one_at_a_time = self.shared.renewing.lock().await;
        if self.token().as_ref() != used {
            return Ok(());
        }
        let request = AuthenticateRequest {
            name: name.clone(),
            password: password.clone(),
        };
        let limit = Limit { until, told: true };
        let answer = self
            .repeat(
                Kind::Read,
                request,
                limit,
                &|wire: Wire, request| async move { wire.auth().authenticate(request).await },
            )
            .await;
        match answer {
            Ok(answer) => self.set_token(Some(&answer.message.token))?,
            Err(error) if error.api() == Some(ApiError::AuthNotEnabled) => self.set_token(None)?,
            Err(error) => return Err(error),
        }
        self.shared.asked.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Whether the first token is still to be fetched.
    pub(crate) fn wants_token(&self) -> bool {
        self.shared.options.user.is_some() && !self.shared.asked.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("endpoints", &self.endpoints())
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}
