//! Certificates that a member makes for itself, as etcd's automatic TLS does: files, names and kind of
//! key are the same, and a member of etcd takes ours over, as we take its.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P521_SHA512, SanType,
};

use super::of;
use crate::{Error, clock};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// The longest that a certificate is made for, in years: times past the year 9999 cannot be written.
const YEARS_MAX: u32 = 1_000;

/// A certificate and its key, both PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnFiles {
    /// The certificate.
    pub cert: PathBuf,
    /// The key.
    pub key: PathBuf,
}

/// The certificate in `dir`, which is made where it is not there yet: signed by itself, for `hosts`
/// (names and addresses), valid for `years` from now.
///
/// # Errors
///
/// [`Error::Tls`]: a directory that cannot be written to, a host that no certificate can be for, no
/// years or more than 1,000.
pub fn make_own(dir: &Path, hosts: &[&str], years: u32) -> Result<OwnFiles, Error> {
    make(dir, hosts, years).map_err(|error| Error::Tls {
        text: error.to_string(),
    })
}

fn make(dir: &Path, hosts: &[&str], years: u32) -> io::Result<OwnFiles> {
    if !(1..=YEARS_MAX).contains(&years) {
        let text = format!("a certificate is valid for 1 to {YEARS_MAX} years, not for {years}");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    let files = OwnFiles {
        cert: dir.join("cert.pem"),
        key: dir.join("key.pem"),
    };
    if files.cert.exists() && files.key.exists() {
        return Ok(files);
    }
    let mut builder = DirBuilder::new();
    let created = builder.recursive(true).mode(0o700).create(dir);
    created.map_err(|error| of(dir, error))?;
    let not_after = SystemTime::now() + years * 365 * DAY;
    tracing::warn!(
        "certificate-validity-bound-not-after" = clock::format(not_after),
        "automatically generate certificates"
    );
    let key = KeyPair::generate_for(&PKCS_ECDSA_P521_SHA512).map_err(io::Error::other)?;
    let cert = params(hosts, not_after).and_then(|params| params.self_signed(&key));
    let cert = cert.map_err(io::Error::other)?;
    // One that is left without its key must not be taken for the certificate of the new one, should
    // this end between the two.
    remove_if_there(&files.cert)?;
    write(&files.key, &key.serialize_pem())?;
    tracing::info!(path = %files.key.display(), "created key file");
    write(&files.cert, &cert.pem())?;
    tracing::info!(path = %files.cert.display(), "created cert file");
    Ok(files)
}

fn params(hosts: &[&str], not_after: SystemTime) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::OrganizationName, "etcd");
    for host in hosts {
        params.subject_alt_names.push(match host.parse::<IpAddr>() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName((*host).try_into()?),
        });
    }
    params.not_before = SystemTime::now().into();
    params.not_after = not_after.into();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![
        KeyUsagePurpose::KeyEncipherment,
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::CrlSign,
    ];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    Ok(params)
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(of(path, error)),
        _ => Ok(()),
    }
}

/// Writes a file that is there whole or not at all, and that nobody else may read.
fn write(path: &Path, text: &str) -> io::Result<()> {
    let unfinished = path.with_extension("tmp");
    // What is left of an earlier attempt may have another mode.
    remove_if_there(&unfinished)?;
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&unfinished)
        .and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        })
        .and_then(|()| std::fs::rename(&unfinished, path));
    written.map_err(|error| of(path, error))
}
