//! The command line and the configuration beside those of upstream's kube-proxy, whose program `UPSTREAM_KUBE_PROXY`
//! names: what each of its flags and each of its fields becomes in the file of `--write-config-to`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by it")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

const HEADER: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

/// Flags that are no settings, and so have nothing to be compared.
const TASKS: [&str; 6] = [
    "cleanup",
    "config",
    "help",
    "init-only",
    "version",
    "write-config-to",
];

/// A directory of this test's own.
fn directory(name: &str) -> PathBuf {
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::create_dir_all(&directory).unwrap();
    directory
}

fn upstream() -> PathBuf {
    std::env::var_os("UPSTREAM_KUBE_PROXY")
        .expect("UPSTREAM_KUBE_PROXY names no program")
        .into()
}

fn ours() -> PathBuf {
    env!("CARGO_BIN_EXE_kube-proxy").into()
}

fn run(program: &Path, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).output().unwrap()
}

/// What a program writes of a configuration, or why it does not.
fn written(program: &Path, directory: &Path, arguments: &[&str]) -> Result<String, String> {
    let file = directory.join("written.yaml");
    _ = fs::remove_file(&file);
    let write = format!("--write-config-to={}", file.display());
    let output = run(program, &[arguments, &[&write]].concat());
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    match output.status.success() {
        true => fs::read_to_string(&file).map_err(|error| format!("{error}: {log}")),
        false => Err(log),
    }
}

/// Fails unless both write the same.
fn assert_same(directory: &Path, arguments: &[&str]) {
    let expected =
        written(&upstream(), directory, arguments).unwrap_or_else(|log| panic!("{arguments:?}: {log}"));
    let found = written(&ours(), directory, arguments).unwrap_or_else(|log| panic!("{arguments:?}: {log}"));
    assert_eq!(found, expected, "{arguments:?}");
}

/// The flags in upstream's help, each with the word for its type.
fn flags() -> Vec<(String, String)> {
    let help = String::from_utf8(run(&upstream(), &["--help"]).stdout).unwrap();
    let flag = |line: &str| {
        let (name, rest) = line
            .trim_start()
            .trim_start_matches("-h, ")
            .trim_start_matches("-v, ")
            .strip_prefix("--")?
            .split_once(' ')?;
        let kind = if rest.starts_with(' ') {
            "bool"
        } else {
            rest.split(' ').next()?
        };
        Some((name.to_owned(), kind.to_owned()))
    };
    help.lines().filter_map(flag).collect()
}

/// A value that is not the default one.
fn value(flag: &str, kind: &str) -> String {
    let value = match (flag, kind) {
        ("iptables-localhost-nodeports", _) => "false",
        ("cluster-cidr", _) => "10.244.0.0/16,fd00:10:244::/56",
        ("logging-format", _) => "json",
        ("nodeport-addresses", _) => "192.0.2.0/24,fd01::/64",
        ("ipvs-exclude-cidrs", _) => "010.0.0.0/8",
        ("show-hidden-metrics-for-version", _) => "1.35",
        ("iptables-masquerade-bit", _) => "31",
        (_, "bool") => "true",
        (_, "duration") => "1h2.5s",
        (_, "int32") => "7",
        (_, "float32") => "7.1",
        (_, "ip") => "192.0.2.1",
        (_, "ipport") => "192.0.2.1:1",
        (_, "quantity") => "2Ki",
        (_, "LocalMode") => "NodeCIDR",
        (_, "Level") => "3",
        (_, "pattern=N,...") => "proxier=4,iptables*=5",
        (_, "mapStringBool") => "AllowServiceExternalIPs=false,AllAlpha=false",
        (_, "ProxyMode") => "ipvs",
        (_, "string") => "a-text",
        _ => panic!("--{flag} is a {kind}, of which there is no example here"),
    };
    value.to_owned()
}

