//! A client of nothing but HTTP/2 and protobuf, so that the tests see what is on the wire.

use std::path::Path;
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use http::Request;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use keelson_server::Member;
use keelson_server::config::Config;
use keelson_server::url::Url;
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;

/// The end of a call: code and text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Status {
    pub(crate) code: u16,
    pub(crate) text: String,
}

/// A member in a directory, on ports that the system chooses.
pub(crate) fn start(dir: &Path) -> Member {
    start_with(dir, |_| {})
}

pub(crate) fn start_with(dir: &Path, change: impl FnOnce(&mut Config)) -> Member {
    let listener = || std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut config = Config {
        name: "one".into(),
        data_dir: dir.to_owned(),
        client_listeners: vec![listener()],
        peer_listeners: vec![listener()],
        ..Config::default()
    };
    change(&mut config);
    Member::start(config.check().unwrap()).unwrap()
}

pub(crate) fn framed(message: &impl Message) -> Bytes {
    let mut out = BytesMut::new();
    out.put_u8(0);
    out.put_u32(u32::try_from(message.encoded_len()).unwrap());
    message.encode(&mut out).unwrap();
    out.freeze()
}

pub(crate) fn request<B>(path: &str, timeout: Option<&str>, body: B) -> Request<B> {
    let mut builder = Request::post(format!("http://member{path}"))
        .header("content-type", "application/grpc+proto")
        .header("te", "trailers");
    if let Some(timeout) = timeout {
        builder = builder.header("grpc-timeout", timeout);
    }
    builder.body(body).unwrap()
}

/// A connection for calls with one request message.
#[derive(Clone)]
pub(crate) struct Client(pub(crate) SendRequest<Full<Bytes>>);

impl Client {
    pub(crate) async fn connect(url: &Url) -> Client {
        Client(match url.socket_path() {
            Some(path) => handshake(tokio::net::UnixStream::connect(path).await.unwrap()).await,
            None => {
                let socket = tokio::net::TcpStream::connect(url.authority())
                    .await
                    .unwrap();
                socket.set_nodelay(true).unwrap();
                handshake(socket).await
            }
        })
    }

    pub(crate) async fn call<R: Message + Default>(
        &self,
        path: &str,
        message: &impl Message,
    ) -> Result<R, Status> {
        self.send(path, None, framed(message)).await
    }

    pub(crate) async fn send<R: Message + Default>(
        &self,
        path: &str,
        timeout: Option<&str>,
        body: Bytes,
    ) -> Result<R, Status> {
        let mut all = self.stream(path, timeout, body).await?;
        assert_eq!(all.len(), 1, "one message");
        Ok(all.pop().unwrap())
    }

    pub(crate) async fn stream<R: Message + Default>(
        &self,
        path: &str,
        timeout: Option<&str>,
        body: Bytes,
    ) -> Result<Vec<R>, Status> {
        let request = request(path, timeout, Full::new(body));
        let response = self.0.clone().send_request(request).await.unwrap();
        let mut answers = Answers::of(response);
        let mut all = Vec::new();
        while let Some(message) = answers.next().await? {
            all.push(message);
        }
        Ok(all)
    }
}

async fn handshake<S, B>(socket: S) -> SendRequest<B>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    B: hyper::body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: std::error::Error + Send + Sync,
{
    let (sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20)
        .handshake(TokioIo::new(socket))
        .await
        .unwrap();
    tokio::spawn(connection);
    sender
}

/// The messages of an answer.
pub(crate) struct Answers {
    response: http::Response<Incoming>,
    buffer: BytesMut,
}

impl Answers {
    pub(crate) fn of(response: http::Response<Incoming>) -> Answers {
        assert_eq!(response.headers()["content-type"], "application/grpc+proto");
        Answers {
            response,
            buffer: BytesMut::new(),
        }
    }

    /// The next message, or `None` where the call ended well.
    pub(crate) async fn next<R: Message + Default>(&mut self) -> Result<Option<R>, Status> {
        let message = self.next_bytes().await?;
        Ok(message.map(|message| R::decode(message).unwrap()))
    }

    /// As [`Answers::next`], as it came.
    pub(crate) async fn next_bytes(&mut self) -> Result<Option<Bytes>, Status> {
        loop {
            if let Some(&[flag, a, b, c, d]) = self.buffer.first_chunk::<5>() {
                assert_eq!(flag, 0);
                let len = u32::from_be_bytes([a, b, c, d]) as usize;
                if self.buffer.len() >= 5 + len {
                    let message = self.buffer.split_to(5 + len).freeze().slice(5..);
                    return Ok(Some(message));
                }
            }
            match self.response.body_mut().frame().await {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.buffer.extend_from_slice(&data),
                    Err(frame) => {
                        assert!(self.buffer.is_empty(), "trailers come after whole messages");
                        return ended(&frame.into_trailers().unwrap());
                    }
                },
                Some(Err(error)) => {
                    return Err(Status {
                        code: 14,
                        text: error.to_string(),
                    });
                }
                None => return ended(self.response.headers()),
            }
        }
    }
}

fn ended<R>(fields: &http::HeaderMap) -> Result<Option<R>, Status> {
    let text = |name: &str| {
        fields
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
            .to_owned()
    };
    let code = text("grpc-status").parse().unwrap();
    if code == 0 {
        return Ok(None);
    }
    Err(Status {
        code,
        text: text("grpc-message"),
    })
}

type Sent = Result<Frame<Bytes>, std::convert::Infallible>;

type Requests = StreamBody<UnboundedReceiverStream<Sent>>;

/// A call that sends and gets many messages.
pub(crate) struct Both {
    pub(crate) requests: mpsc::UnboundedSender<Sent>,
    pub(crate) answers: Answers,
}

/// No test file uses everything, so all of it counts as used here.
const _: () = {
    let _ = Both::wanting;
};

impl Both {
    pub(crate) async fn open(url: &Url, path: &str) -> Both {
        Both::begun(url, path, None).await
    }

    /// With a header.
    pub(crate) async fn wanting(
        url: &Url,
        path: &str,
        (name, value): (&'static str, &'static str),
    ) -> Both {
        Both::sent(url, None, |body| {
            let mut request = request(path, None, body);
            let value = http::HeaderValue::from_static(value);
            request.headers_mut().insert(name, value);
            request
        })
        .await
    }

    /// With a first piece of the body: some calls say nothing before they have their message.
    pub(crate) async fn begun(url: &Url, path: &str, first: Option<Bytes>) -> Both {
        Both::sent(url, first, |body| request(path, None, body)).await
    }

    async fn sent(
        url: &Url,
        first: Option<Bytes>,
        request: impl FnOnce(Requests) -> Request<Requests>,
    ) -> Both {
        let socket = tokio::net::TcpStream::connect(url.authority())
            .await
            .unwrap();
        let mut sender = handshake(socket).await;
        let (requests, received) = mpsc::unbounded_channel::<Sent>();
        if let Some(first) = first {
            requests.send(Ok(Frame::data(first))).unwrap();
        }
        let body = StreamBody::new(UnboundedReceiverStream::new(received));
        let response = sender.send_request(request(body)).await.unwrap();
        Both {
            requests,
            answers: Answers::of(response),
        }
    }

    pub(crate) fn send(&self, message: &impl Message) {
        self.send_raw(framed(message));
    }

    pub(crate) fn send_raw(&self, body: Bytes) {
        // A call that has ended takes no more, and its answer says why.
        drop(self.requests.send(Ok(Frame::data(body))));
    }
}

/// Waits for something that is under way.
pub(crate) async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(120), what)
        .await
        .expect("it takes no half minute")
}
