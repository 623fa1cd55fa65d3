//! Takes proxiers through scenarios, and tells what becomes of them.
//!
//! `cargo xtask conformance` runs it in a guest. Its arguments are scenarios; with `--upstream` before them it is
//! upstream's kube-proxy that is taken through them, else ours. It writes each
//! [`Event`](integration::conformance::Event) on a line.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use integration::conformance::{Recording, Scenario, run};
use integration::proxiers::Proxier;
use integration::{Error, Result};

fn main() -> ExitCode {
    match follow() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("observe: {error}");
            ExitCode::FAILURE
        }
    }
}

fn follow() -> Result<()> {
    let (options, files): (Vec<_>, Vec<_>) = std::env::args()
        .skip(1)
        .partition(|argument| argument.starts_with("--"));
    let upstream = options.iter().any(|option| option == "--upstream");
    let proxiers: &[_] = if upstream {
        &Proxier::UPSTREAM
    } else {
        &[Proxier::Ours]
    };
    let read = |file: &String| {
        let scenario = Scenario::read(Path::new(file))?;
        let recording = if upstream {
            None
        } else {
            Recording::read(&scenario)?
        };
        Ok((scenario, recording))
    };
    let scenarios = files.iter().map(read).collect::<Result<Vec<_>>>()?;
    run(proxiers, &scenarios, &mut |event| {
        let written = serde_json::to_string(&event).map_err(io::Error::from);
        let written = written.and_then(|line| writeln!(io::stdout(), "{line}"));
        written.map_err(|source| Error::Io {
            action: "write".into(),
            source,
        })
    })
}
