//! The program: a source on this thread, the proxier on another, and the signals that end it.

use std::{future::pending, io, path::PathBuf, thread};

use proxier::{
    Config, Reconciler,
    config::LocalDetector,
    kernel::{
        Failure,
        linux::{self, Linux},
    },
    model::Change,
};
use tokio::{
    runtime,
    signal::unix::{SignalKind, signal},
    sync::{
        mpsc::{self, UnboundedReceiver},
        oneshot,
    },
};
use tracing::info;

use crate::{
    flags::Request,
    inspect,
    relay::{self, Relay},
    settings::{Client, Settings, Source},
    source::{Sink, api, manifests},
};

/// Why the program ends, as a sentence that says what to do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("--manifests {}: {source}", directory.display())]
    Manifests { directory: PathBuf, source: io::Error },
    #[error(transparent)]
    Api(#[from] api::Error),
    #[error(transparent)]
    Relay(#[from] relay::Error),
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

/// Programs Services until a signal comes. What is programmed stays.
pub(crate) async fn run(settings: Settings) -> Result<(), Error> {
    let (sink, changes) = mpsc::unbounded_channel();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let source = follow(&settings, sink);
    tokio::select! {
        ended = source => ended,
        ended = program(&settings, changes) => ended,
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}

/// Follows the source. Comes back early only if it cannot be used.
async fn follow(settings: &Settings, sink: Sink) -> Result<(), Error> {
    let node_name = &settings.config.node_name;
    match &settings.source {
        Source::Manifests(directory) => {
            let result = manifests::run(directory.clone(), node_name, sink).await;
            result.map_err(|source| Error::Manifests {
                directory: directory.clone(),
                source,
            })?;
        }
        Source::Api => {
            let Client {
                kubeconfig, master, ..
            } = &settings.client;
            let client = api::client(kubeconfig.as_deref(), master.as_deref()).await?;
            api::run(client, node_name, sink).await;
        }
    }
    // Nobody listens any more, and who did says why.
    pending().await
}

/// Does with the source's changes what the settings say.
async fn program(settings: &Settings, changes: UnboundedReceiver<Change>) -> Result<(), Error> {
    let mut relay =
        Relay::new(changes, settings.bind_address).with_external_ips(settings.feature_gates.external_ips());
    let mut config = settings.config.clone();
    // Nothing is touched for a source that may prove useless.
    relay.ready().await?;
    if let LocalDetector::NodeCidrs(cidrs) = &mut config.local_detector {
        *cidrs = relay.pod_cidrs().await?;
    }
    if settings.request != Request::Run {
        let mut out = io::stdout();
        return Ok(inspect::answer(&settings.request, settings.output, config, relay, &mut out).await?);
    }
    let (to_proxier, inbox) = mpsc::unbounded_channel();
    let stopped = start_proxier(config, settings.source.to_string(), inbox)?;
    let relaying = async {
        while let Some(change) = relay.next().await? {
            // Fails if the proxier has stopped, which says why.
            _ = to_proxier.send(change);
        }
        pending().await
    };
    tokio::select! {
        ended = relaying => ended,
        ended = stopped => ended.unwrap_or(Err(Error::Stopped)),
    }
}

/// Runs the proxier on a thread of its own, so that neither a slow API server nor a slow kernel delays the
/// other. What is received is how it ended.
fn start_proxier(
    config: Config,
    source: String,
    changes: UnboundedReceiver<Change>,
) -> io::Result<oneshot::Receiver<Result<(), Error>>> {
    let (ended, result) = oneshot::channel();
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    thread::Builder::new().name("proxier".to_owned()).spawn(move || {
        let result = runtime.block_on(async {
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
            let (reports, _) = mpsc::unbounded_channel();
            let reconciler = Reconciler::new(config, kernel, reports)
                .await
                .map_err(Error::Observe)?;
            reconciler.run(changes).await;
            Ok(())
        });
        _ = ended.send(result);
    })?;
    Ok(result)
}
