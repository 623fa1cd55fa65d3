//! The HTTP servers: the node's health, what the program tells of itself, and the Services' health checks.

use std::{future::pending, io, net::SocketAddr, sync::Arc, thread};

use http_body_util::Full;
use hyper::{
    StatusCode,
    body::Bytes,
    header::{CONTENT_TYPE, HeaderName, HeaderValue},
};
use proxier::report::Report;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    runtime,
    sync::{mpsc::UnboundedReceiver, oneshot},
};
use tracing::debug;

use crate::{events::Events, health::Health, reports::Reports};

mod health;
mod listener;
pub(crate) mod metrics;
mod server;
pub(crate) mod service_health;
mod zpages;

use metrics::About;
use server::{Connections, serve};
use service_health::ServiceHealth;

/// A request with its whole body.
pub(crate) type Request = hyper::Request<Bytes>;

pub(crate) type Response = hyper::Response<Full<Bytes>>;

/// Answers the requests to a server.
pub(crate) type Handler = Arc<dyn Fn(&Request) -> Response + Send + Sync>;

/// The server of the node's health.
const HEALTHZ: &str = "healthz";

/// Why the servers end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{purpose}: cannot listen on {address}: {source}")]
    Listen {
        purpose: &'static str,
        address: SocketAddr,
        source: io::Error,
    },
    #[error(transparent)]
    Metrics(#[from] prometheus::Error),
}

impl Error {
    /// The reason of the event that tells of it: upstream's.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Listen { purpose: HEALTHZ, .. } => "FailedToStartProxierHealthcheck",
            Self::Listen { .. } | Self::Metrics(_) => "FailedToStartMetricServer",
        }
    }
}

/// What is served where.
pub(crate) struct Servers {
    /// Where `/healthz` is, if it is.
    pub(crate) healthz: Option<SocketAddr>,
    /// Where `/metrics` is, if it is.
    pub(crate) metrics: Option<SocketAddr>,
    /// Whether one of the two that cannot be listened on is an error, and not tried again.
    pub(crate) hard_fail: bool,
    /// Whether Services' health checks are on all of the node's addresses, and not only where node ports are.
    pub(crate) on_all_addresses: bool,
    pub(crate) node_name: Arc<str>,
    pub(crate) health: Arc<Health>,
    pub(crate) about: About,
    pub(crate) events: Events,
    /// What the proxier says.
    pub(crate) reports: UnboundedReceiver<Report>,
}

impl Servers {
    /// Runs the servers on a thread of their own, so that they answer whatever else there is to do. What is received
    /// is why they ended.
    ///
    /// # Errors
    ///
    /// Fails if the thread cannot be had.
    pub(crate) fn start(self) -> io::Result<oneshot::Receiver<Error>> {
        let (ended, result) = oneshot::channel();
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        thread::Builder::new().name("http".to_owned()).spawn(move || {
            raise_file_limit();
            _ = ended.send(runtime.block_on(self.run()));
        })?;
        Ok(result)
    }

    async fn run(self) -> Error {
        let connections = Connections::default();
        let metrics = self.about.metrics.clone();
        let answer_health = health::handler(self.health.clone(), metrics.clone());
        let answer_metrics = match metrics::handler(self.about) {
            Ok(handler) => handler,
            Err(error) => return error.into(),
        };
        let service_health = ServiceHealth::new(
            self.node_name,
            self.on_all_addresses,
            self.health,
            connections.clone(),
            self.events.clone(),
        );
        let reports = Reports::new(metrics, self.events, service_health);
        let served = |purpose, address, handler| {
            serve_at(purpose, address, self.hard_fail, connections.clone(), handler)
        };
        tokio::select! {
            error = served(HEALTHZ, self.healthz, answer_health) => error,
            error = served("metrics", self.metrics, answer_metrics) => error,
            error = async { reports.take(self.reports).await; pending().await } => error,
        }
    }
}

async fn serve_at(
    purpose: &'static str,
    address: Option<SocketAddr>,
    hard_fail: bool,
    connections: Connections,
    handler: Handler,
) -> Error {
    let Some(address) = address else {
        return pending().await;
    };
    let listener = if hard_fail {
        listener::bind(address)
    } else {
        Ok(listener::listen(purpose, address).await)
    };
    match listener {
        Ok(listener) => match serve(listener, connections, handler).await {},
        Err(source) => Error::Listen {
            purpose,
            address,
            source,
        },
    }
}

/// Connections are limited, but a Service's health check may take a listener for each of the node's addresses.
fn raise_file_limit() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let all = Rlimit {
        current: maximum,
        maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, all) {
        debug!("the limit of open files stays: {error}");
    }
}

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
/// Keeps browsers from taking an answer for what it does not say it is.
const NO_SNIFFING: (HeaderName, HeaderValue) = (
    hyper::header::X_CONTENT_TYPE_OPTIONS,
    HeaderValue::from_static("nosniff"),
);

fn respond(status: StatusCode, content_type: HeaderValue, body: impl Into<Bytes>) -> Response {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
        .headers_mut()
        .extend([(Some(NO_SNIFFING.0), NO_SNIFFING.1)]);
    response
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response {
    respond(status, TEXT, body)
}

fn not_found() -> Response {
    text(StatusCode::NOT_FOUND, "404 page not found\n")
}
