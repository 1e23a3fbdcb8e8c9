//! The URLs that a member listens on and tells others: `http://host:port`, `unix:///path`.
//!
//! The rules and the error texts are those of etcd 3.7.1 (api.md 5.1, 5.5).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

use crate::config::quote;

/// How a URL is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// TCP.
    Http,
    /// TCP with TLS.
    Https,
    /// A Unix socket.
    Unix,
    /// A Unix socket with TLS.
    Unixs,
}

/// A URL as etcd reads one. Prints as it was written; ordered and compared by that text.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Url {
    text: String,
    scheme: Scheme,
    /// What stands between `//` and the next `/`, without a user.
    authority: String,
    path: String,
}

/// Why a text is not a URL to listen on or to tell others. Prints etcd's text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UrlError(String);

/// What the rules of Go's `url.Parse` find in a text.
struct Parts<'a> {
    scheme: String,
    authority: &'a str,
    path: &'a str,
}

impl Url {
    /// Reads one URL; blanks around it are dropped.
    ///
    /// # Errors
    /// With etcd's text when the scheme is unknown, a port is missing or a path stands after it.
    pub fn parse(text: &str) -> Result<Url, UrlError> {
        let text = text.trim();
        let parts =
            go_parse(text).map_err(|cause| UrlError(format!("parse {}: {cause}", quote(text))))?;
        let scheme = match parts.scheme.as_str() {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            "unix" => Scheme::Unix,
            "unixs" => Scheme::Unixs,
            _ => {
                let message = "URL scheme must be http, https, unix, or unixs";
                return Err(UrlError(format!("{message}: {text}")));
            }
        };
        if matches!(scheme, Scheme::Http | Scheme::Https) {
            if split_host_port(parts.authority).is_none() {
                let message = "URL address does not have the form \"host:port\"";
                return Err(UrlError(format!("{message}: {text}")));
            }
            if !parts.path.is_empty() {
                return Err(UrlError(format!("URL must not contain a path: {text}")));
            }
        } else if parts.authority.is_empty() && parts.path.is_empty() {
            return Err(UrlError(format!(
                "URL must contain the path of a socket: {text}"
            )));
        }
        Ok(Url {
            text: text.to_owned(),
            scheme,
            authority: parts.authority.to_owned(),
            path: parts.path.to_owned(),
        })
    }

    /// Reads a list separated by commas: sorted by their texts, each once.
    ///
    /// # Errors
    /// That of the first bad one.
    pub fn parse_list(text: &str) -> Result<Vec<Url>, UrlError> {
        let mut urls = text
            .split(',')
            .map(Url::parse)
            .collect::<Result<Vec<_>, _>>()?;
        urls.sort();
        urls.dedup();
        Ok(urls)
    }

    /// The URL of a bound TCP listener, with or without TLS.
    #[must_use]
    pub fn of_address(address: SocketAddr, is_tls: bool) -> Url {
        let authority = address.to_string();
        let (scheme, text) = if is_tls {
            (Scheme::Https, format!("https://{authority}"))
        } else {
            (Scheme::Http, format!("http://{authority}"))
        };
        Url {
            text,
            scheme,
            authority,
            path: String::new(),
        }
    }

