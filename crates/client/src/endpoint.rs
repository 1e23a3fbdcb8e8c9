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
/// Written as `http://host:port`, `host:port`, `unix:///absolute/path`, `unix://relative/path` or
/// `unix:path`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub(crate) target: Target,
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
    pub(crate) fn origin(&self) -> Result<Uri, Error> {
        let authority = match &self.target {
            Target::Tcp(address) => address,
            Target::Unix(_) => UNIX_AUTHORITY,
        };
        Uri::builder()
            .scheme("http")
            .authority(authority)
            .path_and_query("/")
            .build()
            .map_err(|_| refused(authority, "not a host and port"))
    }
}

impl FromStr for Endpoint {
    type Err = Error;

    fn from_str(text: &str) -> Result<Endpoint, Error> {
        if let Some(rest) = text.strip_prefix("unix:") {
            let path = rest.strip_prefix("//").unwrap_or(rest);
            if path.is_empty() {
                return Err(refused(text, "no path of a socket"));
            }
            return Ok(Endpoint {
                target: Target::Unix(PathBuf::from(path)),
            });
        }
        let address = match text.split_once("://") {
            None => text,
            Some(("http", address)) => address.strip_suffix('/').unwrap_or(address),
            Some(("https" | "unixs", _)) => return Err(refused(text, "TLS is not supported yet")),
            Some(_) => return Err(refused(text, "the scheme must be http or unix")),
        };
        if text.starts_with("unixs:") {
            return Err(refused(text, "TLS is not supported yet"));
        }
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
        };
        endpoint.origin()?;
        Ok(endpoint)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.target {
            Target::Tcp(address) => write!(f, "http://{address}"),
            Target::Unix(path) if path.is_absolute() => write!(f, "unix://{}", path.display()),
            Target::Unix(path) => write!(f, "unix:{}", path.display()),
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
        let origin = endpoint.origin().unwrap();
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
            ("https://h:1", "TLS is not supported yet"),
            ("unixs:e.sock", "TLS is not supported yet"),
            ("ftp://h:1", "the scheme must be http or unix"),
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
}
