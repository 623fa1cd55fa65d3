//! `cargo xtask package`: the program as it is shipped, static, for each architecture.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::ArgMatches;
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

/// The largest that a binary may be, in bytes.
const LIMIT: u64 = 15 * 1024 * 1024;

pub(crate) fn command() -> clap::Command {
    clap::Command::new("package").about(
        "Build kube-proxy as it is shipped: one static program for each architecture, in target/package",
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
    Ok(0)
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
