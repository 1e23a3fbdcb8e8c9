//! TLS material: certificates and keys from files, read again when they change, and what is checked
//! of the other end besides its signature.
//!
//! 1. A file that cannot be used does not take what is in use away: the old pair stays, and the log
//!    says so.
//! 2. Certificates are judged by rustls and read by a parser; nothing of X.509 is taken apart here.
//!
//! # Source
//!
//! `client/pkg/transport/{listener,listener_tls}.go` of etcd 3.7.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use crate::Error;

mod check;
mod own;
mod verify;
pub(crate) mod words;

pub use own::{OwnFiles, make_own};
use verify::{Allowed, Anybody, Clients, Servers};

/// How long the other end may take to say who it is; etcd's bound.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// A version of TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    /// TLS 1.2
    Tls12,
    /// TLS 1.3
    Tls13,
}

/// Which files, and what is asked of the other end. The default asks for nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsConfig {
    /// The certificate with its chain, PEM; shown to whoever connects, and to whom we connect unless
    /// `client_identity` says otherwise.
    pub cert: PathBuf,
    /// Its key, PEM.
    pub key: PathBuf,
    /// Another certificate and key for connections that we make.
    pub client_identity: Option<(PathBuf, PathBuf)>,
    /// The authorities that certificates of others must come from; the system's where there is none.
    /// With one, whoever connects has to show a certificate.
    pub trusted_ca: Option<PathBuf>,
    /// Whether whoever connects has to show a certificate.
    pub client_cert_auth: bool,
    /// The common name of others must be one of these, unless there are none.
    pub allowed_cns: Vec<String>,
    /// The certificate of others must be for one of these names or addresses, unless there are none.
    pub allowed_hostnames: Vec<String>,
    /// Serial numbers of certificates that are not accepted any more: a list as DER or PEM.
    pub crl: Option<PathBuf>,
    /// Whoever connects need not come from an address that its certificate is for.
    pub skip_client_san_verification: bool,
    /// Servers need not prove who they are: certificates that members make for themselves.
    pub insecure_skip_verify: bool,
    /// The oldest version; TLS 1.2 where there is none.
    pub min_version: Option<TlsVersion>,
    /// The newest version.
    pub max_version: Option<TlsVersion>,
    /// The suites of TLS 1.2, by the names that Go has for them; all that are safe where there are
    /// none. Those of TLS 1.3 are fixed.
    pub cipher_suites: Vec<String>,
    /// What a server offers to speak inside; nothing for peers.
    pub alpn: Vec<Vec<u8>>,
}

/// What files looked like when they were read.
type Stamp = Vec<Option<(SystemTime, u64)>>;

/// Something made of files.
type Cached<T> = Mutex<Option<(Stamp, Arc<T>)>>;

/// TLS towards others, both ways. Files that change are used from the next connection on.
pub struct Tls {
    config: TlsConfig,
    provider: Arc<CryptoProvider>,
    versions: Vec<&'static SupportedProtocolVersion>,
    server: Cached<ServerConfig>,
    client: Cached<ClientConfig>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl Tls {
    /// Reads all files once, so that what cannot work is refused at the start.
    ///
    /// # Errors
    ///
    /// [`Error::Tls`]
    pub fn new(config: TlsConfig) -> Result<Arc<Tls>, Error> {
        let refuse = |text: String| Error::Tls { text };
        if !config.allowed_cns.is_empty() && !config.allowed_hostnames.is_empty() {
            return Err(refuse(format!(
                "AllowedCNs and AllowedHostnames are mutually exclusive (cns={:?}, hostnames={:?})",
                config.allowed_cns, config.allowed_hostnames
            )));
        }
        let (cert, key) = (config.cert.display(), config.key.display());
        if config.cert.as_os_str().is_empty() || config.key.as_os_str().is_empty() {
            return Err(refuse(format!(
                "KeyFile and CertFile must both be present[key: {key}, cert: {cert}]"
            )));
        }
        let min = config.min_version.unwrap_or(TlsVersion::Tls12);
        let max = config.max_version.unwrap_or(TlsVersion::Tls13);
        let mut versions = Vec::new();
        for (version, supported) in [
            (TlsVersion::Tls13, &rustls::version::TLS13),
            (TlsVersion::Tls12, &rustls::version::TLS12),
        ] {
            if (min..=max).contains(&version) {
                versions.push(supported);
            }
        }
        if versions.is_empty() {
            return Err(refuse("no version of TLS is left".to_owned()));
        }
        let provider = Arc::new(provider(&config.cipher_suites)?);
        let tls = Tls {
            config,
            provider,
            versions,
            server: Mutex::default(),
            client: Mutex::default(),
        };
        tls.server_config().map_err(|e| refuse(e.to_string()))?;
        tls.client_config().map_err(|e| refuse(e.to_string()))?;
        Ok(Arc::new(tls))
    }

    /// Secures a connection that was accepted, and checks who is at the other end. That has ten
    /// seconds.
    ///
    /// # Errors
    ///
    /// Why the connection is refused.
    pub async fn accept<S>(
        self: &Arc<Self>,
        stream: S,
        remote: Option<SocketAddr>,
    ) -> io::Result<server::TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        in_time(self.accept_and_check(stream, remote)).await
    }

