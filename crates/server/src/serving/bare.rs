//! A connection as members serve it, without a member behind it.

use std::convert::Infallible;
use std::future::Future;

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use super::gather::gather;
use super::{Limits, connection_builder};
use crate::config::Config;

/// Serves HTTP on a connection with the settings of a member that was configured by nobody, until it
/// ends. For programs that measure what the library costs by itself.
///
/// # Errors
///
/// Why the connection ended, if not by the will of who is at its other end.
pub async fn serve_bare<S, A, F, B>(
    stream: S,
    answer: A,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    A: Fn(Request<Incoming>) -> F,
    F: Future<Output = Response<B>> + Send + 'static,
    B: http_body::Body<Data = Bytes, Error = Infallible> + Send + 'static,
{
    // Whoever accepts counts the connections.
    let limits = Limits::of(&Config::default(), usize::MAX);
    let service = service_fn(|request| {
        let answer = answer(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let (stream, outlet) = gather(stream);
    let stream = TokioIo::new(stream);
    let builder = connection_builder(limits);
    let connection = std::pin::pin!(builder.serve_connection(stream, service));
    outlet.drive(connection).await?;
    outlet.finish().await
}