#[test]
#[ignore = "needs upstream's kube-proxy: cargo xtask test"]
fn every_flag_becomes_what_upstream_makes_of_it() {
    let directory = directory("upstream-flags");
    // Q49: upstream's default of the least period depends on where the configuration is from. Ours is 0.
    let mode = ["--proxy-mode=ipvs", "--ipvs-min-sync-period=0s"];
    assert_same(&directory, &mode);
    let flags = flags();
    assert!(flags.len() > 50, "{flags:?}");
    for (flag, kind) in flags {
        if TASKS.contains(&flag.as_str()) {
            continue;
        }
        let flag_and_value = format!("--{flag}={}", value(&flag, &kind));
        let mut arguments = mode.to_vec();
        arguments.push(&flag_and_value);
        if flag.starts_with("log-") {
            arguments.push("--feature-gates=LoggingAlphaOptions=true");
        }
        if flag == "ipvs-min-sync-period" {
            arguments.push("--ipvs-sync-period=2h");
        }
        if flag.ends_with("-split-stream") {
            // Upstream forgets these two.
            let text = written(&ours(), &directory, &arguments).unwrap();
            assert!(text.contains("      splitStream: true\n"), "{text}");
        } else {
            assert_same(&directory, &arguments);
        }
    }
    for arguments in [
        &["--healthz-bind-address=[::1]:1", "--metrics-bind-address=[::]:2"][..],
        &["--healthz-bind-address=192.0.2.1:2"],
        &[
            "--feature-gates=AllBeta=true",
            "--feature-gates=ContextualLogging=false",
        ],
        &["--hostname-override=yes"],
        &["--hostname-override=1.5"],
        &["--hostname-override=a: b"],
        &["--hostname-override=[a"],
        &[
            "--detect_local_mode",
            "BridgeInterface",
            "--pod_bridge_interface",
            "cni0",
        ],
        &[
            "--bind-address=fd00::1",
            "--healthz-bind-address=[::]:1",
            "--metrics-bind-address=[::1]:2",
        ],
    ] {
        assert_same(&directory, &[&mode, arguments].concat());
    }
}

