//! TLS towards other members, from the configuration.

use std::path::PathBuf;
use std::sync::Arc;

use keelson_transport::tls::{Tls, TlsConfig, TlsVersion};

use crate::config::Checked;

/// TLS as it is configured; `None` where it is off.
///
/// # Errors
///
/// [`keelson_transport::Error::Tls`]: files that cannot be used.
pub(crate) fn of(config: &Checked) -> Result<Option<Arc<Tls>>, keelson_transport::Error> {
    let peer = &config.peer_tls;
    if !peer.is_on() {
        return Ok(None);
    }
    let given = |path: &PathBuf| (!path.as_os_str().is_empty()).then(|| path.clone());
    let version = |text: &str| match text {
        "TLS1.2" => Some(TlsVersion::Tls12),
        "TLS1.3" => Some(TlsVersion::Tls13),
        _ => None,
    };
    let tls = TlsConfig {
        cert: peer.cert_file.clone(),
        key: peer.key_file.clone(),
        client_identity: given(&peer.client_cert_file).zip(given(&peer.client_key_file)),
        trusted_ca: given(&peer.trusted_ca_file),
        client_cert_auth: peer.client_cert_auth,
        allowed_cns: peer.allowed_cn.clone(),
        allowed_hostnames: peer.allowed_hostname.clone(),
        crl: given(&peer.crl_file),
        skip_client_san_verification: peer.skip_client_san,
        insecure_skip_verify: false,
        min_version: version(&config.tls_min_version),
        max_version: version(&config.tls_max_version),
        cipher_suites: config.cipher_suites.clone(),
        alpn: Vec::new(),
    };
    tracing::info!(
        "cert-file" = %peer.cert_file.display(),
        "key-file" = %peer.key_file.display(),
        "trusted-ca-file" = %peer.trusted_ca_file.display(),
        "client-cert-auth" = peer.client_cert_auth,
        "starting with peer TLS"
    );
    Tls::new(tls).map(Some)
}
