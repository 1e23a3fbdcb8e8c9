//! gRPC calls with bytes in and bytes out, over plain HTTP/2; and plain HTTP/1.1 requests.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::{Buf as _, Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::{http1, http2};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;

use super::script::{HttpRequest, Status};

/// Messages of one stream that wait to be sent or looked at.
const QUEUE: usize = 1024;

type Body = StreamBody<ReceiverStream<Result<Frame<Bytes>, Infallible>>>;

/// One HTTP/2 connection.
#[derive(Debug)]
pub struct Connection {
    sender: http2::SendRequest<Body>,
    address: SocketAddr,
}

/// What comes from the server on a stream.
#[derive(Debug)]
pub enum Event {
    /// A message.
    Message(Bytes),
    /// The end, with the status; a broken connection is code 14.
    End(Status),
}

/// A stream. Dropping it cancels it.
#[derive(Debug)]
pub struct Stream {
    requests: Option<mpsc::Sender<Result<Frame<Bytes>, Infallible>>>,
    events: mpsc::Receiver<Event>,
    task: JoinHandle<()>,
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Connection {
    /// Connects.
    ///
    /// # Errors
    /// When nobody listens there or it is no HTTP/2.
    pub async fn open(address: SocketAddr) -> Result<Self> {
        let socket = TcpStream::connect(address)
            .await
            .with_context(|| format!("connect to {address}"))?;
        socket.set_nodelay(true)?;
        let (sender, connection) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(socket)).await?;
        tokio::spawn(async move {
            // How the connection ends is seen by the calls on it.
            let _ = connection.await;
        });
        Ok(Self { sender, address })
    }

    /// Opens a stream; headers go out at once.
    ///
    /// # Errors
    /// When path or metadata cannot stand in a request.
    pub fn stream(
        &self,
        path: &str,
        metadata: &[(String, String)],
        timeout: Option<Duration>,
    ) -> Result<Stream> {
        let (requests, body) = mpsc::channel(QUEUE);
        let mut request = Request::post(format!("http://{}{path}", self.address))
            .header("content-type", "application/grpc+proto")
            .header("te", "trailers")
            .header("user-agent", "recorded/1");
        if let Some(timeout) = timeout {
            request = request.header("grpc-timeout", format!("{}m", timeout.as_millis()));
        }
        for (name, value) in metadata {
            request = request.header(name, value);
        }
        let request = request.body(StreamBody::new(ReceiverStream::new(body)))?;
        let (sender, events) = mpsc::channel(QUEUE);
        let mut connection = self.sender.clone();
        let task = tokio::spawn(async move {
            let status = match connection.send_request(request).await {
                Ok(response) => match receive(response, &sender).await {
                    Ok(status) => status,
                    Err(error) => broken(&format!("{error:#}")),
                },
                Err(error) => broken(&error.to_string()),
            };
            // The receiver is gone when the stream was cancelled.
            let _ = sender.send(Event::End(status)).await;
        });
        Ok(Stream {
            requests: Some(requests),
            events,
            task,
        })
    }

    /// One request, its messages, and the status.
    ///
    /// # Errors
    /// When the request cannot be made, or there is no end within `patience`.
    pub async fn call(
        &self,
        path: &str,
        metadata: &[(String, String)],
        request: &[u8],
        timeout: Option<Duration>,
        patience: Duration,
    ) -> Result<(Vec<Bytes>, Status)> {
        let mut stream = self.stream(path, metadata, timeout)?;
        stream.send(request).await?;
        stream.close_send();
        let mut messages = Vec::new();
        loop {
            match tokio::time::timeout(patience, stream.next())
                .await
                .context("no answer")?
            {
                Event::Message(message) => messages.push(message),
                Event::End(status) => return Ok((messages, status)),
            }
        }
    }
}

impl Stream {
    /// Sends a message.
    ///
    /// # Errors
    /// When the sending side was closed.
    pub async fn send(&mut self, message: &[u8]) -> Result<()> {
        let mut frame = BytesMut::with_capacity(5 + message.len());
        frame.extend_from_slice(&[0]);
        frame.extend_from_slice(&u32::try_from(message.len())?.to_be_bytes());
        frame.extend_from_slice(message);
        let requests = self
            .requests
            .as_ref()
            .context("the sending side is closed")?;
        // A server that has already answered reads no more: that is seen on the other side.
        let _ = requests.send(Ok(Frame::data(frame.freeze()))).await;
        Ok(())
    }

    /// Says that no more messages are sent.
    pub fn close_send(&mut self) {
        self.requests = None;
    }

