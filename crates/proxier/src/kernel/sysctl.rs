//! The kernel settings that Services depend on.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
};

use tracing::warn;

/// A setting under `/proc/sys`, and the value that it must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The name, with dots.
    pub name: &'static str,
    /// The value.
    pub value: &'static str,
    /// Whether Services work without it.
    pub optional: bool,
}

/// As `sysctl -w` takes it.
impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.name, self.value)
    }
}

/// A setting cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot set {setting}: {source}; set it on the node (sysctl -w {setting}) or make /proc/sys writable")]
pub struct Error {
    setting: Setting,
    source: io::Error,
}

/// A kernel's version, as far as settings depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Version(u32, u32);

impl Version {
    /// From `/proc/sys/kernel/osrelease`, such as `6.1.0-30-amd64`.
    fn parse(release: &str) -> Option<Self> {
        let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
        match (numbers.next()?, numbers.next()?) {
            (Ok(major), Ok(minor)) => Some(Self(major, minor)),
            _ => None,
        }
    }
}

/// The settings for a kernel of that version.
fn wanted(version: Option<Version>, strict_arp: bool, ipv6: bool) -> Vec<Setting> {
    let needed = |name, value| Setting { name, value, optional: false };
    let optional = |name, value| Setting { name, value, optional: true };
    let mut settings = vec![
        // Masquerading works on IPVS's flows.
        needed("net.ipv4.vs.conntrack", "1"),
        // Clients of a server that is gone learn it at their next packet (A9) ...
        optional("net.ipv4.vs.expire_nodest_conn", "1"),
        // ... and persistent ones are sent to another (A6).
        optional("net.ipv4.vs.expire_quiescent_template", "1"),
        needed("net.ipv4.ip_forward", "1"),
    ];
    // Before 5.9 a client that reuses a port is delayed by a second, or dropped; since then the kernel's own
    // default is right (A1).
    if version.is_some_and(|version| version < Version(5, 9)) {
        settings.push(optional("net.ipv4.vs.conn_reuse_mode", "0"));
    }
    if ipv6 {
        settings.push(needed("net.ipv6.conf.all.forwarding", "1"));
    }
    if strict_arp {
        settings.push(needed("net.ipv4.conf.all.arp_ignore", "1"));
        settings.push(needed("net.ipv4.conf.all.arp_announce", "2"));
    }
    settings
}

/// Makes the settings that Services depend on; returns those that had to be changed.
///
/// # Errors
///
/// A setting that is needed has another value and cannot be written. Read-only ones that are right are fine.
pub fn ensure(strict_arp: bool, ipv6: bool) -> Result<Vec<Setting>, Error> {
    let root = Path::new("/proc/sys");
    let release = fs::read_to_string(path(root, "kernel.osrelease")).unwrap_or_default();
    ensure_in(root, &wanted(Version::parse(&release), strict_arp, ipv6))
}

/// Whether the kernel has IPv6, and it is not switched off.
pub fn has_ipv6() -> bool {
    let disabled = fs::read_to_string("/proc/sys/net/ipv6/conf/all/disable_ipv6");
    Path::new("/proc/thread-self/net/if_inet6").exists() && disabled.is_ok_and(|text| text.trim() == "0")
}

fn ensure_in(root: &Path, settings: &[Setting]) -> Result<Vec<Setting>, Error> {
    let mut changed = Vec::new();
    for setting in settings {
        match ensure_one(&path(root, setting.name), setting.value) {
            Ok(true) => changed.push(*setting),
            Ok(false) => {}
            Err(source) if setting.optional => warn!("going on without sysctl {setting}: {source}"),
            Err(source) => return Err(Error { setting: *setting, source }),
        }
    }
    Ok(changed)
}

/// Writes the value unless it is there; returns whether it had to.
fn ensure_one(path: &Path, value: &str) -> io::Result<bool> {
    if fs::read_to_string(path)?.trim() == value {
        return Ok(false);
    }
    fs::write(path, value)?;
    Ok(true)
}

fn path(root: &Path, name: &str) -> PathBuf {
    root.join(name.replace('.', "/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(version: &str, strict_arp: bool, ipv6: bool) -> Vec<&'static str> {
        wanted(Version::parse(version), strict_arp, ipv6).iter().map(|setting| setting.name).collect()
    }

    #[test]
    fn a1_conn_reuse_mode_is_set_before_5_9_only() {
        let has = |release| names(release, false, false).contains(&"net.ipv4.vs.conn_reuse_mode");
        assert!(has("4.18.0-553.el8.x86_64"));
        assert!(has("5.8.18"));
        assert!(!has("5.9.0-rc1"));
        assert!(!has("6.12.117+deb12-cloud-amd64"));
        assert!(!has("not a version"));
    }

    #[test]
    fn q32_forwarding_is_set_for_both_families() {
        assert!(names("6.1.0", false, true).contains(&"net.ipv6.conf.all.forwarding"));
        assert!(!names("6.1.0", false, false).contains(&"net.ipv6.conf.all.forwarding"));
        assert!(names("6.1.0", false, false).contains(&"net.ipv4.ip_forward"));
    }

    #[test]
    fn d4_arp_is_left_alone_unless_strict() {
        let arp = |strict| names("6.1.0", strict, false).iter().filter(|name| name.contains(".arp_")).count();
        assert_eq!((arp(false), arp(true)), (0, 2));
    }

    /// A directory that is removed with the test.
    struct Root(PathBuf);

    impl Root {
        fn new(name: &str, files: &[(&str, &str)]) -> Self {
            let root = std::env::temp_dir().join(format!("proxier-sysctl-{name}-{}", std::process::id()));
            for (name, value) in files {
                let file = path(&root, name);
                fs::create_dir_all(file.parent().unwrap()).unwrap();
                fs::write(file, value).unwrap();
            }
            Self(root)
        }
    }

    impl Drop for Root {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    #[test]
    fn only_what_differs_is_written() {
        let root = Root::new("differs", &[("a.same", "1\n"), ("a.other", "0\n")]);
        let settings = ["a.same", "a.other"].map(|name| Setting { name, value: "1", optional: false });
        assert_eq!(ensure_in(&root.0, &settings).unwrap(), [settings[1]]);
        assert_eq!(ensure_in(&root.0, &settings).unwrap(), []);
        assert_eq!(fs::read_to_string(path(&root.0, "a.other")).unwrap(), "1");
    }

    #[test]
    fn f11_a_missing_setting_is_fatal_only_if_it_is_needed() {
        let root = Root::new("missing", &[("a.there", "1")]);
        let missing = |optional| Setting { name: "a.missing", value: "1", optional };
        assert_eq!(ensure_in(&root.0, &[missing(true)]).unwrap(), []);
        let error = ensure_in(&root.0, &[missing(false)]).unwrap_err().to_string();
        assert!(error.starts_with("cannot set a.missing=1: No such file"), "{error}");
    }
}
