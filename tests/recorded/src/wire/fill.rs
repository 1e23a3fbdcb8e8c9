//! The one place where two runs of etcd itself take different numbers of steps: filling the database
//! until the quota refuses more depends on when the file grows. The puts go on until one is refused,
//! and the recorded revisions from there on are shifted by what was put more or less.

use std::time::Duration;

use anyhow::Result;

use super::call::Connection;
use super::compare::{Difference, Learned};
use super::script::{Answer, Status, Unary};

/// The recorded quota must be exhausted within this many puts more than recorded.
const EXTRA_PUTS: u32 = 10;

/// And not before this many puts.
const LEAST_PUTS: i64 = 10;

/// etcd counts what it has committed to the file, and commits every 100 ms: the pace of the client is
/// part of the recording.
const PACE: Duration = Duration::from_millis(110);

const RESOURCE_EXHAUSTED: u32 = 8;

/// How far the filling is.
#[derive(Debug, Default)]
pub(super) struct Fill {
    recorded: i64,
    accepted: i64,
    refused: bool,
}

impl Fill {
    /// Whether the call is one of the puts that fill the database.
    pub(super) fn is_part(call: &Unary) -> bool {
        // "fill/" in base64 begins with these six characters.
        let key = call.request_json["key"].as_str().unwrap_or_default();
        call.rpc == "/etcdserverpb.KV/Put" && key.starts_with("ZmlsbC")
    }

    /// Plays one of the puts; with the one that was refused in the recording, goes on to a refusal.
    pub(super) async fn put(
        &mut self,
        connection: &Connection,
        call: &Unary,
        patience: Duration,
        learned: &mut Learned,
    ) -> Result<Vec<Difference>> {
        let request = call.request.clone().unwrap_or_default();
        let was_accepted = matches!(call.answer, Answer::Message(_));
        self.recorded += i64::from(was_accepted);
        let tries = if was_accepted { 1 } else { EXTRA_PUTS };
        for attempt in 0..tries {
            if self.refused {
                break;
            }
            let (_, status) = connection
                .call(&call.rpc, &[], &renamed(&request, attempt), None, patience)
                .await?;
            match status.code {
                0 => {
                    self.accepted += 1;
                    tokio::time::sleep(PACE).await;
                }
                RESOURCE_EXHAUSTED => self.refused = true,
                _ => return Ok(difference(&status)),
            }
        }
        let too_early = self.refused && self.accepted < LEAST_PUTS;
        let never = !was_accepted && !self.refused;
        if too_early || never {
            let got = format!(
                "{} puts of 100 kB accepted, refused: {}",
                self.accepted, self.refused
            );
            return Ok(vec![Difference {
                path: "the quota of 2 MB".to_owned(),
                expected: format!("a refusal after about {} puts", self.recorded),
                got,
            }]);
        }
        if !was_accepted {
            // The fill began at revision 2.
            learned.shift_revisions(2 + self.recorded, self.accepted - self.recorded);
        }
        Ok(Vec::new())
    }
}

/// The request with another last byte in its key for each further attempt.
fn renamed(request: &[u8], attempt: u32) -> Vec<u8> {
    let mut request = request.to_vec();
    // Tag, length, then the seven bytes of `fill/NN`.
    if let (Some(byte), Ok(attempt)) = (request.get_mut(8), u8::try_from(attempt)) {
        *byte = byte.wrapping_add(attempt);
    }
    request
}

fn difference(status: &Status) -> Vec<Difference> {
    vec![Difference {
        path: "status".to_owned(),
        expected: "OK or ResourceExhausted".to_owned(),
        got: format!("code {} {:?}", status.code, status.message),
    }]
}
