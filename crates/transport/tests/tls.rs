//! Members that prove to one another who they are.
#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use common::{Member, Setup, wait_for};
use keelson_proto::message::MessageKind;
use keelson_transport::Error;
use keelson_transport::tls::{Tls, TlsConfig, TlsVersion, make_own};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{
    ClientConfig, ClientConnection, HandshakeKind, RootCertStore, StreamOwned,
    SupportedProtocolVersion,
};
use tempfile::TempDir;

/// Signs certificates for members.
struct Authority {
    dir: TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// What a certificate says.
#[derive(Clone, Copy, Default)]
struct Names<'a> {
    common: &'a str,
    dns: &'a [&'a str],
    addresses: &'a [[u8; 4]],
    serial: u8,
}

/// For the address that tests run on.
const LOCAL: Names<'static> = Names {
    common: "member",
    dns: &[],
    addresses: &[[127, 0, 0, 1]],
    serial: 1,
};

impl Authority {
    fn new() -> Authority {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        // As etcd's automatic TLS makes them.
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P521_SHA512).unwrap();
        let issuer = CertifiedIssuer::self_signed(params, key).unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ca.pem"), issuer.pem()).unwrap();
        Authority { dir, issuer }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a certificate and its key to the two files.
    fn sign_into(&self, names: Names<'_>, cert_file: &Path, key_file: &Path) {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.remove(DnType::CommonName);
        params
            .distinguished_name
            .push(DnType::CommonName, names.common);
        params.serial_number = Some(SerialNumber::from(vec![0x40, names.serial]));
        for name in names.dns {
            let name = SanType::DnsName((*name).try_into().unwrap());
            params.subject_alt_names.push(name);
        }
        for address in names.addresses {
            let address = SanType::IpAddress((*address).into());
            params.subject_alt_names.push(address);
        }
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        std::fs::write(cert_file, cert.pem()).unwrap();
        std::fs::write(key_file, key.serialize_pem()).unwrap();
    }

    /// What a member with such a certificate uses.
    fn config(&self, file: &str, names: Names<'_>) -> TlsConfig {
        let cert = self.path(&format!("{file}.crt"));
        let key = self.path(&format!("{file}.key"));
        self.sign_into(names, &cert, &key);
        TlsConfig {
            cert,
            key,
            trusted_ca: Some(self.path("ca.pem")),
            client_cert_auth: true,
            ..TlsConfig::default()
        }
    }

    fn revoke(&self, serial: u8) -> PathBuf {
        let now = rcgen::date_time_ymd(2026, 1, 1);
        let revoked = RevokedCertParams {
            serial_number: SerialNumber::from(vec![0x40, serial]),
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
        let path = self.path("revoked.crl");
        std::fs::write(&path, list.signed_by(issuer).unwrap().der()).unwrap();
        path
    }
}

fn member(id: u64, config: TlsConfig) -> Member {
    let setup = Setup {
        tls: Some(Tls::new(config).unwrap()),
        ..Setup::default()
    };
    Member::with(id, setup)
}

/// Whether messages get from `a` to `b`.
fn speak(a: &Member, b: &Member) -> bool {
    a.knows(b);
    let before = b.heard.count();
    a.heard.unreachable.lock().unwrap().clear();
    // One only: a queue that is full is reported too.
    a.send(b, MessageKind::Vote, 1);
    wait_for("a message has arrived, or has not", || {
        b.heard.count() > before || !a.heard.unreachable.lock().unwrap().is_empty()
    });
    b.heard.count() > before
}

#[test]
fn members_with_certificates_of_one_authority_speak() {
    let authority = Authority::new();
    let a = member(0xa, authority.config("a", LOCAL));
    let b = member(0xb, authority.config("b", LOCAL));
    assert!(speak(&a, &b));
    assert!(speak(&b, &a));
    a.reaches(&b);
}

#[test]
fn a_certificate_of_another_authority_is_refused() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let a = member(0xa, theirs.config("a", LOCAL));
    // It trusts ours, and shows what ours did not sign.
    let trusting = TlsConfig {
        trusted_ca: Some(ours.path("ca.pem")),
        ..theirs.config("c", LOCAL)
    };
    let c = member(0xc, trusting);
    let b = member(0xb, ours.config("b", LOCAL));
    assert!(!speak(&a, &b), "a does not trust b");
    assert!(!speak(&c, &b), "b does not trust c");
}