#[test]
#[ignore = "needs upstream's kube-proxy: cargo xtask test"]
fn every_field_becomes_what_upstream_makes_of_it() {
    let directory = directory("upstream-fields");
    let file = directory.join("config.yaml");
    let config = format!("--config={}", file.display());
    let compare = |fields: &str| {
        fs::write(&file, format!("{HEADER}mode: ipvs\n{fields}\n")).unwrap();
        assert_same(&directory, &[&config]);
    };
    for fields in [
        "",
        "featureGates: {AllowServiceExternalIPs: false, AllAlpha: false}",
        "clientConnection: {kubeconfig: /k}",
        "clientConnection: {acceptContentTypes: application/json}",
        "clientConnection: {contentType: application/json}",
        "clientConnection: {qps: 7.1}",
        "clientConnection: {qps: -1}",
        "clientConnection: {burst: 7}",
        "logging: {format: json}",
        "logging: {flushFrequency: 7s}",
        "logging: {flushFrequency: 7000000000}",
        "logging: {verbosity: 1}",
        "logging: {vmodule: [{filePattern: a*, verbosity: 4}, {filePattern: b, verbosity: 0}]}",
        "featureGates: {LoggingAlphaOptions: true}\nlogging: {options: {text: {infoBufferSize: 2Ki}}}",
        "featureGates: {LoggingAlphaOptions: true}\nlogging: {options: {json: {infoBufferSize: 1500}}}",
        "hostnameOverride: Node-1",
        "bindAddress: 192.0.2.1",
        "bindAddress: fd00::1",
        "bindAddress: \"::\"",
        "healthzBindAddress: 192.0.2.1",
        "healthzBindAddress: 192.0.2.1:1",
        "healthzBindAddress: \"[fd00::1]:1\"",
        "metricsBindAddress: \"::1\"",
        "metricsBindAddress: 192.0.2.1:1",
        "bindAddressHardFail: true",
        "enableProfiling: yes",
        "showHiddenMetricsForVersion: \"1.35\"",
        "iptables: {masqueradeBit: 0}",
        "iptables: {masqueradeAll: true}",
        "iptables: {localhostNodePorts: false}",
        "iptables: {syncPeriod: 7s, minSyncPeriod: 3s}",
        "ipvs: {syncPeriod: 7s}",
        "ipvs: {minSyncPeriod: 3s}",
        "ipvs: {scheduler: lc}",
        "ipvs: {excludeCIDRs: [010.0.0.0/8, \"fd00::/64\"]}",
        "ipvs: {strictARP: true}",
        "ipvs: {tcpTimeout: 1.5h}",
        "ipvs: {tcpFinTimeout: 1500ms}",
        "ipvs: {udpTimeout: 3us}",
        "nftables: {masqueradeBit: 5}",
        "nftables: {syncPeriod: 7s, minSyncPeriod: 3s}",
        "winkernel: {networkName: a}",
        "winkernel: {sourceVip: 192.0.2.1}",
        "winkernel: {enableDSR: true}",
        "winkernel: {rootHnsEndpointName: \"1e3\"}",
        "winkernel: {forwardHealthCheckVip: true}",
        "windowsRunAsService: true",
        "portRange: 1-2",
        "detectLocalMode: NodeCIDR",
        "detectLocalMode: BridgeInterface\ndetectLocal: {bridgeInterface: \"yes\"}",
        "detectLocalMode: InterfaceNamePrefix\ndetectLocal: {interfaceNamePrefix: \"*\"}",
        "clusterCIDR: 10.244.0.0/16,fd00:10:244::/56",
        "nodePortAddresses: [primary]",
        "nodePortAddresses: [192.0.2.0/24, \"fd01::/64\"]",
        "oomScoreAdj: 0",
        "conntrack: {maxPerCore: 0}",
        "conntrack: {min: 0}",
        "conntrack: {tcpEstablishedTimeout: 0s}",
        "conntrack: {tcpCloseWaitTimeout: 1m}",
        "conntrack: {tcpBeLiberal: true}",
        "conntrack: {udpTimeout: 1ns}",
        "conntrack: {udpStreamTimeout: 2562047h47m16.854775807s}",
        "configSyncPeriod: 1h",
        "noSuchField: 1",
        "oomScoreAdj: 1\noomScoreAdj: 2",
        "---\noomScoreAdj: 2",
    ] {
        compare(fields);
    }
}

/// What one of them writes, the other reads, and writes again.
#[test]
#[ignore = "needs upstream's kube-proxy: cargo xtask test"]
fn files_go_from_one_to_the_other() {
    let directory = directory("upstream-files");
    let flags = [
        "--proxy-mode=ipvs",
        "--ipvs-scheduler=sh",
        "--ipvs-exclude-cidrs=192.0.2.0/24",
        "--oom-score-adj=0",
    ];
    let text = written(&ours(), &directory, &flags).unwrap();
    let file = directory.join("ours.yaml");
    fs::write(&file, &text).unwrap();
    let config = format!("--config={}", file.display());
    for program in [ours(), upstream()] {
        assert_eq!(
            written(&program, &directory, &[&config]).unwrap(),
            text,
            "{}",
            program.display()
        );
    }
}

