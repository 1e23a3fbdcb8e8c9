//! Gathers what a connection writes in one turn of its task.
//!
//! HTTP/2 cuts an answer into frames, of 16 KiB at most with most clients, and the library below hands
//! each frame of more than a kilobyte to the system by itself, and flushes after it: one system call,
//! and one segment on its way through the network stack, for each. It cannot tell the flush after a
//! frame from the one after the last. The connection's task can: what the library writes is held here
//! until the task has nothing more to do, or until enough is held.

use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What is held at most, in bytes: the largest segment that the network stack takes as one.
const HELD_MAX: usize = 64 << 10;

/// Room that a connection keeps when nothing is held, in bytes.
const KEPT_MAX: usize = 2 << 10;

/// Why a connection ended.
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// The side of a connection that the HTTP library reads and writes. Its flushes do nothing: whoever
/// polls the library must [`Outlet::poll_drain`] after it, as [`Outlet::drive`] does.
#[derive(Debug)]
pub(super) struct Gather<S>(Arc<Mutex<Held<S>>>);

/// The side that the connection's task drains.
#[derive(Debug)]
pub(super) struct Outlet<S>(Arc<Mutex<Held<S>>>);

#[derive(Debug)]
struct Held<S> {
    inner: S,
    /// Written by the library; of these the first have gone to `inner`.
    held: Vec<u8>,
    gone: usize,
    /// Whether `inner` has taken something since it was flushed. TLS keeps what a full socket does not
    /// take, and hands it on only when it is flushed or written to again.
    unflushed: bool,
}

/// The two sides of a connection.
pub(super) fn gather<S>(inner: S) -> (Gather<S>, Outlet<S>) {
    let held = Arc::new(Mutex::new(Held {
        inner,
        held: Vec::new(),
        gone: 0,
        unflushed: false,
    }));
    (Gather(Arc::clone(&held)), Outlet(held))
}

