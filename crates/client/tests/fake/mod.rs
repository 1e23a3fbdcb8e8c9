//! A server of gRPC that answers what a test says, down to resets and broken connections.

use std::future::Future;
use std::net::Ipv4Addr;
use std::sync::Arc;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use h2::server::SendResponse;
use h2::{Ping, Reason, RecvStream, SendStream};
use http::{HeaderMap, HeaderValue, Request, Response};
use keelson_client::Code;
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Notify;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

/// A server; dropping it closes its socket and connections.
pub(crate) struct Fake {
    port: u16,
    task: JoinHandle<()>,
}

impl Fake {
    /// On a port that is free.
    pub(crate) async fn start<H, F>(handler: H) -> Fake
    where
        H: Fn(Call) -> F + Clone + Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        Fake::start_at(0, handler).await
    }

    /// On `port`.
    pub(crate) async fn start_at<H, F>(port: u16, handler: H) -> Fake
    where
        H: Fn(Call) -> F + Clone + Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))
            .await
            .unwrap();
        let port = listener.local_addr().unwrap().port();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                connections.spawn(serve(stream, handler.clone()));
            }
        });
        Fake { port, task }
    }

    /// Behind TLS; a handshake that fails closes its connection.
    pub(crate) async fn start_tls<H, F>(tls: TlsAcceptor, handler: H) -> Fake
    where
        H: Fn(Call) -> F + Clone + Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (tls, handler) = (tls.clone(), handler.clone());
                connections.spawn(async move {
                    if let Ok(stream) = tls.accept(stream).await {
                        serve(stream, handler).await;
                    }
                });
            }
        });
        Fake { port, task }
    }

    /// On a socket of the file system.
    pub(crate) fn start_unix<H, F>(path: &std::path::Path, handler: H) -> Fake
    where
        H: Fn(Call) -> F + Clone + Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = UnixListener::bind(path).unwrap();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                connections.spawn(serve(stream, handler.clone()));
            }
        });
        Fake { port: 0, task }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Closes its socket and its connections; when this returns, nobody listens.
    pub(crate) async fn stop(mut self) {
        self.task.abort();
        let ended = (&mut self.task).await;
        assert!(ended.unwrap_err().is_cancelled());
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The endpoints of `fakes`, as a client takes them.
pub(crate) fn urls(fakes: &[Fake]) -> String {
    let urls: Vec<String> = fakes.iter().map(Fake::url).collect();
    urls.join(",")
}

async fn serve<S, H, F>(stream: S, handler: H)
where
    S: AsyncRead + AsyncWrite + Unpin,
    H: Fn(Call) -> F,
    F: Future<Output = ()> + Send + 'static,
{
    let Ok(mut connection) = h2::server::handshake(stream).await else {
        return;
    };
    let broken = Arc::new(Notify::new());
    let mut pings = connection.ping_pong().unwrap();
    let mut calls = JoinSet::new();
    loop {
        tokio::select! {
            accepted = connection.accept() => {
                let Some(Ok((request, respond))) = accepted else { return };
                let call = Call::new(request, respond, Arc::clone(&broken));
                calls.spawn(handler(call));
            }
            () = broken.notified() => break,
        }
    }
    // What was said before has arrived when the other side answers; the first ping may overtake it.
    let told = async {
        for _ in 0..2 {
            pings.ping(Ping::opaque()).await.unwrap();
        }
    };
    tokio::pin!(told);
    loop {
        tokio::select! {
            _more = connection.accept() => {}
            () = &mut told => return,
        }
    }
}

/// A call that came in.
pub(crate) struct Call {
    path: String,
    metadata: HeaderMap,
    body: RecvStream,
    read: BytesMut,
    respond: SendResponse<Bytes>,
    broken: Arc<Notify>,
}

impl Call {
    fn new(
        request: Request<RecvStream>,
        respond: SendResponse<Bytes>,
        broken: Arc<Notify>,
    ) -> Call {
        let (head, body) = request.into_parts();
        Call {
            path: head.uri.path().to_owned(),
            metadata: head.headers,
            body,
            read: BytesMut::new(),
            respond,
            broken,
        }
    }

    /// The method: what follows the last slash.
    pub(crate) fn method(&self) -> &str {
        self.path.rsplit('/').next().unwrap()
    }

    pub(crate) fn metadata(&self, name: &str) -> Option<&str> {
        self.metadata.get(name).map(|value| value.to_str().unwrap())
    }

    /// The next message of the client; `None` if it sends no more.
    pub(crate) async fn message<M: Message + Default>(&mut self) -> Option<M> {
        loop {
            if self.read.len() >= 5 {
                let len = (&self.read[1..5]).get_u32() as usize;
                if self.read.len() >= 5 + len {
                    let frame = self.read.split_to(5 + len);
                    return Some(M::decode(&frame[5..]).unwrap());
                }
            }
            let data = self.body.data().await?.ok()?;
            self.body
                .flow_control()
                .release_capacity(data.len())
                .unwrap();
            self.read.put(data);
        }
    }

    /// Begins to answer.
    pub(crate) fn begin(&mut self) -> Answers {
        let head = Response::builder()
            .header("content-type", "application/grpc")
            .body(())
            .unwrap();
        Answers(self.respond.send_response(head, false).unwrap())
    }

    /// Answers with one message.
    pub(crate) fn answer(mut self, message: &impl Message) {
        let mut answers = self.begin();
        answers.send(message);
        answers.end(Code::Ok, "");
    }

    /// Answers with an error.
    pub(crate) fn fail(mut self, code: Code, text: &str) {
        self.begin().end(code, text);
    }

    /// Resets the stream.
    pub(crate) fn reset(mut self, reason: Reason) {
        self.respond.send_reset(reason);
    }

    /// Closes the connection once what was said has arrived.
    pub(crate) async fn break_connection(self) {
        self.broken.notify_one();
        // The stream stays, else it would be reset before.
        self.hang().await;
    }

    /// Never answers, as a server that hangs.
    pub(crate) async fn hang(self) {
        let _open = self;
        std::future::pending::<()>().await;
    }
}

/// The answers of a stream.
pub(crate) struct Answers(SendStream<Bytes>);

impl Answers {
    pub(crate) fn send(&mut self, message: &impl Message) {
        let mut frame = BytesMut::new();
        frame.put_u8(0);
        frame.put_u32(u32::try_from(message.encoded_len()).unwrap());
        message.encode(&mut frame).unwrap();
        self.0.send_data(frame.freeze(), false).unwrap();
    }

    pub(crate) fn end(mut self, code: Code, text: &str) {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from(code as i32));
        trailers.insert("grpc-message", HeaderValue::from_str(text).unwrap());
        self.0.send_trailers(trailers).unwrap();
    }
}
