//! Gathers small writes of a connection until it is flushed.
//!
//! HTTP/2 cuts an answer into frames, and the library below hands a frame with more than 256 bytes to
//! the system by itself when it may write several pieces at once: one system call for each answer
//! with a value in it. Told that the connection takes one piece at a time, it copies small frames
//! into its own buffer and writes that in one go; only a large frame is still written in two pieces,
//! its beginning and the rest. Those two are put together here.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Longest piece that is held back, in bytes; and what is held at most.
const HELD_MAX: usize = 2 << 10;

/// A connection whose small writes wait for what follows them, or for a flush.
#[derive(Debug)]
pub(super) struct Gather<S> {
    inner: S,
    /// Written by the user, not yet to `inner`.
    held: Vec<u8>,
}

impl<S> Gather<S> {
    pub(super) fn new(inner: S) -> Gather<S> {
        Gather {
            inner,
            held: Vec::new(),
        }
    }
}

impl<S: AsyncWrite + Unpin> Gather<S> {
    /// Writes what is held.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.held.is_empty() {
            let written = ready!(Pin::new(&mut self.inner).poll_write(cx, &self.held))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.held.drain(..written);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gather<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gather<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.held.len() + buf.len() <= HELD_MAX {
            this.held.extend_from_slice(buf);
            return Poll::Ready(Ok(buf.len()));
        }
        while !this.held.is_empty() {
            let pieces = [IoSlice::new(&this.held), IoSlice::new(buf)];
            let inner = Pin::new(&mut this.inner);
            let written = ready!(inner.poll_write_vectored(cx, &pieces))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            let of_held = written.min(this.held.len());
            this.held.drain(..of_held);
            if written > of_held {
                return Poll::Ready(Ok(written - of_held));
            }
        }
        Pin::new(&mut this.inner).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_drain(cx))?;
        Pin::new(&mut this.inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_drain(cx))?;
        Pin::new(&mut this.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::task::Waker;

    use super::*;

    /// Takes so many bytes a call, and keeps each call's.
    struct Slow {
        takes: VecDeque<usize>,
        calls: Vec<Vec<u8>>,
    }

    impl Slow {
        fn new(takes: impl Into<VecDeque<usize>>) -> Gather<Slow> {
            Gather::new(Slow {
                takes: takes.into(),
                calls: Vec::new(),
            })
        }
    }

    impl AsyncWrite for Slow {
        fn poll_write(
            self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.poll_write_vectored(cx, &[IoSlice::new(buf)])
        }

        fn poll_write_vectored(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bufs: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            let this = self.get_mut();
            let Some(most) = this.takes.pop_front() else {
                return Poll::Pending;
            };
            let all = bufs.iter().flat_map(|buf| buf.iter().copied());
            let taken: Vec<u8> = all.take(most).collect();
            let written = taken.len();
            this.calls.push(taken);
            Poll::Ready(Ok(written))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn write(stream: &mut Gather<Slow>, buf: &[u8]) -> Poll<usize> {
        let cx = &mut Context::from_waker(Waker::noop());
        Pin::new(stream).poll_write(cx, buf).map(Result::unwrap)
    }

    fn flush(stream: &mut Gather<Slow>) -> Poll<()> {
        let cx = &mut Context::from_waker(Waker::noop());
        Pin::new(stream).poll_flush(cx).map(Result::unwrap)
    }

    #[test]
    fn small_writes_go_out_together_at_the_flush() {
        let mut stream = Slow::new([usize::MAX]);
        assert_eq!(write(&mut stream, b"one"), Poll::Ready(3));
        assert_eq!(write(&mut stream, b"two"), Poll::Ready(3));
        assert!(stream.inner.calls.is_empty());
        assert_eq!(flush(&mut stream), Poll::Ready(()));
        assert_eq!(stream.inner.calls, [b"onetwo".to_vec()]);
    }

    #[test]
    fn a_large_write_takes_what_is_held_along() {
        let mut stream = Slow::new([usize::MAX, usize::MAX]);
        let large = vec![7; HELD_MAX];
        assert_eq!(write(&mut stream, b"head"), Poll::Ready(4));
        assert_eq!(write(&mut stream, &large), Poll::Ready(HELD_MAX));
        assert_eq!(stream.inner.calls.len(), 1);
        assert_eq!(stream.inner.calls[0].len(), HELD_MAX + 4);
        assert_eq!(write(&mut stream, &[8; HELD_MAX + 1]), Poll::Ready(2049));
        assert_eq!(stream.inner.calls.len(), 2);
    }

    #[test]
    fn nothing_is_lost_or_repeated_however_little_is_taken() {
        let mut stream = Slow::new([]);
        let mut given = Vec::new();
        let mut byte = 0u8;
        for round in 0..200usize {
            let len = (round * 977) % 5000 + 1;
            let piece: Vec<u8> = std::iter::from_fn(|| {
                byte = byte.wrapping_add(31);
                Some(byte)
            })
            .take(len)
            .collect();
            given.extend_from_slice(&piece);
            let mut rest = &piece[..];
            while !rest.is_empty() {
                match write(&mut stream, rest) {
                    Poll::Ready(written) => rest = &rest[written..],
                    Poll::Pending => stream.inner.takes.push_back((round * 131) % 1500 + 1),
                }
            }
            while round % 3 == 0 && flush(&mut stream).is_pending() {
                stream.inner.takes.push_back((round * 57) % 700 + 1);
            }
        }
        stream.inner.takes.extend([usize::MAX; 4]);
        assert_eq!(flush(&mut stream), Poll::Ready(()));
        assert_eq!(stream.inner.calls.concat(), given);
    }
}