#[test]
#[ignore = "needs upstream's kube-proxy: cargo xtask test"]
fn what_upstream_refuses_is_refused() {
    let directory = directory("upstream-errors");
    let file = directory.join("config.yaml");
    let refused = |program: &Path, arguments: &[&str]| {
        let output = run(program, arguments);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(
            output.status.code(),
            Some(1),
            "{}: {arguments:?}: {message}",
            program.display()
        );
        assert!(output.stdout.is_empty(), "{}: {arguments:?}", program.display());
        // A command line that cannot be read is answered with the usage, all else by a line of the log.
        (
            message.contains("\nUsage:\n") || message.starts_with("Usage:\n"),
            message,
        )
    };
    let compare = |arguments: &[&str]| {
        let (upstreams, message) = refused(&upstream(), arguments);
        let (ours, our_message) = refused(&ours(), arguments);
        assert_eq!(ours, upstreams, "{arguments:?}: {our_message}{message}");
    };
    for argument in [
        "--no-such-flag",
        "--masquerade-bit=3",
        "-x",
        "argument",
        "--ipvs-scheduler",
        "--bind-address=x",
        "--bind-address-hard-fail=maybe",
        "--cleanup=maybe",
        "--config-sync-period=soon",
        "--conntrack-min=1.5",
        "--feature-gates=A",
        "--feature-gates=A=maybe",
        "--healthz-bind-address=192.0.2.1:x",
        "--healthz-bind-address=192.0.2.1:70000",
        "--ipvs-sync-period=30",
        "--kube-api-qps=x",
        "--log-flush-frequency=x",
        "--log-text-info-buffer-size=x",
        "--metrics-bind-address=host:1",
        "--oom-score-adj=99999999999",
        "--v=-1",
        "--version=2",
        "--version=v1.35.0",
        "--vmodule=a",
        "--cluster-cidr=a,b,c",
        "--cluster-cidr=10.0.0.0/8,11.0.0.0/8",
        "--config-sync-period=0",
        "--config=/nonexistent",
        "--conntrack-max-per-core=-1",
        "--conntrack-min=-1",
        "--detect-local-mode=x",
        "--detect-local-mode=BridgeInterface",
        "--feature-gates=NoSuchGate=true",
        "--feature-gates=MultiCIDRServiceAllocator=false",
        "--ipvs-exclude-cidrs=x",
        "--ipvs-min-sync-period=1m",
        "--ipvs-sync-period=0s",
        "--iptables-masquerade-bit=32",
        "--kube-api-burst=-1",
        "--log-flush-frequency=0",
        "--log-json-split-stream",
        "--log-text-info-buffer-size=1Ki",
        "--logging-format=x",
        "--nodeport-addresses=primary,192.0.2.0/24",
        "--oom-score-adj=1001",
        "--proxy-mode=x",
        "--show-hidden-metrics-for-version=1.34",
    ] {
        compare(&["--proxy-mode=ipvs", argument]);
    }
    let config = format!("--config={}", file.display());
    for text in [
        String::new(),
        "kind: KubeProxyConfiguration\n".to_owned(),
        "apiVersion: v1\nkind: ConfigMap\n".to_owned(),
        format!("{HEADER}ipvs: {{syncPeriod: 30}}\n"),
        format!("{HEADER}ipvs: {{syncPeriod: \"30\"}}\n"),
        format!("{HEADER}ipvs: {{strictARP: \"true\"}}\n"),
        format!("{HEADER}hostnameOverride: 1\n"),
        format!("{HEADER}nodePortAddresses: primary\n"),
        format!("{HEADER}oomScoreAdj: 1.5\n"),
        format!("{HEADER}mode: ipvs\nlogging: {{vmodule: [{{filePattern: \"\", verbosity: 1}}]}}\n"),
        format!("{HEADER}mode: ipvs\nhealthzBindAddress: 192.0.2.1:x\n"),
        format!("{HEADER}mode: ipvs\nmetricsBindAddress: 192.0.2.1:65536\n"),
        format!("{HEADER}mode: ipvs\nbindAddress: host\n"),
        format!("{HEADER}ipvs: [\n"),
    ] {
        fs::write(&file, &text).unwrap();
        compare(&[&config]);
    }
}

#[test]
#[ignore = "needs upstream's kube-proxy: cargo xtask test"]
fn every_feature_gate_is_known() {
    let directory = directory("upstream-gates");
    let help = String::from_utf8(run(&upstream(), &["--help"]).stdout).unwrap();
    let gates: Vec<&str> = help
        .split_whitespace()
        .filter_map(|word| word.strip_suffix("=true|false"))
        .collect();
    assert!(gates.len() > 100, "{gates:?}");
    let all: Vec<String> = gates.iter().map(|gate| format!("{gate}=true")).collect();
    let flag = format!("--feature-gates={}", all.join(","));
    assert_same(
        &directory,
        &["--proxy-mode=ipvs", "--ipvs-min-sync-period=0s", &flag],
    );
}