#[test]
fn a_server_must_be_who_its_url_says() {
    let authority = Authority::new();
    let elsewhere = Names {
        addresses: &[[10, 0, 0, 1]],
        ..LOCAL
    };
    let a = member(0xa, authority.config("a", LOCAL));
    let b = member(0xb, authority.config("b", elsewhere));
    assert!(!speak(&a, &b));
}

#[test]
fn only_allowed_common_names_are_spoken_with() {
    let authority = Authority::new();
    let named = |common| Names { common, ..LOCAL };
    let strict = |file, common| TlsConfig {
        allowed_cns: vec!["other".to_owned(), "good".to_owned()],
        ..authority.config(file, named(common))
    };
    let b = member(0xb, strict("b", "good"));
    assert!(speak(
        &member(0xa, authority.config("a", named("good"))),
        &b
    ));
    assert!(!speak(
        &member(0xc, authority.config("c", named("bad"))),
        &b
    ));
    // The rule holds for servers too.
    let d = member(0xd, strict("d", "good"));
    let e = member(0xe, authority.config("e", named("bad")));
    assert!(!speak(&d, &e));
}

#[test]
fn only_allowed_host_names_are_spoken_with() {
    let authority = Authority::new();
    let named = |dns| Names { dns, ..LOCAL };
    let strict = TlsConfig {
        allowed_hostnames: vec!["m1.example.com".to_owned()],
        ..authority.config("b", LOCAL)
    };
    let b = member(0xb, strict);
    let good = authority.config("a", named(&["*.example.com"]));
    let bad = authority.config("c", named(&["m1.example.org"]));
    assert!(speak(&member(0xa, good), &b));
    assert!(!speak(&member(0xc, bad), &b));
}

#[test]
fn a_certificate_is_only_good_from_an_address_that_it_is_for() {
    let authority = Authority::new();
    let client = |file, names| {
        let shown = authority.config(&format!("{file}-client"), names);
        TlsConfig {
            client_identity: Some((shown.cert, shown.key)),
            ..authority.config(file, LOCAL)
        }
    };
    let b = member(0xb, authority.config("b", LOCAL));
    let elsewhere = Names {
        addresses: &[[10, 0, 0, 1]],
        ..LOCAL
    };
    let by_name = Names {
        dns: &["localhost"],
        addresses: &[[10, 0, 0, 1]],
        ..LOCAL
    };
    let nameless = Names {
        addresses: &[],
        ..LOCAL
    };
    assert!(!speak(&member(0xa, client("a", elsewhere)), &b));
    assert!(speak(&member(0xc, client("c", by_name)), &b));
    assert!(speak(&member(0xd, client("d", nameless)), &b));
    let lax = TlsConfig {
        skip_client_san_verification: true,
        ..authority.config("e", LOCAL)
    };
    let e = member(0xe, lax);
    assert!(speak(&member(0xf, client("f", elsewhere)), &e));
}

/// What a client asks that shows such a certificate, and would take up its session again.
fn resuming_client(
    config: &TlsConfig,
    version: &'static SupportedProtocolVersion,
) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    let ca = CertificateDer::from_pem_file(config.trusted_ca.as_ref().unwrap()).unwrap();
    roots.add(ca).unwrap();
    let chain = vec![CertificateDer::from_pem_file(&config.cert).unwrap()];
    let key = PrivateKeyDer::from_pem_file(&config.key).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots);
    Arc::new(builder.with_client_auth_cert(chain, key).unwrap())
}

/// Asks over a new connection; how its handshake went.
fn handshake(config: &Arc<ClientConfig>, b: &Member) -> HandshakeKind {
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let connection = ClientConnection::new(Arc::clone(config), name).unwrap();
    let socket = TcpStream::connect(&b.address).unwrap();
    let mut stream = StreamOwned::new(connection, socket);
    let ask = b"GET /raft/probing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    stream.write_all(ask).unwrap();
    let mut answer = Vec::new();
    // Whether the end is said in TLS too does not matter here.
    let _end = stream.read_to_end(&mut answer);
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{answer:?}");
    stream.conn.handshake_kind().unwrap()
}

#[test]
fn a_certificate_is_looked_at_in_every_connection_and_no_session_is_taken_up_again() {
    let authority = Authority::new();
    let b = member(0xb, authority.config("b", LOCAL));
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        let client = resuming_client(&authority.config("a", LOCAL), version);
        for _ in 0..3 {
            assert_eq!(handshake(&client, &b), HandshakeKind::Full, "{version:?}");
        }
    }
}

