//! The client: an endpoint, a connection, a token, time-outs.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use http::Uri;
use keelson_proto::ApiError;
use keelson_proto::rpc::etcdserverpb::AuthenticateRequest;
use tonic::metadata::{Ascii, MetadataValue};

use crate::Error;
use crate::call::Wire;
use crate::endpoint::Endpoint;
use crate::transport::Transport;

/// How a [`Client`] behaves.
#[derive(Clone)]
#[non_exhaustive]
pub struct Options {
    /// The longest that making a connection may take.
    pub connect_timeout: Duration,
    /// The longest that a call may take, with its retries. [`Client::with_timeout`] changes it for
    /// single calls. Streams have no limit over all, but each step has this one where a server owes
    /// an answer.
    pub call_timeout: Duration,
    /// Interval of pings on a connection that has open streams; `None`: no pings. Servers close
    /// connections that ping more often than every 5 s.
    pub keep_alive: Option<Duration>,
    /// Name and password to authenticate with; the token is renewed when it runs out.
    pub user: Option<(String, String)>,
    /// Asks servers to fail calls at once while they have no leader.
    pub require_leader: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            connect_timeout: Duration::from_secs(5),
            call_timeout: Duration::from_secs(10),
            keep_alive: None,
            user: None,
            require_leader: false,
        }
    }
}

/// A client of one endpoint. Clones share its connection and token.
///
/// A broken connection is made again by the next call. Reads are repeated while the server is not
/// available, writes only if they were certainly not sent (api.md 3.4).
#[derive(Clone)]
pub struct Client {
    pub(crate) shared: Arc<Shared>,
    pub(crate) timeout: Duration,
}

pub(crate) struct Shared {
    pub(crate) endpoint: Endpoint,
    pub(crate) origin: Uri,
    pub(crate) transport: Transport,
    pub(crate) options: Options,
    token: RwLock<Option<MetadataValue<Ascii>>>,
    /// Whether a token was asked for; on a server without auth there is none to be had.
    asked: AtomicBool,
    /// Held while a token is fetched, so that many calls fetch one.
    renewing: tokio::sync::Mutex<()>,
}

impl Client {
    /// Connects to `endpoint` with the default [`Options`].
    ///
    /// # Errors
    /// [`Error::Endpoint`] if it cannot be understood, [`Error::Connect`] if nothing answers there.
    pub async fn connect(endpoint: &str) -> Result<Client, Error> {
        Client::connect_with(endpoint, Options::default()).await
    }

    /// Connects to `endpoint`, and authenticates if `options` name a user. A server on which auth
    /// is disabled is used without a token.
    ///
    /// # Errors
    /// As [`Client::connect`], and those of [`Client::authenticate`].
    pub async fn connect_with(endpoint: &str, options: Options) -> Result<Client, Error> {
        let client = Client::lazy(endpoint, options)?;
        client.shared.transport.connect().await?;
        if client.shared.options.user.is_some() {
            client.renew_token(None).await?;
        }
        Ok(client)
    }

    /// A client that connects, and authenticates, with its first call.
    ///
    /// # Errors
    /// [`Error::Endpoint`] if `endpoint` cannot be understood.
    pub fn lazy(endpoint: &str, options: Options) -> Result<Client, Error> {
        let endpoint: Endpoint = endpoint.parse()?;
        let origin = endpoint.origin()?;
        let transport = Transport::new(
            endpoint.clone(),
            options.connect_timeout,
            options.keep_alive,
        );
        let timeout = options.call_timeout;
        Ok(Client {
            shared: Arc::new(Shared {
                endpoint,
                origin,
                transport,
                options,
                token: RwLock::new(None),
                asked: AtomicBool::new(false),
                renewing: tokio::sync::Mutex::new(()),
            }),
            timeout,
        })
    }

    /// The same client with another time-out of calls.
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Client {
        Client {
            shared: Arc::clone(&self.shared),
            timeout,
        }
    }

    /// Where this client connects to.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.shared.endpoint
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

    pub(crate) fn wire(&self) -> Wire {
        Wire {
            transport: self.shared.transport.clone(),
            origin: self.shared.origin.clone(),
        }
    }

    /// Fetches a token for the user of the options, unless another call has replaced `used` since.
    pub(crate) async fn renew_token(
        &self,
        used: Option<&MetadataValue<Ascii>>,
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
        let answer = self
            .attempt(request, None, |wire, request| async move {
                wire.auth().authenticate(request).await
            })
            .await;
        match answer {
            Ok(answer) => self.set_token(Some(&answer.token))?,
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
            .field("endpoint", &self.shared.endpoint)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}
