//! Certificates for members, made by an authority of the test's own.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use keelson_harness::Launch;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, Error, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};
use tempfile::TempDir;

/// What a certificate says of its owner.
#[derive(Clone, Copy, Debug)]
pub struct Names<'a> {
    /// Its common name.
    pub common: &'a str,
    /// Host names that it is for.
    pub hosts: &'a [&'a str],
    /// Addresses that it is for.
    pub addresses: &'a [Ipv4Addr],
}

impl Names<'static> {
    /// For the address that tests run on.
    #[must_use]
    pub fn local(common: &'static str) -> Names<'static> {
        Names {
            common,
            hosts: &[],
            addresses: &[Ipv4Addr::LOCALHOST],
        }
    }
}

/// Signs certificates, and keeps the files.
pub struct Authority {
    dir: TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    /// # Errors
    /// If there is no directory for its files, or no key.
    pub fn new() -> std::io::Result<Authority> {
        let mut params = CertificateParams::default();
        // All authorities have the same name: what tells them apart is their key alone.
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = KeyPair::generate()
            .and_then(|key| CertifiedIssuer::self_signed(params, key))
            .map_err(std::io::Error::other)?;
        let dir = tempfile::tempdir()?;
        fs::write(dir.path().join("ca.pem"), issuer.pem())?;
        Ok(Authority { dir, issuer })
    }

    /// Its own certificate.
    #[must_use]
    pub fn certificate(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// Signs a certificate into `NAME.crt`, and its key into `NAME.key`; those that are there are
    /// replaced.
    ///
    /// # Errors
    /// If the names are none, or the files cannot be written.
    pub fn sign(&self, name: &str, names: Names<'_>) -> std::io::Result<(PathBuf, PathBuf)> {
        let (certificate, key) = self.make(names).map_err(std::io::Error::other)?;
        let (cert_file, key_file) = (self.file(name, "crt"), self.file(name, "key"));
        replace(&key_file, &key)?;
        replace(&cert_file, &certificate)?;
        Ok((cert_file, key_file))
    }

    fn file(&self, name: &str, kind: &str) -> PathBuf {
        self.dir.path().join(format!("{name}.{kind}"))
    }

    fn make(&self, names: Names<'_>) -> Result<(String, String), Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name.remove(DnType::CommonName);
        params
            .distinguished_name
            .push(DnType::CommonName, names.common);
        for host in names.hosts {
            let host = SanType::DnsName((*host).try_into()?);
            params.subject_alt_names.push(host);
        }
        for address in names.addresses {
            let address = SanType::IpAddress((*address).into());
            params.subject_alt_names.push(address);
        }
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok((certificate.pem(), key.serialize_pem()))
    }

    /// A member that shows this certificate of the authority's, and wants others to show one.
    ///
    /// # Errors
    /// As [`Authority::sign`].
    pub fn secure(&self, launch: Launch, name: &str, names: Names<'_>) -> std::io::Result<Launch> {
        let (cert, key) = self.sign(name, names)?;
        let flag = |flag: &str, file: &Path| format!("--{flag}={}", file.display());
        Ok(launch
            .peers_over_tls()
            .argument(flag("peer-cert-file", &cert))
            .argument(flag("peer-key-file", &key))
            .argument(flag("peer-trusted-ca-file", &self.certificate()))
            .argument("--peer-client-cert-auth"))
    }
}

/// Writes a file so that nobody reads half of it.
fn replace(path: &Path, text: &str) -> std::io::Result<()> {
    let temporary = path.with_extension("new");
    fs::write(&temporary, text)?;
    fs::rename(&temporary, path)
}
