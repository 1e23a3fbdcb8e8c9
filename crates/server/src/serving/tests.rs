use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::Instant;

use http_body_util::{BodyExt as _, Empty};
use keelson_transport::listener::ListenOptions;

use super::*;

/// Says which thread serves, and waits before it does where the path says so.
#[derive(Default)]
struct Echo {
    draining: Mutex<Option<CancellationToken>>,
}

impl Handle for Echo {
    async fn handle(
        self: &Arc<Echo>,
        origin: Origin,
        request: Request<Incoming>,
    ) -> Response<Body> {
        if request.uri().path() == "/until-draining" {
            let draining = self.draining.lock().unwrap().clone();
            if let Some(draining) = draining {
                draining.cancelled().await;
            }
        }
        if request.uri().path() == "/for-ever" {
            std::future::pending::<()>().await;
        }
        Response::new(Body::plain(format!("{}", origin.thread)))
    }

    async fn background(self: &Arc<Echo>, _thread: u16) {
        std::future::pending().await
    }
}

struct Server {
    serving: Serving,
    address: SocketAddr,
}

fn start(threads: u16) -> Server {
    let handler = Arc::new(Echo::default());
    let draining = CancellationToken::new();
    *handler.draining.lock().unwrap() = Some(draining.clone());
    let limits = Limits {
        streams: u32::MAX,
        ping_interval: Duration::from_secs(7200),
        ping_timeout: Duration::from_secs(20),
        connections: 7,
    };
    let mut serving = Serving::start(threads, &handler, limits, draining).unwrap();
    let listener = Listener::bind_tcp("127.0.0.1:0", ListenOptions::default()).unwrap();
    let address = listener.local_address().parse().unwrap();
    let door = Door {
        listener,
        purpose: Purpose::Client,
        tls: None,
    };
    serving.accept(vec![door]).unwrap();
    Server { serving, address }
}

type Sender = hyper::client::conn::http2::SendRequest<Empty<bytes::Bytes>>;

async fn connect(address: SocketAddr) -> Sender {
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(connection);
    sender
}

async fn get(sender: &mut Sender, path: &str) -> Result<String, hyper::Error> {
    let request = Request::get(format!("http://member{path}"))
        .body(Empty::new())
        .unwrap();
    let response = sender.send_request(request).await?;
    let body = response.into_body().collect().await?.to_bytes();
    Ok(String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn connections_are_dealt_out_evenly() {
    let server = start(3);
    let mut served = Vec::new();
    let mut kept = Vec::new();
    for _ in 0..6 {
        let mut sender = connect(server.address).await;
        served.push(get(&mut sender, "/").await.unwrap());
        kept.push(sender);
    }
    served.sort();
    assert_eq!(served, ["0", "0", "1", "1", "2", "2"]);
    tokio::task::spawn_blocking(move || server.serving.join(Duration::ZERO))
        .await
        .unwrap();
}

#[tokio::test]
async fn connections_past_the_limit_wait_until_others_end() {
    let server = start(2);
    let mut kept = Vec::new();
    for _ in 0..7 {
        let mut sender = connect(server.address).await;
        get(&mut sender, "/").await.unwrap();
        kept.push(sender);
    }
    let address = server.address;
    let eighth = tokio::spawn(async move {
        let mut sender = connect(address).await;
        get(&mut sender, "/").await
    });
    // Served only when one of the others is gone.
    tokio::task::yield_now().await;
    assert!(!eighth.is_finished());
    drop(kept.pop());
    assert!(eighth.await.unwrap().is_ok());
    tokio::task::spawn_blocking(move || server.serving.join(Duration::ZERO))
        .await
        .unwrap();
}

#[tokio::test]
async fn http_1_is_served_on_the_same_port() {
    let server = start(1);
    let stream = tokio::net::TcpStream::connect(server.address)
        .await
        .unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    let request = Request::get("/")
        .header("host", "member")
        .body(Empty::<bytes::Bytes>::new())
        .unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(response.headers()["content-length"], "1");
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(&body[..], b"0");
    tokio::task::spawn_blocking(move || server.serving.join(Duration::ZERO))
        .await
        .unwrap();
}

#[tokio::test]
async fn who_asks_for_another_protocol_is_answered_in_this_one() {
    let server = start(1);
    let address = server.address;
    let answer = tokio::task::spawn_blocking(move || {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        let request = "GET / HTTP/1.1\r\nHost: member\r\nConnection: close\r\nUpgrade: h2c\r\n\r\n";
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    });
    let answer = answer.await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer:?}");
    assert!(answer.ends_with("\r\n\r\n0"), "{answer:?}");
    tokio::task::spawn_blocking(move || server.serving.join(Duration::ZERO))
        .await
        .unwrap();
}

#[tokio::test]
async fn what_can_finish_is_finished_before_the_threads_end() {
    let server = start(1);
    let mut sender = connect(server.address).await;
    let mut other = sender.clone();
    // The first answer shows that the connection is being served.
    get(&mut sender, "/").await.unwrap();
    let waiting = tokio::spawn(async move { get(&mut other, "/until-draining").await });
    tokio::task::yield_now().await;
    let stopped = tokio::task::spawn_blocking(move || {
        let started = Instant::now();
        server.serving.join(Duration::from_secs(600));
        started.elapsed()
    });
    // Either it was in time to be answered, or its stream was never opened.
    match waiting.await.unwrap() {
        Ok(body) => assert_eq!(body, "0"),
        Err(error) => assert!(!error.is_parse(), "{error}"),
    }
    drop(sender);
    assert!(stopped.await.unwrap() < Duration::from_secs(300));
}

#[tokio::test]
async fn what_does_not_finish_is_dropped() {
    let server = start(1);
    let mut sender = connect(server.address).await;
    get(&mut sender, "/").await.unwrap();
    let waiting = tokio::spawn(async move { get(&mut sender, "/for-ever").await });
    tokio::task::spawn_blocking(move || server.serving.join(Duration::from_millis(50)))
        .await
        .unwrap();
    assert!(waiting.await.unwrap().is_err());
}