    /// How it is reached.
    #[must_use]
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// As it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether it is reached with TLS.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        matches!(self.scheme, Scheme::Https | Scheme::Unixs)
    }

    /// Host and port as written, for `unix` what stands between `//` and `/`.
    #[must_use]
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// The host of a TCP URL, without the brackets of IPv6.
    #[must_use]
    pub fn host(&self) -> Option<&str> {
        self.is_tcp()
            .then(|| split_host_port(&self.authority).map(|(host, _)| host))
            .flatten()
    }

    /// The host that a certificate for this URL names: also `localhost` of `unixs://localhost:2379`.
    #[must_use]
    pub fn named_host(&self) -> Option<&str> {
        let (host, _) = split_host_port(&self.authority)?;
        (!host.is_empty()).then_some(host)
    }

    /// The port of a TCP URL; 0 when it is empty, `None` when it is above 65535.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        let (_, port) = self
            .is_tcp()
            .then(|| split_host_port(&self.authority))
            .flatten()?;
        if port.is_empty() {
            Some(0)
        } else {
            port.parse().ok()
        }
    }

    /// The file of a Unix socket. `unix://localhost:2379` is a file of that name in the working
    /// directory, as in etcd.
    #[must_use]
    pub fn socket_path(&self) -> Option<std::path::PathBuf> {
        (!self.is_tcp()).then(|| Path::new(&format!("{}{}", self.authority, self.path)).to_owned())
    }

    /// The address to bind for a TCP URL: its IP, or 127.0.0.1 for `localhost`. `None` for a Unix
    /// socket and for any other name, which etcd refuses to bind.
    #[must_use]
    pub fn bind_address(&self) -> Option<SocketAddr> {
        let host = self.host()?;
        let ip = match host {
            "localhost" => IpAddr::V4(Ipv4Addr::LOCALHOST),
            host => host.parse().ok()?,
        };
        Some(SocketAddr::new(ip, self.port()?))
    }

    fn is_tcp(&self) -> bool {
        matches!(self.scheme, Scheme::Http | Scheme::Https)
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl PartialOrd for Url {
    fn partial_cmp(&self, other: &Url) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Url {
    fn cmp(&self, other: &Url) -> std::cmp::Ordering {
        self.text.cmp(&other.text)
    }
}

/// The parts of a URL by the rules of Go's `url.Parse`, as far as etcd looks at them.
fn go_parse(text: &str) -> Result<Parts<'_>, String> {
    if text.bytes().any(|b| b < 0x20 || b == 0x7f) {
        return Err("net/url: invalid control character in URL".to_owned());
    }
    let (scheme, rest) = scheme_of(text)?;
    let rest = rest.split_once('#').map_or(rest, |(before, _)| before);
    let rest = rest.split_once('?').map_or(rest, |(before, _)| before);
    let Some(slashed) = rest.strip_prefix("//") else {
        if rest.starts_with('/') {
            return Ok(Parts {
                scheme,
                authority: "",
                path: rest,
            });
        }
        if scheme.is_empty()
            && rest
                .split('/')
                .next()
                .is_some_and(|first| first.contains(':'))
        {
            return Err("first path segment in URL cannot contain colon".to_owned());
        }
        // `unix:name` is opaque to Go, which then has neither a host nor a path.
        return Ok(Parts {
            scheme,
            authority: "",
            path: "",
        });
    };
    let (authority, path) = slashed.split_at(slashed.find('/').unwrap_or(slashed.len()));
    let host = authority
        .rsplit_once('@')
        .map_or(authority, |(_, host)| host);
    check_host(host)?;
    Ok(Parts {
        scheme,
        authority: host,
        path,
    })
}

/// The scheme in lower case (empty when there is none) and what follows its colon.
fn scheme_of(text: &str) -> Result<(String, &str), String> {
    for (at, b) in text.bytes().enumerate() {
        match b {
            b'a'..=b'z' | b'A'..=b'Z' => {}
            b'0'..=b'9' | b'+' | b'-' | b'.' if at > 0 => {}
            b':' if at == 0 => return Err("missing protocol scheme".to_owned()),
            b':' => return Ok((text[..at].to_ascii_lowercase(), &text[at + 1..])),
            _ => break,
        }
    }
    Ok((String::new(), text))
}

/// The characters of a host and the digits of a port.
fn check_host(host: &str) -> Result<(), String> {
    let port = if let Some(bracketed) = host.strip_prefix('[') {
        let Some((_, port)) = bracketed.rsplit_once(']') else {
            return Err("missing ']' in host".to_owned());
        };
        port
    } else {
        host.rfind(':').map_or("", |at| &host[at..])
    };
    if !port.is_empty() && !port.strip_prefix(':').is_some_and(all_digits) {
        return Err(format!("invalid port {} after host", quote(port)));
    }
    let allowed = |c: &char| {
        !c.is_ascii() || c.is_ascii_alphanumeric() || "-_.~!$&'()*+,;=:[]<>\"%".contains(*c)
    };
    match host.chars().find(|c| !allowed(c)) {
        Some(c) => Err(format!(
            "invalid character {} in host name",
            quote(&c.to_string())
        )),
        None => Ok(()),
    }
}

fn all_digits(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit())
}