fn lock<S>(held: &Mutex<Held<S>>) -> MutexGuard<'_, Held<S>> {
    // Only the connection's own task takes it, and never while it holds it: no one waits here. Where
    // a poll has panicked the task is gone with the connection.
    held.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<S: AsyncWrite + Unpin> Held<S> {
    /// Writes what is held, and flushes it.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.held.is_empty() {
            let waiting = &self.held[self.gone..];
            let written = ready!(Pin::new(&mut self.inner).poll_write(cx, waiting))?;
            self.written(written)?;
        }
        if self.unflushed {
            ready!(Pin::new(&mut self.inner).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Takes away what has been written of what is held. Gives back how much was written beyond it.
    fn written(&mut self, written: usize) -> io::Result<usize> {
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.unflushed = true;
        let of_held = written.min(self.held.len() - self.gone);
        self.gone += of_held;
        if self.gone == self.held.len() {
            self.gone = 0;
            self.held.clear();
            // Most connections hold nothing most of the time.
            self.held.shrink_to(KEPT_MAX);
        }
        Ok(written - of_held)
    }

    fn hold(&mut self, buf: &[u8]) {
        self.held.drain(..self.gone);
        self.gone = 0;
        if self.held.len() + buf.len() > KEPT_MAX {
            // More than one growth would copy it more than once.
            self.held.reserve_exact(HELD_MAX - self.held.len());
        }
        self.held.extend_from_slice(buf);
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.held.len() - self.gone + buf.len() <= HELD_MAX {
            self.hold(buf);
            return Poll::Ready(Ok(buf.len()));
        }
        loop {
            let pieces = [IoSlice::new(&self.held[self.gone..]), IoSlice::new(buf)];
            let inner = Pin::new(&mut self.inner);
            let written = ready!(inner.poll_write_vectored(cx, &pieces))?;
            match self.written(written)? {
                0 => {}
                of_buf => return Poll::Ready(Ok(of_buf)),
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> Outlet<S> {
    /// Writes what is held.
    fn poll_drain(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        lock(&self.0).poll_drain(cx)
    }

    /// Polls a connection that uses the other side until it has ended, and writes what each poll has
    /// given out, as far as it goes. May be dropped and begun again. After a good end [`Outlet::finish`]
    /// is due.
    ///
    /// # Errors
    ///
    /// Why the connection ended, if not by the will of who is at its other end.
    pub(super) async fn drive<C, E>(&self, mut connection: Pin<&mut C>) -> Result<(), Failure>
    where
        C: Future<Output = Result<(), E>>,
        E: Into<Failure>,
    {
        poll_fn(|cx| {
            let ended = connection.as_mut().poll(cx);
            match (ended, self.poll_drain(cx)) {
                (Poll::Ready(ended), _) => Poll::Ready(ended.map_err(Into::into)),
                (Poll::Pending, Poll::Ready(Err(error))) => Poll::Ready(Err(error.into())),
                // The library is woken when there is something for it; this task, when the rest of
                // what is held can go.
                (Poll::Pending, Poll::Ready(Ok(())) | Poll::Pending) => Poll::Pending,
            }
        })
        .await
    }

    /// Writes what is still held: not every connection is shut down before it ends, such as one over
    /// which somebody asked for another protocol.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub(super) async fn finish(&self) -> Result<(), Failure> {
        Ok(poll_fn(|cx| self.poll_drain(cx)).await?)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gather<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut lock(&self.0).inner).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gather<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        lock(&self.0).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut held = lock(&self.0);
        ready!(held.poll_drain(cx))?;
        Pin::new(&mut held.inner).poll_shutdown(cx)
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
        /// How often it is still to be asked to flush before it has.
        flushes: usize,
    }

    impl Slow {
        fn new(takes: impl Into<VecDeque<usize>>) -> (Gather<Slow>, Outlet<Slow>) {
            gather(Slow {
                takes: takes.into(),
                calls: Vec::new(),
                flushes: 0,
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
            let left = &mut self.get_mut().flushes;
            if *left == 0 {
                return Poll::Ready(Ok(()));
            }
            *left -= 1;
            Poll::Pending
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn write(stream: &mut Gather<Slow>, buf: &[u8]) -> Poll<usize> {
        let cx = &mut Context::from_waker(Waker::noop());
        Pin::new(stream).poll_write(cx, buf).map(Result::unwrap)
    }

    fn drain(outlet: &Outlet<Slow>) -> Poll<()> {
        let cx = &mut Context::from_waker(Waker::noop());
        outlet.poll_drain(cx).map(Result::unwrap)
    }

    fn calls(outlet: &Outlet<Slow>) -> Vec<Vec<u8>> {
        lock(&outlet.0).inner.calls.clone()
    }

    #[test]
    fn what_is_written_and_flushed_goes_out_together_when_it_is_drained() {
        let (mut stream, outlet) = Slow::new([usize::MAX]);
        let cx = &mut Context::from_waker(Waker::noop());
        for frame in [&[1; 9][..], &[2; 16 << 10], &[3; 9], &[4; 16 << 10]] {
            assert_eq!(write(&mut stream, frame), Poll::Ready(frame.len()));
            assert!(Pin::new(&mut stream).poll_flush(cx).is_ready());
        }
        assert!(calls(&outlet).is_empty());
        assert_eq!(drain(&outlet), Poll::Ready(()));
        assert_eq!(calls(&outlet).len(), 1);
        assert_eq!(calls(&outlet)[0].len(), 2 * (9 + (16 << 10)));
        assert_eq!(drain(&outlet), Poll::Ready(()));
    }

    #[test]
    fn what_does_not_fit_any_more_takes_what_is_held_along() {
        let (mut stream, outlet) = Slow::new([usize::MAX, usize::MAX]);
        let large = vec![7; HELD_MAX];
        assert_eq!(write(&mut stream, b"head"), Poll::Ready(4));
        assert_eq!(write(&mut stream, &large), Poll::Ready(HELD_MAX));
        assert_eq!(calls(&outlet).len(), 1);
        assert_eq!(calls(&outlet)[0].len(), HELD_MAX + 4);
        let larger = vec![8; HELD_MAX + 1];
        assert_eq!(write(&mut stream, &larger), Poll::Ready(HELD_MAX + 1));
        assert_eq!(calls(&outlet).len(), 2);
    }

    #[test]
    fn a_connection_that_holds_nothing_keeps_little_room() {
        for len in [1, KEPT_MAX, 40_000, HELD_MAX - 1, HELD_MAX] {
            let (mut stream, outlet) = Slow::new([len / 2 + 1, usize::MAX]);
            assert_eq!(write(&mut stream, &vec![1; len]), Poll::Ready(len));
            assert!(lock(&outlet.0).held.capacity() <= HELD_MAX);
            assert_eq!(drain(&outlet), Poll::Ready(()));
            assert!(lock(&outlet.0).held.capacity() <= KEPT_MAX);
        }
    }

    #[test]
    fn what_was_taken_but_not_flushed_is_flushed_by_a_later_drain() {
        for len in [10, HELD_MAX + 10] {
            let (mut stream, outlet) = Slow::new([usize::MAX]);
            lock(&outlet.0).inner.flushes = 2;
            assert_eq!(write(&mut stream, &vec![1; len]), Poll::Ready(len));
            assert_eq!(drain(&outlet), Poll::Pending);
            assert_eq!(calls(&outlet).len(), 1);
            assert_eq!(drain(&outlet), Poll::Pending);
            assert_eq!(drain(&outlet), Poll::Ready(()));
            assert_eq!(lock(&outlet.0).inner.flushes, 0);
        }
    }

    #[test]
    fn nothing_is_lost_or_repeated_however_little_is_taken() {
        let (mut stream, outlet) = Slow::new([]);
        let mut given = Vec::new();
        let mut byte = 0u8;
        for round in 0..400usize {
            let len = (round * 9770) % 50_000 + 1;
            let piece: Vec<u8> = std::iter::from_fn(|| {
                byte = byte.wrapping_add(31);
                Some(byte)
            })
            .take(len)
            .collect();
            given.extend_from_slice(&piece);
            let takes = |most: usize| lock(&outlet.0).inner.takes.push_back(most);
            let mut rest = &piece[..];
            while !rest.is_empty() {
                match write(&mut stream, rest) {
                    Poll::Ready(written) => rest = &rest[written..],
                    Poll::Pending => takes((round * 1310) % 15_000 + 1),
                }
            }
            while round % 3 == 0 && drain(&outlet).is_pending() {
                takes((round * 571) % 7000 + 1);
            }
        }
        lock(&outlet.0).inner.takes.extend([usize::MAX; 4]);
        assert_eq!(drain(&outlet), Poll::Ready(()));
        assert!(calls(&outlet).concat() == given);
    }

    #[tokio::test]
    async fn each_poll_of_a_connection_is_followed_by_a_write() {
        let (mut stream, outlet) = Slow::new([usize::MAX; 3]);
        let mut polls = 0;
        let connection = poll_fn(|cx| {
            polls += 1;
            cx.waker().wake_by_ref();
            for piece in [b"one", b"two"] {
                assert_eq!(write(&mut stream, piece), Poll::Ready(3));
            }
            if polls < 3 {
                return Poll::Pending;
            }
            Poll::Ready(Err(io::Error::other("over")))
        });
        let ended = outlet.drive(std::pin::pin!(connection)).await;
        assert_eq!(ended.unwrap_err().to_string(), "over");
        // Of one that fails what goes at once.
        assert_eq!(calls(&outlet), vec![b"onetwo".to_vec(); 3]);
    }

    #[tokio::test]
    async fn a_connection_that_ends_without_a_shutdown_has_written_everything() {
        let (mut stream, outlet) = Slow::new([2]);
        let connection = poll_fn(|_| {
            assert_eq!(write(&mut stream, b"answer"), Poll::Ready(6));
            Poll::Ready(Ok::<_, io::Error>(()))
        });
        outlet.drive(std::pin::pin!(connection)).await.unwrap();
        assert_eq!(calls(&outlet), [b"an".to_vec()]);
        lock(&outlet.0).inner.takes.push_back(usize::MAX);
        outlet.finish().await.unwrap();
        assert_eq!(calls(&outlet).concat(), b"answer");
    }
}
