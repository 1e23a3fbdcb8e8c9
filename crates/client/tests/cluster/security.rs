//! TLS and sockets of the file system.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use keelson_client::{Client, Error, Get, Options, Tls};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tempfile::TempDir;
use tokio_rustls::TlsAcceptor;

use crate::fake::Fake;
use crate::{Count, counts, soon};

/// An authority, and files of what it signed.
struct Authority {
    dir: TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Authority {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // As the reference's automatic TLS makes them.
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P521_SHA512).unwrap();
        let issuer = CertifiedIssuer::self_signed(params, key).unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ca.pem"), issuer.pem()).unwrap();
        Authority { dir, issuer }
    }

    fn ca(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// Signs a certificate for `name`, or for 127.0.0.1 without one.
    fn sign(&self, file: &str, name: Option<&str>) -> (PathBuf, PathBuf) {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.subject_alt_names.push(match name {
            Some(name) => SanType::DnsName(name.try_into().unwrap()),
            None => SanType::IpAddress([127, 0, 0, 1].into()),
        });
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        let path = |end: &str| self.dir.path().join(format!("{file}.{end}"));
        std::fs::write(path("crt"), cert.pem()).unwrap();
        std::fs::write(path("key"), key.serialize_pem()).unwrap();
        (path("crt"), path("key"))
    }
}

fn acceptor((cert, key): &(PathBuf, PathBuf), clients: Option<&Path>) -> TlsAcceptor {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(ca) => {
            let mut roots = RootCertStore::empty();
            roots
                .add(CertificateDer::from_pem_file(ca).unwrap())
                .unwrap();
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.unwrap())
        }
    };
    let mut config = builder
        .with_single_cert(
            vec![CertificateDer::from_pem_file(cert).unwrap()],
            PrivateKeyDer::from_pem_file(key).unwrap(),
        )
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    TlsAcceptor::from(Arc::new(config))
}

async fn behind(acceptor: TlsAcceptor) -> Fake {
    let count = Count::default();
    Fake::start_tls(acceptor, move |call| counts(count.clone(), call)).await
}

fn with(tls: Tls) -> Options {
    let mut options = crate::patient();
    options.tls = Some(tls);
    options
}

async fn reads(endpoint: &str, options: Options) -> Result<(), Error> {
    let client = soon(Client::connect_with(endpoint, options)).await?;
    soon(client.get(Get::key("a"))).await.map(drop)
}

#[tokio::test]
async fn a_server_is_trusted_by_its_authority_and_its_name() {
    let authority = Authority::new();
    let fake = behind(acceptor(&authority.sign("server", None), None)).await;
    let url = format!("https://127.0.0.1:{}", fake.port());
    let trusting = with(Tls::new().trusted_ca(authority.ca()));
    reads(&url, trusting.clone()).await.unwrap();
    // Without a scheme, the options decide; `http` is never encrypted.
    let bare = format!("127.0.0.1:{}", fake.port());
    reads(&bare, trusting).await.unwrap();
    let stranger = Authority::new();
    let trusting = Tls::new().trusted_ca(stranger.ca());
    let error = reads(&url, with(trusting)).await.unwrap_err();
    assert!(
        matches!(&error, Error::Connect { endpoint, .. } if *endpoint == url),
        "{error}"
    );
    assert!(error.to_string().contains("certificate"), "{error}");
    reads(&url, with(Tls::new().danger_skip_verify()))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_certificate_for_another_name_counts_only_where_that_name_is_asked_for() {
    let authority = Authority::new();
    let signed = authority.sign("server", Some("etcd.local"));
    let fake = behind(acceptor(&signed, None)).await;
    let url = format!("https://127.0.0.1:{}", fake.port());
    let trusting = Tls::new().trusted_ca(authority.ca());
    let error = reads(&url, with(trusting.clone())).await.unwrap_err();
    assert!(matches!(error, Error::Connect { .. }), "{error}");
    reads(&url, with(trusting.server_name("etcd.local")))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_client_shows_its_certificate_and_a_renewed_one_counts() {
    let authority = Authority::new();
    let ca = authority.ca();
    let signed = authority.sign("server", None);
    let fake = behind(acceptor(&signed, Some(&ca))).await;
    let url = format!("https://127.0.0.1:{}", fake.port());
    let trusting = Tls::new().trusted_ca(&ca);
    let mut anonymous = with(trusting.clone());
    anonymous.call_timeout = std::time::Duration::from_millis(500);
    assert!(reads(&url, anonymous).await.is_err());
    // First one of another authority under the same name.
    let (cert, key) = authority.sign("client", Some("client"));
    let (strange_cert, strange_key) = Authority::new().sign_into(&cert, &key);
    let mut options = with(trusting.identity(&strange_cert, &strange_key));
    options.call_timeout = std::time::Duration::from_millis(500);
    let client = Client::lazy(&url, options).unwrap();
    assert!(soon(client.get(Get::key("a"))).await.is_err());
    authority.sign("client", Some("client"));
    let patient = client.with_timeout(crate::PATIENCE);
    soon(patient.get(Get::key("a"))).await.unwrap();
}

impl Authority {
    /// Signs a certificate into files of somebody else.
    fn sign_into(&self, cert: &Path, key: &Path) -> (PathBuf, PathBuf) {
        let (own_cert, own_key) = self.sign("strange", Some("client"));
        std::fs::copy(own_cert, cert).unwrap();
        std::fs::copy(own_key, key).unwrap();
        (cert.to_owned(), key.to_owned())
    }
}

#[tokio::test]
async fn files_that_cannot_be_used_are_named_before_anything_is_dialled() {
    let missing = with(Tls::new().trusted_ca("/nowhere/ca.pem"));
    let error = reads("https://127.0.0.1:1", missing).await.unwrap_err();
    assert!(matches!(error, Error::Tls { .. }), "{error}");
    assert!(error.to_string().contains("/nowhere/ca.pem"), "{error}");
}

#[tokio::test]
async fn a_socket_of_the_file_system_is_an_endpoint() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("server.sock");
    let count = Count::default();
    let counted = count.clone();
    let _fake = Fake::start_unix(&path, move |call| counts(counted.clone(), call));
    let endpoint = format!("unix://{}", path.display());
    reads(&endpoint, crate::patient()).await.unwrap();
    assert_eq!(count.get(), 1);
}
