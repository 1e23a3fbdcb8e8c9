//! What a server says of itself at `/metrics`.

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;

use keelson_harness::wait::PATIENCE;

/// The text of a server's metrics.
///
/// # Errors
/// If it does not answer at `client_url`, which begins with `http://`.
pub fn metrics(client_url: &str) -> io::Result<String> {
    let mut socket = TcpStream::connect(client_url.trim_start_matches("http://"))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.write_all(b"GET /metrics HTTP/1.1\r\nHost: m\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer)?;
    Ok(answer)
}

/// What a counter of gRPC calls has come to for a method; 0 where it has not begun.
///
/// # Errors
/// As [`metrics`], and if the value is no number.
pub fn counted(client_url: &str, counter: &str, method: &str) -> io::Result<u64> {
    let answer = metrics(client_url)?;
    let method = format!("grpc_method=\"{method}\"");
    let mut lines = answer.lines();
    let line = lines.find(|line| {
        let labels = line.strip_prefix(counter);
        labels.is_some_and(|labels| labels.starts_with('{') && labels.contains(&method))
    });
    let value = line.and_then(|line| line.rsplit(' ').next());
    value.map_or(Ok(0), |value| value.parse().map_err(io::Error::other))
}
