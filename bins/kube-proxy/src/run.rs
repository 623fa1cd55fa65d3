//! The program: a source, the proxier and the signals that end it, all on one thread: a change is in the kernel without
//! another having to wake up.

use std::{
    future::pending,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use futures_util::{FutureExt, StreamExt, stream::FuturesUnordered};
use proxier::{
    Config, Reconciler,
    config::{LocalDetector, NodePortAddresses},
    kernel::{
        Failure,
        linux::{self, Linux},
    },
    model::Change,
    report::Report,
};
use serde_json::json;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc::{self, Receiver, UnboundedReceiver},
};
use tracing::info;

use crate::{
    client,
    events::{self, Event, Events},
    flags::Request,
    health::Health,
    http::{self, Servers, metrics::About},
    inspect, logging,
    metrics::Metrics,
    reports,
    settings::{Client, Settings, Source},
    source::{
        api, manifests,
        sink::{Beginning, NoPodCidrs, Sink},
    },
    version,
};

/// Why the program ends, as a sentence that says what to do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("--manifests {}: {source}", directory.display())]
    Manifests { directory: PathBuf, source: io::Error },
    #[error(transparent)]
    Client(#[from] client::Error),
    #[error(transparent)]
    Http(#[from] http::Error),
    #[error(transparent)]
    Metrics(#[from] prometheus::Error),
    #[error(transparent)]
    NoPodCidrs(#[from] NoPodCidrs),
    #[error(transparent)]
    Kernel(#[from] linux::Error),
    #[error(transparent)]
    Inspect(#[from] inspect::Error),
    #[error("the kernel's state cannot be read: {0}")]
    Observe(Failure),
    #[error("the proxier has stopped")]
    Stopped,
    #[error("{0}")]
    System(#[from] io::Error),
}

impl Error {
    /// The reason of the event that tells of it.
    fn reason(&self) -> &'static str {
        match self {
            Self::Http(error) => error.reason(),
            _ => "FailedToStart",
        }
    }
}

/// Where changes come from.
enum Followed<'a> {
    Manifests(&'a Path),
    Api(kube::Client),
}

/// What is seen of us from outside.
struct Outlook {
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    events: Events,
}

/// Programs Services until a signal comes. What is programmed stays.
pub(crate) async fn run(settings: Settings, hostname: &str) -> Result<(), Error> {
    let (to_servers, reports) = mpsc::unbounded_channel();
    let (terminate, interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let (events, to_post) = Events::channel();
    let metrics = Arc::new(Metrics::new()?);
    let external_ips = settings.feature_gates.external_ips();
    let (sink, beginning, changes) = Sink::new(metrics.clone(), settings.bind_address, external_ips);
    let followed = match &settings.source {
        Source::Manifests(directory) => Followed::Manifests(directory),
        Source::Api => {
            let Client { kubeconfig, master } = &settings.client;
            let (kubeconfig, master) = (kubeconfig.as_deref(), master.as_deref());
            let client = client::connect(kubeconfig, master, metrics.clone(), sink.witness());
            Followed::Api(client.await?)
        }
    };
    let outlook = Outlook {
        metrics,
        health: Arc::new(Health::new(settings.config.sync_period)),
        events,
    };
    let observer = reports::observer(outlook.health.clone(), outlook.metrics.clone(), to_servers);
    let served = async {
        if settings.request != Request::Run {
            return pending().await;
        }
        outlook.events.send(Event::starting(&settings.config.node_name));
        let ended = servers(&settings, &outlook, reports)?.start()?;
        ended.await.map_or(Err(Error::Stopped), |error| Err(error.into()))
    };
    let signalled = |mut signal: Signal| async move {
        signal.recv().await;
        Ok(())
    };
    // Unlike `select!`, this polls only who was woken: a watch event concerns one or two.
    let mut all: FuturesUnordered<_> = [
        served.boxed_local(),
        follow(
            &followed,
            &settings.config.node_name,
            hostname,
            &outlook,
            to_post,
            sink,
        )
        .boxed_local(),
        program(&settings, observer, beginning, changes).boxed_local(),
        signalled(terminate).boxed_local(),
        signalled(interrupt).boxed_local(),
    ]
    .into_iter()
    .collect();
    let ended = all.next().await.unwrap_or(Err(Error::Stopped));
    drop(all);
    if let (Err(error), Followed::Api(client), Request::Run) = (&ended, &followed, &settings.request) {
        let event = Event::failed(&settings.config.node_name, error.reason(), error);
        events::post_last(event, client, hostname).await;
    }
    ended
}

/// What the settings let be seen of us.
fn servers(
    settings: &Settings,
    outlook: &Outlook,
    reports: UnboundedReceiver<Report>,
) -> Result<Servers, Error> {
    let flags = settings.flag_values.iter().cloned().collect();
    outlook.metrics.set_feature_gates(&settings.feature_gates);
    Ok(Servers {
        healthz: settings.healthz_bind_address,
        metrics: settings.metrics_bind_address,
        hard_fail: settings.bind_address_hard_fail,
        on_all_addresses: settings.config.node_port_addresses == NodePortAddresses::All,
        node_name: settings.config.node_name.clone(),
        health: outlook.health.clone(),
        events: outlook.events.clone(),
        about: About {
            metrics: outlook.metrics.clone(),
            configuration: json!({ "kubeproxy.config.k8s.io": settings.configuration }),
            flags: settings.feature_gates.flagz().then_some(flags),
            status: settings.feature_gates.statusz(),
            profiling: settings.profiling,
            version: version::KUBERNETES.trim_start_matches('v'),
            set_verbosity: logging::set_verbosity,
        },
        reports,
    })
}

/// Follows the source. Comes back early only if it cannot be used.
async fn follow(
    followed: &Followed<'_>,
    node_name: &str,
    hostname: &str,
    outlook: &Outlook,
    to_post: Receiver<Event>,
    sink: Sink,
) -> Result<(), Error> {
    match followed {
        Followed::Manifests(directory) => {
            // There may be no Node, and nobody to say that this one goes.
            outlook.health.set_node_eligible(true);
            let result = manifests::run(directory.to_path_buf(), node_name, sink).await;
            result.map_err(|source| Error::Manifests {
                directory: directory.to_path_buf(),
                source,
            })?;
        }
        Followed::Api(client) => {
            let posting = events::post(to_post, client.clone(), hostname);
            let watching = api::run(client.clone(), node_name, &outlook.health, sink);
            tokio::join!(posting, watching);
        }
    }
    // Nobody listens any more, and who did says why.
    pending().await
}

/// Does with the source's changes what the settings say.
async fn program(
    settings: &Settings,
    observer: impl FnMut(Report) + Send + 'static,
    mut beginning: Beginning,
    changes: UnboundedReceiver<Change>,
) -> Result<(), Error> {
    let mut config = settings.config.clone();
    // Nothing is touched for a source that may prove useless.
    beginning.ready().await;
    if let LocalDetector::NodeCidrs(cidrs) = &mut config.local_detector {
        *cidrs = beginning.pod_cidrs().await?;
    }
    if settings.request != Request::Run {
        let mut out = io::stdout();
        return Ok(inspect::answer(&settings.request, settings.output, config, changes, &mut out).await?);
    }
    drop(beginning);
    proxy(config, &settings.source.to_string(), changes, observer).await
}

/// Programs Services until there is nobody to tell of changes any more.
async fn proxy(
    config: Config,
    source: &str,
    changes: UnboundedReceiver<Change>,
    observer: impl FnMut(Report) + Send + 'static,
) -> Result<(), Error> {
    let kernel = Linux::prepare(&config).await?;
    let families: Vec<String> = kernel.families().iter().map(ToString::to_string).collect();
    info!(
        version = env!("CARGO_PKG_VERSION"),
        mode = "ipvs",
        scheduler = %config.scheduler,
        families = families.join(","),
        kernel = %rustix::system::uname().release().to_string_lossy(),
        node = %config.node_name,
        source,
        "Programming Services"
    );
    let reconciler = Reconciler::new(config, kernel, observer)
        .await
        .map_err(Error::Observe)?;
    reconciler.run(changes).await;
    Err(Error::Stopped)
}
