//! What is sent after the head of a request or an answer.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body::Frame;
use tokio::sync::mpsc;

use crate::outbox::StreamBody;

/// A body in one of the few forms that there are between members.
pub(crate) enum Body {
    /// Some bytes, or none.
    Whole(Option<Bytes>),
    /// Some bytes, after which the connection is cut.
    Cut(Cut),
    /// The frames of a stream, without end.
    Stream(StreamBody),
    /// Parts from elsewhere.
    Parts(Parts),
}

impl Body {
    pub(crate) fn empty() -> Body {
        Body::Whole(None)
    }

    pub(crate) fn of(bytes: impl Into<Bytes>) -> Body {
        let bytes = bytes.into();
        Body::Whole((!bytes.is_empty()).then_some(bytes))
    }

    /// Sends `bytes`, and then breaks the connection inside the body.
    pub(crate) fn cut_after(bytes: impl Into<Bytes>) -> Body {
        Body::Cut(Cut::Before(bytes.into()))
    }
}

/// How far a body is that ends by a cut.
pub(crate) enum Cut {
    /// Nothing was given yet.
    Before(Bytes),
    /// The bytes were given: what was written goes out while this waits for one turn.
    Flushing,
    /// The next thing is the cut.
    Now,
}

/// A part of a body, or why there is no more.
pub(crate) type Part = io::Result<Bytes>;

/// Parts that another task or thread gives, and the trailers after them.
pub(crate) struct Parts {
    pub(crate) parts: mpsc::Receiver<Part>,
    /// Given once the parts are over, where they have ended well. One that is dropped is a failure.
    pub(crate) end: Option<tokio::sync::oneshot::Receiver<HeaderMap>>,
}

impl Parts {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match self.parts.poll_recv(cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Some(part)) => return Poll::Ready(Some(part.map(Frame::data))),
            Poll::Ready(None) => {}
        }
        let Some(end) = &mut self.end else {
            return Poll::Ready(None);
        };
        match Pin::new(end).poll(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(trailers)) => {
                self.end = None;
                Poll::Ready(Some(Ok(Frame::trailers(trailers))))
            }
            Poll::Ready(Err(_)) => {
                let text = "the source ended before its end";
                Poll::Ready(Some(Err(io::Error::other(text))))
            }
        }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        match self.get_mut() {
            Body::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Body::Stream(stream) => stream.poll(cx),
            Body::Parts(parts) => parts.poll(cx),
            Body::Cut(cut) => match std::mem::replace(cut, Cut::Flushing) {
                Cut::Before(bytes) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
                Cut::Flushing => {
                    *cut = Cut::Now;
                    cx.waker().wake_by_ref();
                    Poll::Pending
                }
                Cut::Now => Poll::Ready(Some(Err(io::Error::other("the connection is cut")))),
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Body::Whole(None))
    }

    fn size_hint(&self) -> http_body::SizeHint {
        match self {
            Body::Whole(bytes) => {
                let length = bytes.as_ref().map_or(0, Bytes::len);
                http_body::SizeHint::with_exact(length as u64)
            }
            _ => http_body::SizeHint::default(),
        }
    }
}
