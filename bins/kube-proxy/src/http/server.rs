//! An HTTP/1.1 server that no client can exhaust.
//!
//! Clients are given little time and space for their requests, and all servers together a number of connections.
//! When one more client comes, the connection that is the oldest ends: whoever only holds connections open keeps
//! nobody out.

use std::{
    collections::VecDeque,
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use http_body_util::{BodyExt, Limited};
use hyper::{StatusCode, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    task::{AbortHandle, JoinSet, yield_now},
    time,
};
use tracing::{debug, warn};

use super::{Handler, Request, Response, text};

/// How many connections there may be.
const CONNECTIONS: usize = 256;
/// How long a client may take to send a request's header, which is also how long a connection may be idle.
const HEADER_PATIENCE: Duration = Duration::from_secs(30);
/// How long it may take to send the body.
const BODY_PATIENCE: Duration = Duration::from_secs(10);
/// How many bytes a request's header may have.
const HEADER_BYTES: usize = 16 * 1024;
/// How many bytes a request's body may have: there is nothing to say but a number.
const BODY_BYTES: usize = 1024;
/// What is waited for when no connection can be accepted, which is so when there are too many open files.
const PAUSE: Duration = Duration::from_millis(500);

/// The connections of all servers, the oldest first.
#[derive(Clone, Default)]
pub(crate) struct Connections(Arc<Mutex<VecDeque<AbortHandle>>>);

impl Connections {
    fn admit(&self, connection: AbortHandle) {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if open.len() >= CONNECTIONS {
            open.retain(|connection| !connection.is_finished());
        }
        if open.len() >= CONNECTIONS
            && let Some(oldest) = open.pop_front()
        {
            oldest.abort();
        }
        open.push_back(connection);
    }
}

/// Answers the clients of a listener. Their connections end with it.
pub(crate) async fn serve(listener: TcpListener, connections: Connections, handler: Handler) -> Infallible {
    let mut tasks = JoinSet::new();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => connections.admit(tasks.spawn(converse(stream, handler.clone()))),
            Err(error) => {
                warn!("cannot accept a connection: {error}");
                time::sleep(PAUSE).await;
            }
        }
        while tasks.try_join_next().is_some() {}
        // Who has come with a request is answered before too many others come.
        yield_now().await;
    }
}

async fn converse(stream: TcpStream, handler: Handler) {
    let service = service_fn(|request| answer(request, &handler));
    let conversation = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_PATIENCE)
        .max_buf_size(HEADER_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = conversation.await {
        debug!("a client's connection has failed: {error}");
    }
}

async fn answer(request: hyper::Request<Incoming>, handler: &Handler) -> Result<Response, Infallible> {
    let (head, body) = request.into_parts();
    let body = time::timeout(BODY_PATIENCE, Limited::new(body, BODY_BYTES).collect()).await;
    Ok(match body {
        Ok(Ok(body)) => handler(&Request::from_parts(head, body.to_bytes())),
        Ok(Err(_)) => text(StatusCode::PAYLOAD_TOO_LARGE, "the request's body is too large\n"),
        Err(_) => text(StatusCode::REQUEST_TIMEOUT, "the request's body takes too long\n"),
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use std::net::SocketAddr;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::http::listener;

    /// Sends a request and returns all of the answer.
    pub(crate) async fn exchange(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        String::from_utf8(answer).unwrap()
    }

    /// A server that says to a client what it has sent.
    fn echo() -> SocketAddr {
        let listener = listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let handler: Handler = Arc::new(|request| {
            let said = format!("{} {} {:?}", request.method(), request.uri(), request.body());
            text(StatusCode::OK, said)
        });
        tokio::spawn(serve(listener, Connections::default(), handler));
        address
    }

    const GET: &str = "GET /x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";

    #[tokio::test]
    async fn a_request_is_answered() {
        let address = echo();
        let answer = exchange(address, GET).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(
            answer.contains("\r\nx-content-type-options: nosniff\r\n"),
            "{answer}"
        );
        assert!(answer.ends_with("\r\n\r\nGET /x b\"\""), "{answer}");
        let put = "PUT / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 1\r\n\r\n4";
        assert!(exchange(address, put).await.ends_with("PUT / b\"4\""));
    }

    #[tokio::test]
    async fn a_connection_is_used_again() {
        let mut stream = TcpStream::connect(echo()).await.unwrap();
        for _ in 0..3 {
            stream
                .write_all(b"GET /y HTTP/1.1\r\nHost: x\r\n\r\n")
                .await
                .unwrap();
            let mut answer = [0; 1000];
            let length = stream.read(&mut answer).await.unwrap();
            assert!(String::from_utf8_lossy(&answer[..length]).ends_with("GET /y b\"\""));
        }
    }

    #[tokio::test]
    async fn who_only_holds_connections_open_keeps_nobody_out() {
        let address = echo();
        let mut held = Vec::new();
        for number in 0..1000 {
            let mut stream = TcpStream::connect(address).await.unwrap();
            // Some say nothing, others begin.
            if number % 2 == 0 {
                stream.write_all(b"GET / HTTP/1.1\r\nX: ").await.unwrap();
            }
            held.push(stream);
            if number % 100 == 99 {
                assert!(
                    exchange(address, GET).await.starts_with("HTTP/1.1 200 OK"),
                    "{number}"
                );
            }
        }
        // Most of them are over.
        let over = held
            .iter()
            .filter(|stream| !matches!(stream.try_read(&mut [0]), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock))
            .count();
        assert!(over >= 1000 - CONNECTIONS, "{over}");
    }

    #[tokio::test]
    async fn a_header_that_does_not_end_is_not_waited_for() {
        let mut stream = TcpStream::connect(echo()).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nX: ").await.unwrap();
        // The server reads what there is.
        for _ in 0..20 {
            yield_now().await;
        }
        time::pause();
        time::advance(HEADER_PATIENCE + Duration::from_secs(1)).await;
        time::resume();
        let mut answer = String::new();
        let ended = time::timeout(Duration::from_secs(10), stream.read_to_string(&mut answer));
        // Silently, or with a 408.
        ended.await.expect("the end of the connection").unwrap();
        assert!(!answer.contains("200"), "{answer}");
    }

    #[tokio::test]
    async fn what_is_too_large_is_refused() {
        let address = echo();
        let long = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "x".repeat(HEADER_BYTES));
        let answer = exchange(address, &long).await;
        assert!(answer.starts_with("HTTP/1.1 4"), "{answer}");
        let body = "x".repeat(BODY_BYTES + 1);
        let large = format!(
            "PUT / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let answer = exchange(address, &large).await;
        assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
        assert!(
            exchange(address, "hello\r\n\r\n")
                .await
                .starts_with("HTTP/1.1 400 ")
        );
    }
}
