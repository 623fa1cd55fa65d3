//! The program as its users start it.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

use std::{
    fs,
    path::PathBuf,
    process::{Command, Output},
};

fn kube_proxy(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kube-proxy"))
        .args(args)
        .output()
        .unwrap()
}

/// A directory with these manifests in one file.
fn manifests(name: &str, text: &str) -> PathBuf {
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join("manifests.yaml"), text).unwrap();
    directory
}

#[test]
fn help_and_version_go_to_standard_output() {
    for (args, beginning) in [
        (["--help"], "Usage:\n  kube-proxy [flags]\n"),
        (["--version"], "Kubernetes v1.36.3\n"),
        (["--version=raw"], "Kubernetes v1.36.3\n"),
    ] {
        let output = kube_proxy(&args);
        assert!(output.status.success(), "{args:?}");
        assert!(
            String::from_utf8_lossy(&output.stdout).starts_with(beginning),
            "{args:?}"
        );
        assert!(output.stderr.is_empty(), "{args:?}");
    }
}

#[test]
fn a_command_line_that_cannot_be_read_shows_the_usage_and_exits_with_1() {
    for args in [["--no-such-flag"], ["--ipvs-sync-period=soon"]] {
        let output = kube_proxy(&args);
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert!(message.starts_with("Usage:\n"), "{args:?}: {message}");
        assert!(message.contains("\n\nError: "), "{args:?}: {message}");
        assert!(output.stdout.is_empty(), "{args:?}");
    }
    let output = kube_proxy(&["argument"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        String::from_utf8_lossy(&output.stderr),
        "Error: \"kube-proxy\" does not take any arguments, got [\"argument\"]\n"
    );
}

#[test]
fn what_cannot_work_is_one_line_of_the_log_and_exit_code_1() {
    for (args, reason) in [
        (
            &["--proxy-mode=nftables"][..],
            "this kube-proxy has the mode ipvs only",
        ),
        (&["--manifests=/nonexistent"], "No such file or directory"),
        (&["--kubeconfig=/nonexistent"], "/nonexistent"),
        (&["--config=/nonexistent"], "No such file or directory"),
    ] {
        let output = kube_proxy(args);
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert!(
            message.starts_with('E') && message.lines().count() == 1,
            "{args:?}: {message}"
        );
        assert!(
            message.contains("\"command failed\" err=\"") && message.contains(reason),
            "{args:?}: {message}"
        );
        assert!(output.stdout.is_empty(), "{args:?}");
    }
}

#[test]
fn a_plan_is_printed_and_what_is_broken_is_named() {
    let directory = manifests(
        "plan",
        "\
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {clusterIP: 10.99.13.178, ports: [{port: 80}, {name: bad, port: 0}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 8080}]
endpoints: [{addresses: [10.244.0.5]}]
---
kind: [
",
    );
    let output = kube_proxy(&["plan", "--manifests", directory.to_str().unwrap()]);
    let plan = String::from_utf8_lossy(&output.stdout);
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{log}");
    for line in [
        "-A -t 10.99.13.178:80 -s rr",
        "-a -t 10.99.13.178:80 -r 10.244.0.5:8080 -m -w 1",
    ] {
        assert!(plan.lines().any(|found| found == line), "{line}: {plan}");
    }
    let file = directory.join("manifests.yaml");
    for message in [
        format!(
            "{}: Service default/web: spec.ports[1].port: 0 is not a port number",
            file.display()
        ),
        format!("{}: document 3, line 13: ", file.display()),
    ] {
        assert!(log.contains(&message), "{message}: {log}");
    }
}
