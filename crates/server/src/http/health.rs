//! `/health`, `/livez` and `/readyz` (api.md 4.4, 4.5).

use std::sync::Arc;

use http::{Response, StatusCode, header};
use keelson_proto::rpc::etcdserverpb::AlarmType;

use super::{PLAIN, text};
use crate::grpc::splice::Body;
use crate::serving::Origin;
use crate::state::State;

/// One thing that is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Check {
    DataCorruption,
    SerializableRead,
    LinearizableRead,
    NonLearner,
}

impl Check {
    fn name(self) -> &'static str {
        match self {
            Check::DataCorruption => "data_corruption",
            Check::SerializableRead => "serializable_read",
            Check::LinearizableRead => "linearizable_read",
            Check::NonLearner => "non_learner",
        }
    }

    async fn run(self, state: &Arc<State>, origin: Origin) -> Result<(), String> {
        match self {
            Check::DataCorruption if state.shared().alarms().is_active(AlarmType::Corrupt) => {
                Err("alarm activated: CORRUPT".to_owned())
            }
            // What is applied can be read as long as this thread answers at all.
            Check::DataCorruption | Check::SerializableRead => Ok(()),
            Check::LinearizableRead => state
                .read_barrier(origin.thread)
                .await
                .map_err(|error| error.to_string()),
            Check::NonLearner if state.node.status().is_learner => {
                Err("not supported for learner".to_owned())
            }
            Check::NonLearner => Ok(()),
        }
    }
}

/// What a path asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Probe {
    kind: &'static str,
    checks: &'static [Check],
}

const LIVE: &[Check] = &[Check::SerializableRead];
const READY: &[Check] = &[
    Check::DataCorruption,
    Check::SerializableRead,
    Check::LinearizableRead,
    Check::NonLearner,
];

impl Probe {
    /// The probe of a path: all checks of its kind, or one of them.
    pub(super) fn find(path: &str) -> Option<Probe> {
        [("livez", LIVE), ("readyz", READY)]
            .into_iter()
            .find_map(|(kind, checks)| {
                let rest = path.strip_prefix('/')?.strip_prefix(kind)?;
                if rest.is_empty() {
                    return Some(Probe { kind, checks });
                }
                let name = rest.strip_prefix('/')?;
                let at = checks.iter().position(|check| check.name() == name)?;
                let checks = checks.get(at..=at)?;
                Some(Probe { kind, checks })
            })
    }
}

impl Probe {
    /// Whether it asks for all checks of its kind.
    fn is_whole(self) -> bool {
        self.checks.len() > 1 || self.kind == "livez"
    }

    fn path(self) -> String {
        match self.checks {
            [check] if !self.is_whole() => format!("/{}/{}", self.kind, check.name()),
            _ => format!("/{}", self.kind),
        }
    }
}

/// The values of a query parameter, as they stand.
fn values<'a>(query: &'a str, name: &'a str) -> impl Iterator<Item = &'a str> {
    query.split('&').filter_map(move |pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (key == name).then_some(value)
    })
}

pub(super) async fn probe(
    state: &Arc<State>,
    origin: Origin,
    probe: Probe,
    query: &str,
) -> Response<Body> {
    let mut lines = String::new();
    let mut healthy = true;
    for check in probe.checks {
        let name = check.name();
        if values(query, "exclude").any(|excluded| excluded == name) {
            continue;
        }
        let result = check.run(state, origin).await;
        let status = if result.is_ok() { "success" } else { "error" };
        let metrics = &state.metrics;
        metrics
            .healthcheck
            .with_label_values(&[probe.kind, name])
            .set(i64::from(result.is_ok()));
        metrics
            .healthchecks
            .with_label_values(&[probe.kind, name, status])
            .inc();
        match result {
            Ok(()) => lines.push_str(&format!("[+]{name} ok\n")),
            Err(error) => {
                healthy = false;
                lines.push_str(&format!("[-]{name} failed: {error}\n"));
            }
        }
    }
    let known = |name: &&str| probe.checks.iter().any(|check| check.name() == *name);
    let unknown: Vec<_> = values(query, "exclude")
        .filter(|name| !known(name))
        .map(|name| format!("\"{name}\""))
        .collect();
    if !unknown.is_empty() && probe.is_whole() {
        tracing::warn!(
            "missing-health-checks" = unknown.join(","),
            "some health checks cannot be excluded"
        );
    }
    if !healthy {
        tracing::error!(
            path = probe.path(),
            reason = lines,
            "status-code" = StatusCode::SERVICE_UNAVAILABLE.as_u16(),
            "Health check error"
        );
        // A refusal ends with an empty line.
        lines.push('\n');
        return text(StatusCode::SERVICE_UNAVAILABLE, lines);
    }
    if values(query, "verbose").next().is_none() {
        lines.clear();
    }
    lines.push_str("ok\n");
    text(StatusCode::OK, lines)
}

