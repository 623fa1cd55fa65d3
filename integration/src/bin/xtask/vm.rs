//! `cargo xtask vm`: one command on a stock kernel.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use integration::kernel::Series;
use integration::{Error, Guest, Result};

pub(crate) fn command() -> Command {
    Command::new("vm")
        .about("Run a command as root on a stock kernel in a guest, and exit as it does")
        .arg(crate::kernel_argument())
        .arg(
            Arg::new("copy")
                .long("copy")
                .value_name("HOST[:GUEST]")
                .action(ArgAction::Append)
                .help("Copy a file or a directory into the guest, into /root when no place is given; repeatable"),
        )
        .arg(
            Arg::new("timeout")
                .long("timeout")
                .value_name("SECONDS")
                .value_parser(value_parser!(u64))
                .default_value("300")
                .help("Stop the guest after this time"),
        )
        .arg(
            Arg::new("keep")
                .long("keep")
                .action(ArgAction::SetTrue)
                .help("Open a shell in the guest when the command has ended; no time limit"),
        )
        .arg(
            Arg::new("command")
                .value_name("COMMAND")
                .num_args(1..)
                .trailing_var_arg(true)
                .required(true)
                .help("The command and its arguments"),
        )
}

pub(crate) fn run(arguments: &ArgMatches) -> Result<u8> {
    let mut guest = Guest::prepare(arguments.get_one::<Series>("kernel").copied())?;
    for copy in arguments.get_many::<String>("copy").unwrap_or_default() {
        let (host, place) = destination(copy)?;
        guest = guest.copy(host, place);
    }
    let seconds = arguments.get_one::<u64>("timeout").copied().unwrap_or_default();
    guest = guest.limit(Duration::from_secs(seconds));
    let command = arguments.get_many::<String>("command").unwrap_or_default();
    if arguments.get_flag("keep") {
        let shell = ["sh", "-c", "\"$@\"; status=$?; bash; exit $status", "sh"];
        let command: Vec<_> = shell
            .map(str::to_owned)
            .into_iter()
            .chain(command.cloned())
            .collect();
        return guest.run_on_terminal(&command);
    }
    guest.run(&command.cloned().collect::<Vec<_>>(), &mut std::io::stdout())
}

/// Splits `HOST[:GUEST]`.
fn destination(copy: &str) -> Result<(PathBuf, PathBuf)> {
    let (host, guest) = copy.split_once(':').unwrap_or((copy, ""));
    let host = PathBuf::from(host);
    if guest.starts_with('/') {
        return Ok((host, guest.into()));
    }
    let name = if guest.is_empty() {
        host.file_name().map(PathBuf::from)
    } else {
        Some(guest.into())
    };
    let name = name.ok_or_else(|| {
        Error::Unavailable(format!("--copy {copy}: which name should it have in the guest?"))
    })?;
    Ok((host, Path::new("/root").join(name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_go_to_root_unless_told() {
        let (host, guest) = destination("target/debug/list").unwrap();
        assert_eq!((host, guest), ("target/debug/list".into(), "/root/list".into()));
        assert_eq!(destination("a:/etc/b").unwrap().1, Path::new("/etc/b"));
        assert_eq!(destination("a:b").unwrap().1, Path::new("/root/b"));
        assert!(destination("..").is_err());
    }
}
