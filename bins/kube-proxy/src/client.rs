//! The client for the API server.
//!
//! It asks for a handful of watches, so `clientConnection.qps` and `burst` have nothing to limit. With HTTP/2, which API
//! servers speak unless it was turned off, all of them share one connection.
//!
//! Who follows an API server that says nothing looks well and is out of date (F6). Three watch over that: the kernel, for
//! an other end that is gone ([`LOST`]); HTTP/2's pings, for one that takes what is sent and does not answer ([`IDLE`],
//! [`PONG`]); and the bookmarks of each watch, for one that forgets it ([`SILENT`]).

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use http_body_util::BodyExt;
use hyper::{
    Request, Response, StatusCode,
    body::{Body as _, Incoming},
    header::{AUTHORIZATION, HeaderValue, USER_AGENT},
};
use hyper_rustls::{FixedServerNameResolver, HttpsConnectorBuilder};
use hyper_timeout::TimeoutConnector;
use hyper_util::{
    client::legacy::{
        self,
        connect::{
            Connect, HttpConnector,
            dns::{GaiResolver, Name},
        },
    },
    rt::{TokioExecutor, TokioTimer},
};
use kube::{
    Client, Config,
    client::{Body, ClientBuilder, ConfigExt},
    config::{KubeConfigOptions, Kubeconfig, KubeconfigError},
};
use tokio::sync::Semaphore;
use tower::{BoxError, Service, ServiceBuilder, ServiceExt, service_fn, util::MapRequestLayer};
use tower_http::timeout::{ResponseBodyTimeoutLayer, TimeoutBody};
use tracing::{info, warn};

use crate::metrics::Metrics;

/// How long a connection, TLS included, may take to come about.
const CONNECT: Duration = Duration::from_secs(10);
/// When an idle connection is first probed, and how long the other end may leave anything unacknowledged.
const PROBE: Duration = Duration::from_secs(15);
const LOST: Duration = Duration::from_secs(30);
/// When an idle HTTP/2 connection is first pinged, and how long the answer may take.
const IDLE: Duration = Duration::from_secs(30);
const PONG: Duration = Duration::from_secs(15);
/// How many bytes of an answer the API server may send before we have taken them in: what waits here stays in memory, what
/// waits there has been encoded for all nodes.
const AHEAD: u32 = 256 * 1024;
/// How long an answer may be interrupted. The API server sends a bookmark on every watch about once a minute.
const SILENT: Duration = Duration::from_secs(130);