/// Go's `net.SplitHostPort`: the last colon divides, IPv6 stands in brackets.
fn split_host_port(authority: &str) -> Option<(&str, &str)> {
    if let Some(bracketed) = authority.strip_prefix('[') {
        let (host, rest) = bracketed.split_once(']')?;
        let port = rest.strip_prefix(':')?;
        return (!port.contains([':', '[', ']']) && !host.contains('[')).then_some((host, port));
    }
    let (host, port) = authority.rsplit_once(':')?;
    (!host.contains([':', '[', ']']) && !port.contains(['[', ']'])).then_some((host, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        Url::parse(text).unwrap_err().to_string()
    }

    #[test]
    fn tcp_urls_have_a_host_and_a_port() {
        let url = Url::parse(" http://127.0.0.1:2379 ").unwrap();
        assert_eq!(url.to_string(), "http://127.0.0.1:2379");
        assert_eq!((url.host(), url.port()), (Some("127.0.0.1"), Some(2379)));
        assert_eq!(url.bind_address(), Some(([127, 0, 0, 1], 2379).into()));
        let url = Url::parse("HTTP://[::1]:80").unwrap();
        assert_eq!((url.scheme(), url.host()), (Scheme::Http, Some("::1")));
        assert_eq!(url.bind_address().unwrap().to_string(), "[::1]:80");
        assert!(Url::parse("https://a.example:1").unwrap().is_tls());
        assert_eq!(
            Url::parse("http://localhost:0")
                .unwrap()
                .bind_address()
                .unwrap()
                .port(),
            0
        );
        assert_eq!(
            Url::parse("http://a.example:1").unwrap().bind_address(),
            None
        );
        assert_eq!(
            Url::parse("http://127.0.0.1:70000").unwrap().bind_address(),
            None
        );
    }

    #[test]
    fn unix_urls_name_a_file() {
        let path = |text: &str| Url::parse(text).unwrap().socket_path().unwrap();
        assert_eq!(path("unix:///run/etcd.sock"), Path::new("/run/etcd.sock"));
        assert_eq!(path("unix:/run/etcd.sock"), Path::new("/run/etcd.sock"));
        assert_eq!(path("unix://localhost:20001"), Path::new("localhost:20001"));
        assert_eq!(path("unixs://etcd.sock"), Path::new("etcd.sock"));
        assert_eq!(
            error("unix://"),
            "URL must contain the path of a socket: unix://"
        );
    }

    #[test]
    fn bad_urls_get_the_texts_of_etcd() {
        let scheme = "URL scheme must be http, https, unix, or unixs";
        assert_eq!(error("bad"), format!("{scheme}: bad"));
        assert_eq!(error(""), format!("{scheme}: "));
        assert_eq!(error("localhost:2379"), format!("{scheme}: localhost:2379"));
        assert_eq!(
            error("ftp://1.2.3.4:1"),
            format!("{scheme}: ftp://1.2.3.4:1")
        );
        let form = "URL address does not have the form \"host:port\"";
        assert_eq!(
            error("http://127.0.0.1"),
            format!("{form}: http://127.0.0.1")
        );
        assert_eq!(error("http://::1:2379"), format!("{form}: http://::1:2379"));
        assert_eq!(
            error("http://a:1/"),
            "URL must not contain a path: http://a:1/"
        );
        let colon = "first path segment in URL cannot contain colon";
        assert_eq!(
            error("127.0.0.1:2379"),
            format!("parse \"127.0.0.1:2379\": {colon}")
        );
        assert_eq!(error(":1"), "parse \":1\": missing protocol scheme");
        let port = "invalid port \":x\" after host";
        assert_eq!(error("http://a:x"), format!("parse \"http://a:x\": {port}"));
        let space = "invalid character \" \" in host name";
        assert_eq!(
            error("http://a b:1"),
            format!("parse \"http://a b:1\": {space}")
        );
        let control = "net/url: invalid control character in URL";
        assert_eq!(
            error("http://a\u{1}:1"),
            format!("parse \"http://a\\x01:1\": {control}")
        );
    }

    #[test]
    fn a_list_is_sorted_and_each_stands_once() {
        let urls = Url::parse_list("http://b:2, http://a:1,http://b:2").unwrap();
        let texts: Vec<_> = urls.iter().map(Url::as_str).collect();
        assert_eq!(texts, ["http://a:1", "http://b:2"]);
        assert!(Url::parse_list("http://a:1,").is_err());
    }
}
