//! What cannot be used, or cannot work: one sentence, and nothing half done.

use std::path::Path;
use std::process::Command;

use integration::cluster::eventually;
use integration::kube_proxy::KubeProxy;
use integration::manifest::service;
use integration::{Cluster, Error, Result, job};

use crate::{WEB_SERVERS, web};

#[test]
#[ignore = "needs root and ip_vs: cargo xtask test"]
fn a_bad_manifest_costs_itself_only() -> Result<()> {
    let (mut cluster, _pods) = web()?;
    cluster.apply(
        "broken",
        &["apiVersion: v1\nkind: Service\nspec: {ports: [\n".to_owned()],
    )?;
    cluster.apply(
        "odd",
        &[
            service("nowhere", "clusterIP: 10.96.0.300, ports: [{port: 80}]"),
            service("portless", "clusterIP: 10.96.0.31, ports: [{port: 0}]"),
            "---\nkind: Service\napiVersion: v1\nspec: {clusterIP: 10.96.0.32, ports: [{port: 80}]}\n"
                .to_owned(),
            service("fine", "clusterIP: 10.96.0.33, ports: [{port: 80}]"),
        ],
    )?;
    cluster.start(&[])?;
    let with_fine = format!("{WEB_SERVERS}\n-A -t 10.96.0.33:80 -s rr");
    cluster.expect_servers(&with_fine)?;
    let log = cluster.kube_proxy()?.log()?;
    for told in [
        "broken.yaml",
        "default/nowhere",
        "10.96.0.300",
        "default/portless",
    ] {
        assert!(log.contains(told), "{told} is not in\n{log}");
    }

    // A file that breaks later: what it said last holds.
    cluster.apply("web", &["{".to_owned()])?;
    cluster.kube_proxy()?.wait_for("web.yaml")?;
    cluster.apply(
        "more",
        &[service("more", "clusterIP: 10.96.0.34, ports: [{port: 80}]")],
    )?;
    cluster.expect_servers(&format!("{with_fine}\n-A -t 10.96.0.34:80 -s rr"))
}

/// Waits for a kube-proxy that is to fail, and gives its one sentence.
fn sentence(kube_proxy: KubeProxy) -> Result<String> {
    let (status, log) = kube_proxy.wait()?;
    assert!(!status.success(), "it succeeded, and said\n{log}");
    let errors: Vec<_> = log
        .lines()
        .filter(|line| line.contains("command failed"))
        .collect();
    match errors[..] {
        [error] => Ok(error.to_owned()),
        _ => Err(Error::Unavailable(format!(
            "expected one line with the error, got\n{log}"
        ))),
    }
}

/// Nothing of ours is in the kernel.
fn assert_untouched(cluster: &Cluster) -> Result<()> {
    assert_eq!(cluster.servers()?, "");
    assert_eq!(cluster.ruleset()?, "");
    let links = cluster.node().namespace.output("ip", &["-brief", "link"])?;
    assert!(!links.contains("kube-ipvs0"), "{links}");
    Ok(())
}

#[test]
#[ignore = "needs root and ip_vs: cargo xtask test"]
fn an_unknown_scheduler_ends_it() -> Result<()> {
    let (mut cluster, _pods) = web()?;
    let said = sentence(cluster.begin(&["--ipvs-scheduler=nosuch"])?)?;
    assert!(said.contains("scheduler nosuch"), "{said}");
    assert_untouched(&cluster)
}

#[test]
#[ignore = "needs root and ip_vs: cargo xtask test"]
fn without_privilege_it_ends() -> Result<()> {
    let (mut cluster, _pods) = web()?;
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "kube-proxy"])
        .args(cluster.flags());
    let log = cluster.new_log();
    let said = sentence(KubeProxy::start_command(
        &cluster.node().namespace,
        &mut command,
        &log,
    )?)?;
    assert!(said.contains("CAP_NET_ADMIN"), "{said}");
    assert_untouched(&cluster)
}

fn sh(script: &str) -> std::result::Result<(), String> {
    let status = Command::new("sh").args(["-c", script]).status();
    match status {
        Ok(status) if status.success() => Ok(()),
        failed => Err(format!("{script}: {failed:?}")),
    }
}

#[test]
#[ignore = "needs root and ip_vs: cargo xtask test"]
fn f1_a_kernel_without_ip_vs_ends_it() -> Result<()> {
    assert!(
        Path::new(job::PATH).exists(),
        "this test unloads ip_vs: it is for guests"
    );
    let (mut cluster, _pods) = web()?;
    // Namespaces of earlier tests may still be on their way out.
    eventually(|| Ok(sh("lsmod | awk '/^ip_vs/ {print $1}' | sort -r | xargs -r rmmod")))?;
    sh("mkdir -p /etc/modprobe.d && echo 'install ip_vs /bin/false' > /etc/modprobe.d/no-ip_vs.conf")
        .unwrap();
    let said = cluster.begin(&[]).and_then(sentence);
    sh("rm /etc/modprobe.d/no-ip_vs.conf").unwrap();
    let said = said?;
    assert!(said.contains("no IPVS") && said.contains("ip_vs"), "{said}");
    assert_untouched(&cluster)
}