/// Why no API server can be asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(
        "where is the API server? Give --kubeconfig or --master, run in a Pod, or give --manifests DIR ({0})"
    )]
    NotInCluster(#[source] kube::config::InClusterError),
    #[error("--kubeconfig {}: {source}", path.display())]
    Kubeconfig { path: PathBuf, source: KubeconfigError },
    #[error("the token of the API server's client, {}: {source}", path.display())]
    Token { path: PathBuf, source: io::Error },
    #[error("--master {0:?} is not a URL such as https://10.0.0.1:6443")]
    Master(String),
    #[error("the API server cannot be spoken to through the proxy {0}")]
    Proxy(hyper::Uri),
    #[error("--kubeconfig: tls-server-name {0:?} is neither a name nor an address")]
    ServerName(String),
    #[error("no client for the API server: {0}")]
    Client(#[from] kube::Error),
}

/// Makes a client for the API server. It does not connect yet; whenever it has, it calls `connected`.
///
/// # Errors
///
/// Fails if the kubeconfig cannot be used, or if there is neither that nor `master`, and we run in no Pod.
pub(crate) async fn connect(
    kubeconfig: Option<&Path>,
    master: Option<&str>,
    metrics: Arc<Metrics>,
    connected: impl Fn() + Clone + Send + Sync + 'static,
) -> Result<Client, Error> {
    let mut config = configuration(kubeconfig, master).await?;
    info!("following the API server at {}", config.cluster_url);
    if let Some(proxy) = config.proxy_url {
        return Err(Error::Proxy(proxy));
    }
    let name = concat!("kube-proxy/", env!("CARGO_PKG_VERSION"));
    config.headers.push((USER_AGENT, HeaderValue::from_static(name)));

    // As upstream has it, this token counts also where there is another one.
    let token = config
        .auth_info
        .token_file
        .take()
        .map(TokenFile::new)
        .transpose()?;
    if token.is_some() {
        config.auth_info.token = None;
    }

    let renewable = config.clone();
    let mut current = session(&config, &metrics, connected.clone())?;
    let refused = Arc::new(AtomicBool::new(false));
    let measured = service_fn(move |request: Request<Body>| {
        if refused.swap(false, Ordering::Relaxed) {
            match session(&renewable, &metrics, connected.clone()) {
                Ok(renewed) => current = renewed,
                Err(error) => {
                    warn!("the API server refuses our credentials, and there are no others: {error}")
                }
            }
        }
        let (session, metrics, refused) = (current.clone(), metrics.clone(), refused.clone());
        async move {
            let (method, uri) = (request.method().clone(), request.uri().clone());
            let size = request.body().size_hint().exact();
            let begin = Instant::now();
            let result = session.oneshot(request).await;
            // As upstream calls a request that has no answer.
            let status = result.as_ref().map(|response| response.status());
            let code = status.as_ref().map_or("<error>", |status| status.as_str());
            metrics.note_request(&method, &uri, code, size, begin.elapsed());
            if matches!(status, Ok(StatusCode::UNAUTHORIZED)) {
                refused.store(true, Ordering::Relaxed);
            }
            result.map(|response| {
                let mut answer = metrics.answer(&method, &uri, response.status());
                response.map(|body| {
                    body.map_frame(move |frame| {
                        answer.note(frame.data_ref().map_or(0, |data| data.len()));
                        frame
                    })
                })
            })
        }
    });
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(token.map(|mut token| MapRequestLayer::new(move |request| token.authorize(request))))
        .layer(config.extra_headers_layer()?)
        .service(measured);
    Ok(ClientBuilder::new(service, config.default_namespace).build())
}

/// Speaks to the API server with the credentials that there are now: certificates are read from their files, and an
/// exec plugin is asked for what it has. Once the API server refuses them, it is time for another session.
fn session<C: Fn() + Clone + Send + Sync + 'static>(
    config: &Config,
    metrics: &Arc<Metrics>,
    connected: C,
) -> Result<
    impl Service<Request<Body>, Response = Response<TimeoutBody<Incoming>>, Error = BoxError, Future: Send>
    + Clone
    + Send
    + use<C>,
    Error,
> {
    // Each request that finds no connection makes one: the first goes alone until it has, and the others share it.
    let alone = Arc::new(Semaphore::new(1));
    let together = alone.clone();
    let connected = move || {
        together.close();
        connected();
    };
    let client = legacy::Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        // One that carries watches is in use, however long ago the last of them began.
        .pool_idle_timeout(None)
        .http2_initial_stream_window_size(AHEAD)
        .http2_initial_connection_window_size(3 * AHEAD)
        .http2_keep_alive_interval(IDLE)
        .http2_keep_alive_timeout(PONG)
        .http2_keep_alive_while_idle(true)
        .build(connector(config, metrics.clone(), connected)?);
    Ok(ServiceBuilder::new()
        .option_layer(config.auth_layer()?)
        .layer(ResponseBodyTimeoutLayer::new(SILENT))
        .timeout(SILENT)
        .service(service_fn(move |request| {
            let (client, alone) = (client.clone(), alone.clone());
            async move {
                let _turn = alone.acquire().await;
                client.oneshot(request).await
            }
        })))
}

