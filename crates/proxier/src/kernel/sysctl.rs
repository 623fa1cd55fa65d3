//! The kernel settings that Services depend on: read, compared, and written only where they differ, so that a
//! read-only `/proc/sys` is good enough when the values are right already (F5).

use std::{
    borrow::Cow,
    fmt, fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::config::{Conntrack, StrictArp};

const ROOT: &str = "/proc/sys";

const CONNTRACK_MAX: &str = "net.netfilter.nf_conntrack_max";
/// More entries than these are not made out of the number of processors.
const CONNTRACK_CAP: u32 = 1 << 20;

/// A kernel setting and the value that it is to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sysctl {
    /// Its name as `sysctl` takes it: with dots, and with a slash for a dot in an interface's name.
    pub name: Cow<'static, str>,
    /// The value.
    pub value: u32,
    /// Whether nothing works without it. Some kernels lack one that is not required.
    pub required: bool,
}

/// A setting that was changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Its name.
    pub name: Cow<'static, str>,
    /// The value before.
    pub from: String,
    /// The value now.
    pub to: u32,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {} (was {})", self.name, self.to, self.from)
    }
}

/// Why a setting is not as it has to be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel does not have it.
    #[error("the kernel has no sysctl {0} (those of net.ipv4.vs need ip_vs; conntrack, CONFIG_IP_VS_NFCT)")]
    Missing(Cow<'static, str>),
    /// It cannot be read.
    #[error("cannot read the sysctl {name}: {source}")]
    Read {
        /// Its name.
        name: Cow<'static, str>,
        /// Why.
        source: io::Error,
    },
    /// It has another value and cannot be written, as in a container without privilege.
    #[error("cannot set the sysctl {name}: {source}; run \"sysctl -w {name}={value}\" on the node")]
    Write {
        /// Its name.
        name: Cow<'static, str>,
        /// The value that it is to have.
        value: u32,
        /// Why.
        source: io::Error,
    },
}

/// The major and minor version of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KernelVersion {
    /// 6 of 6.1.
    pub major: u32,
    /// 1 of 6.1.
    pub minor: u32,
}

impl KernelVersion {
    /// That of the running kernel, if its release begins with one.
    pub fn current() -> Option<Self> {
        Self::parse(&rustix::system::uname().release().to_string_lossy())
    }

    /// Reads a release as `uname -r` prints it, such as `6.1.0-13-amd64`.
    pub fn parse(release: &str) -> Option<Self> {
        let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
        Some(Self {
            major: numbers.next()?.ok()?,
            minor: numbers.next()?.ok()?,
        })
    }
}

/// The settings that a node with this kernel needs: `strict_arp` as an operator has decided, `ipv6` if the node has it.
pub fn plan(kernel: Option<KernelVersion>, strict_arp: &StrictArp, ipv6: bool) -> Vec<Sysctl> {
    let mut sysctls = vec![
        // Masquerading needs connection tracking of IPVS's flows.
        required("net.ipv4.vs.conntrack", 1),
        // Flows of a removed server end with their next packet, instead of timing out in silence.
        useful("net.ipv4.vs.expire_nodest_conn", 1),
        // So do the affinities to a server that takes no new flows.
        useful("net.ipv4.vs.expire_quiescent_template", 1),
        required("net.ipv4.ip_forward", 1),
    ];
    let version = |major, minor| KernelVersion { major, minor };
    // Before 5.9, the default costs a second of delay where a client reuses a port (A1).
    if kernel.is_some_and(|kernel| (version(4, 1)..version(5, 9)).contains(&kernel)) {
        sysctls.push(useful("net.ipv4.vs.conn_reuse_mode", 0));
    }
    if ipv6 {
        sysctls.push(required("net.ipv6.conf.all.forwarding", 1));
    }
    // Service addresses are answered for by whoever announces them, not by every node (D4).
    match strict_arp {
        StrictArp::Nowhere => {}
        StrictArp::Everywhere => {
            sysctls.push(required("net.ipv4.conf.all.arp_ignore", 1));
            sysctls.push(required("net.ipv4.conf.all.arp_announce", 2));
        }
        // Nodes may differ in the interfaces that they have.
        StrictArp::On(interfaces) => sysctls.extend(interfaces.iter().flat_map(|interface| {
            let interface = interface.replace('.', "/");
            let name = |setting| format!("net.ipv4.conf.{interface}.{setting}");
            [useful(name("arp_ignore"), 1), useful(name("arp_announce"), 2)]
        })),
    }
    sysctls
}

