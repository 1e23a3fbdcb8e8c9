//! TLS between members and with clients, as it is asked for: files and rules, nothing read yet.

use std::path::PathBuf;

use tracing::warn;

use super::{Config, ConfigError, quote};
use crate::url::Url;

/// Settings of TLS towards other members (`peer-transport-security`), or towards clients
/// (`client-transport-security`), whose flags have no `peer-` before them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsSettings {
    /// `peer-cert-file`: the certificate that is shown to others, who dial here.
    pub cert_file: PathBuf,
    /// `peer-key-file`: its key.
    pub key_file: PathBuf,
    /// `peer-client-cert-file`: the certificate to dial others with; empty: `cert_file`.
    pub client_cert_file: PathBuf,
    /// `peer-client-key-file`: its key.
    pub client_key_file: PathBuf,
    /// `peer-client-cert-auth`: who dials must show a certificate. A client's common name is then its
    /// user, where it shows no token.
    pub client_cert_auth: bool,
    /// `peer-trusted-ca-file`: whom certificates must be from. With it, who dials must show one.
    pub trusted_ca_file: PathBuf,
    /// `peer-crl-file`, `client-crl-file`: certificates that count no more.
    pub crl_file: PathBuf,
    /// `peer-cert-allowed-cn`: common names, one of which a certificate must carry. Not for clients.
    pub allowed_cn: Vec<String>,
    /// `peer-cert-allowed-hostname`, `client-cert-allowed-hostname`: host names, one of which a
    /// certificate must be for.
    pub allowed_hostname: Vec<String>,
    /// `peer-skip-client-san-verification`: the address of who dials need not be in its certificate;
    /// clients are never asked for that.
    pub skip_client_san: bool,
    /// `peer-auto-tls`: the member makes a certificate for itself, where `cert_file` is not set.
    pub auto_tls: bool,
}

impl TlsSettings {
    /// Whether TLS is spoken because of these settings: a certificate is there, or will be made.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.auto_tls || !self.cert_file.as_os_str().is_empty()
    }

    /// What cannot be meant, in the texts of etcd, which finds it when it builds its TLS.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let half = |cert: &PathBuf, key: &PathBuf| {
            let is_half = cert.as_os_str().is_empty() != key.as_os_str().is_empty();
            is_half.then(|| (cert.display().to_string(), key.display().to_string()))
        };
        if let Some((cert, key)) = half(&self.cert_file, &self.key_file) {
            return Err(ConfigError::HalfKeyPair { cert, key });
        }
        if let Some((cert, key)) = half(&self.client_cert_file, &self.client_key_file) {
            return Err(ConfigError::HalfClientKeyPair { cert, key });
        }
        if !self.allowed_cn.is_empty() && !self.allowed_hostname.is_empty() {
            return Err(ConfigError::TwoAllowed {
                cns: listed(&self.allowed_cn),
                hostnames: listed(&self.allowed_hostname),
            });
        }
        Ok(())
    }
}

/// A list as Go prints it with `%q`.
fn listed(names: &[String]) -> String {
    let names: Vec<String> = names.iter().map(|name| quote(name)).collect();
    format!("[{}]", names.join(" "))
}

/// Versions and ciphers of TLS that can be asked for, on every port.
pub(super) fn check_versions(config: &Config) -> Result<(), ConfigError> {
    let (min, max) = (&config.tls_min_version, &config.tls_max_version);
    for version in [min, max] {
        if !["", "TLS1.2", "TLS1.3"].contains(&version.as_str()) {
            return Err(ConfigError::TlsVersion(version.clone()));
        }
    }
    if !max.is_empty() && min > max {
        return Err(ConfigError::TlsOrder {
            min: min.clone(),
            max: max.clone(),
        });
    }
    if min == "TLS1.3" && !config.cipher_suites.is_empty() {
        return Err(ConfigError::CipherSuites);
    }
    config.peer_tls.check()?;
    config.client_tls.check()?;
    check_client_urls(config)
}

/// `https` needs a certificate, and `http` leaves one without use.
fn check_client_urls(config: &Config) -> Result<(), ConfigError> {
    let tls = &config.client_tls;
    let urls = config.listen_client_urls.iter();
    for url in urls.chain(&config.listen_client_http_urls) {
        if url.is_tls() {
            if !tls.is_on() {
                return Err(ConfigError::NoClientCertificate(url.to_string()));
            }
            continue;
        }
        if tls.is_on() {
            warn!(
                "client-url" = %url,
                "scheme is http or unix while key and cert files are present; ignoring key and cert \
                 files"
            );
        }
        if tls.client_cert_auth {
            warn!(
                "client-url" = %url,
                "scheme is http or unix while --client-cert-auth is enabled; ignoring client cert \
                 auth for this URL"
            );
        }
    }
    if config.listen_metrics_urls.iter().any(Url::is_tls) && !tls.is_on() {
        return Err(ConfigError::NoMetricsCertificate);
    }
    Ok(())
}
