//! Stock distribution kernels, with the modules that a node's networking needs.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::error::{Context, Error, Result};
use crate::lab::Lab;
use crate::packages;
use crate::process::output;
use crate::progress::step;
use crate::userland::Userland;

/// Directories of `/lib/modules/RELEASE/kernel` that go into the guest; the rest is other hardware.
const MODULES: &[&str] = &[
    "arch/x86/crypto",
    "crypto",
    "drivers/net",
    "drivers/virtio",
    "lib",
    "net",
];

/// A kernel series that Debian 12 offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Series {
    /// 6.1, the release's own kernel.
    V6_1,
    /// 6.12, the kernel of its security archive and of Debian 13.
    V6_12,
}

impl Series {
    /// All series that the tests run on.
    pub const ALL: [Self; 2] = [Self::V6_1, Self::V6_12];
}

impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
        })
    }
}

impl FromStr for Series {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|series| series.to_string() == text)
            .ok_or_else(|| format!("no such kernel: {text} (one of 6.1, 6.12)"))
    }
}

/// A kernel in the lab's cache.
#[derive(Debug, Clone)]
pub struct Kernel {
    dir: PathBuf,
    release: String,
}

impl Kernel {
    /// The newest kernel of a series, fetched when the lab has none.
    ///
    /// # Errors
    /// The distribution offers no such kernel, or it cannot be fetched.
    pub fn ensure(lab: &Lab, userland: &Userland, series: Series) -> Result<Self> {
        Self::cached_or(lab, userland, &format!("kernel-{series}"), || {
            let pattern = format!(
                "^linux-image-{}\\.[0-9].*-cloud-amd64$",
                series.to_string().replace('.', "\\.")
            );
            newest(&pattern).map_err(|_| {
                Error::Unavailable(format!(
                    "no kernel {series} here: the package archive has no linux-image-{series}.*-cloud-amd64 (Debian 12 does)"
                ))
            })
        })
    }

    /// The kernel that the lab boots when nobody asked for a series: 6.12, or else the newest that the distribution
    /// offers.
    ///
    /// # Errors
    /// The distribution offers no kernel package that the lab knows, or it cannot be fetched.
    pub fn ensure_any(lab: &Lab, userland: &Userland) -> Result<Self> {
        Self::ensure(lab, userland, Series::V6_12).or_else(|first| {
            Self::cached_or(lab, userland, "kernel-generic", || {
                newest("^linux-image-[0-9].*-(cloud-amd64|generic)$").map_err(|_| first)
            })
        })
    }

    fn cached_or(
        lab: &Lab,
        userland: &Userland,
        name: &str,
        package: impl FnOnce() -> Result<String>,
    ) -> Result<Self> {
        let dir = lab.ensure(name, &MODULES.join(" "), |dir| {
            let package = package()?;
            step(&format!("fetching {package}"), || make(dir, &package, userland))
        })?;
        let release = dir.join("release");
        let release = fs::read_to_string(&release).path("read", &release)?;
        Ok(Self { dir, release })
    }

    /// The release, as `uname -r` prints it.
    #[must_use]
    pub fn release(&self) -> &str {
        &self.release
    }

    /// The compressed kernel.
    #[must_use]
    pub fn image(&self) -> PathBuf {
        self.dir.join("vmlinuz")
    }

    /// The tree with the kernel's modules: `usr/lib/modules/RELEASE`.
    #[must_use]
    pub fn modules(&self) -> PathBuf {
        self.dir.join("modules")
    }

    /// The guest's root file system with this kernel's modules, as an initramfs.
    #[must_use]
    pub fn base_image(&self) -> PathBuf {
        self.dir.join("base.cpio")
    }
}

