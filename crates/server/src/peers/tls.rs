//! TLS towards other members, from the configuration.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use keelson_transport::tls::{OwnFiles, Tls, TlsConfig, TlsVersion, own_certificate};

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
    let own = own_files(config)?;
    let (cert, key) = match &own {
        Some(own) => (own.cert.clone(), own.key.clone()),
        None => (peer.cert_file.clone(), peer.key_file.clone()),
    };
    let given = |path: &PathBuf| (!path.as_os_str().is_empty()).then(|| path.clone());
    let version = |text: &str| match text {
        "TLS1.2" => Some(TlsVersion::Tls12),
        "TLS1.3" => Some(TlsVersion::Tls13),
        _ => None,
    };
    let tls = TlsConfig {
        cert,
        key,
        client_identity: given(&peer.client_cert_file).zip(given(&peer.client_key_file)),
        trusted_ca: given(&peer.trusted_ca_file),
        client_cert_auth: peer.client_cert_auth,
        allowed_cns: peer.allowed_cn.clone(),
        allowed_hostnames: peer.allowed_hostname.clone(),
        crl: given(&peer.crl_file),
        skip_client_san_verification: peer.skip_client_san,
        // Nobody else has signed what members make for themselves.
        insecure_skip_verify: own.is_some(),
        min_version: version(&config.tls_min_version),
        max_version: version(&config.tls_max_version),
        cipher_suites: config.cipher_suites.clone(),
        alpn: Vec::new(),
    };
    tracing::info!(
        "cert-file" = %tls.cert.display(),
        "key-file" = %tls.key.display(),
        "trusted-ca-file" = %peer.trusted_ca_file.display(),
        "client-cert-auth" = peer.client_cert_auth,
        "starting with peer TLS"
    );
    Tls::new(tls).map(Some)
}

/// The certificate that the member makes for itself, if it is to: `--peer-auto-tls`, and none is given.
///
/// # Errors
///
/// [`keelson_transport::Error::Tls`]: it cannot be made.
fn own_files(config: &Checked) -> Result<Option<OwnFiles>, keelson_transport::Error> {
    let peer = &config.peer_tls;
    if !peer.auto_tls {
        return Ok(None);
    }
    if !peer.cert_file.as_os_str().is_empty() {
        tracing::warn!("ignoring peer auto TLS since certs given");
        return Ok(None);
    }
    let urls = config.listen_peer_urls.iter();
    let hosts: Vec<String> = urls
        .filter_map(|url| url.host())
        .map(str::to_owned)
        .collect();
    let dir = config.data_dir.join("fixtures").join("peer");
    let years = config.self_signed_cert_validity;
    own_certificate(&dir, &hosts, SystemTime::now(), years).map(Some)
}
