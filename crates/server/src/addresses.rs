//! Whether lists of URLs name the same addresses, though perhaps by other names: a member may be listed
//! by its host's name and advertise an address. Asked at the start of a new member only, and only where
//! the texts differ.
//!
//! # Source
//!
//! `pkg/netutil/netutil.go` of etcd 3.7: its bound, its pause, its log lines. It leaves `localhost`
//! unresolved; here that is 127.0.0.1 as for any other program.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use crate::url::Url;

/// How long all look-ups of a start may take together.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two attempts at one name.
const PAUSE: Duration = Duration::from_secs(1);

/// Finds the address of a host and a port.
type Lookup = dyn Fn(&str) -> io::Result<SocketAddr> + Send + Sync;

/// Knows the addresses of URLs.
pub(crate) struct Addresses {
    lookup: Arc<Lookup>,
    until: Instant,
    pause: Duration,
    /// What was asked for, with what came of it.
    known: BTreeMap<String, Option<SocketAddr>>,
}

impl Addresses {
    /// Asks the system's resolver, for 30 s from now at most.
    pub(crate) fn of_system() -> Addresses {
        Addresses {
            lookup: Arc::new(of_system),
            until: Instant::now() + PATIENCE,
            pause: PAUSE,
            known: BTreeMap::new(),
        }
    }

    /// Whether two lists name the same addresses with the same schemes, in any order. May block on the
    /// resolver, unless the texts are the same.
    pub(crate) fn are_same(&mut self, left: &[Url], right: &[Url]) -> bool {
        if left.len() != right.len() {
            return false;
        }
        if texts(left) == texts(right) {
            return true;
        }
        let Some(left) = self.all_of(left) else {
            return false;
        };
        self.all_of(right) == Some(left)
    }

    fn all_of(&mut self, urls: &[Url]) -> Option<Vec<String>> {
        let mut all = Vec::new();
        for url in urls {
            if url.socket_path().is_some() {
                all.push(url.to_string());
                continue;
            }
            let address = self.address_of(url)?;
            all.push(format!("{:?}://{address}", url.scheme()));
        }
        all.sort();
        Some(all)
    }

    fn address_of(&mut self, url: &Url) -> Option<SocketAddr> {
        if let Some(known) = self.known.get(url.authority()) {
            return *known;
        }
        let found = self.resolve(url);
        self.known.insert(url.authority().to_owned(), found);
        found
    }

    fn resolve(&self, url: &Url) -> Option<SocketAddr> {
        let host = url.authority();
        loop {
            let error = match self.ask(host) {
                Ok(address) => {
                    tracing::info!(
                        %url,
                        host,
                        "resolved-addr" = %address,
                        "resolved URL Host"
                    );
                    return Some(address);
                }
                Err(error) => error,
            };
            tracing::warn!(
                %url,
                host,
                "retry-interval" = ?self.pause,
                %error,
                "failed to resolve URL Host"
            );
            if Instant::now() + self.pause >= self.until {
                tracing::warn!(%url, host, %error, "failed to resolve URL Host; returning");
                return None;
            }
            thread::sleep(self.pause);
        }
    }

    /// Asks on a thread of its own: nothing else bounds how long a resolver takes.
    fn ask(&self, host: &str) -> io::Result<SocketAddr> {
        let (sender, answer) = mpsc::channel();
        let (lookup, host) = (Arc::clone(&self.lookup), host.to_owned());
        thread::Builder::new()
            .name("resolver".to_owned())
            // Nobody may be waiting for its answer any more.
            .spawn(move || drop(sender.send(lookup(&host))))?;
        let left = self.until.saturating_duration_since(Instant::now());
        answer.recv_timeout(left).unwrap_or_else(|error| {
            Err(match error {
                RecvTimeoutError::Timeout => io::ErrorKind::TimedOut.into(),
                RecvTimeoutError::Disconnected => io::Error::other("the resolver has panicked"),
            })
        })
    }
}

