//! Where a server is, and the authority that requests to it carry.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use http::Uri;

use crate::Error;

/// The authority of requests that go through a unix socket (api.md 8.3).
const UNIX_AUTHORITY: &str = "localhost";

/// An address of a server.
///
/// Written as `http://host:port`, `https://host:port`, `host:port`, `unix:///absolute/path`,
/// `unix://relative/path` or `unix:path`, and the last three also with `unixs`. `http` is never
/// encrypted, `https` and `unixs` always are, the others are if the client has options of TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub(crate) target: Target,
    pub(crate) security: Security,
}

/// Whether a connection is encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Security {
    Never,
    /// If the client has options of TLS.
    Optional,
    Always,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// `host:port`; the host may be a name.
    Tcp(String),
    /// The path of a socket.
    Unix(PathBuf),
}

impl Endpoint {
    /// Scheme and authority of requests: the host and port as written, `localhost` for a socket.
    pub(crate) fn origin(&self, encrypted: bool) -> Result<Uri, Error> {
        let authority = match &self.target {
            Target::Tcp(address) => address,
            Target::Unix(_) => UNIX_AUTHORITY,
        };
        Uri::builder()
            .scheme(if encrypted { "https" } else { "http" })
            .authority(authority)
            .path_and_query("/")
            .build()
            .map_err(|_| refused(authority, "not a host and port"))
    }

    /// The name that a certificate must be for: the host without port and brackets.
    pub(crate) fn host(&self) -> &str {
        match &self.target {
            Target::Tcp(address) => address
                .rsplit_once(':')
                .map_or(address.as_str(), |(host, _)| host)
                .trim_start_matches('[')
                .trim_end_matches(']'),
            Target::Unix(_) => UNIX_AUTHORITY,
        }
    }

    /// The endpoints of a list with commas between, as `--endpoints` takes it.
    ///
    /// # Errors
    /// [`Error::Endpoint`] if there is none, or one of them cannot be understood.
    pub fn list(text: &str) -> Result<Vec<Endpoint>, Error> {
        text.split(',').map(|one| one.trim().parse()).collect()
    }

    fn socket(text: &str, path: &str, security: Security) -> Result<Endpoint, Error> {
        let path = path.strip_prefix("//").unwrap_or(path);
        if path.is_empty() {
            return Err(refused(text, "no path of a socket"));
        }
        Ok(Endpoint {
            target: Target::Unix(PathBuf::from(path)),
            security,
        })
    }
}

impl FromStr for Endpoint {
    type Err = Error;

    fn from_str(text: &str) -> Result<Endpoint, Error> {
        if let Some(path) = text.strip_prefix("unix:") {
            return Endpoint::socket(text, path, Security::Optional);
        }
        if let Some(path) = text.strip_prefix("unixs:") {
            return Endpoint::socket(text, path, Security::Always);
        }
        let (address, security) = match text.split_once("://") {
            None => (text, Security::Optional),
            Some(("http", address)) => (address, Security::Never),
            Some(("https", address)) => (address, Security::Always),
            Some(_) => {
                return Err(refused(
                    text,
                    "the scheme must be http, https, unix or unixs",
                ));
            }
        };
        let address = match security {
            Security::Optional => address,
            Security::Never | Security::Always => address.strip_suffix('/').unwrap_or(address),
        };
        let (host, port) = address
            .rsplit_once(':')
            .ok_or_else(|| refused(text, "no port"))?;
        if host.is_empty() || host.contains('/') || host.contains('@') {
            return Err(refused(text, "not a host and port"));
        }
        if port.parse::<u16>().is_err() {
            return Err(refused(text, "the port must be a number below 65536"));
        }
        let endpoint = Endpoint {
            target: Target::Tcp(address.to_owned()),
            security,
        };
        endpoint.origin(false)?;
        Ok(endpoint)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = if self.security == Security::Always {
            "s"
        } else {
            ""
        };
        match &self.target {
            Target::Tcp(address) => write!(f, "http{s}://{address}"),
            Target::Unix(path) if path.is_absolute() => write!(f, "unix{s}://{}", path.display()),
            Target::Unix(path) => write!(f, "unix{s}:{}", path.display()),
        }
    }
}

fn refused(endpoint: &str, reason: &'static str) -> Error {
    Error::Endpoint {
        endpoint: endpoint.to_owned(),
        reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> (String, String) {
        let endpoint: Endpoint = text.parse().unwrap();
        let origin = endpoint
            .origin(endpoint.security == Security::Always)
            .unwrap();
        (endpoint.to_string(), origin.to_string())
    }

    #[test]
    fn hosts_are_their_own_authority_and_sockets_are_localhost() {
        for (text, endpoint, origin) in [
            (
                "http://127.0.0.1:2379",
                "http://127.0.0.1:2379",
                "http://127.0.0.1:2379/",
            ),
            (
                "http://etcd.local:1/",
                "http://etcd.local:1",
                "http://etcd.local:1/",
            ),
            ("[::1]:2379", "http://[::1]:2379", "http://[::1]:2379/"),
            (
                "unix:///run/e.sock",
                "unix:///run/e.sock",
                "http://localhost/",
            ),
            ("unix://e.sock:1", "unix:e.sock:1", "http://localhost/"),
            ("https://h:1/", "https://h:1", "https://h:1/"),
            ("unixs:e.sock", "unixs:e.sock", "https://localhost/"),
            ("unix:e.sock", "unix:e.sock", "http://localhost/"),
        ] {
            assert_eq!(
                parsed(text),
                (endpoint.to_owned(), origin.to_owned()),
                "{text}"
            );
        }
    }

    #[test]
    fn what_cannot_be_connected_to_is_refused_with_the_reason() {
        for (text, reason) in [
            ("ftp://h:1", "the scheme must be http, https, unix or unixs"),
            ("", "no port"),
            ("unixs://", "no path of a socket"),
            ("http://h", "no port"),
            ("http://h:x", "the port must be a number below 65536"),
            ("http://h:65536", "the port must be a number below 65536"),
            ("http://:1", "not a host and port"),
            ("http://h/x:1", "not a host and port"),
            ("unix:", "no path of a socket"),
        ] {
            let Err(Error::Endpoint { reason: found, .. }) = text.parse::<Endpoint>() else {
                panic!("{text} was taken");
            };
            assert_eq!(found, reason, "{text}");
        }
    }

    #[test]
    fn the_name_of_a_certificate_is_the_host_alone() {
        for (text, host) in [
            ("https://[::1]:2379", "::1"),
            ("https://etcd.local:1", "etcd.local"),
            ("unixs:e.sock", "localhost"),
        ] {
            assert_eq!(text.parse::<Endpoint>().unwrap().host(), host);
        }
    }

    #[test]
    fn a_list_is_refused_for_one_of_its_endpoints() {
        assert_eq!(Endpoint::list("a:1, b:2").unwrap().len(), 2);
        for text in ["", "a:1,", "a:1,b"] {
            assert!(Endpoint::list(text).is_err(), "{text}");
        }
    }
}
