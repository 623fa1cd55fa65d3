//! Builds the workspace's own programs and tests.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde::Deserialize;

use crate::error::{Context, Error, Result};
use crate::process;
use crate::progress::step;

/// A program made of tests.
#[derive(Debug, Clone)]
pub struct TestProgram {
    /// The package and the target, `proxier-kernel`.
    pub name: String,
    /// Where cargo has put it.
    pub path: PathBuf,
}

impl TestProgram {
    /// How many of its tests are not run unless somebody asks.
    ///
    /// # Errors
    /// The program cannot be run.
    pub fn ignored_tests(&self) -> Result<usize> {
        let listed = process::output(Command::new(&self.path).args(["--list", "--ignored"]))?;
        Ok(listed.lines().filter(|line| line.ends_with(": test")).count())
    }
}

/// The cargo that builds this workspace.
#[must_use]
pub fn cargo() -> OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// Cargo in the workspace with these arguments.
#[must_use]
pub fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(cargo());
    command
        .args(arguments)
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .stdin(Stdio::null());
    // What the cargo that runs this program says of its package. There are build scripts that run again when it
    // changes, and so would with every change between this cargo and the user's own.
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&*name);
        }
    }
    command
}

/// Builds one program of a package of the workspace.
///
/// # Errors
/// Cargo cannot be started, the build failed (the compiler's messages are on standard error), or the package has no
/// such program.
pub fn program(package: &str, name: &str) -> Result<PathBuf> {
    build(name, &["build", "--package", package, "--bin", name], &[])
}

/// A benchmark of a package, as it is released.
///
/// # Errors
/// As of [`program`].
pub fn benchmark(package: &str, name: &str) -> Result<PathBuf> {
    build(
        name,
        &["build", "--release", "--package", package, "--bench", name],
        &[],
    )
}

fn build(name: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Result<PathBuf> {
    let built = step(&format!("building {name}"), || artifacts(arguments, variables))?;
    let built = built.into_iter().find_map(|artifact| artifact.executable);
    built.ok_or_else(|| Error::Unavailable(format!("cargo built no {name}")))
}

/// The same, for one of Rust's targets, with these environment variables.
///
/// # Errors
/// As of [`program`].
pub fn cross_built_program(
    package: &str,
    name: &str,
    target: &str,
    variables: &[(&str, &str)],
) -> Result<PathBuf> {
    let arguments = [
        "build",
        "--release",
        "--target",
        target,
        "--package",
        package,
        "--bin",
        name,
    ];
    build(name, &arguments, variables)
}

/// All programs and tests of the workspace.
#[derive(Debug)]
pub struct Workspace {
    artifacts: Vec<Artifact>,
}

impl Workspace {
    /// Builds everything at once, so that all of it shares its dependencies.
    ///
    /// # Errors
    /// Cargo cannot be started, or the build failed; the compiler's messages are on standard error.
    pub fn build() -> Result<Self> {
        let arguments = ["build", "--workspace", "--all-targets"];
        let artifacts = step("building everything", || artifacts(&arguments, &[]))?;
        Ok(Self { artifacts })
    }

    /// A program by its name.
    ///
    /// # Errors
    /// There is none of this name.
    pub fn program(&self, name: &str) -> Result<PathBuf> {
        let programs = self.artifacts.iter().filter(|artifact| !artifact.profile.test);
        let mut named = programs.filter(|artifact| artifact.target.name == name);
        let found = named.find_map(|artifact| artifact.executable.clone());
        found.ok_or_else(|| Error::Unavailable(format!("cargo built no {name}")))
    }

    /// All programs made of tests.
    pub fn tests(&self) -> impl Iterator<Item = TestProgram> {
        let programs = self.artifacts.iter().filter(|artifact| artifact.profile.test);
        programs.filter_map(|artifact| {
            Some(TestProgram {
                name: format!("{}-{}", artifact.package()?, artifact.target.name),
                path: artifact.executable.clone()?,
            })
        })
    }
}

/// One of cargo's messages: something was built.
#[derive(Debug, Deserialize)]
struct Artifact {
    package_id: String,
    target: Target,
    profile: Profile,
    executable: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
struct Target {
    name: String,
}

#[derive(Debug, Deserialize)]
struct Profile {
    test: bool,
}

impl Artifact {
    /// The last part of an identifier such as `path+file:///src/crates/ipvs#0.1.0`.
    fn package(&self) -> Option<&str> {
        let (path, version) = self.package_id.split_once('#')?;
        // A package whose name is not its directory's says so: `#name@0.1.0`.
        match version.split_once('@') {
            Some((name, _)) => Some(name),
            None => path.rsplit('/').next(),
        }
    }
}

fn artifacts(arguments: &[&str], variables: &[(&str, &str)]) -> Result<Vec<Artifact>> {
    let (options, rest) = arguments.split_at(1);
    let quiet = ["--quiet", "--message-format=json-render-diagnostics"];
    let arguments = [options, &quiet, rest].concat();
    let output = command(&arguments)
        .envs(variables.iter().copied())
        .stderr(Stdio::inherit())
        .output()
        .context(|| "run cargo".into())?;
    if !output.status.success() {
        return Err(Error::Command {
            command: format!("cargo {}", arguments.join(" ")),
            status: output.status,
            output: String::new(),
        });
    }
    let messages = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(messages.lines().filter_map(artifact).collect())
}

/// The artifact that a line of cargo's messages announces.
fn artifact(line: &str) -> Option<Artifact> {
    serde_json::from_str(line).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn artifacts_have_a_package_and_perhaps_a_program() {
        let line = |id: &str, executable: &str| {
            format!(
                r#"{{"reason":"compiler-artifact","package_id":"{id}","target":{{"name":"kernel"}},
                   "profile":{{"test":true}},"executable":{executable}}}"#
            )
        };
        let program = artifact(&line("path+file:///src/crates/ipvs#0.1.0", "\"/x/y\"")).unwrap();
        assert_eq!(
            (program.package(), program.executable.clone()),
            (Some("ipvs"), Some("/x/y".into()))
        );
        let library = artifact(&line("path+file:///src/crates/other#ipvs@0.1.0", "null")).unwrap();
        assert_eq!(
            (library.package(), library.executable.clone()),
            (Some("ipvs"), None)
        );
        assert!(artifact("warning").is_none());
        assert!(artifact(r#"{"reason":"build-finished","success":true}"#).is_none());
    }
}