fn required(name: impl Into<Cow<'static, str>>, value: u32) -> Sysctl {
    Sysctl {
        name: name.into(),
        value,
        required: true,
    }
}

fn useful(name: impl Into<Cow<'static, str>>, value: u32) -> Sysctl {
    Sysctl {
        required: false,
        ..required(name, value)
    }
}

/// The settings of connection tracking as an operator has decided, on a node with so many processors. Nothing depends
/// on them as long as the table is not full, and those of the limits cannot be written in a container's network
/// namespace.
pub fn conntrack(config: &Conntrack, cpus: u32) -> Vec<Sysctl> {
    let seconds = |duration: Duration| u32::try_from(duration.as_secs()).unwrap_or(u32::MAX);
    let max = config.max_per_core.map(|each| match each.saturating_mul(cpus) {
        product if product > CONNTRACK_CAP => CONNTRACK_CAP,
        product => product.max(config.min),
    });
    let wanted = [
        (CONNTRACK_MAX, max),
        (
            "net.netfilter.nf_conntrack_tcp_timeout_established",
            config.tcp_established.map(seconds),
        ),
        (
            "net.netfilter.nf_conntrack_tcp_timeout_close_wait",
            config.tcp_close_wait.map(seconds),
        ),
        (
            "net.netfilter.nf_conntrack_tcp_be_liberal",
            config.be_liberal.then_some(1),
        ),
        ("net.netfilter.nf_conntrack_udp_timeout", config.udp.map(seconds)),
        (
            "net.netfilter.nf_conntrack_udp_timeout_stream",
            config.udp_stream.map(seconds),
        ),
    ];
    let sysctl = |(name, value): (_, Option<u32>)| Some(useful(name, value?));
    wanted.into_iter().filter_map(sysctl).collect()
}

/// Enlarges the hash table of connection tracking to a fourth of the entries that it is to hold, if it has fewer
/// buckets.
pub fn ensure_conntrack_buckets(sysctls: &[Sysctl]) {
    const FILE: &str = "/sys/module/nf_conntrack/parameters/hashsize";
    let Some(max) = sysctls.iter().find(|sysctl| sysctl.name == CONNTRACK_MAX) else {
        return;
    };
    let buckets = max.value / 4;
    let has = fs::read_to_string(FILE)
        .ok()
        .and_then(|text| text.trim().parse::<u32>().ok());
    if has.is_some_and(|has| has < buckets)
        && let Err(error) = fs::write(FILE, buckets.to_string())
    {
        tracing::info!("connection tracking keeps its {has:?} buckets instead of {buckets}: {FILE}: {error}");
    }
}

/// The number of processors that are online, whatever share of them a container may use.
pub fn cpus() -> u32 {
    let online = fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
    count_cpus(&online).unwrap_or(1)
}

/// Reads a list such as `0-3,8`.
fn count_cpus(list: &str) -> Option<u32> {
    list.trim().split(',').try_fold(0_u32, |count, range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        count.checked_add(last.checked_sub(first)?.checked_add(1)?)
    })
}

/// The value of a setting that is a number, if the kernel has it.
pub fn value(name: &str) -> Option<u32> {
    let text = fs::read_to_string(path(Path::new(ROOT), name)).ok()?;
    text.trim().parse().ok()
}

/// Makes settings what they are to be; returns those that had to be changed.
///
/// # Errors
///
/// The first one that is required and cannot be had. Those before it are made.
pub fn ensure(sysctls: &[Sysctl]) -> Result<Vec<Change>, Error> {
    ensure_in(Path::new(ROOT), sysctls)
}

/// The settings that are not what they are to be. One that is not required may be missing.
pub fn differing(sysctls: &[Sysctl]) -> impl Iterator<Item = &Sysctl> {
    let root = Path::new(ROOT);
    sysctls.iter().filter(|sysctl| differs(root, sysctl))
}

fn differs(root: &Path, sysctl: &Sysctl) -> bool {
    match fs::read_to_string(path(root, &sysctl.name)) {
        Ok(value) => value.trim() != sysctl.value.to_string(),
        Err(error) => sysctl.required || error.kind() != io::ErrorKind::NotFound,
    }
}

