//! The IPVS service proxier as a drop-in for `kube-proxy --proxy-mode ipvs`.

use std::{
    error::Error,
    io::{self, Write},
    process::ExitCode,
};

mod address;
mod annotations;
mod dry_run;
mod duration;
mod flags;
mod logging;
mod objects;
mod relay;
mod run;
mod settings;
mod source;

use crate::{flags::Flags, settings::Settings};

fn main() -> ExitCode {
    match start() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            _ = writeln!(io::stderr(), "Error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn start() -> Result<(), Box<dyn Error>> {
    let flags = match Flags::parse(std::env::args_os()) {
        Err(flags::Error::Help(text)) => return Ok(write!(io::stdout(), "{text}")?),
        flags => flags?,
    };
    if flags.switch("version") {
        return Ok(writeln!(
            io::stdout(),
            "kube-proxy {}",
            env!("CARGO_PKG_VERSION")
        )?);
    }
    logging::start(flags.number("v"));
    let hostname = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let settings = Settings::new(&flags, &hostname)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let result = runtime.block_on(run::run(settings));
    // Name look-ups that are still under way must not hold up the end.
    runtime.shutdown_background();
    Ok(result?)
}