fn make(dir: &Path, package: &str, userland: &Userland) -> Result<()> {
    let release = package.trim_start_matches("linux-image-");
    let mut wanted = vec![package.to_owned()];
    // Ubuntu has the modules in a package of their own.
    wanted.extend(packages::names(&format!("^linux-modules-{}$", escape(release)))?);
    let unpacked = dir.join("package");
    fs::create_dir(&unpacked).path("make", &unpacked)?;
    for archive in packages::fetch(dir, &wanted)? {
        packages::unpack(&archive, &unpacked, &[])?;
        fs::remove_file(&archive).path("remove", &archive)?;
    }
    let rename = |from: PathBuf, to: PathBuf| fs::rename(&from, &to).path("find the kernel's", &from);
    rename(
        unpacked.join(format!("boot/vmlinuz-{release}")),
        dir.join("vmlinuz"),
    )?;

    let lib = ["lib", "usr/lib"].map(|lib| unpacked.join(lib).join("modules").join(release));
    let from = lib.iter().find(|path| path.exists()).unwrap_or(&lib[0]);
    let to = dir.join("modules/usr/lib/modules").join(release);
    for tree in MODULES {
        let to = to.join("kernel").join(tree);
        let parent = to.parent().unwrap_or(&to);
        fs::create_dir_all(parent).path("make", parent)?;
        if from.join("kernel").join(tree).exists() {
            rename(from.join("kernel").join(tree), to)?;
        }
    }
    for list in ["modules.builtin", "modules.builtin.modinfo", "modules.order"] {
        rename(from.join(list), to.join(list))?;
    }
    fs::remove_dir_all(&unpacked).path("remove", &unpacked)?;
    decompress(&to, userland)?;
    let base = dir.join("modules/usr");
    output(
        userland
            .program("depmod", "usr/bin/kmod")
            .arg("--basedir")
            .arg(&base)
            .arg(release),
    )?;
    let stamp = dir.join("release");
    fs::write(&stamp, release).path("write", &stamp)
}

/// Unpacks `*.ko.xz` and `*.ko.zst` here once, rather than in every emulated guest.
fn decompress(modules: &Path, userland: &Userland) -> Result<()> {
    for (suffix, program) in [("xz", "xz"), ("zst", "zstd")] {
        let found = output(
            std::process::Command::new("find")
                .arg(modules)
                .args(["-name", &format!("*.ko.{suffix}")]),
        )?;
        let files: Vec<_> = found.lines().collect();
        for some in files.chunks(500) {
            output(
                userland
                    .program(program, &format!("usr/bin/{program}"))
                    .args(["-d", "-q"])
                    .args(some),
            )?;
        }
        // zstd keeps what it has unpacked.
        for left in files.iter().filter(|file| Path::new(file).exists()) {
            fs::remove_file(left).path("remove", Path::new(left))?;
        }
    }
    Ok(())
}

fn newest(pattern: &str) -> Result<String> {
    packages::updating(|| {
        let newest = packages::names(pattern)?
            .into_iter()
            .max_by_key(|name| version(name));
        newest.ok_or_else(|| Error::Unavailable(format!("no package matches {pattern}")))
    })
}

/// The numbers of a package name, in order: enough to compare the names of one kernel series.
fn version(name: &str) -> Vec<u64> {
    name.split(|c: char| !c.is_ascii_digit())
        .filter_map(|part| part.parse().ok())
        .collect()
}

fn escape(text: &str) -> String {
    text.replace('.', "\\.").replace('+', "\\+")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_by_number() {
        assert!(version("linux-image-6.1.0-100-cloud-amd64") > version("linux-image-6.1.0-56-cloud-amd64"));
        assert!(
            version("linux-image-6.12.9+deb12-cloud-amd64")
                < version("linux-image-6.12.117+deb12-cloud-amd64")
        );
    }

    #[test]
    fn series_are_read_as_they_are_written() {
        for series in Series::ALL {
            assert_eq!(series.to_string().parse(), Ok(series));
        }
        assert!("5.10".parse::<Series>().is_err());
    }
}
