//! Takes proxiers through their courses, one after another, in a guest.
//!
//! `cargo xtask bench` runs it there. Its arguments are [`Task`](integration::bench::Task)s; after each it writes a
//! [`Line`](integration::bench::Line).

use std::io::{self, Write};
use std::process::ExitCode;

use integration::bench::flows::Nodes;
use integration::bench::{Line, Task, measure};
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
    let tasks = std::env::args().skip(1).map(|task| Task::parse(&task));
    let tasks: Vec<_> = tasks.collect::<Result<_>>()?;
    measure::warm_up(&tasks.iter().flat_map(Task::proxiers).collect())?;
    let mut nodes = Nodes::default();
    for task in &tasks {
        let line = match task {
            Task::Course(course) => Line::Outcome(measure::run(course)?),
            Task::Flows(flows) => Line::Flows(nodes.run(flows)?),
        };
        let line = serde_json::to_string(&line).unwrap_or_default();
        writeln!(io::stdout(), "{line}").map_err(|source| Error::Io {
            action: "write".into(),
            source,
        })?;
    }
    Ok(())
}
