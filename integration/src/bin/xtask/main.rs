//! `cargo xtask`: the lab's commands.

mod bench;
mod conformance;
mod demo;
mod lines;
mod package;
mod takeover;
mod test;
mod vm;

use std::process::ExitCode;

use clap::{Arg, Command, value_parser};
use integration::kernel::Series;

fn main() -> ExitCode {
    let cli = Command::new("cargo xtask")
        .about("The lab")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands([
            bench::command(),
            conformance::command(),
            demo::command(),
            package::command(),
            takeover::command(),
            test::command(),
            vm::command(),
        ]);
    let matches = cli.get_matches();
    let result = match matches.subcommand() {
        Some(("bench", arguments)) => bench::run(arguments),
        Some(("conformance", arguments)) => conformance::run(arguments),
        Some(("demo", arguments)) => demo::run(arguments),
        Some(("package", arguments)) => package::run(arguments),
        Some(("takeover", arguments)) => takeover::run(arguments),
        Some(("test", arguments)) => test::run(arguments),
        Some(("vm", arguments)) => vm::run(arguments),
        // clap lets nothing else through.
        _ => Ok(2),
    };
    result.map_or_else(
        |error| {
            eprintln!("xtask: {error}");
            ExitCode::FAILURE
        },
        ExitCode::from,
    )
}

/// The kernel of the one guest that a command boots.
fn kernel_argument() -> Arg {
    Arg::new("kernel")
        .long("kernel")
        .value_name("SERIES")
        .value_parser(value_parser!(Series))
        .help("Kernel series: 6.1 or 6.12 [default: 6.12]")
}