fn ensure_in(root: &Path, sysctls: &[Sysctl]) -> Result<Vec<Change>, Error> {
    let mut changes = Vec::new();
    for sysctl in sysctls {
        match ensure_one(root, sysctl) {
            Ok(change) => changes.extend(change),
            Err(error) if sysctl.required => return Err(error),
            Err(error) => tracing::warn!("{error}"),
        }
    }
    Ok(changes)
}

fn ensure_one(root: &Path, sysctl: &Sysctl) -> Result<Option<Change>, Error> {
    let Sysctl { name, value, .. } = sysctl.clone();
    let path = path(root, &name);
    let from = match fs::read_to_string(&path) {
        Ok(from) => from.trim().to_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Error::Missing(name)),
        Err(source) => return Err(Error::Read { name, source }),
    };
    if from == value.to_string() {
        return Ok(None);
    }
    match fs::write(&path, value.to_string()) {
        Ok(()) => Ok(Some(Change {
            name,
            from,
            to: value,
        })),
        Err(source) => Err(Error::Write { name, value, source }),
    }
}

fn path(root: &Path, name: &str) -> PathBuf {
    let parts = name.split('.').map(|part| part.replace('/', "."));
    root.join(parts.collect::<PathBuf>())
}

#[cfg(test)]
mod tests {
    use super::*;

    const V6_1: KernelVersion = KernelVersion { major: 6, minor: 1 };

    /// A directory like `/proc/sys`, with these files.
    struct Root(PathBuf);

    impl Root {
        fn new(test: &str, files: &[(&str, &str)]) -> Self {
            let root = std::env::temp_dir().join(format!("kube-proxy-{test}-{}", std::process::id()));
            for (name, value) in files {
                let file = path(&root, name);
                fs::create_dir_all(file.parent().unwrap()).unwrap();
                fs::write(file, value).unwrap();
            }
            Self(root)
        }

        fn value(&self, name: &str) -> String {
            fs::read_to_string(path(&self.0, name)).unwrap()
        }
    }

    impl Drop for Root {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn names(sysctls: &[Sysctl]) -> Vec<&str> {
        sysctls.iter().map(|sysctl| &*sysctl.name).collect()
    }

    #[test]
    fn what_is_wanted_depends_on_the_kernel_and_the_settings() {
        let always = [
            "net.ipv4.vs.conntrack",
            "net.ipv4.vs.expire_nodest_conn",
            "net.ipv4.vs.expire_quiescent_template",
            "net.ipv4.ip_forward",
        ];
        assert_eq!(names(&plan(Some(V6_1), &StrictArp::Nowhere, false)), always);
        let reuse_mode = |release| {
            let sysctls = plan(KernelVersion::parse(release), &StrictArp::Nowhere, false);
            sysctls
                .iter()
                .find(|sysctl| sysctl.name == "net.ipv4.vs.conn_reuse_mode")
                .map(|sysctl| sysctl.value)
        };
        assert_eq!(reuse_mode("3.10.0-1160.el7.x86_64"), None);
        assert_eq!(reuse_mode("4.1.0"), Some(0));
        assert_eq!(reuse_mode("5.8.18-generic"), Some(0));
        assert_eq!(reuse_mode("5.9"), None);
        assert_eq!(
            names(&plan(Some(V6_1), &StrictArp::Everywhere, true))[4..],
            [
                "net.ipv6.conf.all.forwarding",
                "net.ipv4.conf.all.arp_ignore",
                "net.ipv4.conf.all.arp_announce"
            ]
        );
    }

    /// D4
    #[test]
    fn arp_is_strict_on_some_interfaces_only() {
        let interfaces = StrictArp::On(vec!["eth0".into(), "bond0.100".into()]);
        let sysctls = plan(Some(V6_1), &interfaces, false);
        let [.., ignore, announce] = sysctls.as_slice() else {
            panic!("{sysctls:?}")
        };
        assert_eq!(*ignore, useful("net.ipv4.conf.bond0/100.arp_ignore", 1));
        assert_eq!(*announce, useful("net.ipv4.conf.bond0/100.arp_announce", 2));
        assert_eq!(
            path(Path::new(ROOT), &ignore.name),
            Path::new("/proc/sys/net/ipv4/conf/bond0.100/arp_ignore")
        );
        assert_eq!(names(&sysctls)[4], "net.ipv4.conf.eth0.arp_ignore");
    }

