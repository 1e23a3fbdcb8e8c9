//! TLS with clients: who is spoken with, and whom a certificate names.

use std::path::PathBuf;
use std::time::Duration;

use keelson_client::{ApiError, Client, Error, Get, Permission, Put, Span, Tls};
use keelson_harness::{TestMember, patient, wait};
use keelson_server::config::Config;
use keelson_server::url::Url;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber,
};
use tempfile::TempDir;

/// What a refusal costs: a client tries again until then.
const REFUSED_AFTER: Duration = Duration::from_secs(2);

/// Signs certificates into files.
struct Authority {
    dir: TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Authority {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ca.pem"), issuer.pem()).unwrap();
        Authority { dir, issuer }
    }

    fn ca(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// A certificate of such a common name, for `address`, and its key.
    fn sign(&self, name: &str, address: [u8; 4]) -> (PathBuf, PathBuf) {
        let mut params = CertificateParams::default();
        params.distinguished_name.remove(DnType::CommonName);
        params.distinguished_name.push(DnType::CommonName, name);
        params.serial_number = Some(name.as_bytes().to_vec().into());
        let address = SanType::IpAddress(address.into());
        params.subject_alt_names.push(address);
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        let path = |end: &str| self.dir.path().join(format!("{name}.{end}"));
        std::fs::write(path("crt"), cert.pem()).unwrap();
        std::fs::write(path("key"), key.serialize_pem()).unwrap();
        (path("crt"), path("key"))
    }

    /// A list of one certificate that counts no more.
    fn revoke(&self, name: &str) -> PathBuf {
        let now = rcgen::date_time_ymd(2026, 1, 1);
        let revoked = RevokedCertParams {
            serial_number: SerialNumber::from(name.as_bytes().to_vec()),
            revocation_time: now,
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: now,
            next_update: rcgen::date_time_ymd(2027, 1, 1),
            crl_number: SerialNumber::from(vec![1]),
            issuing_distribution_point: None,
            revoked_certs: vec![revoked],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let issuer: &Issuer<'_, KeyPair> = &self.issuer;
        let path = self.dir.path().join("revoked.crl");
        std::fs::write(&path, list.signed_by(issuer).unwrap().der()).unwrap();
        path
    }

    /// What a client shows that is called `name`. It comes from an address that its certificate is not
    /// for, which counts between members alone.
    fn client(&self, name: &str) -> Tls {
        let (cert, key) = self.sign(name, [10, 0, 0, 1]);
        self.trusting().identity(cert, key)
    }

    fn trusting(&self) -> Tls {
        Tls::new().trusted_ca(self.ca())
    }

    /// A member that clients speak TLS with.
    fn member(&self, adjust: impl Fn(&mut Config) + Send + 'static) -> TestMember {
        let (cert, key) = self.sign("server", [127, 0, 0, 1]);
        secured(move |config| {
            config.client_tls.cert_file.clone_from(&cert);
            config.client_tls.key_file.clone_from(&key);
            adjust(config);
        })
    }
}

fn secured(adjust: impl Fn(&mut Config) + Send + 'static) -> TestMember {
    TestMember::start_with(move |config| {
        let url = config.listen_client_urls[0]
            .as_str()
            .replace("http", "https");
        config.listen_client_urls = vec![Url::parse(&url).unwrap()];
        config.bcrypt_cost = 4;
        adjust(config);
    })
    .unwrap()
}

async fn connect(member: &TestMember, tls: Tls) -> Result<Client, Error> {
    let url = member.member().unwrap().client_urls()[0].to_string();
    assert!(url.starts_with("https://"), "{url}");
    let mut options = patient();
    options.tls = Some(tls);
    Client::connect_with(&url, options).await
}

/// Whether a client with this is answered, however long that takes.
async fn reads(member: &TestMember, tls: Tls) -> bool {
    reads_within(member, tls, wait::PATIENCE).await
}

/// Whether a client with this is answered before one gives up that is refused.
async fn reads_soon(member: &TestMember, tls: Tls) -> bool {
    reads_within(member, tls, REFUSED_AFTER).await
}

async fn reads_within(member: &TestMember, tls: Tls, patience: Duration) -> bool {
    match connect(member, tls).await {
        Ok(client) => {
            let client = client.with_timeout(patience);
            client.get(Get::key("a")).await.is_ok()
        }
        Err(_) => false,
    }
}

#[tokio::test]
async fn a_client_that_trusts_the_members_certificate_is_served_and_plain_text_is_not() {
    let authority = Authority::new();
    let member = authority.member(|_| {});
    let client = connect(&member, authority.trusting()).await.unwrap();
    client.put(Put::new("a", "1")).await.unwrap();
    assert!(reads(&member, authority.trusting()).await);
    assert!(!reads_soon(&member, Authority::new().trusting()).await);
    let plain = member.client().await;
    if let Ok(client) = plain {
        let client = client.with_timeout(REFUSED_AFTER);
        assert!(client.get(Get::key("a")).await.is_err());
    }
}

#[tokio::test]
async fn with_an_authority_for_clients_only_its_own_are_served() {
    let authority = Authority::new();
    let ca = authority.ca();
    let member = authority.member(move |config| config.client_tls.trusted_ca_file.clone_from(&ca));
    assert!(reads(&member, authority.client("alice")).await);
    assert!(!reads_soon(&member, authority.trusting()).await);
    let stranger = Authority::new();
    let (cert, key) = stranger.sign("alice", [127, 0, 0, 1]);
    assert!(!reads_soon(&member, authority.trusting().identity(cert, key)).await);
}

#[tokio::test]
async fn certificates_of_clients_may_be_revoked_and_narrowed_to_hosts() {
    let authority = Authority::new();
    let (ca, revoked) = (authority.ca(), authority.revoke("mallory"));
    let member = authority.member(move |config| {
        config.client_tls.trusted_ca_file.clone_from(&ca);
        config.client_tls.crl_file.clone_from(&revoked);
        config.client_tls.allowed_hostname = vec!["10.0.0.1".to_owned()];
    });
    assert!(reads(&member, authority.client("alice")).await);
    assert!(!reads_soon(&member, authority.client("mallory")).await);
    let (cert, key) = authority.sign("bob", [10, 0, 0, 2]);
    assert!(!reads_soon(&member, authority.trusting().identity(cert, key)).await);
}

/// Makes root, and a user alice who may write in `a/`; turns authentication on.
async fn guard(root: &Client) {
    for user in ["root", "alice"] {
        root.user_add(user, user).await.unwrap();
    }
    root.user_grant_role("root", "root").await.unwrap();
    root.role_add("r").await.unwrap();
    root.role_grant_permission("r", Permission::Readwrite, Span::prefix("a/"))
        .await
        .unwrap();
    root.user_grant_role("alice", "r").await.unwrap();
    root.auth_enable().await.unwrap();
}

fn refused<T: std::fmt::Debug>(answer: Result<T, Error>, expected: &ApiError) {
    let error = answer.unwrap_err();
    assert_eq!(error.api().as_ref(), Some(expected), "{error}");
}

#[tokio::test]
async fn a_client_without_a_token_is_the_user_that_its_certificate_names() {
    let authority = Authority::new();
    let ca = authority.ca();
    let member = authority.member(move |config| {
        config.client_tls.trusted_ca_file.clone_from(&ca);
        config.client_tls.client_cert_auth = true;
    });
    let root = connect(&member, authority.client("root")).await.unwrap();
    guard(&root).await;
    root.put(Put::new("b", "by root")).await.unwrap();
    let alice = connect(&member, authority.client("alice")).await.unwrap();
    alice.put(Put::new("a/1", "by alice")).await.unwrap();
    refused(
        alice.put(Put::new("b", "")).await,
        &ApiError::PermissionDenied,
    );
    // Who is not known may nothing, and a token counts for more than a certificate.
    let nobody = connect(&member, authority.client("bob")).await.unwrap();
    refused(
        nobody.get(Get::key("a/1")).await,
        &ApiError::PermissionDenied,
    );
    nobody.authenticate("alice", "alice").await.unwrap();
    nobody.get(Get::key("a/1")).await.unwrap();
}

#[tokio::test]
async fn without_client_cert_auth_a_certificate_names_nobody() {
    let authority = Authority::new();
    let ca = authority.ca();
    let member = authority.member(move |config| config.client_tls.trusted_ca_file.clone_from(&ca));
    let root = connect(&member, authority.client("root")).await.unwrap();
    guard(&root).await;
    refused(root.put(Put::new("b", "")).await, &ApiError::UserEmpty);
}

#[tokio::test]
async fn a_member_with_auto_tls_makes_its_certificate_once() {
    let mut member = secured(|config| config.client_tls.auto_tls = true);
    let client = || Tls::new().danger_skip_verify();
    assert!(reads(&member, client()).await);
    let dir = member.data_dir().join("fixtures/client");
    let files = || ["cert.pem", "key.pem"].map(|name| std::fs::read(dir.join(name)).unwrap());
    let first = files();
    member.stop();
    member.restart().unwrap();
    assert!(reads(&member, client()).await);
    assert_eq!(files(), first);
}