    async fn accept_and_check<S>(
        self: &Arc<Self>,
        stream: S,
        remote: Option<SocketAddr>,
    ) -> io::Result<server::TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let tls = Arc::clone(self);
        let config = blocking(move || tls.server_config()).await?;
        let stream = TlsAcceptor::from(config).accept(stream).await?;
        let chain = owned(stream.get_ref().1.peer_certificates());
        if !chain.is_empty() {
            let tls = Arc::clone(self);
            blocking(move || check::client(&tls.config, &chain, remote)).await?;
        }
        Ok(stream)
    }

    /// Secures a connection to a server that must prove to be `host`, within ten seconds.
    ///
    /// # Errors
    ///
    /// Why the server is not spoken with.
    pub async fn connect<S>(
        self: &Arc<Self>,
        stream: S,
        host: &str,
    ) -> io::Result<client::TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let name = ServerName::try_from(host.to_owned()).map_err(|_| {
            let text = format!("{host:?} is no name that a certificate can be for");
            io::Error::new(io::ErrorKind::InvalidInput, text)
        })?;
        let tls = Arc::clone(self);
        let config = blocking(move || tls.client_config()).await?;
        in_time(TlsConnector::from(config).connect(name, stream)).await
    }

    fn server_config(&self) -> io::Result<Arc<ServerConfig>> {
        let files = [&self.config.cert, &self.config.key];
        let files = files.into_iter().chain(&self.config.trusted_ca);
        current(&self.server, files, || self.read_server())
    }

    fn client_config(&self) -> io::Result<Arc<ClientConfig>> {
        let (cert, key) = self.client_files();
        let files = [cert, key].into_iter().chain(&self.config.trusted_ca);
        current(&self.client, files, || self.read_client())
    }

    fn client_files(&self) -> (&PathBuf, &PathBuf) {
        match &self.config.client_identity {
            Some((cert, key)) => (cert, key),
            None => (&self.config.cert, &self.config.key),
        }
    }

    fn read_server(&self) -> io::Result<ServerConfig> {
        let builder = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&self.versions)
            .map_err(io::Error::other)?;
        let wanted = self.config.client_cert_auth || self.config.trusted_ca.is_some();
        let builder = if wanted {
            let provider = Arc::clone(&self.provider);
            let roots = Arc::new(self.roots()?);
            let signed = WebPkiClientVerifier::builder_with_provider(roots, provider)
                .build()
                .map_err(io::Error::other)?;
            let allowed = Allowed::of(&self.config);
            builder.with_client_cert_verifier(Arc::new(Clients { signed, allowed }))
        } else {
            builder.with_no_client_auth()
        };
        let chain = certificates(&self.config.cert)?;
        let mut config = builder
            .with_single_cert(chain, private_key(&self.config.key)?)
            .map_err(|error| of(&self.config.cert, error))?;
        config.alpn_protocols = self.config.alpn.clone();
        if wanted {
            // A session that is taken up again brings the client's certificate along, unchecked: it
            // may have expired since, or its authority be trusted no more.
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
        }
        Ok(config)
    }

    fn read_client(&self) -> io::Result<ClientConfig> {
        let builder = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&self.versions)
            .map_err(io::Error::other)?;
        let builder = builder
            .dangerous()
            .with_custom_certificate_verifier(self.servers()?);
        let (cert, key) = self.client_files();
        builder
            .with_client_auth_cert(certificates(cert)?, private_key(key)?)
            .map_err(|error| of(cert, error))
    }

    /// Which servers are spoken with.
    fn servers(&self) -> io::Result<Arc<dyn ServerCertVerifier>> {
        let allowed = Allowed::of(&self.config);
        let provider = Arc::clone(&self.provider);
        if self.config.insecure_skip_verify {
            let restricted = allowed.is_restricted();
            return Ok(Arc::new(Anybody {
                provider,
                restricted,
            }));
        }
        let roots = Arc::new(self.roots()?);
        let signed = WebPkiServerVerifier::builder_with_provider(roots, provider)
            .build()
            .map_err(io::Error::other)?;
        Ok(Arc::new(Servers { signed, allowed }))
    }

    fn roots(&self) -> io::Result<RootCertStore> {
        let mut roots = RootCertStore::empty();
        if let Some(file) = &self.config.trusted_ca {
            for certificate in certificates(file)? {
                roots.add(certificate).map_err(|error| of(file, error))?;
            }
            return Ok(roots);
        }
        let found = rustls_native_certs::load_native_certs();
        // One that cannot be used is passed over, as other programs do with the system's.
        roots.add_parsable_certificates(found.certs);
        match found.errors.into_iter().next() {
            Some(error) if roots.is_empty() => Err(io::Error::other(error)),
            _ => Ok(roots),
        }
    }
}

