//! A connection to a member's peer URL, which speaks HTTP/1.1.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use crate::url::Url;

/// The longest answer that is taken, in bytes.
const ANSWER_MAX: usize = 16 << 20;

/// The body of a request.
pub(crate) type Payload = UnsyncBoxBody<Bytes, io::Error>;

/// A body that is there as a whole.
pub(crate) fn whole(bytes: impl Into<Bytes>) -> Payload {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// A connection. Its end shows at the next request.
pub(crate) struct Line {
    sender: SendRequest<Payload>,
    authority: HeaderValue,
}

impl Line {
    /// # Errors
    ///
    /// What the system says.
    pub(crate) async fn open(url: &Url) -> io::Result<Line> {
        if url.is_tls() {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                format!("TLS between members is not supported yet ({url})"),
            ));
        }
        match url.socket_path() {
            Some(path) => Line::over(UnixStream::connect(path).await?, "localhost").await,
            None => {
                let stream = TcpStream::connect(url.authority()).await?;
                stream.set_nodelay(true)?;
                Line::over(stream, url.authority()).await
            }
        }
    }

    async fn over<S>(stream: S, authority: &str) -> io::Result<Line>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (sender, connection) = handshake(TokioIo::new(stream))
            .await
            .map_err(io::Error::other)?;
        // Ends with the sender or the connection.
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection to a peer ended");
            }
        });
        let authority = HeaderValue::try_from(authority).map_err(io::Error::other)?;
        Ok(Line { sender, authority })
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// Sends a request and reads its answer to the end.
    ///
    /// # Errors
    ///
    /// Where the connection breaks, or the answer is longer than any that is due.
    pub(crate) async fn send(
        &mut self,
        mut request: Request<Payload>,
    ) -> io::Result<Response<Bytes>> {
        request
            .headers_mut()
            .insert(header::HOST, self.authority.clone());
        self.sender.ready().await.map_err(io::Error::other)?;
        let response = self.sender.send_request(request).await;
        let (head, body) = response.map_err(io::Error::other)?.into_parts();
        let body = Limited::new(body, ANSWER_MAX).collect().await;
        Ok(Response::from_parts(
            head,
            body.map_err(io::Error::other)?.to_bytes(),
        ))
    }
}

/// A request on a connection of its own.
///
/// # Errors
///
/// As [`Line::open`] and [`Line::send`], and when it takes too long.
pub(crate) async fn once(
    url: &Url,
    request: Request<Payload>,
    patience: Duration,
) -> io::Result<Response<Bytes>> {
    let asked = async { Line::open(url).await?.send(request).await };
    tokio::time::timeout(patience, asked)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// What an answer that is no success says.
pub(crate) fn refused(response: &Response<Bytes>) -> io::Error {
    let text = String::from_utf8_lossy(response.body());
    io::Error::other(format!("{}: {}", response.status(), text.trim()))
}
