//! What is checked of a certificate besides its signature: its names, whether it was revoked, and where
//! it comes from.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::path::Path;

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::ParsedCertificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{CertificateRevocationList, FromDer as _, X509Certificate};

use super::verify::Allowed;
use super::{TlsConfig, of, words};

/// Checks the chain of whoever has connected. Reads files, and may ask the resolver.
pub(super) fn client(
    config: &TlsConfig,
    chain: &[CertificateDer<'_>],
    remote: Option<SocketAddr>,
) -> io::Result<()> {
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

fn refused(text: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, text.into())
}

fn parse<'a>(cert: &'a CertificateDer<'_>) -> io::Result<X509Certificate<'a>> {
    match X509Certificate::from_der(cert) {
        Ok((_, parsed)) => Ok(parsed),
        Err(error) => Err(refused(format!("x509: malformed certificate: {error}"))),
    }
}

/// Whether the common name or one of the alternative names is allowed.
pub(super) fn is_allowed(allowed: &Allowed, leaf: &CertificateDer<'_>) -> bool {
    if allowed.common_names.is_empty() {
        return allowed.hostnames.iter().any(|name| is_for(leaf, name));
    }
    let Ok(parsed) = parse(leaf) else {
        return false;
    };
    let common_name = last_common_name(&parsed);
    allowed.common_names.iter().any(|name| name == common_name)
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
    let (mut addresses, mut dns) = (Vec::new(), Vec::new());
    for name in names.iter().flat_map(|names| &names.value.general_names) {
        match name {
            GeneralName::IPAddress(bytes) => addresses.extend(address(bytes)),
            GeneralName::DNSName(name) => dns.push((*name).to_owned()),
            _ => {}
        }
    }
    if addresses.is_empty() && dns.is_empty() {
        return Ok(());
    }
    if !addresses.is_empty() && is_for(leaf, &remote.to_string()) {
        return Ok(());
    }
    if dns.is_empty() {
        let names = addresses.iter().map(IpAddr::to_string);
        return Err(refused(words::other_name(&remote.to_string(), names)));
    }
    if is_one_of(remote, &dns) {
        return Ok(());
    }
    Err(refused(format!(
        "tls: \"{remote}\" does not match any of DNSNames {dns:?}"
    )))
}

/// An address as certificates have it.
fn address(bytes: &[u8]) -> Option<IpAddr> {
    let four: Option<[u8; 4]> = bytes.try_into().ok();
    let sixteen: Option<[u8; 16]> = bytes.try_into().ok();
    four.map(IpAddr::from).or(sixteen.map(IpAddr::from))
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
