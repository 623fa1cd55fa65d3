//! The IPVS service proxier as a drop-in for `kube-proxy --proxy-mode ipvs`.

use std::{
    error::Error,
    fs,
    future::pending,
    io::{self, Write},
    process::ExitCode,
};

use dlmalloc::GlobalDlmalloc;
use proxier::kernel::linux::Linux;
use tracing::{error, info, warn};

mod address;
mod annotations;
mod client;
mod configuration;
mod duration;
mod events;
mod feature_gates;
mod flags;
mod health;
mod http;
mod inspect;
mod logging;
mod metrics;
mod objects;
mod oom;
mod reports;
mod run;
mod settings;
mod source;
mod version;
mod watch;
mod yaml;

use crate::{
    configuration::{Configuration, Logging},
    feature_gates::FeatureGates,
    flags::Flags,
    settings::Settings,
};

/// That of musl maps and unmaps memory all the time, and the kernel clears it each time (docs/benchmarks.md).
#[global_allocator]
static ALLOCATOR: GlobalDlmalloc = GlobalDlmalloc;

fn main() -> ExitCode {
    let flags = match Flags::parse(std::env::args_os()) {
        Ok(flags) => flags,
        Err(flags::Error::Help) => return print(&flags::usage()),
        Err(error) => {
            let usage = match error {
                flags::Error::Positional(_) => String::new(),
                _ => flags::usage() + "\n",
            };
            _ = writeln!(io::stderr(), "{usage}Error: {error}");
            return ExitCode::FAILURE;
        }
    };
    if let Some(version) = version::asked_for(&flags) {
        return print(&version);
    }
    match start(&flags) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!(err = %error, "command failed");
            ExitCode::FAILURE
        }
    }
}

fn print(text: &str) -> ExitCode {
    match write!(io::stdout(), "{text}") {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn start(flags: &Flags) -> Result<(), Box<dyn Error>> {
    let read = Configured::read(flags).inspect_err(|_| logging::start(&Logging::default()))?;
    let configuration = read.configuration().clone();
    logging::start(&configuration.logging);
    read.comment(flags);
    let hostname = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let settings = Settings::new(configuration, flags, &hostname)?;
    let target = flags.text("write-config-to");
    if !target.is_empty() {
        fs::write(&target, settings.configuration.to_yaml()?)
            .map_err(|error| format!("{target}: {error}"))?;
        info!(file = target, "Wrote configuration");
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    if settings.cleanup {
        return Ok(runtime.block_on(proxier::cleanup::cleanup(&settings.config.exclude_cidrs))?);
    }
    if settings.init_only {
        return Ok(runtime.block_on(Linux::initialize(&settings.config))?);
    }
    oom::adjust(settings.oom_score_adj);
    let result = runtime.block_on(async {
        tokio::select! {
            ended = run::run(settings, &hostname) => Ok(ended?),
            // Whoever started this starts it again, which costs no connection.
            () = read.changed() => Err("content of the proxy server's configuration file was updated".into()),
        }
    });
    // Name look-ups that are still under way must not hold up the end.
    runtime.shutdown_background();
    result
}

/// Where the configuration is from.
enum Configured {
    ByFlags(Configuration),
    ByFile(configuration::File),
}

impl Configured {
    fn read(flags: &Flags) -> Result<Self, configuration::Error> {
        match flags.text("config") {
            none if none.is_empty() => configuration::of_flags(flags).map(Self::ByFlags),
            file => configuration::of_file(file.into(), flags).map(Self::ByFile),
        }
    }

    fn configuration(&self) -> &Configuration {
        match self {
            Self::ByFlags(configuration) => configuration,
            Self::ByFile(file) => &file.configuration,
        }
    }

    /// Tells what an operator may have meant otherwise.
    fn comment(&self, flags: &Flags) {
        let list = |names: Vec<&str>| (!names.is_empty()).then(|| names.join(", "));
        if let Self::ByFile(file) = self {
            if !file.complaints.is_empty() {
                let complaints = file.complaints.join("; ");
                info!(
                    err = complaints,
                    "Using lenient decoding as strict decoding failed"
                );
            }
            if let Some(flags) = list(flags.overruled().collect()) {
                info!(
                    flags,
                    "The configuration file decides alone, so these flags are ignored"
                );
            }
            if let Some(fields) = list(file.without_effect.clone()) {
                info!(
                    fields,
                    "These fields of the configuration file have no effect here"
                );
            }
        }
        if let Some(flags) = list(flags.without_effect().collect()) {
            info!(flags, "These flags have no effect here");
        }
        for (name, stage) in FeatureGates::on_their_way_out(&self.configuration().feature_gates) {
            warn!(
                featureGate = name,
                stage = stage.name(),
                "This feature gate will be removed in a future release"
            );
        }
    }

    /// Waits until the file says something else; for ever if there is none.
    async fn changed(&self) {
        match self {
            Self::ByFlags(_) => pending().await,
            Self::ByFile(file) => file.changed().await,
        }
    }
}
