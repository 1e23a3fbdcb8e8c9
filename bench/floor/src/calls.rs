//! A server that answers every unary call with an empty message and does nothing for it, on the HTTP/2 stack
//! of the real one: its library, its settings, its threads. `keelson bench` can load it as it loads a member.

use std::convert::Infallible;
use std::io::Write as _;
use std::thread::{self, available_parallelism};

use anyhow::Context as _;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body, Incoming};
use keelson_transport::listener::{ListenOptions, Listener, Socket};
use tokio::runtime::Builder;
use tokio::sync::mpsc;

/// Connections that wait for a thread.
const WAITING: usize = 1024;

/// Prints where it listens, and serves until it is killed.
pub(crate) fn serve() -> anyhow::Result<()> {
    let listener = Listener::bind_tcp("127.0.0.1:0", ListenOptions::default())?;
    let Listener::Tcp(socket) = &listener else {
        anyhow::bail!("a TCP address gives a TCP socket");
    };
    writeln!(std::io::stdout(), "http://{}", socket.local_addr()?)?;
    let threads: Vec<_> = (0..available_parallelism()?.get())
        .map(|_| start())
        .collect::<Result<_, _>>()?;
    let runtime = Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let acceptor = listener.into_acceptor()?;
        for thread in threads.iter().cycle() {
            let socket = acceptor.accept().await?;
            thread.send(socket).await.context("a thread has ended")?;
        }
        Ok(())
    })
}

/// Starts a thread that serves the connections that it is sent.
fn start() -> anyhow::Result<mpsc::Sender<Socket>> {
    let (sender, mut sockets) = mpsc::channel::<Socket>(WAITING);
    let runtime = Builder::new_current_thread().enable_all().build()?;
    thread::Builder::new()
        .name("serving".to_owned())
        .spawn(move || {
            runtime.block_on(async {
                while let Some(socket) = sockets.recv().await {
                    // A connection that has ended already is its client's business.
                    if let Ok(stream) = socket.into_stream() {
                        tokio::spawn(keelson_server::serve_bare(stream, answer));
                    }
                }
            });
        })?;
    Ok(sender)
}

/// Takes the request in and says nothing to it.
async fn answer(
    request: Request<Incoming>,
) -> Response<impl Body<Data = Bytes, Error = Infallible> + Send> {
    // Of a call that was broken off nobody sees the answer.
    drop(request.into_body().collect().await);
    let mut trailers = HeaderMap::with_capacity(1);
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    // A flag, and a length of zero.
    let message = Full::new(Bytes::from_static(&[0; 5]));
    let mut response = Response::new(message.with_trailers(async { Some(Ok(trailers)) }));
    response.headers_mut().insert(
        http::header::CONTENT_TYPE,
        HeaderValue::from_static("application/grpc"),
    );
    response
}