    #[test]
    fn connection_tracking_grows_with_the_processors() {
        let max = |max_per_core, min, cpus| {
            let config = Conntrack {
                max_per_core,
                min,
                ..Conntrack::default()
            };
            conntrack(&config, cpus).first().map(|sysctl| sysctl.value)
        };
        assert_eq!(max(Some(32768), 131_072, 2), Some(131_072));
        assert_eq!(max(Some(32768), 131_072, 8), Some(262_144));
        assert_eq!(max(Some(32768), 131_072, 500), Some(1 << 20));
        assert_eq!(max(None, 131_072, 8), None);
    }

    #[test]
    fn timeouts_of_connection_tracking_are_whole_seconds_and_none_stays() {
        let config = Conntrack {
            tcp_established: Some(Duration::from_millis(86_400_900)),
            be_liberal: true,
            ..Conntrack::default()
        };
        let sysctls = conntrack(&config, 1);
        let wanted: Vec<_> = sysctls
            .iter()
            .map(|sysctl| (&*sysctl.name, sysctl.value))
            .collect();
        assert_eq!(
            wanted,
            [
                ("net.netfilter.nf_conntrack_tcp_timeout_established", 86400),
                ("net.netfilter.nf_conntrack_tcp_be_liberal", 1)
            ]
        );
    }

    #[test]
    fn processors_are_counted() {
        assert_eq!(count_cpus("0-3,8\n"), Some(5));
        assert_eq!(count_cpus("0"), Some(1));
        for text in ["", "3-1", "a", "0-4294967295"] {
            assert_eq!(count_cpus(text), None, "{text:?}");
        }
        assert!(cpus() > 0);
    }

    #[test]
    fn a_release_is_read_as_far_as_it_goes() {
        assert_eq!(KernelVersion::parse("6.1.0-13-amd64"), Some(V6_1));
        assert_eq!(KernelVersion::parse("6.1-rc1"), Some(V6_1));
        assert_eq!(KernelVersion::parse("6"), None);
        assert_eq!(KernelVersion::parse("linux"), None);
        assert!(KernelVersion::current().is_some());
    }

    /// I2
    #[test]
    fn only_what_differs_is_written() {
        let root = Root::new(
            "differs",
            &[("net.ipv4.ip_forward", "0\n"), ("net.ipv4.vs.conntrack", "1\n")],
        );
        let wanted = [
            required("net.ipv4.ip_forward", 1),
            required("net.ipv4.vs.conntrack", 1),
        ];
        let change = Change {
            name: "net.ipv4.ip_forward".into(),
            from: "0".to_owned(),
            to: 1,
        };
        assert_eq!(change.to_string(), "net.ipv4.ip_forward = 1 (was 0)");
        assert_eq!(ensure_in(&root.0, &wanted).unwrap(), [change]);
        assert_eq!(root.value("net.ipv4.ip_forward"), "1");
        assert_eq!(root.value("net.ipv4.vs.conntrack"), "1\n", "it was not written");
        assert_eq!(ensure_in(&root.0, &wanted).unwrap(), []);
    }

    /// F11
    #[test]
    fn a_missing_one_matters_only_if_it_is_required() {
        let root = Root::new("missing", &[("net.ipv4.ip_forward", "0")]);
        let wanted = |required| {
            [
                Sysctl {
                    required,
                    ..useful("net.ipv4.vs.conn_reuse_mode", 0)
                },
                super::required("net.ipv4.ip_forward", 1),
            ]
        };
        assert!(matches!(
            ensure_in(&root.0, &wanted(true)),
            Err(Error::Missing(name)) if name == "net.ipv4.vs.conn_reuse_mode"
        ));
        assert_eq!(root.value("net.ipv4.ip_forward"), "0");
        assert_eq!(wanted(true).map(|sysctl| differs(&root.0, &sysctl)), [true, true]);
        assert_eq!(
            wanted(false).map(|sysctl| differs(&root.0, &sysctl)),
            [false, true]
        );
        assert_eq!(ensure_in(&root.0, &wanted(false)).unwrap().len(), 1);
        assert_eq!(root.value("net.ipv4.ip_forward"), "1");
    }

    /// F5
    #[test]
    fn one_that_cannot_be_written_is_named_with_the_command_to_run() {
        let error = Error::Write {
            name: "net.ipv4.ip_forward".into(),
            value: 1,
            source: io::Error::from(io::ErrorKind::ReadOnlyFilesystem),
        };
        assert_eq!(
            error.to_string(),
            "cannot set the sysctl net.ipv4.ip_forward: read-only filesystem or storage medium; \
             run \"sysctl -w net.ipv4.ip_forward=1\" on the node"
        );
    }
}