fn connector<C: Fn() + Clone + Send + Sync + 'static>(
    config: &Config,
    metrics: Arc<Metrics>,
    connected: C,
) -> Result<impl Connect + Clone + Send + Sync + use<C>, Error> {
    let resolver = service_fn(move |name: Name| {
        let metrics = metrics.clone();
        async move {
            let begin = Instant::now();
            let addresses = GaiResolver::new().oneshot(name.clone()).await;
            metrics.note_resolution(name.as_str(), begin.elapsed());
            addresses
        }
    });
    let mut tcp = HttpConnector::new_with_resolver(resolver);
    tcp.enforce_http(false);
    tcp.set_keepalive(Some(PROBE));
    tcp.set_keepalive_interval(Some(PROBE / 3));
    tcp.set_tcp_user_timeout(Some(LOST));
    let mut tls = HttpsConnectorBuilder::new()
        .with_tls_config(config.rustls_client_config()?)
        .https_or_http();
    if let Some(name) = &config.tls_server_name {
        let parsed = name.clone().try_into();
        let parsed = parsed.map_err(|_| Error::ServerName(name.clone()))?;
        tls = tls.with_server_name_resolver(FixedServerNameResolver::new(parsed));
    }
    let mut connector = TimeoutConnector::new(tls.enable_all_versions().wrap_connector(tcp));
    connector.set_connect_timeout(Some(CONNECT));
    Ok(connector.map_response(move |stream| {
        connected();
        stream
    }))
}

/// A file with a token that is replaced while we run, as the kubelet does with those of service accounts. Requests are
/// few, so each reads it.
#[derive(Clone)]
struct TokenFile {
    path: PathBuf,
    /// What was read last.
    header: HeaderValue,
}

impl TokenFile {
    fn new(path: String) -> Result<Self, Error> {
        let path = PathBuf::from(path);
        match Self::header(&path) {
            Ok(header) => Ok(Self { path, header }),
            Err(source) => Err(Error::Token { path, source }),
        }
    }

    fn header(path: &Path) -> io::Result<HeaderValue> {
        let text = fs::read_to_string(path)?;
        let token = text.trim();
        if token.is_empty() {
            return Err(io::Error::other("the file is empty"));
        }
        let mut header = HeaderValue::try_from(format!("Bearer {token}")).map_err(io::Error::other)?;
        header.set_sensitive(true);
        Ok(header)
    }

    fn authorize<B>(&mut self, mut request: Request<B>) -> Request<B> {
        match Self::header(&self.path) {
            Ok(header) => self.header = header,
            Err(error) => warn!("{}: {error}; the last token goes on", self.path.display()),
        }
        request.headers_mut().insert(AUTHORIZATION, self.header.clone());
        request
    }
}

async fn configuration(kubeconfig: Option<&Path>, master: Option<&str>) -> Result<Config, Error> {
    match (kubeconfig, master) {
        (Some(path), master) => {
            let fail = |source| Error::Kubeconfig {
                path: path.to_owned(),
                source,
            };
            let file = Kubeconfig::read_from(path).map_err(fail)?;
            let authority = authority(&file);
            let mut config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
                .await
                .map_err(fail)?;
            config.root_cert_file = authority;
            if let Some(url) = master {
                config.cluster_url = plain(url)?.cluster_url;
            }
            Ok(config)
        }
        (None, Some(url)) => plain(url),
        (None, None) => Config::incluster().map_err(Error::NotInCluster),
    }
}

/// The file that says who may vouch for the API server, if the kubeconfig does not say so itself. It is read again once a
/// minute, as that of a Pod.
fn authority(file: &Kubeconfig) -> Option<PathBuf> {
    let current = file.current_context.as_ref()?;
    let context = file.contexts.iter().find(|context| context.name == *current)?;
    let name = &context.context.as_ref()?.cluster;
    let cluster = file.clusters.iter().find(|cluster| cluster.name == *name)?;
    let cluster = cluster.cluster.as_ref()?;
    match cluster.certificate_authority_data {
        Some(_) => None,
        None => cluster.certificate_authority.as_ref().map(PathBuf::from),
    }
}