/// The common name in the certificate that whoever has connected was made to show; `None` where that
/// is none, or without a name.
#[must_use]
pub fn common_name<S>(stream: &server::TlsStream<S>) -> Option<String> {
    let chain = stream.get_ref().1.peer_certificates()?;
    check::common_name(chain.first()?)
}

async fn in_time<T>(handshake: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await {
        Ok(result) => result,
        Err(_) => {
            let text = "TLS handshake: i/o timeout";
            Err(io::Error::new(io::ErrorKind::TimedOut, text))
        }
    }
}

/// Why a connection was refused, in the words that etcd's log has for it.
#[must_use]
pub fn describe(error: &io::Error) -> String {
    crate::dial::root_cause(error)
}

/// The provider with the suites that are wanted.
fn provider(names: &[String]) -> Result<CryptoProvider, Error> {
    let mut provider = aws_lc_rs::default_provider();
    if names.is_empty() {
        return Ok(provider);
    }
    let name_of = |suite: &rustls::SupportedCipherSuite| format!("{:?}", suite.suite());
    let known: Vec<String> = provider.cipher_suites.iter().map(name_of).collect();
    let mut wanted = Vec::new();
    for name in names {
        // Go has a short and a long name for two of them.
        let long = format!("{name}_SHA256");
        match known.iter().find(|known| *known == name || **known == long) {
            Some(known) => wanted.push(known.clone()),
            None => {
                let text = format!("unexpected TLS cipher suite {name:?}");
                return Err(Error::Tls { text });
            }
        }
    }
    provider
        .cipher_suites
        .retain(|suite| suite.tls13().is_some() || wanted.contains(&name_of(suite)));
    Ok(provider)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(io::Error::other)?
}

fn owned(chain: Option<&[CertificateDer<'_>]>) -> Vec<CertificateDer<'static>> {
    let chain = chain.unwrap_or_default().iter();
    chain.map(|cert| cert.clone().into_owned()).collect()
}

/// What is in the cache, or is read now because the files have changed.
fn current<'a, T>(
    cache: &Cached<T>,
    files: impl Iterator<Item = &'a PathBuf>,
    read: impl FnOnce() -> io::Result<T>,
) -> io::Result<Arc<T>> {
    let look = |path: &PathBuf| {
        let metadata = std::fs::metadata(path).ok()?;
        Some((metadata.modified().ok()?, metadata.len()))
    };
    let stamp: Stamp = files.map(look).collect();
    let mut cache = cache.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((of, cached)) = &*cache
        && *of == stamp
    {
        return Ok(Arc::clone(cached));
    }
    match read() {
        Ok(read) => {
            let read = Arc::new(read);
            *cache = Some((stamp, Arc::clone(&read)));
            Ok(read)
        }
        Err(error) => match &*cache {
            Some((_, cached)) => {
                tracing::warn!(
                    error = %error,
                    "failed to create peer certificate; the one before stays in use"
                );
                Ok(Arc::clone(cached))
            }
            None => Err(error),
        },
    }
}

fn certificates(file: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let certificates: Vec<_> = CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect)
        .map_err(|error| of(file, error))?;
    if certificates.is_empty() {
        return Err(of(file, "there is no certificate in it"));
    }
    Ok(certificates)
}

fn private_key(file: &Path) -> io::Result<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_file(file).map_err(|error| of(file, error))
}

fn of(file: &Path, error: impl fmt::Display) -> io::Error {
    let text = format!("{}: {error}", file.display());
    io::Error::new(io::ErrorKind::InvalidInput, text)
}
