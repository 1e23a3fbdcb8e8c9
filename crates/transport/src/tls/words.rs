//! Errors of TLS in the words that etcd's log has for them, so that what looks for those finds ours.
//!
//! # Source
//!
//! `crypto/tls` and `crypto/x509` of Go: alerts by the names that it prints, and the errors of
//! certificates that operators meet.

use std::error::Error;
use std::io;

use rustls::{AlertDescription, CertificateError};

/// What is said of a certificate whose names are not among those that are allowed.
pub(super) const NOT_ALLOWED: &str = "client certificate authentication failed";

/// What tokio-rustls says where the other end goes away in the handshake.
const HANDSHAKE_EOF: &str = "tls handshake eof";

/// An error in Go's words where it is of TLS; `None` for any other.
pub(crate) fn of(error: &(dyn Error + 'static)) -> Option<String> {
    let io = error.downcast_ref::<io::Error>()?;
    if io.kind() == io::ErrorKind::UnexpectedEof && io.to_string() == HANDSHAKE_EOF {
        return Some("EOF".to_owned());
    }
    let inner = io.get_ref()?.downcast_ref::<rustls::Error>()?;
    Some(text(inner))
}

fn text(error: &rustls::Error) -> String {
    match error {
        rustls::Error::AlertReceived(alert) => format!("remote error: tls: {}", name(*alert)),
        rustls::Error::NoCertificatesPresented => {
            "tls: client didn't provide a certificate".to_owned()
        }
        rustls::Error::InvalidCertificate(error) => certificate(error),
        rustls::Error::InvalidMessage(_) => {
            "tls: first record does not look like a TLS handshake".to_owned()
        }
        other => format!("tls: {other}"),
    }
}

fn certificate(error: &CertificateError) -> String {
    let why = match error {
        // Nobody but the check of allowed names refuses a certificate without saying for which name.
        CertificateError::NotValidForName => return NOT_ALLOWED.to_owned(),
        CertificateError::UnknownIssuer => {
            "x509: certificate signed by unknown authority".to_owned()
        }
        CertificateError::NotValidForNameContext {
            expected,
            presented,
        } => other_name(&expected.to_str(), presented.iter().map(|name| bare(name))),
        CertificateError::Expired
        | CertificateError::ExpiredContext { .. }
        | CertificateError::NotValidYet
        | CertificateError::NotValidYetContext { .. } => {
            format!("x509: certificate has expired or is not yet valid: {error}")
        }
        other => format!("x509: {other}"),
    };
    format!("tls: failed to verify certificate: {why}")
}

/// `DnsName("a")` and `IpAddress(1.2.3.4)` without what is around the name.
fn bare(name: &str) -> String {
    let inner = name.split_once('(').map_or(name, |(_, inner)| inner);
    inner.trim_end_matches(')').trim_matches('"').to_owned()
}

/// That a certificate is for these names and no other.
pub(super) fn other_name(wanted: &str, names: impl Iterator<Item = String>) -> String {
    // Of a certificate's names only those of the kind that is wanted are told.
    let is_address = |name: &str| name.parse::<std::net::IpAddr>().is_ok();
    let same_kind = |name: &String| is_address(name) == is_address(wanted);
    let names: Vec<String> = names.filter(same_kind).collect();
    match names.as_slice() {
        [] if is_address(wanted) => format!(
            "x509: cannot validate certificate for {wanted} because it doesn't contain any IP SANs"
        ),
        [] => format!("x509: certificate is not valid for any names, but wanted to match {wanted}"),
        names => format!(
            "x509: certificate is valid for {}, not {wanted}",
            names.join(", ")
        ),
    }
}

/// An alert by its name.
fn name(alert: AlertDescription) -> String {
    let name = match alert {
        AlertDescription::CloseNotify => "close notify",
        AlertDescription::UnexpectedMessage => "unexpected message",
        AlertDescription::BadRecordMac => "bad record MAC",
        AlertDescription::RecordOverflow => "record overflow",
        AlertDescription::HandshakeFailure => "handshake failure",
        AlertDescription::BadCertificate => "bad certificate",
        AlertDescription::UnsupportedCertificate => "unsupported certificate",
        AlertDescription::CertificateRevoked => "revoked certificate",
        AlertDescription::CertificateExpired => "expired certificate",
        AlertDescription::CertificateUnknown => "unknown certificate",
        AlertDescription::IllegalParameter => "illegal parameter",
        AlertDescription::UnknownCA => "unknown certificate authority",
        AlertDescription::AccessDenied => "access denied",
        AlertDescription::DecodeError => "error decoding message",
        AlertDescription::DecryptError => "error decrypting message",
        AlertDescription::ProtocolVersion => "protocol version not supported",
        AlertDescription::InsufficientSecurity => "insufficient security level",
        AlertDescription::InternalError => "internal error",
        AlertDescription::UserCanceled => "user canceled",
        AlertDescription::MissingExtension => "missing extension",
        AlertDescription::UnsupportedExtension => "unsupported extension",
        AlertDescription::UnrecognisedName => "unrecognized name",
        AlertDescription::CertificateRequired => "certificate required",
        AlertDescription::NoApplicationProtocol => "no application protocol",
        other => return format!("alert({})", u8::from(other)),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(error: rustls::Error) -> Option<String> {
        of(&io::Error::new(io::ErrorKind::InvalidData, error))
    }

    #[test]
    fn alerts_of_the_other_end_are_named_as_go_does() {
        let alert = |alert| said(rustls::Error::AlertReceived(alert)).unwrap();
        assert_eq!(
            alert(AlertDescription::BadCertificate),
            "remote error: tls: bad certificate"
        );
        assert_eq!(
            alert(AlertDescription::Unknown(200)),
            "remote error: tls: alert(200)"
        );
    }

    #[test]
    fn an_end_within_the_handshake_is_an_end() {
        let error = io::Error::new(io::ErrorKind::UnexpectedEof, HANDSHAKE_EOF);
        assert_eq!(of(&error).unwrap(), "EOF");
    }

    #[test]
    fn what_is_no_error_of_tls_keeps_its_words() {
        assert_eq!(of(&io::Error::other("gone")), None);
        assert_eq!(of(&std::fmt::Error), None);
    }

    #[test]
    fn a_certificate_for_others_is_told_by_its_names_of_the_same_kind() {
        let names = || {
            ["a.example", "10.0.0.1", "::1"]
                .map(str::to_owned)
                .into_iter()
        };
        assert_eq!(
            other_name("127.0.0.1", names()),
            "x509: certificate is valid for 10.0.0.1, ::1, not 127.0.0.1"
        );
        assert_eq!(
            other_name("b.example", names()),
            "x509: certificate is valid for a.example, not b.example"
        );
        assert_eq!(
            other_name("127.0.0.1", names().take(1)),
            "x509: cannot validate certificate for 127.0.0.1 because it doesn't contain any IP SANs"
        );
        assert_eq!(bare("DnsName(\"a.example\")"), "a.example");
        assert_eq!(bare("IpAddress(127.0.0.1)"), "127.0.0.1");
    }
}
