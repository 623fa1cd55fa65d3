//! Builds programs from their Go modules, at the versions that the `go.mod` files in `integration/go` pin.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::error::{Error, Result};
use crate::lab::Lab;
use crate::process::output;
use crate::progress::step;

/// A program that the lab builds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// The API server's database.
    Etcd,
    /// The API server.
    KubeApiserver,
    /// The proxier that ours is compared with.
    KubeProxy,
    /// Another that is compared with both.
    KubeRouter,
}

impl Program {
    fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::KubeApiserver => "kube-apiserver",
            Self::KubeProxy => "kube-proxy",
            Self::KubeRouter => "kube-router",
        }
    }

    fn package(self) -> &'static str {
        match self {
            Self::Etcd => "go.etcd.io/etcd/server/v3",
            Self::KubeApiserver => "k8s.io/kubernetes/cmd/kube-apiserver",
            Self::KubeProxy => "k8s.io/kubernetes/cmd/kube-proxy",
            Self::KubeRouter => "github.com/cloudnativelabs/kube-router/v2/cmd/kube-router",
        }
    }

    fn module(self) -> &'static str {
        match self {
            Self::Etcd => "go.etcd.io/etcd/server/v3",
            Self::KubeApiserver | Self::KubeProxy => "k8s.io/kubernetes",
            Self::KubeRouter => "github.com/cloudnativelabs/kube-router/v2",
        }
    }

    const fn pins(self) -> &'static Pins {
        match self {
            Self::Etcd | Self::KubeApiserver | Self::KubeProxy => &UPSTREAM,
            Self::KubeRouter => &KUBE_ROUTER,
        }
    }
}

/// Versions that belong together.
struct Pins {
    /// In this package.
    directory: &'static str,
    /// Its `go.mod`.
    modules: &'static str,
}

const UPSTREAM: Pins = Pins {
    directory: "go",
    modules: include_str!("../go/go.mod"),
};

const KUBE_ROUTER: Pins = Pins {
    directory: "go/kube-router",
    modules: include_str!("../go/kube-router/go.mod"),
};

/// Go cannot build the programs here; says what to install.
#[derive(Debug, thiserror::Error)]
#[error(
    "Go {wanted} or newer is needed to build kube-apiserver and etcd; install it from https://go.dev/dl ({found})"
)]
pub struct Missing {
    wanted: String,
    found: String,
}

impl From<Missing> for Error {
    fn from(missing: Missing) -> Self {
        Self::Unavailable(missing.to_string())
    }
}

/// A Go toolchain that is new enough.
#[derive(Debug)]
pub struct Go(());

impl Go {
    /// Looks for a toolchain on the PATH. An older one that is set up to fetch a newer one does so.
    ///
    /// # Errors
    /// There is none, or it is too old.
    pub fn find() -> std::result::Result<Self, Missing> {
        let found = match output(go(&UPSTREAM).args(["list", "-m"])) {
            Ok(_) => return Ok(Self(())),
            Err(_) => version(),
        };
        let wanted = directive(UPSTREAM.modules, "go").unwrap_or_default().to_owned();
        Err(Missing { wanted, found })
    }

    /// The pinned version of a program, such as `v1.36.3`.
    #[must_use]
    pub fn version(&self, program: Program) -> &'static str {
        directive(program.pins().modules, program.module()).unwrap_or_default()
    }

    /// Builds a program when the lab does not have it at its pinned version, and gives its path.
    ///
    /// # Errors
    /// Its modules cannot be fetched, or the build failed.
    pub fn build(&self, lab: &Lab, program: Program) -> Result<PathBuf> {
        let (name, version) = (program.name(), self.version(program));
        let dir = lab.locked(|| {
            lab.ensure(&format!("go-{name}"), program.pins().modules, |dir| {
                step(&format!("building {name} {version} (some minutes, once)"), || {
                    let flags = format!("-s -w -X k8s.io/component-base/version.gitVersion={version}");
                    let mut command = go(program.pins());
                    command.args(["build", "-trimpath", "-ldflags", &flags, "-o"]);
                    output(command.arg(dir.join(name)).arg(program.package())).map(drop)
                })
            })
        })?;
        Ok(dir.join(name))
    }
}

/// Builds a program at a version, `path/of/its/package@version`, and runs it; gives its standard output.
///
/// # Errors
/// Its modules cannot be fetched, the build failed, or the program did.
pub fn run(program: &str, arguments: &[&str]) -> Result<String> {
    output(go(&UPSTREAM).args(["run", program]).args(arguments))
}

/// The go command in the directory of pins, for programs that run in any guest.
fn go(pins: &Pins) -> Command {
    let mut command = Command::new("go");
    command
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(pins.directory))
        .env("CGO_ENABLED", "0")
        .env("GOFLAGS", "-mod=readonly")
        .env("GOWORK", "off");
    command
}

/// What there is, where it is not enough. Outside the directory of the pins, so that an old one can still answer.
fn version() -> String {
    let mut command = Command::new("go");
    let said = command
        .arg("version")
        .current_dir("/")
        .stderr(Stdio::null())
        .output();
    match said {
        Ok(said) => format!("found {}", String::from_utf8_lossy(&said.stdout).trim()),
        Err(_) => "none was found on the PATH".into(),
    }
}

/// The version that go.mod states for `name`, `go` included.
fn directive<'a>(modules: &'a str, name: &str) -> Option<&'a str> {
    modules.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        if words.next() == Some(name) {
            words.next()
        } else {
            None
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pins_name_every_program() {
        let go = Go(());
        for program in [
            Program::Etcd,
            Program::KubeApiserver,
            Program::KubeProxy,
            Program::KubeRouter,
        ] {
            let version = go.version(program);
            assert!(version.starts_with('v'), "{program:?}: {version:?}");
            let tool = format!("\t{}\n", program.package());
            assert!(program.pins().modules.contains(&tool), "{program:?}");
        }
    }

    #[test]
    fn what_is_missing_is_said_with_the_version() {
        let missing = Missing {
            wanted: "1.26.0".into(),
            found: "found go1.19.8".into(),
        };
        let text = Error::from(missing).to_string();
        assert!(text.contains("Go 1.26.0") && text.contains("go1.19.8"), "{text}");
    }
}
