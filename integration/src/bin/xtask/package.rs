//! `cargo xtask package`: the program as it is shipped, static, for each architecture; and a look at what deploys it.

use std::env::consts::ARCH;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::ArgMatches;
use integration::go::{self, Go};
use integration::{Error, Result, cargo, packages, process};

/// A processor architecture that Kubernetes nodes have.
struct Architecture {
    /// As images name it.
    name: &'static str,
    /// Rust's target.
    target: &'static str,
    /// The C compiler, for the parts of the TLS library that are not Rust, and the package that has it.
    compiler: (&'static str, &'static str),
    /// Environment variables of the build: the compiler's, and the linker's.
    variables: [&'static str; 2],
}

const ARCHITECTURES: [Architecture; 2] = [
    Architecture {
        name: "amd64",
        target: "x86_64-unknown-linux-musl",
        compiler: ("x86_64-linux-gnu-gcc", "gcc-x86-64-linux-gnu"),
        variables: [
            "CC_x86_64_unknown_linux_musl",
            "CARGO_TARGET_X86_64_UNKNOWN_LINUX_MUSL_LINKER",
        ],
    },
    Architecture {
        name: "arm64",
        target: "aarch64-unknown-linux-musl",
        compiler: ("aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu"),
        variables: [
            "CC_aarch64_unknown_linux_musl",
            "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_LINKER",
        ],
    },
];

/// Comes with Rust, and links for every architecture.
const LINKER: &str = "rust-lld";

/// What reads the manifests of a deployment, as Go's packages.
const HELM: &str = "helm.sh/helm/v3/cmd/helm@v3.19.0";
const KUSTOMIZE: &str = "sigs.k8s.io/kustomize/kustomize/v5@v5.7.1";

/// The largest that a binary may be, in bytes.
const LIMIT: u64 = 15 * 1024 * 1024;

pub(crate) fn command() -> clap::Command {
    clap::Command::new("package").about(
        "Build kube-proxy as it is shipped: one static program for each architecture, in target/package; and check the \
         Helm chart and the Kustomize base",
    )
}

pub(crate) fn run(_: &ArgMatches) -> Result<u8> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/package");
    let io = |action: &str, source| Error::Io {
        action: format!("{action} {}", directory.display()),
        source,
    };
    fs::create_dir_all(&directory).map_err(|source| io("make", source))?;
    for architecture in &ARCHITECTURES {
        let binary = build(architecture)?;
        let place = directory.join(format!("kube-proxy-linux-{}", architecture.name));
        let size = fs::copy(&binary, &place).map_err(|source| io("write to", source))?;
        if is_dynamic(&place)? {
            return Err(Error::Unavailable(format!("{} is not static", place.display())));
        }
        if size > LIMIT {
            return Err(Error::Unavailable(format!(
                "{} has {size} bytes, and may have {LIMIT}",
                place.display()
            )));
        }
        println!("{}: {:.1} MB, static", place.display(), size as f64 / 1e6);
    }
    check_deployments()?;
    Ok(0)
}

/// Has the tools that read them accept the Helm chart and the Kustomize base.
fn check_deployments() -> Result<()> {
    // Says so itself where there is none.
    Go::find()?;
    let deploy = concat!(env!("CARGO_MANIFEST_DIR"), "/../bins/kube-proxy/deploy");
    let (chart, base) = (
        format!("{deploy}/helm/kube-proxy-ipvs"),
        format!("{deploy}/kustomize"),
    );
    let values = [
        "--set=apiServer=https://192.0.2.1:6443",
        "--set=extraArgs={--ipvs-drain-timeout=5m}",
        "--set=configuration.ipvs.scheduler=lc",
    ];
    // A Helm that Go has built takes the cluster for an old one.
    let release = ["--kube-version=1.36.0", "--namespace=kube-system"];
    let lint = ["lint", "--strict", &chart, "--kube-version=1.36.0"];
    let template = ["template", "kube-proxy-ipvs", &chart];
    go::run(HELM, &[&lint[..], &values].concat())?;
    let rendered = [
        (
            "Helm chart",
            go::run(HELM, &[&template[..], &release, &values].concat())?,
        ),
        ("Kustomize base", go::run(KUSTOMIZE, &["build", &base])?),
    ];
    for (name, manifests) in rendered {
        for kind in ["ServiceAccount", "ClusterRoleBinding", "ConfigMap", "DaemonSet"] {
            if !manifests.contains(&format!("kind: {kind}\n")) {
                return Err(Error::Unavailable(format!(
                    "the {name} has no {kind}:\n{manifests}"
                )));
            }
        }
        println!("{name}: accepted");
    }
    Ok(())
}

/// What is shipped for machines like this one.
pub(crate) fn native() -> Result<PathBuf> {
    let native = ARCHITECTURES
        .iter()
        .find(|architecture| architecture.target.starts_with(ARCH));
    let unknown = || Error::Unavailable(format!("nothing is shipped for {ARCH}"));
    build(native.ok_or_else(unknown)?)
}

fn build(architecture: &Architecture) -> Result<PathBuf> {
    let (compiler, package) = architecture.compiler;
    packages::require(compiler, package, "to build for another architecture")?;
    let target = architecture.target;
    // With a toolchain that does not come from rustup, the build says what is missing.
    let _ = process::output(Command::new("rustup").args(["target", "add", target]));
    let [compiler_variable, linker_variable] = architecture.variables;
    let environment = [(compiler_variable, compiler), (linker_variable, LINKER)];
    cargo::cross_built_program("kube-proxy", "kube-proxy", target, &environment)
}

/// Whether the program asks for a dynamic linker, which an image from scratch does not have.
fn is_dynamic(program: &Path) -> Result<bool> {
    packages::require("readelf", "binutils", "to see that the program is static")?;
    let headers = process::output(Command::new("readelf").arg("--program-headers").arg(program))?;
    Ok(headers.contains("INTERP"))
}
