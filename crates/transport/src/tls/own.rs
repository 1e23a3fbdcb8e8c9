//! A certificate that a member makes for itself (`--peer-auto-tls`), and finds again when it starts
//! anew. It encrypts; it proves nothing, since nobody but its owner has signed it.
//!
//! # Source
//!
//! `SelfCert` in `client/pkg/transport/listener.go` of etcd 3.7: the same file names, key, subject,
//! usages and log lines, so that a directory goes both ways.

use std::fs;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, SanType,
};

use super::of;
use crate::{Error, clock};

const DAY: Duration = Duration::from_secs(86_400);
const YEAR_DAYS: u32 = 365;

/// The files of a member's own certificate and key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnFiles {
    /// The certificate, PEM.
    pub cert: PathBuf,
    /// Its key, PEM.
    pub key: PathBuf,
}

/// The certificate of a directory, which is made with it if there is none: for `hosts`, names or
/// addresses, from `now` on for so many years of 365 days. One that is there is taken as it is.
///
/// # Errors
///
/// [`Error::Tls`]: zero years, a name that no certificate can be for, a directory or a file that
/// cannot be written.
pub fn own_certificate(
    dir: &Path,
    hosts: &[String],
    now: SystemTime,
    years: u32,
) -> Result<OwnFiles, Error> {
    if years == 0 {
        return Err(Error::Tls {
            text: "selfSignedCertValidity is invalid,it should be greater than 0".to_owned(),
        });
    }
    make(dir, hosts, now, years).map_err(|error| Error::Tls {
        text: error.to_string(),
    })
}

fn make(dir: &Path, hosts: &[String], now: SystemTime, years: u32) -> io::Result<OwnFiles> {
    let dir = std::path::absolute(dir)?;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&dir)
        .map_err(|error| of(&dir, error))?;
    let files = OwnFiles {
        cert: dir.join("cert.pem"),
        key: dir.join("key.pem"),
    };
    if files.cert.exists() && files.key.exists() {
        return Ok(files);
    }
    let until = now + DAY * (YEAR_DAYS.saturating_mul(years));
    tracing::warn!(
        "certificate-validity-bound-not-after" = clock::format(until),
        "automatically generate certificates"
    );
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P521_SHA512).map_err(io::Error::other)?;
    let certificate = params(hosts, now, until)
        .and_then(|params| params.self_signed(&key))
        .map_err(io::Error::other)?;
    write(&files.cert, 0o644, &certificate.pem())?;
    tracing::info!(path = %files.cert.display(), "created cert file");
    // Last: a start that finds one file without the other makes both anew.
    write(&files.key, 0o600, &key.serialize_pem())?;
    tracing::info!(path = %files.key.display(), "created key file");
    Ok(files)
}

fn params(
    hosts: &[String],
    now: SystemTime,
    until: SystemTime,
) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.not_before = now.into();
    params.not_after = until.into();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::OrganizationName, "etcd");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![
        KeyUsagePurpose::KeyEncipherment,
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::CrlSign,
    ];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    for host in hosts {
        let name = match host.parse::<IpAddr>() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName(host.as_str().try_into()?),
        };
        params.subject_alt_names.push(name);
    }
    Ok(params)
}

/// Writes a file so that it is there whole or not at all.
fn write(path: &Path, mode: u32, text: &str) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&temporary)
        .map_err(|error| of(&temporary, error))?;
    file.write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(&temporary, path))
        .map_err(|error| of(path, error))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::time::UNIX_EPOCH;

    use x509_parser::prelude::{FromDer as _, X509Certificate};

    use super::*;

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    fn hosts() -> Vec<String> {
        ["127.0.0.1", "::1", "m1.example"].map(str::to_owned).into()
    }

    #[test]
    fn a_certificate_is_for_its_hosts_and_as_long_as_is_asked() {
        let dir = tempfile::tempdir().unwrap();
        let files = own_certificate(&dir.path().join("a/b"), &hosts(), now(), 3).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&files.key), 0o600);
        assert_eq!(mode(files.key.parent().unwrap()), 0o700);
        let pem = fs::read(&files.cert).unwrap();
        let (_, pem) = x509_parser::pem::parse_x509_pem(&pem).unwrap();
        let (_, cert) = X509Certificate::from_der(&pem.contents).unwrap();
        assert_eq!(cert.subject().to_string(), "O=etcd");
        assert!(cert.is_ca());
        let names = cert.subject_alternative_name().unwrap().unwrap();
        assert_eq!(names.value.general_names.len(), 3);
        let validity = cert.validity();
        let length = validity.not_after.timestamp() - validity.not_before.timestamp();
        assert_eq!(validity.not_before.timestamp(), 1_800_000_000);
        assert_eq!(length, 3 * 365 * 86_400);
    }

    #[test]
    fn one_that_is_there_is_kept_and_half_of_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let make = || own_certificate(dir.path(), &hosts(), now(), 1).unwrap();
        let files = make();
        let read = || {
            (
                fs::read(&files.cert).unwrap(),
                fs::read(&files.key).unwrap(),
            )
        };
        let first = read();
        assert_eq!(make(), files);
        assert_eq!(read(), first);
        fs::remove_file(&files.key).unwrap();
        make();
        let second = read();
        assert!(second.0 != first.0 && second.1 != first.1);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn no_time_at_all_and_no_name_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let none = own_certificate(dir.path(), &hosts(), now(), 0).unwrap_err();
        assert!(none.to_string().contains("greater than 0"), "{none}");
        let bad = own_certificate(dir.path(), &["ü".to_owned()], now(), 1);
        assert!(bad.is_err(), "{bad:?}");
    }
}
