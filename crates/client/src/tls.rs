//! TLS towards servers: whom to trust, and who we are.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// How connections to `https` and `unixs` endpoints are made. The default trusts the authorities of
/// the system and shows no certificate.
///
/// Files are PEM, and are read again for each connection, so renewed ones count without a restart.
#[derive(Clone, Debug, Default)]
pub struct Tls {
    trusted_ca: Option<PathBuf>,
    identity: Option<(PathBuf, PathBuf)>,
    server_name: Option<String>,
    skip_verify: bool,
}

impl Tls {
    /// The default.
    #[must_use]
    pub fn new() -> Tls {
        Tls::default()
    }

    /// Trusts the authorities of this file, and none of the system's.
    #[must_use]
    pub fn trusted_ca(mut self, file: impl Into<PathBuf>) -> Tls {
        self.trusted_ca = Some(file.into());
        self
    }

    /// Shows this certificate (with its chain) to servers that ask for one.
    #[must_use]
    pub fn identity(mut self, cert: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Tls {
        self.identity = Some((cert.into(), key.into()));
        self
    }

    /// Asks for a certificate with this name instead of the endpoint's host.
    #[must_use]
    pub fn server_name(mut self, name: impl Into<String>) -> Tls {
        self.server_name = Some(name.into());
        self
    }

    /// Takes any certificate: whoever sits between can read and change everything. For tests, and
    /// for servers that sign their own.
    #[must_use]
    pub fn danger_skip_verify(mut self) -> Tls {
        self.skip_verify = true;
        self
    }

    /// Encrypts `stream` to a server that must prove to be `host`.
    pub(crate) async fn wrap<S>(&self, stream: S, host: &str) -> io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let name = self.server_name.as_deref().unwrap_or(host);
        let name = ServerName::try_from(name.to_owned()).map_err(|_| {
            let text = format!("{name:?} is no name that a certificate can be for");
            io::Error::new(io::ErrorKind::InvalidInput, text)
        })?;
        TlsConnector::from(self.config().await?)
            .connect(name, stream)
            .await
    }

    /// What the files say now.
    ///
    /// # Errors
    /// Which file cannot be read or used, and why.
    pub(crate) async fn config(&self) -> io::Result<Arc<ClientConfig>> {
        let tls = self.clone();
        tokio::task::spawn_blocking(move || tls.read())
            .await
            .map_err(io::Error::other)?
    }

    fn read(&self) -> io::Result<Arc<ClientConfig>> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?;
        let builder = if self.skip_verify {
            builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        } else {
            builder.with_root_certificates(self.roots()?)
        };
        let mut config = match &self.identity {
            None => builder.with_no_client_auth(),
            Some((cert, key)) => {
                let chain = certificates(cert)?;
                let private = PrivateKeyDer::from_pem_file(key).map_err(|error| of(key, error))?;
                builder
                    .with_client_auth_cert(chain, private)
                    .map_err(|error| of(cert, error))?
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(config))
    }

    fn roots(&self) -> io::Result<RootCertStore> {
        let mut roots = RootCertStore::empty();
        if let Some(file) = &self.trusted_ca {
            for certificate in certificates(file)? {
                roots.add(certificate).map_err(|error| of(file, error))?;
            }
            return Ok(roots);
        }
        let found = rustls_native_certs::load_native_certs();
        // One that cannot be used is passed over, as other clients do with the system's.
        roots.add_parsable_certificates(found.certs);
        match found.errors.into_iter().next() {
            Some(error) if roots.is_empty() => Err(io::Error::other(error)),
            _ => Ok(roots),
        }
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

fn of(file: &Path, error: impl fmt::Display) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidInput,
        format!("{}: {error}", file.display()),
    )
}

/// Takes every certificate, but only from who holds its key.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            cert,
            dss,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            cert,
            dss,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
