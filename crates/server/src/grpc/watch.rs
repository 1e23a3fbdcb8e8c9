//! `Watch`: many watchers on one stream of requests and responses.
//!
//! Requests are handled in the order in which they come, on the thread that serves the stream; no
//! request ends the stream. While too much waits to be sent, no further request is read.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_core::Stream;
use keelson_proto::ApiError;
use keelson_proto::rpc::etcdserverpb::watch_create_request::FilterType;
use keelson_proto::rpc::etcdserverpb::watch_request::RequestUnion;
use keelson_proto::rpc::etcdserverpb::{WatchCreateRequest, WatchRequest};
use keelson_store::auth::Need;
use keelson_store::watch::{Filters, Spec};
use rand::Rng as _;
use tokio::time::Interval;
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::call::Call;
use super::inbound::Requests;
use super::splice::{Answer, Chunk, Ending};
use super::status::Status;
use super::watch_response::{self as response, Flags};
use crate::watching::{Duplicate, StreamHandle};

/// What tells a client that its range holds no key.
const EMPTY_RANGE: &str = "mvcc: watcher range is empty";

/// What tells a client that it uses an id already.
const DUPLICATE_ID: &str = "mvcc: duplicate watch ID provided on the WatchStream";

/// Opens a stream of watchers.
pub(super) fn watch(call: Call, requests: Requests<WatchRequest>) -> Answer {
    let interval = call.state.settings.watch_progress_interval;
    let jitter = interval / 10;
    let extra = rand::rng().random_range(0..=u64::try_from(jitter.as_millis()).unwrap_or(0));
    let period = interval + Duration::from_millis(extra);
    let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + period, period);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    Answer::Pieces(Box::pin(WatchStream {
        stream: StreamHandle::open(&call.state.watching, call.origin.thread),
        draining: Box::pin(call.state.draining.clone().cancelled_owned()),
        leader_lost: Box::pin(call.leader_lost().cancelled_owned()),
        call,
        requests: Some(requests),
        ticks,
        inside: false,
    }))
}

struct WatchStream {
    call: Call,
    /// `None` once the client has closed its side; the watchers live on.
    requests: Option<Requests<WatchRequest>>,
    stream: StreamHandle,
    ticks: Interval,
    /// Whether a part of a response is still to come: no status can be told in between.
    inside: bool,
    draining: Pin<Box<WaitForCancellationFutureOwned>>,
    leader_lost: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Stream for WatchStream {
    type Item = Result<Chunk, Ending>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if this.draining.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Some(Err(this.ending(ApiError::Stopped.into()))));
        }
        if this.leader_lost.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Some(Err(this.ending(ApiError::NoLeader.into()))));
        }
        while this.ticks.poll_tick(cx).is_ready() {
            this.stream.tick(&this.call.state);
        }
        if let Err(status) = this.read(cx) {
            return Poll::Ready(Some(Err(this.ending(status))));
        }
        match this.stream.poll_next(cx.waker()) {
            Poll::Ready(Ok(piece)) => {
                this.inside = !piece.last;
                Poll::Ready(Some(Ok(piece.chunk)))
            }
            Poll::Ready(Err(reason)) => {
                let status = Status::new(keelson_proto::Code::Internal, reason);
                Poll::Ready(Some(Err(this.ending(status))))
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

impl WatchStream {
    fn ending(&self, status: Status) -> Ending {
        if self.inside {
            Ending::Reset
        } else {
            Ending::Status(status)
        }
    }

    /// Handles every request that has arrived, as long as there is room for answers.
    fn read(&mut self, cx: &mut Context<'_>) -> Result<(), Status> {
        while let Some(requests) = &mut self.requests {
            if self.stream.is_full() {
                // Taking responses off the queue polls us again.
                return Ok(());
            }
            match requests.poll_next(cx) {
                Poll::Ready(Some(request)) => self.handle(request?),
                Poll::Ready(None) => self.requests = None,
                Poll::Pending => return Ok(()),
            }
        }
        Ok(())
    }

    fn handle(&self, request: WatchRequest) {
        let state = &self.call.state;
        let begun = Instant::now();
        match request.request_union {
            Some(RequestUnion::CreateRequest(create)) => {
                if let Err(reason) = self.create(create) {
                    self.stream
                        .send(response::refused(&state.header_now(), reason));
                }
            }
            Some(RequestUnion::CancelRequest(cancel)) => {
                self.stream.cancel(state, cancel.watch_id);
            }
            Some(RequestUnion::ProgressRequest(_)) => self.stream.ask_progress(state),
            None => tracing::debug!("watch request without content was ignored"),
        }
        let took = begun.elapsed().as_secs_f64();
        state.metrics.watch_control.observe(took);
    }

    /// Makes a watcher.
    ///
    /// # Errors
    ///
    /// The reason that the client is told.
    fn create(&self, request: WatchCreateRequest) -> Result<(), String> {
        let WatchCreateRequest {
            mut key,
            range_end,
            start_revision,
            progress_notify,
            filters,
            prev_kv,
            watch_id,
            fragment,
        } = request;
        if key.is_empty() {
            key = bytes::Bytes::from_static(&[0]);
        }
        if start_revision < 0 {
            return Err(ApiError::Compacted.text().to_owned());
        }
        self.call
            .permit(&Need::read(&key, &range_end))
            .map_err(denied)?;
        if !range_end.is_empty() && range_end[..] != [0] && key >= range_end {
            return Err(EMPTY_RANGE.to_owned());
        }
        let wants = |kind: FilterType| !filters.contains(&i32::from(kind));
        let spec = Spec {
            // Copied: what a watcher keeps must not keep the frame that it came in.
            key: key[..].into(),
            range_end: range_end[..].into(),
            filters: Filters {
                no_put: !wants(FilterType::Noput),
                no_delete: !wants(FilterType::Nodelete),
            },
            start: start_revision,
        };
        let flags = Flags { prev_kv, fragment };
        self.stream
            .create(&self.call.state, watch_id, spec, flags, progress_notify)
            .map_err(|Duplicate| DUPLICATE_ID.to_owned())
    }
}

/// The reason that a client is told whom a range is closed to: as Go prints a status.
fn denied(status: Status) -> String {
    match ApiError::from_text(&status.text) {
        Some(
            error @ (ApiError::InvalidAuthToken | ApiError::AuthOldRevision | ApiError::UserEmpty),
        ) => error.go_status_text(),
        _ => ApiError::PermissionDenied.go_status_text(),
    }
}
