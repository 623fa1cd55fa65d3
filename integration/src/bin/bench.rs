//! Takes proxiers through their courses, one after another, in a guest.
//!
//! `cargo xtask bench` runs it there. Its arguments are [`Course`](integration::bench::Course)s; after each it writes
//! an [`Outcome`](integration::bench::Outcome) on a line.

use std::io::{self, Write};
use std::process::ExitCode;

use integration::bench::{Course, measure};
use integration::{Error, Result};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let courses = std::env::args().skip(1).map(|course| Course::parse(&course));
    let courses: Vec<_> = courses.collect::<Result<_>>()?;
    measure::warm_up(&courses)?;
    for course in &courses {
        let outcome = measure::run(course)?;
        let line = serde_json::to_string(&outcome).unwrap_or_default();
        writeln!(io::stdout(), "{line}").map_err(|source| Error::Io {
            action: "write".into(),
            source,
        })?;
    }
    Ok(())
}