#[test]
fn a_revoked_certificate_is_refused() {
    let authority = Authority::new();
    let revoking = TlsConfig {
        crl: Some(authority.revoke(2)),
        ..authority.config("b", LOCAL)
    };
    let b = member(0xb, revoking);
    let revoked = Names { serial: 2, ..LOCAL };
    assert!(!speak(&member(0xa, authority.config("a", revoked)), &b));
    assert!(speak(&member(0xc, authority.config("c", LOCAL)), &b));
}

#[test]
fn renewed_files_are_used_and_half_written_ones_are_not() {
    let authority = Authority::new();
    let elsewhere = Names {
        addresses: &[[10, 0, 0, 1]],
        ..LOCAL
    };
    let config = authority.config("b", elsewhere);
    let (cert, key) = (config.cert.clone(), config.key.clone());
    let b = member(0xb, config);
    let a = member(0xa, authority.config("a", LOCAL));
    assert!(!speak(&a, &b), "it is for another address");
    // Stamps of files are compared, so they must differ.
    let stamp = |path: &Path, seconds| {
        let file = std::fs::File::options().write(true).open(path).unwrap();
        let time = SystemTime::now() + Duration::from_secs(seconds);
        file.set_modified(time).unwrap();
    };
    authority.sign_into(LOCAL, &cert, &key);
    stamp(&cert, 1);
    a.reaches(&b);
    std::fs::write(&cert, "-----BEGIN CERTIFICATE-----\nMIIB").unwrap();
    stamp(&cert, 2);
    a.peers.remove_peer(b.id);
    assert!(speak(&a, &b), "the pair before stays in use");
}

#[test]
fn members_that_trust_anybody_need_no_authority() {
    let authority = Authority::new();
    let own = |file| TlsConfig {
        trusted_ca: None,
        client_cert_auth: false,
        insecure_skip_verify: true,
        ..authority.config(file, LOCAL)
    };
    assert!(speak(&member(0xa, own("a")), &member(0xb, own("b"))));
}

#[test]
fn members_speak_with_certificates_that_they_have_made_for_themselves() {
    let dir = tempfile::tempdir().unwrap();
    let own = |name: &str| {
        let files = make_own(&dir.path().join(name), &["127.0.0.1", "localhost"], 1).unwrap();
        TlsConfig {
            cert: files.cert,
            key: files.key,
            insecure_skip_verify: true,
            ..TlsConfig::default()
        }
    };
    let (a, b) = (own("a"), own("b"));
    assert_eq!(own("a"), a);
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&a.key), 0o600);
    assert_eq!(mode(&dir.path().join("a")), 0o700);
    let before = std::fs::read(&b.cert).unwrap();
    assert_ne!(std::fs::read(&a.cert).unwrap(), before);
    assert_eq!(own("b"), b);
    assert_eq!(std::fs::read(&b.cert).unwrap(), before, "it is made once");
    assert!(speak(&member(0xa, a), &member(0xb, b)));
    for years in [0, 1_001] {
        assert!(make_own(dir.path(), &[], years).is_err());
    }
}

#[test]
fn whoever_shows_no_certificate_or_speaks_no_tls_is_refused() {
    let authority = Authority::new();
    let b = member(0xb, authority.config("b", LOCAL));
    let answer = b.raw(b"GET /raft/probing HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(!answer.contains("HTTP/1.1 200"), "{answer}");
    let plain = Member::start(0xa);
    assert!(!speak(&plain, &b), "there is no TLS to dial with");
}

#[test]
fn what_cannot_work_is_refused_at_the_start() {
    let authority = Authority::new();
    let refused = |config: TlsConfig| match Tls::new(config) {
        Err(Error::Tls { text }) => text,
        other => panic!("{other:?}"),
    };
    let good = authority.config("a", LOCAL);
    assert!(refused(TlsConfig::default()).starts_with("KeyFile and CertFile must both be present"));
    let missing = TlsConfig {
        key: authority.path("none"),
        ..good.clone()
    };
    assert!(refused(missing).contains("none"));
    let both = TlsConfig {
        allowed_cns: vec!["a".to_owned()],
        allowed_hostnames: vec!["b".to_owned()],
        ..good.clone()
    };
    assert!(refused(both).contains("mutually exclusive"));
    let suite = TlsConfig {
        cipher_suites: vec!["TLS_NOTHING".to_owned()],
        ..good.clone()
    };
    assert!(refused(suite).contains("TLS_NOTHING"));
    let chosen = TlsConfig {
        cipher_suites: vec!["TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305".to_owned()],
        max_version: Some(TlsVersion::Tls12),
        ..good
    };
    let _: Arc<Tls> = Tls::new(chosen).unwrap();
}
