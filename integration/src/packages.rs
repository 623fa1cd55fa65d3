//! Packages of the host's distribution, through apt: installed on the host, or only fetched and unpacked.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Context, Error, Result};
use crate::lab::Lab;
use crate::process::output;
use crate::progress::step;

/// Makes sure that `program` is on the host, installing `package` when it is not.
///
/// # Errors
/// There is no apt, no root, or no such package; the text names the package.
pub fn require(program: &str, package: &str, reason: &str) -> Result<()> {
    if on_path(program) {
        return Ok(());
    }
    let unavailable = |why: String| {
        Error::Unavailable(format!(
            "{program} is needed {reason}; install the package that has it ({package} on Debian): {why}"
        ))
    };
    if !on_path("apt-get") {
        return Err(unavailable("this system has no apt-get".into()));
    }
    step(&format!("installing {package} ({reason}) with apt-get"), || {
        updating(|| output(as_root("apt-get").args(["install", "-y", "--no-install-recommends", package])))
            .map_err(|error| unavailable(error.to_string()))
    })?;
    Ok(())
}

/// Fetches packages with all that they depend on into a directory of the lab, and installs nothing.
///
/// # Errors
/// The packages cannot be had, with apt's reason.
pub fn fetch_closure(lab: &Lab, packages: &[&str]) -> Result<Vec<PathBuf>> {
    let archives = lab.path("packages");
    if archives.exists() {
        fs::remove_dir_all(&archives).path("remove", &archives)?;
    }
    let partial = archives.join("partial");
    fs::create_dir_all(&partial).path("make", &partial)?;
    // An empty status file makes apt believe that nothing is installed, so that it fetches everything.
    let status = lab.path("packages/status");
    fs::write(&status, "").path("write", &status)?;
    updating(|| {
        let mut apt = apt_get();
        for (option, value) in [
            ("Dir::State::status", &status),
            ("Dir::Cache::archives", &archives),
        ] {
            apt.arg("-o").arg(format!("{option}={}", value.display()));
        }
        // Where nothing changes on the host, apt needs neither its lock nor its unprivileged user.
        apt.args(["-o", "Dir::Cache::pkgcache=", "-o", "Dir::Cache::srcpkgcache="]);
        apt.args(["-o", "Debug::NoLocking=1", "-o", "APT::Sandbox::User="]);
        apt.args(["install", "--download-only", "-y", "--no-install-recommends"])
            .args(packages);
        output(&mut apt)
    })?;
    archives_in(&archives)
}

/// Fetches exactly these packages into an empty directory.
///
/// # Errors
/// The packages cannot be had, with apt's reason.
pub fn fetch(dir: &Path, packages: &[String]) -> Result<Vec<PathBuf>> {
    updating(|| {
        let mut apt = apt_get();
        output(
            apt.current_dir(dir)
                .args(["-o", "APT::Sandbox::User=", "download"])
                .args(packages),
        )
    })?;
    archives_in(dir)
}

/// The names of all packages that match an extended regular expression.
///
/// # Errors
/// There is no apt.
pub fn names(pattern: &str) -> Result<Vec<String>> {
    let found = output(Command::new("apt-cache").args(["search", "--names-only", pattern]))?;
    Ok(found
        .lines()
        .filter_map(|line| line.split(' ').next())
        .map(str::to_owned)
        .collect())
}

/// Unpacks a package's files into `root`, without its scripts, following the links that `root` has for `/bin` and
/// the like, and leaving out what matches one of `exclude`.
///
/// # Errors
/// `dpkg-deb` or `tar` failed.
pub fn unpack(package: &Path, root: &Path, exclude: &[&str]) -> Result<()> {
    let mut tar = Command::new("tar");
    tar.args([
        "--extract",
        "--no-same-owner",
        "--keep-directory-symlink",
        "--directory",
    ])
    .arg(root);
    tar.args(exclude.iter().map(|pattern| format!("--exclude={pattern}")));
    let contents = root.with_extension("tar");
    let file = fs::File::create(&contents).path("make", &contents)?;
    let status = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(package)
        .stdout(file)
        .status();
    if !status.path("unpack", package)?.success() {
        return Err(Error::Unavailable(format!(
            "{} is not a package",
            package.display()
        )));
    }
    output(tar.arg("--file").arg(&contents))?;
    fs::remove_file(&contents).path("remove", &contents)
}

/// Does `work`, and when it fails once more with fresh package lists: they may be missing, or name packages that
/// the archive has replaced since.
///
/// # Errors
/// `work` failed, with the reason of its first attempt when the lists cannot be updated.
pub fn updating<T>(work: impl Fn() -> Result<T>) -> Result<T> {
    work().or_else(|first| match update() {
        Ok(()) => work(),
        Err(_) => Err(first),
    })
}

fn update() -> Result<()> {
    step("updating apt's package lists", || {
        output(as_root("apt-get").arg("update")).map(drop)
    })
}

fn archives_in(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).path("read", dir)? {
        let path = entry.path("read", dir)?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn apt_get() -> Command {
    quiet(Command::new("apt-get"))
}

fn as_root(program: &str) -> Command {
    if rustix::process::geteuid().is_root() {
        return quiet(Command::new(program));
    }
    let mut sudo = Command::new("sudo");
    sudo.args(["-n", "DEBIAN_FRONTEND=noninteractive", program]);
    sudo
}

fn quiet(mut command: Command) -> Command {
    command
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("LC_ALL", "C.UTF-8");
    command
}

pub(crate) fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}
