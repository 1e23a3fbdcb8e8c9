//! TLS towards other members and clients, from the configuration.

use std::path::PathBuf;
use std::sync::Arc;

use keelson_transport::Error;
use keelson_transport::tls::{self, Tls, TlsConfig, TlsVersion};
use tracing::{info, warn};

use crate::config::{Checked, TlsSettings};
use crate::url::Url;

/// TLS of both kinds; `None` where it is off.
#[derive(Clone)]
pub(crate) struct Both {
    pub(crate) peers: Option<Arc<Tls>>,
    pub(crate) clients: Option<Arc<Tls>>,
}

/// Reads all files that are named, and makes certificates where the member is to have its own.
///
/// # Errors
///
/// [`Error::Tls`]: files that cannot be used, or written.
pub(crate) fn of(config: &Checked) -> Result<Both, Error> {
    Ok(Both {
        peers: of_peers(config)?,
        clients: of_clients(config)?,
    })
}

fn of_peers(config: &Checked) -> Result<Option<Arc<Tls>>, Error> {
    let settings = &config.peer_tls;
    if !settings.is_on() {
        return Ok(None);
    }
    let tls = if is_own(settings, "ignoring peer auto TLS since certs given") {
        let own = own(config, "peer", &mut config.listen_peer_urls.iter())?;
        TlsConfig {
            // What others have made for themselves, nobody has signed.
            insecure_skip_verify: true,
            ..own
        }
    } else {
        given(config, settings)
    };
    info!(
        "cert-file" = %tls.cert.display(),
        "key-file" = %tls.key.display(),
        "trusted-ca-file" = %settings.trusted_ca_file.display(),
        "client-cert-auth" = tls.client_cert_auth,
        "starting with peer TLS"
    );
    Tls::new(tls).map(Some)
}

fn of_clients(config: &Checked) -> Result<Option<Arc<Tls>>, Error> {
    let settings = &config.client_tls;
    if !settings.is_on() {
        return Ok(None);
    }
    let tls = if is_own(settings, "ignoring client auto TLS since certs given") {
        if settings.client_cert_auth || !settings.trusted_ca_file.as_os_str().is_empty() {
            warn!("clients are asked for no certificate, because of --auto-tls");
        }
        let urls = config.listen_client_urls.iter();
        let mut urls = urls.chain(&config.listen_client_http_urls);
        own(config, "client", &mut urls)?
    } else {
        given(config, settings)
    };
    let tls = TlsConfig {
        // Clients may come from anywhere.
        skip_client_san_verification: true,
        // gRPC needs the first, plain HTTP may use either.
        alpn: vec![b"h2".to_vec(), b"http/1.1".to_vec()],
        ..tls
    };
    info!(
        "cert-file" = %tls.cert.display(),
        "key-file" = %tls.key.display(),
        "trusted-ca-file" = %settings.trusted_ca_file.display(),
        "client-cert-auth" = tls.client_cert_auth,
        "crl-file" = %settings.crl_file.display(),
        "starting with client TLS"
    );
    Tls::new(tls).map(Some)
}

/// Whether clients are their common names: they are asked for certificates, and can show them.
pub(crate) fn names_clients(settings: &TlsSettings) -> bool {
    settings.client_cert_auth && !settings.cert_file.as_os_str().is_empty()
}

/// Whether the member shows a certificate that it makes for itself.
fn is_own(settings: &TlsSettings, ignored: &str) -> bool {
    let is_given = !settings.cert_file.as_os_str().is_empty();
    if settings.auto_tls && is_given {
        warn!("{ignored}");
    }
    settings.auto_tls && !is_given
}

/// A certificate of the member's own, for the hosts of `urls`. As with etcd, it takes the place of all
/// other settings.
fn own(
    config: &Checked,
    kind: &str,
    urls: &mut dyn Iterator<Item = &Url>,
) -> Result<TlsConfig, Error> {
    let dir = config.data_dir.join("fixtures").join(kind);
    let dir = std::path::absolute(&dir).unwrap_or(dir);
    let hosts: Vec<&str> = urls.filter_map(Url::named_host).collect();
    let files = tls::make_own(&dir, &hosts, config.self_signed_cert_validity)?;
    Ok(TlsConfig {
        cert: files.cert,
        key: files.key,
        ..limits(config)
    })
}

fn given(config: &Checked, settings: &TlsSettings) -> TlsConfig {
    let file = |path: &PathBuf| (!path.as_os_str().is_empty()).then(|| path.clone());
    TlsConfig {
        cert: settings.cert_file.clone(),
        key: settings.key_file.clone(),
        client_identity: file(&settings.client_cert_file).zip(file(&settings.client_key_file)),
        trusted_ca: file(&settings.trusted_ca_file),
        client_cert_auth: settings.client_cert_auth,
        allowed_cns: settings.allowed_cn.clone(),
        allowed_hostnames: settings.allowed_hostname.clone(),
        crl: file(&settings.crl_file),
        skip_client_san_verification: settings.skip_client_san,
        ..limits(config)
    }
}

/// What holds for all TLS.
fn limits(config: &Checked) -> TlsConfig {
    let version = |text: &str| match text {
        "TLS1.2" => Some(TlsVersion::Tls12),
        "TLS1.3" => Some(TlsVersion::Tls13),
        _ => None,
    };
    TlsConfig {
        min_version: version(&config.tls_min_version),
        max_version: version(&config.tls_max_version),
        cipher_suites: config.cipher_suites.clone(),
        ..TlsConfig::default()
    }
}