pub(super) async fn health(state: &Arc<State>, origin: Origin, query: &str) -> Response<Body> {
    let reason = unhealthy(state, origin, query).await;
    let (status, body) = match &reason {
        None => {
            state.metrics.health_success.inc();
            (
                StatusCode::OK,
                r#"{"health":"true","reason":""}"#.to_owned(),
            )
        }
        Some(reason) => {
            state.metrics.health_failures.inc();
            let body = format!("{{\"health\":\"false\",\"reason\":\"{reason}\"}}");
            let status = StatusCode::SERVICE_UNAVAILABLE;
            tracing::warn!(
                output = body,
                "status-code" = status.as_u16(),
                "/health error"
            );
            (status, body + "\n")
        }
    };
    if reason.is_some() {
        return text(status, body);
    }
    let mut response = Response::new(Body::plain(body));
    response.headers_mut().insert(header::CONTENT_TYPE, PLAIN);
    response
}

/// An alarm by the name that `exclude` takes: of a kind that this release does not know, its number.
fn alarm_name(kind: i32) -> String {
    AlarmType::try_from(kind)
        .map_or_else(|_| kind.to_string(), |known| known.as_str_name().to_owned())
}

/// An alarm as the answer tells of it.
fn alarm_reason(kind: i32) -> &'static str {
    match AlarmType::try_from(kind) {
        Ok(known @ (AlarmType::Nospace | AlarmType::Corrupt)) => known.as_str_name(),
        Ok(AlarmType::None) | Err(_) => "UNKNOWN",
    }
}

/// Why the member is not healthy: alarms, then the leader, then whether it can be read.
async fn unhealthy(state: &Arc<State>, origin: Origin, query: &str) -> Option<String> {
    let alarms = state.shared().alarms().get(AlarmType::None.into());
    for alarm in alarms {
        let name = alarm_name(alarm.alarm);
        if !values(query, "exclude").any(|excluded| excluded == name) {
            tracing::warn!(alarm = name, "serving /health false due to an alarm");
            return Some(format!("ALARM {}", alarm_reason(alarm.alarm)));
        }
    }
    if values(query, "serializable").next() == Some("true") {
        return None;
    }
    if !state.node.has_leader() {
        tracing::warn!("serving /health false; no leader");
        return Some("RAFT NO LEADER".to_owned());
    }
    match state.read_barrier(origin.thread).await {
        Ok(()) => None,
        Err(error) => {
            tracing::warn!(error = error.text(), "serving /health false; Range fails");
            Some(format!("RANGE ERROR:{}", error.text()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alarm_of_an_unknown_kind_is_excluded_by_its_number() {
        let all = [1, 2, 0, 9].map(|kind| (alarm_name(kind), alarm_reason(kind)));
        let expected = [
            ("NOSPACE", "NOSPACE"),
            ("CORRUPT", "CORRUPT"),
            ("NONE", "UNKNOWN"),
            ("9", "UNKNOWN"),
        ];
        assert_eq!(
            all,
            expected.map(|(name, reason)| (name.to_owned(), reason))
        );
    }

    #[test]
    fn a_path_names_all_checks_of_a_kind_or_one() {
        assert_eq!(Probe::find("/livez").map(|p| p.checks), Some(LIVE));
        assert_eq!(Probe::find("/readyz").map(|p| p.checks), Some(READY));
        let one = Probe::find("/readyz/linearizable_read").map(|p| p.checks);
        assert_eq!(one, Some(&[Check::LinearizableRead][..]));
        for wrong in [
            "/livez/linearizable_read",
            "/livezz",
            "/readyz/",
            "/",
            "/ready",
        ] {
            assert_eq!(Probe::find(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_parameter_may_come_several_times() {
        let query = "exclude=a&verbose&exclude=b&excluded=c";
        assert_eq!(values(query, "exclude").collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(values(query, "verbose").count(), 1);
    }
}
