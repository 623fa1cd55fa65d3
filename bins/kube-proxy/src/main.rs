//! The IPVS service proxier as a drop-in for `kube-proxy --proxy-mode ipvs`.

use std::{
    error::Error,
    fs,
    io::{self, Write},
    process::ExitCode,
};

use tracing::{error, info};

mod address;
mod annotations;
mod configuration;
mod dry_run;
mod duration;
mod feature_gates;
mod flags;
mod logging;
mod objects;
mod relay;
mod run;
mod settings;
mod source;
mod version;
mod yaml;

use crate::{
    configuration::{Configuration, Logging},
    flags::Flags,
    settings::Settings,
};

fn main() -> ExitCode {
    let flags = match Flags::parse(std::env::args_os()) {
        Ok(flags) => flags,
        Err(flags::Error::Help) => return print(&flags::usage()),
        Err(error) => {
            _ = writeln!(io::stderr(), "{}\nError: {error}", flags::usage());
            return ExitCode::FAILURE;
        }
    };
    if let Some(version) = version::asked_for(&flags) {
        return print(&version);
    }
    match configured(&flags).and_then(|configuration| run(configuration, &flags)) {
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

/// The configuration. From here on there is a log.
fn configured(flags: &Flags) -> Result<Configuration, Box<dyn Error>> {
    let file = flags.text("config");
    let read = if file.is_empty() {
        configuration::of_flags(flags).map(|configuration| (configuration, Vec::new()))
    } else {
        configuration::of_file(file.into(), flags)
    };
    let (configuration, complaints) = read.inspect_err(|_| logging::start(&Logging::default()))?;
    logging::start(&configuration.logging);
    if !complaints.is_empty() {
        info!(
            err = complaints.join("; "),
            "Using lenient decoding as strict decoding failed"
        );
    }
    let ignored: Vec<&str> = flags.without_effect().collect();
    if !ignored.is_empty() {
        info!(flags = ignored.join(","), "These flags have no effect here");
    }
    Ok(configuration)
}

fn run(configuration: Configuration, flags: &Flags) -> Result<(), Box<dyn Error>> {
    let hostname = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let settings = Settings::new(configuration, flags, &hostname)?;
    let file = flags.text("write-config-to");
    if !file.is_empty() {
        fs::write(&file, settings.configuration.to_yaml()?).map_err(|error| format!("{file}: {error}"))?;
        info!(file, "Wrote configuration");
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let result = runtime.block_on(run::run(settings));
    // Name look-ups that are still under way must not hold up the end.
    runtime.shutdown_background();
    Ok(result?)
}