fn texts(urls: &[Url]) -> Vec<&str> {
    let mut texts: Vec<&str> = urls.iter().map(Url::as_str).collect();
    texts.sort_unstable();
    texts
}

fn of_system(host: &str) -> io::Result<SocketAddr> {
    let mut found: Vec<SocketAddr> = host.to_socket_addrs()?.collect();
    // Go takes an IPv4 address where there is one.
    found.sort_by_key(SocketAddr::is_ipv6);
    let none = || io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    found.first().copied().ok_or_else(none)
}

#[cfg(test)]
impl Addresses {
    /// Asks `lookup` and has no patience.
    pub(crate) fn of(
        lookup: impl Fn(&str) -> io::Result<SocketAddr> + Send + Sync + 'static,
    ) -> Addresses {
        Addresses {
            lookup: Arc::new(lookup),
            until: Instant::now() + Duration::from_secs(20),
            pause: Duration::from_secs(20),
            known: BTreeMap::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn urls(text: &str) -> Vec<Url> {
        Url::parse_list(text).unwrap()
    }

    fn hosts(asked: &Arc<AtomicUsize>) -> Addresses {
        let asked = Arc::clone(asked);
        Addresses::of(move |host| {
            asked.fetch_add(1, Ordering::SeqCst);
            let address = match host.split_once(':') {
                Some(("a.example", port)) => format!("10.0.0.1:{port}"),
                Some(("b.example", port)) => format!("10.0.0.2:{port}"),
                Some(("none.example", _)) => return Err(io::ErrorKind::NotFound.into()),
                _ => host.to_owned(),
            };
            address.parse().map_err(io::Error::other)
        })
    }

    #[test]
    fn names_and_addresses_are_the_same_where_the_resolver_says_so() {
        let mut hosts = hosts(&Arc::default());
        let mut same = |left: &str, right: &str| hosts.are_same(&urls(left), &urls(right));
        assert!(same("http://a.example:1", "http://10.0.0.1:1"));
        assert!(same(
            "http://a.example:1,http://b.example:2",
            "http://10.0.0.2:2,http://10.0.0.1:1"
        ));
        for other in [
            "http://10.0.0.1:2",
            "https://10.0.0.1:1",
            "http://10.0.0.2:1",
            "http://10.0.0.1:1,http://10.0.0.2:1",
            "http://none.example:1",
            "unix://a.example:1",
        ] {
            assert!(!same("http://a.example:1", other), "{other}");
        }
    }

    #[test]
    fn equal_texts_ask_nobody_and_nothing_is_asked_twice() {
        let asked = Arc::default();
        let mut hosts = hosts(&asked);
        let same = urls("http://a.example:1,http://b.example:1");
        let turned = urls("http://b.example:1,http://a.example:1");
        assert!(hosts.are_same(&same, &turned));
        assert_eq!(asked.load(Ordering::SeqCst), 0);
        for _ in 0..3 {
            assert!(!hosts.are_same(&urls("http://a.example:1"), &urls("http://b.example:1")));
        }
        assert_eq!(asked.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn a_resolver_that_does_not_answer_is_not_waited_for_for_ever() {
        let mut hosts = Addresses::of(|_| {
            thread::park();
            Err(io::ErrorKind::Interrupted.into())
        });
        hosts.until = Instant::now() + Duration::from_millis(50);
        assert!(!hosts.are_same(&urls("http://a.example:1"), &urls("http://10.0.0.1:1")));
    }

    #[test]
    fn a_name_that_is_not_known_yet_is_asked_for_again() {
        let asked = AtomicUsize::new(0);
        let mut hosts = Addresses::of(move |host| {
            if host.starts_with("late") && asked.fetch_add(1, Ordering::SeqCst) < 2 {
                return Err(io::ErrorKind::NotFound.into());
            }
            let address = host.replace("late.example", "10.0.0.1");
            address.parse().map_err(io::Error::other)
        });
        hosts.pause = Duration::from_millis(1);
        assert!(hosts.are_same(&urls("http://late.example:1"), &urls("http://10.0.0.1:1")));
    }
}
