//! The URLs under which a member is reached, and which of them is tried next.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use crate::Error;

/// One URL of a peer, checked.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PeerUrl {
    text: String,
    tls: bool,
    socket: bool,
    authority: String,
    path: String,
}

impl PeerUrl {
    /// Reads one URL: `http`, `https` with host and port and no path, or `unix`, `unixs`.
    ///
    /// # Source
    ///
    /// `types.NewURLs` of etcd 3.7, with its texts.
    pub(crate) fn parse(text: &str) -> Result<PeerUrl, Error> {
        let refuse = |why: &str| Error::Url {
            text: format!("{why}: {text}"),
        };
        let text = text.trim();
        let scheme_text = "URL scheme must be http, https, unix, or unixs";
        let (scheme, rest) = text.split_once("://").ok_or_else(|| refuse(scheme_text))?;
        let (tls, socket) = match scheme {
            "http" => (false, false),
            "https" => (true, false),
            "unix" => (false, true),
            "unixs" => (true, true),
            _ => return Err(refuse(scheme_text)),
        };
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let printable = |c: char| c.is_ascii_graphic() && !matches!(c, '?' | '#' | '@' | '"');
        if !rest.chars().all(printable) {
            return Err(refuse("URL has a character that has no place in it"));
        }
        if socket {
            if rest.is_empty() {
                return Err(refuse("URL must contain the path of a socket"));
            }
        } else {
            if !has_host_and_port(authority) {
                return Err(refuse("URL address does not have the form \"host:port\""));
            }
            if !path.is_empty() {
                return Err(refuse("URL must not contain a path"));
            }
        }
        Ok(PeerUrl {
            text: text.to_owned(),
            tls,
            socket,
            authority: authority.to_owned(),
            path: path.to_owned(),
        })
    }

    /// Reads a list, sorted by text as etcd sorts it. An empty one is an error.
    pub(crate) fn parse_list(texts: &[impl AsRef<str>]) -> Result<Vec<PeerUrl>, Error> {
        if texts.is_empty() {
            return Err(Error::Url {
                text: "no valid URLs given".to_owned(),
            });
        }
        let mut urls = texts
            .iter()
            .map(|text| PeerUrl::parse(text.as_ref()))
            .collect::<Result<Vec<_>, _>>()?;
        urls.sort();
        Ok(urls)
    }

    /// As it was written.
    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }

    pub(crate) fn is_tls(&self) -> bool {
        self.tls
    }

    /// The path of the socket of a `unix` URL.
    pub(crate) fn socket_path(&self) -> Option<PathBuf> {
        self.socket
            .then(|| PathBuf::from(format!("{}{}", self.authority, self.path)))
    }

    /// `host:port` as dialled, and the value of the `Host` header.
    pub(crate) fn authority(&self) -> &str {
        if self.socket && self.authority.is_empty() {
            "localhost"
        } else {
            &self.authority
        }
    }

    /// The host, without the brackets of IPv6: the name that a certificate must be for.
    pub(crate) fn host(&self) -> &str {
        let host = match self.authority.rsplit_once(':') {
            Some((host, _)) => host,
            None => &self.authority,
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() { "localhost" } else { host }
    }
}

fn has_host_and_port(authority: &str) -> bool {
    match authority.rsplit_once(':') {
        Some((host, port)) => {
            let bracketed = host.starts_with('[') && host.ends_with(']');
            port.parse::<u16>().is_ok() && (bracketed || !host.contains(':'))
        }
        None => false,
    }
}

/// The URLs of one peer; the one in use stays until it fails.
#[derive(Debug)]
pub(crate) struct Picker {
    state: Mutex<(Vec<Arc<PeerUrl>>, usize)>,
}

impl Picker {
    /// `urls` is not empty: [`PeerUrl::parse_list`] gives no empty list.
    pub(crate) fn new(urls: Vec<PeerUrl>) -> Picker {
        assert!(!urls.is_empty(), "a peer has a URL");
        Picker {
            state: Mutex::new((urls.into_iter().map(Arc::new).collect(), 0)),
        }
    }

    pub(crate) fn replace(&self, urls: Vec<PeerUrl>) {
        assert!(!urls.is_empty(), "a peer has a URL");
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        *state = (urls.into_iter().map(Arc::new).collect(), 0);
    }

    /// The URL to use now.
    pub(crate) fn pick(&self) -> Arc<PeerUrl> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&state.0[state.1])
    }

    /// This URL did not work: the next one is used from now on, unless that has happened already.
    pub(crate) fn unreachable(&self, url: &PeerUrl) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if *state.0[state.1] == *url {
            state.1 = (state.1 + 1) % state.0.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_refused_in_etcds_words() {
        let text = |text: &str| PeerUrl::parse(text).unwrap_err().to_string();
        assert_eq!(
            text("ftp://a:1"),
            "URL scheme must be http, https, unix, or unixs: ftp://a:1"
        );
        assert_eq!(
            text("http://a"),
            "URL address does not have the form \"host:port\": http://a"
        );
        assert_eq!(
            text("http://a:1/x"),
            "URL must not contain a path: http://a:1/x"
        );
        assert!(PeerUrl::parse("http://a:99999").is_err());
        assert!(PeerUrl::parse("http://a b:1").is_err());
    }

    #[test]
    fn hosts_lose_the_brackets_of_ipv6() {
        let url = PeerUrl::parse("https://[::1]:2380").unwrap();
        assert_eq!((url.host(), url.authority()), ("::1", "[::1]:2380"));
        assert!(url.is_tls());
        let socket = PeerUrl::parse("unix://localhost:m1").unwrap();
        assert_eq!(socket.socket_path().unwrap(), PathBuf::from("localhost:m1"));
    }

    #[test]
    fn a_failed_url_gives_way_to_the_next_once() {
        let picker = Picker::new(PeerUrl::parse_list(&["http://b:2", "http://a:1"]).unwrap());
        let first = picker.pick();
        assert_eq!(first.as_str(), "http://a:1");
        picker.unreachable(&first);
        picker.unreachable(&first);
        assert_eq!(picker.pick().as_str(), "http://b:2");
        picker.unreachable(&picker.pick());
        assert_eq!(picker.pick().as_str(), "http://a:1");
    }
}
