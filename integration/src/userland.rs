//! The guest's root file system, out of the host distribution's packages.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Context, Result};
use crate::lab::{self, Lab};
use crate::packages;
use crate::process::output;
use crate::progress::step;

/// What the guest is made of: a shell with the usual tools, and the tools to look at the kernel's state with.
/// `usrmerge-` keeps out a package that would bring Perl along.
const PACKAGES: &[&str] = &[
    "base-files",
    "bash",
    "conntrack",
    "coreutils",
    "curl",
    "dash",
    "diffutils",
    "findutils",
    "gawk",
    "grep",
    "hostname",
    "iproute2",
    "ipset",
    "iptables",
    "iputils-ping",
    "ipvsadm",
    "kmod",
    "less",
    "libc-bin",
    "ncurses-base",
    "netcat-openbsd",
    "nftables",
    "procps",
    "sed",
    "strace",
    "tcpdump",
    "util-linux",
    "usrmerge-",
    "xz-utils",
];

/// Parts of packages that no guest reads.
const UNUSED: &[&str] = &[
    "./usr/share/bash-completion",
    "./usr/share/doc",
    "./usr/share/i18n",
    "./usr/share/info",
    "./usr/share/lintian",
    "./usr/share/locale",
    "./usr/share/man",
    "./usr/share/perl*",
    "./usr/share/zoneinfo",
    "./usr/bin/perl*",
    "./usr/lib/*/perl*",
    "./usr/lib/*/gconv",
    "./lib/systemd",
    "./usr/lib/systemd",
    "./lib/udev",
];

/// Directories that became links into `/usr`; packages still use both names.
const MERGED: &[&str] = &["bin", "sbin", "lib", "lib32", "lib64", "libx32"];

/// An unpacked root file system.
#[derive(Debug, Clone)]
pub struct Userland {
    root: PathBuf,
}

impl Userland {
    /// The guest's root file system, made when it is missing or when its list of packages changed.
    ///
    /// # Errors
    /// The packages cannot be had or unpacked.
    pub fn ensure(lab: &Lab) -> Result<Self> {
        let dir = lab.ensure("userland", &PACKAGES.join(" "), |dir| {
            let archives = step("fetching the guest's packages", || {
                packages::fetch_closure(lab, PACKAGES)
            })?;
            step("unpacking the guest's packages", || {
                make(&dir.join("root"), &archives)
            })?;
            let fetched = lab.path("packages");
            fs::remove_dir_all(&fetched).path("remove", &fetched)
        })?;
        Ok(Self {
            root: dir.join("root"),
        })
    }

    /// The directory that becomes the guest's `/`.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The file whose modification time is that of the whole: the root's own comes out of a package.
    pub(crate) fn stamp(&self) -> PathBuf {
        self.root.with_file_name(lab::STAMP)
    }

    /// A program of the guest, to be run on the host under the given name, with the guest's own libraries.
    #[must_use]
    pub fn program(&self, name: &str, path: &str) -> Command {
        program(&self.root, name, path)
    }

    /// Where a path of the guest is once the links into `/usr` have been followed.
    #[must_use]
    pub fn resolve(path: &Path) -> PathBuf {
        let relative = path.strip_prefix("/").unwrap_or(path);
        if MERGED.iter().any(|name| relative.starts_with(name)) {
            return Path::new("usr").join(relative);
        }
        relative.to_owned()
    }
}

fn make(root: &Path, archives: &[PathBuf]) -> Result<()> {
    for name in MERGED {
        let target = root.join("usr").join(name);
        fs::create_dir_all(&target).path("make", &target)?;
        symlink(Path::new("usr").join(name), root.join(name)).path("link", &target)?;
    }
    for archive in archives {
        packages::unpack(archive, root, UNUSED)?;
    }
    for name in ["dev", "proc", "sys", "run", "tmp", "root", "etc"] {
        let dir = root.join(name);
        fs::create_dir_all(&dir).path("make", &dir)?;
    }
    alternatives(root)?;
    for (path, text) in [
        (
            "etc/passwd",
            "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n",
        ),
        ("etc/group", "root:x:0:\nnogroup:x:65534:\n"),
        ("etc/hostname", "node\n"),
        ("etc/hosts", "127.0.0.1 localhost node\n::1 localhost node\n"),
        ("etc/resolv.conf", "nameserver 10.0.2.3\n"),
    ] {
        let path = root.join(path);
        fs::write(&path, text).path("write", &path)?;
    }
    output(
        program(root, "ldconfig", "usr/sbin/ldconfig")
            .arg("-X")
            .arg("-r")
            .arg(root),
    )
    .map(drop)
}

/// Names that maintainer scripts give with update-alternatives; none of them run here.
fn alternatives(root: &Path) -> Result<()> {
    let mut links = vec![
        ("usr/bin/awk".to_owned(), "gawk".to_owned()),
        ("usr/bin/nc".to_owned(), "nc.openbsd".to_owned()),
        ("usr/bin/sh".to_owned(), "dash".to_owned()),
        ("usr/bin/which".to_owned(), "which.debianutils".to_owned()),
    ];
    for family in ["iptables", "ip6tables"] {
        for verb in ["", "-save", "-restore"] {
            links.push((format!("usr/sbin/{family}{verb}"), format!("{family}-nft{verb}")));
        }
    }
    for (name, target) in links {
        let name = root.join(name);
        if name.symlink_metadata().is_err() {
            symlink(target, &name).path("link", &name)?;
        }
    }
    Ok(())
}

/// The guest's dynamic loader lets its programs run on the host, whatever libraries the host has.
fn program(root: &Path, name: &str, path: &str) -> Command {
    let libraries = ["usr/lib/x86_64-linux-gnu", "usr/lib", "usr/lib64"].map(|dir| root.join(dir));
    let mut command = Command::new(root.join("usr/lib64/ld-linux-x86-64.so.2"));
    command.arg("--argv0").arg(name).arg("--library-path");
    command
        .arg(std::env::join_paths(libraries).unwrap_or_default())
        .arg(root.join(path));
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merged_directories_resolve_into_usr() {
        assert_eq!(
            Userland::resolve(Path::new("/sbin/kube-proxy")),
            Path::new("usr/sbin/kube-proxy")
        );
        assert_eq!(
            Userland::resolve(Path::new("/root/binary")),
            Path::new("root/binary")
        );
    }
}