fn plain(url: &str) -> Result<Config, Error> {
    let config = url.parse().ok().map(Config::new);
    config
        .filter(|config| config.cluster_url.scheme().is_some())
        .ok_or_else(|| Error::Master(url.to_owned()))
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
        time,
    };

    use super::*;

    #[tokio::test]
    async fn where_the_api_server_is_must_be_said() {
        let message = async |kubeconfig, master| {
            let metrics = Arc::new(Metrics::new().unwrap());
            connect(kubeconfig, master, metrics, || ())
                .await
                .err()
                .unwrap()
                .to_string()
        };
        assert!(message(None, None).await.starts_with("where is the API server?"));
        let missing = Path::new("/nonexistent/kubeconfig");
        assert!(
            message(Some(missing), None)
                .await
                .starts_with("--kubeconfig /nonexistent/kubeconfig: ")
        );
        assert_eq!(
            message(None, Some("10.0.0.1:6443")).await,
            "--master \"10.0.0.1:6443\" is not a URL such as https://10.0.0.1:6443"
        );
    }

    /// F6, where there are no pings: the one says nothing at all, the other begins an answer and does not go on.
    #[tokio::test(start_paused = true)]
    async fn f6_an_api_server_that_says_nothing_more_is_not_waited_for() {
        for said in ["", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{"] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("http://{}", listener.local_addr().unwrap());
            let client = connect(None, Some(&url), Arc::new(Metrics::new().unwrap()), || ());
            let client = client.await.unwrap();
            let begin = time::Instant::now();
            let request = client.request_text(Request::new(Vec::new()));
            let server = async {
                let (mut stream, _) = listener.accept().await.unwrap();
                assert_ne!(stream.read(&mut [0; 1000]).await.unwrap(), 0);
                stream.write_all(said.as_bytes()).await.unwrap();
                std::future::pending::<()>().await;
            };
            tokio::select! {
                answer = request => assert!(answer.is_err(), "{answer:?}"),
                () = server => {}
            }
            let took = begin.elapsed();
            assert!((SILENT..2 * SILENT).contains(&took), "{said:?}: {took:?}");
        }
    }

    #[test]
    fn the_current_cluster_s_authority_is_in_a_file_or_not() {
        let of = |current: &str| {
            let text = format!(
                "{{current-context: {current}, \
                  contexts: [{{name: a, context: {{cluster: file}}}}, {{name: b, context: {{cluster: data}}}}], \
                  clusters: [{{name: data, cluster: {{certificate-authority: /x, certificate-authority-data: eA==}}}}, \
                             {{name: file, cluster: {{certificate-authority: /ca.crt}}}}]}}"
            );
            authority(&Kubeconfig::from_yaml(&text).unwrap())
        };
        assert_eq!(of("a"), Some("/ca.crt".into()));
        assert_eq!(of("b"), None);
        assert_eq!(of("c"), None);
    }

    #[test]
    fn a_token_is_what_the_file_has_now_or_had_last() {
        let path = std::env::temp_dir().join(format!("token-{}", std::process::id()));
        let text = path.to_str().unwrap().to_owned();
        assert!(matches!(TokenFile::new(text.clone()), Err(Error::Token { .. })));
        fs::write(&path, "first\n").unwrap();
        let mut token = TokenFile::new(text).unwrap();
        let mut shown = |content: &str| {
            fs::write(&path, content).unwrap();
            let request = token.authorize(Request::new(()));
            request.headers()[AUTHORIZATION].to_str().unwrap().to_owned()
        };
        assert_eq!(shown("second"), "Bearer second");
        assert_eq!(shown(" "), "Bearer second");
        assert_eq!(shown("third"), "Bearer third");
        fs::remove_file(&path).unwrap();
        let request = token.authorize(Request::new(()));
        assert_eq!(request.headers()[AUTHORIZATION], "Bearer third");
    }
}
