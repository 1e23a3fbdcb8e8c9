//! Probes: whether a peer answers, how long that takes, and what its clock says.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use http::{Method, Request, StatusCode, header};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, MissedTickBehavior};

use crate::body::Body;
use crate::clock;
use crate::dial::{self, Limits};
use crate::peer::Link;
use crate::url::PeerUrl;

/// The path that is asked.
pub(crate) const PATH: &str = "/raft/probing";

/// Between two looks at what the probes have found: while they fail, and while they do not.
const LOOK_WHILE_BAD: Duration = Duration::from_secs(5);
const LOOK_WHILE_GOOD: Duration = Duration::from_secs(30);

/// How far another clock may be behind ours without a warning.
const DRIFT_MAX_NANOS: i64 = 1_000_000_000;

const ANSWER_BYTES_MAX: usize = 4 << 10;

/// Which connections a probe stands for; the names are etcd's.
pub(crate) const KINDS: [&str; 2] = ["ROUND_TRIPPER_SNAPSHOT", "ROUND_TRIPPER_RAFT_MESSAGE"];

/// The answer to a probe.
#[derive(Debug, Serialize, Deserialize)]
struct Health {
    #[serde(rename = "OK", default)]
    ok: bool,
    #[serde(rename = "Now", default)]
    now: String,
}

/// The answer to a probe that comes now.
pub(crate) fn answer(now: SystemTime) -> String {
    let now = clock::format(now);
    format!("{{\"OK\":true,\"Now\":\"{now}\"}}\n")
}

/// What the probes of one peer have found.
#[derive(Debug, Default)]
struct Findings {
    healthy: bool,
    smoothed: Duration,
    behind_nanos: i64,
    error: Option<String>,
}

impl Findings {
    /// A probe was answered: `took` is its round trip, `theirs` what the other clock said, `ours`
    /// what ours said when the answer was there.
    fn record(&mut self, took: Duration, theirs: SystemTime, ours: SystemTime) {
        self.healthy = true;
        self.error = None;
        self.smoothed = if self.smoothed.is_zero() {
            took
        } else {
            self.smoothed.mul_f64(0.875) + took.mul_f64(0.125)
        };
        let ahead = signed_nanos(ours, theirs);
        let half = i64::try_from(self.smoothed.as_nanos() / 2).unwrap_or(i64::MAX);
        self.behind_nanos = ahead.saturating_sub(half);
    }

    fn fail(&mut self, error: String) {
        self.healthy = false;
        self.error = Some(error);
    }
}

/// `a - b`.
fn signed_nanos(a: SystemTime, b: SystemTime) -> i64 {
    let nanos = |duration: Duration| i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX);
    match a.duration_since(b) {
        Ok(after) => nanos(after),
        Err(before) => -nanos(before.duration()),
    }
}

/// Probes a peer until the task is ended.
pub(crate) async fn run(link: Arc<Link>, kind: &'static str) {
    let timeout = link.context.config.read_timeout;
    // Shorter than connections may be silent, so that one serves many probes.
    let pause = timeout.mul_f64(0.8);
    let mut probes = tokio::time::interval_at(Instant::now() + pause, pause);
    probes.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut look = Box::pin(tokio::time::sleep(LOOK_WHILE_BAD));
    let mut findings = Findings::default();
    let mut kept = None;
    loop {
        tokio::select! {
            _ = probes.tick() => {
                let url = link.picker.pick();
                let start = Instant::now();
                let probe = probe(&link, &mut kept, &url);
                let result = tokio::time::timeout(timeout, probe).await;
                match result.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                    Ok(theirs) => {
                        findings.record(start.elapsed(), theirs, SystemTime::now());
                        let nanos = findings.behind_nanos;
                        link.stats.clock_behind_nanos.store(nanos, Ordering::Relaxed);
                    }
                    Err(error) => {
                        kept = None;
                        findings.fail(dial::root_cause(&error));
                        link.picker.unreachable(&url);
                    }
                }
            }
            () = look.as_mut() => {
                tell(&link, kind, &findings);
                let next = if findings.healthy { LOOK_WHILE_GOOD } else { LOOK_WHILE_BAD };
                look.as_mut().reset(Instant::now() + next);
            }
        }
    }
}

fn tell(link: &Link, kind: &str, findings: &Findings) {
    let error = findings.error.as_deref();
    if !findings.healthy {
        tracing::warn!(
            "round-tripper-name" = kind,
            "remote-peer-id" = %link.member,
            rtt = ?findings.smoothed,
            error,
            "prober detected unhealthy status"
        );
    }
    if findings.behind_nanos > DRIFT_MAX_NANOS {
        let drift = Duration::from_nanos(findings.behind_nanos.unsigned_abs());
        tracing::warn!(
            "round-tripper-name" = kind,
            "remote-peer-id" = %link.member,
            "clock-drift" = ?drift,
            rtt = ?findings.smoothed,
            error,
            "prober found high clock drift"
        );
    }
    link.stats.round_trip.observe(findings.smoothed);
}

/// Asks once, and gives what the other clock says.
async fn probe(
    link: &Link,
    kept: &mut Option<(Arc<PeerUrl>, dial::Link)>,
    url: &Arc<PeerUrl>,
) -> io::Result<SystemTime> {
    let reusable = |(of, link): &(Arc<PeerUrl>, dial::Link)| of == url && !link.sender.is_closed();
    let mut connection = match kept.take().filter(reusable) {
        Some((_, connection)) => connection,
        None => link.context.dialer.open(url, Limits::default()).await?,
    };
    let request = Request::builder()
        .method(Method::GET)
        .uri(PATH)
        .header(header::HOST, url.authority())
        .body(Body::empty())
        .map_err(io::Error::other)?;
    dial::ready(&mut connection).await?;
    let response = connection.sender.send_request(request).await;
    let response = response.map_err(io::Error::other)?;
    let status = response.status();
    if status != StatusCode::OK {
        let text = format!(
            "got unexpected HTTP status code {status} from {}{PATH}",
            url.as_str()
        );
        return Err(io::Error::other(text));
    }
    let body = dial::read_answer(response.into_body(), ANSWER_BYTES_MAX).await?;
    *kept = Some((Arc::clone(url), connection));
    let health: Health = serde_json::from_slice(&body).map_err(io::Error::other)?;
    if !health.ok {
        return Err(io::Error::other("the peer says that it is not well"));
    }
    let unreadable = || io::Error::other("the peer's clock cannot be read");
    clock::parse(&health.now).ok_or_else(unreadable)
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    #[test]
    fn a_clock_behind_ours_counts_as_drift_and_one_ahead_does_not() {
        let ours = UNIX_EPOCH + Duration::from_secs(100);
        let trip = Duration::from_millis(200);
        let mut findings = Findings::default();
        findings.record(trip, ours - Duration::from_secs(2), ours);
        assert_eq!(findings.behind_nanos, 1_900_000_000);
        findings.record(trip, ours + Duration::from_secs(2), ours);
        assert!(findings.behind_nanos < 0);
    }

    #[test]
    fn round_trips_are_smoothed_as_etcd_does() {
        let now = UNIX_EPOCH + Duration::from_secs(1);
        let mut findings = Findings::default();
        findings.record(Duration::from_millis(80), now, now);
        findings.record(Duration::from_millis(160), now, now);
        assert_eq!(findings.smoothed, Duration::from_millis(90));
    }
}
