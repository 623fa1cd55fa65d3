//! `cargo xtask demo`: the job being done, step by step.

use std::path::Path;

use clap::{Arg, ArgAction, ArgMatches};
use integration::{Guest, Result, cargo, host};

pub(crate) fn command() -> clap::Command {
    clap::Command::new("demo")
        .about("Show kube-proxy at work on a folder of manifests, on a stock kernel; fails if anything does not hold")
        .arg(
            Arg::new("keep")
                .long("keep")
                .action(ArgAction::SetTrue)
                .help("Open a shell on the demonstration's node at the end"),
        )
}

pub(crate) fn run(arguments: &ArgMatches) -> Result<u8> {
    let keep = arguments.get_flag("keep");
    let demo = cargo::program("integration", "demo")?;
    let kube_proxy = cargo::program("kube-proxy", "kube-proxy")?;
    let manifests = Path::new(env!("CARGO_MANIFEST_DIR")).join("manifests");
    if host::has_ip_vs() {
        eprintln!("lab: this machine's own kernel has ip_vs: running in private namespaces here");
        let mut command = host::private(&demo, &kube_proxy)?;
        command.arg(&manifests).args(keep.then_some("--keep"));
        return host::status(&mut command);
    }
    let guest = Guest::prepare(None)?
        .copy(demo, "/usr/local/bin/demo")
        .copy(kube_proxy, "/usr/local/bin/kube-proxy")
        .copy(manifests, "/root/manifests");
    let mut command = vec!["demo".to_owned(), "/root/manifests".to_owned()];
    if keep {
        command.push("--keep".to_owned());
        return guest.run_on_terminal(&command);
    }
    guest.run(&command, &mut std::io::stdout())
}