    /// The next event; after the end, the end again as a broken stream.
    pub async fn next(&mut self) -> Event {
        self.events
            .recv()
            .await
            .unwrap_or_else(|| Event::End(broken("the stream has ended")))
    }
}

fn broken(message: &str) -> Status {
    Status {
        code: 14,
        message: format!("(no gRPC status) {message}"),
    }
}

async fn receive(response: Response<Incoming>, sender: &mpsc::Sender<Event>) -> Result<Status> {
    ensure!(
        response.status() == 200,
        "HTTP status {}",
        response.status()
    );
    let kind = response
        .headers()
        .get("content-type")
        .and_then(|kind| kind.to_str().ok())
        .unwrap_or_default();
    ensure!(
        kind.starts_with("application/grpc"),
        "content-type is {kind:?}"
    );
    if let Some(status) = status(response.headers()) {
        return Ok(status);
    }
    let mut body = response.into_body();
    let mut buffer = BytesMut::new();
    while let Some(frame) = body.frame().await {
        match frame?.into_data() {
            Ok(data) => buffer.extend_from_slice(&data),
            Err(frame) => {
                ensure!(
                    buffer.is_empty(),
                    "{} bytes of an unfinished message",
                    buffer.len()
                );
                let trailers = frame
                    .into_trailers()
                    .ok()
                    .context("neither data nor trailers")?;
                return status(&trailers).context("trailers without grpc-status");
            }
        }
        while let Some(message) = take_message(&mut buffer)? {
            if sender.send(Event::Message(message)).await.is_err() {
                break;
            }
        }
    }
    anyhow::bail!("the stream ended without trailers")
}

fn take_message(buffer: &mut BytesMut) -> Result<Option<Bytes>> {
    let Some(prefix) = buffer.get(..5) else {
        return Ok(None);
    };
    ensure!(
        prefix[0] == 0,
        "a compressed message, which was not asked for"
    );
    let length = usize::try_from(u32::from_be_bytes([
        prefix[1], prefix[2], prefix[3], prefix[4],
    ]))?;
    if buffer.len() < 5 + length {
        return Ok(None);
    }
    buffer.advance(5);
    Ok(Some(buffer.split_to(length).freeze()))
}

fn status(headers: &http::HeaderMap) -> Option<Status> {
    let code = headers.get("grpc-status")?.to_str().ok()?.parse().ok()?;
    let message = headers
        .get("grpc-message")
        .map(|text| percent_decoded(text.as_bytes()))
        .unwrap_or_default();
    Some(Status { code, message })
}

fn percent_decoded(text: &[u8]) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, tail)) = rest.split_first() {
        let escaped = tail
            .get(..2)
            .and_then(|hex| u8::from_str_radix(str::from_utf8(hex).ok()?, 16).ok());
        match (byte, escaped) {
            (b'%', Some(value)) => {
                bytes.push(value);
                rest = &tail[2..];
            }
            _ => {
                bytes.push(byte);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The answer to a plain request: status, headers, body.
pub type HttpAnswer = (u16, Vec<(String, String)>, String);

/// Sends a plain request over HTTP/1.1.
///
/// # Errors
/// When there is no answer.
pub async fn http(address: SocketAddr, request: &HttpRequest) -> Result<HttpAnswer> {
    let (status, headers, body) = http_bytes(address, request).await?;
    Ok((status, headers, String::from_utf8_lossy(&body).into_owned()))
}

/// As [`http()`], with the body as it came.
///
/// # Errors
/// When there is no answer.
pub async fn http_bytes(
    address: SocketAddr,
    request: &HttpRequest,
) -> Result<(u16, Vec<(String, String)>, Bytes)> {
    let socket = TcpStream::connect(address)
        .await
        .with_context(|| format!("connect to {address}"))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(socket)).await?;
    let connection = tokio::spawn(connection);
    let mut head = Request::builder()
        .method(request.method.as_str())
        .uri(&request.path);
    head = head.header("host", address.to_string());
    for (name, value) in &request.headers {
        head = head.header(name, value);
    }
    let body = Full::new(Bytes::from(request.body.clone().unwrap_or_default()));
    let response = sender.send_request(head.body(body)?).await?;
    let status = response.status().as_u16();
    let headers = response
        .headers()
        .iter()
        .map(|(name, value)| {
            (
                name.to_string(),
                String::from_utf8_lossy(value.as_bytes()).into_owned(),
            )
        })
        .collect();
    let body = response.into_body().collect().await?.to_bytes();
    connection.abort();
    Ok((status, headers, body))
}
