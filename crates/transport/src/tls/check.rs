//! What is checked of a certificate after the handshake: its names, and whether it was revoked.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::path::Path;

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::ParsedCertificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{CertificateRevocationList, FromDer as _, X509Certificate};

use super::{TlsConfig, of};

/// Checks the chain of whoever has connected. Reads files, and may ask the resolver.
pub(super) fn client(
    config: &TlsConfig,
    chain: &[CertificateDer<'_>],
    remote: Option<SocketAddr>,
) -> io::Result<()> {
    allowed(config, chain)?;
    if let Some(crl) = &config.crl {
        not_revoked(crl, chain)?;
    }
    match (remote, chain.first()) {
        (Some(remote), Some(leaf)) if !config.skip_client_san_verification => {
            comes_from_its_name(leaf, remote.ip().to_canonical())
        }
        _ => Ok(()),
    }
}

/// Checks the chain of a server that we have connected to.
pub(super) fn server(config: &TlsConfig, chain: &[CertificateDer<'_>]) -> io::Result<()> {
    let restricted = !config.allowed_cns.is_empty() || !config.allowed_hostnames.is_empty();
    if restricted && config.insecure_skip_verify {
        // Nobody has looked at who signed it, so its names say nothing.
        return Err(refused(NOT_ALLOWED));
    }
    allowed(config, chain)
}

const NOT_ALLOWED: &str = "client certificate authentication failed";

fn refused(text: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, text.into())
}

fn parse<'a>(cert: &'a CertificateDer<'_>) -> io::Result<X509Certificate<'a>> {
    match X509Certificate::from_der(cert) {
        Ok((_, parsed)) => Ok(parsed),
        Err(error) => Err(refused(format!("x509: malformed certificate: {error}"))),
    }
}

/// The common name or one of the alternative names must be allowed.
fn allowed(config: &TlsConfig, chain: &[CertificateDer<'_>]) -> io::Result<()> {
    if config.allowed_cns.is_empty() && config.allowed_hostnames.is_empty() {
        return Ok(());
    }
    let leaf = chain.first().ok_or_else(|| refused(NOT_ALLOWED))?;
    let fits = if config.allowed_cns.is_empty() {
        config
            .allowed_hostnames
            .iter()
            .any(|name| is_for(leaf, name))
    } else {
        let parsed = parse(leaf)?;
        let common_name = last_common_name(&parsed);
        config.allowed_cns.iter().any(|name| name == common_name)
    };
    if fits {
        Ok(())
    } else {
        Err(refused(NOT_ALLOWED))
    }
}

/// The common name of a certificate, if it has one.
pub(super) fn common_name(cert: &CertificateDer<'_>) -> Option<String> {
    let parsed = parse(cert).ok()?;
    let name = last_common_name(&parsed);
    (!name.is_empty()).then(|| name.to_owned())
}

/// Of several the last, as with Go; empty where there is none that is text.
fn last_common_name<'a>(cert: &'a X509Certificate<'_>) -> &'a str {
    let name = cert.subject().iter_common_name().last();
    name.and_then(|name| name.as_str().ok()).unwrap_or_default()
}

/// Whether a certificate is for a name or an address.
fn is_for(cert: &CertificateDer<'_>, name: &str) -> bool {
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    match (
        ServerName::try_from(bare),
        ParsedCertificate::try_from(cert),
    ) {
        (Ok(name), Ok(cert)) => rustls::client::verify_server_name(&cert, &name).is_ok(),
        _ => false,
    }
}

/// No certificate of the chain may stand on the list.
fn not_revoked(list: &Path, chain: &[CertificateDer<'_>]) -> io::Result<()> {
    let bytes = std::fs::read(list).map_err(|error| of(list, error))?;
    let der = match x509_parser::pem::parse_x509_pem(&bytes) {
        Ok((_, pem)) => pem.contents,
        Err(_) => bytes,
    };
    let (_, parsed) = CertificateRevocationList::from_der(&der).map_err(|error| of(list, error))?;
    for cert in chain {
        let cert = parse(cert)?;
        let serial = number(cert.raw_serial());
        let mut revoked = parsed.iter_revoked_certificates();
        if revoked.any(|revoked| number(revoked.raw_serial()) == serial) {
            let hex: String = serial.iter().map(|byte| format!("{byte:02x}")).collect();
            return Err(refused(format!(
                "transport: certificate serial {hex} revoked"
            )));
        }
    }
    Ok(())
}

/// A serial number without the zeros before it.
fn number(serial: &[u8]) -> &[u8] {
    let zeros = serial.iter().take_while(|byte| **byte == 0).count();
    serial.get(zeros..).unwrap_or_default()
}

/// A certificate with alternative names must be for the address it is shown from, directly or
/// through a name that the resolver knows for it.
fn comes_from_its_name(leaf: &CertificateDer<'_>, remote: IpAddr) -> io::Result<()> {
    let parsed = parse(leaf)?;
    let names = parsed
        .subject_alternative_name()
        .map_err(|error| refused(error.to_string()))?;
    let (mut addresses, mut dns) = (0, Vec::new());
    for name in names.iter().flat_map(|names| &names.value.general_names) {
        match name {
            GeneralName::IPAddress(_) => addresses += 1,
            GeneralName::DNSName(name) => dns.push((*name).to_owned()),
            _ => {}
        }
    }
    if addresses == 0 && dns.is_empty() {
        return Ok(());
    }
    if addresses > 0 && is_for(leaf, &remote.to_string()) {
        return Ok(());
    }
    if dns.is_empty() {
        return Err(refused(format!(
            "x509: certificate is not valid for {remote}"
        )));
    }
    if is_one_of(remote, &dns) {
        return Ok(());
    }
    Err(refused(format!(
        "tls: \"{remote}\" does not match any of DNSNames {dns:?}"
    )))
}

/// Whether the resolver knows the address under one of these names.
fn is_one_of(remote: IpAddr, dns: &[String]) -> bool {
    if let Ok(found) = dns_lookup::lookup_addr(&remote) {
        let found = found.trim_end_matches('.');
        let known = |name: &String| match name.strip_prefix('*') {
            Some(suffix) if suffix.starts_with('.') => found.ends_with(suffix),
            _ => found == name,
        };
        if dns.iter().any(known) {
            return true;
        }
    }
    let plain = dns.iter().filter(|name| !name.starts_with("*."));
    plain
        .filter_map(|name| (name.as_str(), 0).to_socket_addrs().ok())
        .flatten()
        .any(|address| address.ip().to_canonical() == remote)
}
