//! Puts one kube-proxy in the place of another, for each case, and tells what clients noticed.
//!
//! `cargo xtask takeover` runs it in a guest. It writes an [`Outcome`](integration::takeover::Outcome) on a line for each.

use std::io::{self, Write};
use std::process::ExitCode;

use integration::takeover::Case;
use integration::{Error, Result};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("takeover: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    for case in Case::ALL {
        eprintln!("lab: from {} to {}", case.from, case.to);
        let line = serde_json::to_string(&case.run()?).unwrap_or_default();
        writeln!(io::stdout(), "{line}").map_err(|source| Error::Io {
            action: "write".into(),
            source,
        })?;
    }
    Ok(())
}
