//! A topology with a kube-proxy on its node and a directory of manifests.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Context, Error, Result};
use crate::kube_proxy::{KubeProxy, PATIENCE};
use crate::namespace::Namespace;
use crate::topology::{CLUSTER_CIDRS, Host, Topology};
use crate::traffic::Client;

const POLL: Duration = Duration::from_millis(100);

/// A cluster whose objects are files. It goes with this value, and what kube-proxy programmed goes with its node.
#[derive(Debug)]
pub struct Cluster {
    // In the order in which they go.
    kube_proxy: Option<KubeProxy>,
    topology: Topology,
    dir: PathBuf,
    starts: u32,
}

impl Cluster {
    /// Builds one, without a pod, an object or a kube-proxy.
    ///
    /// # Errors
    /// The topology cannot be built.
    pub fn new() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("cluster-{}-{count}", std::process::id()));
        let manifests = dir.join("manifests");
        fs::create_dir_all(&manifests).path("make", &manifests)?;
        Ok(Self {
            kube_proxy: None,
            topology: Topology::new()?,
            dir,
            starts: 0,
        })
    }

    /// The node under test.
    #[must_use]
    pub fn node(&self) -> &Host {
        &self.topology.node
    }

    /// The second node.
    #[must_use]
    pub fn peer(&self) -> &Host {
        &self.topology.peer
    }

    /// The machine outside the cluster.
    #[must_use]
    pub fn outside(&self) -> &Namespace {
        &self.topology.client
    }

    /// A client outside the cluster.
    #[must_use]
    pub fn client(&self) -> Client<'_> {
        Client::new(&self.topology.client)
    }

    /// The directory of manifests.
    #[must_use]
    pub fn manifests(&self) -> PathBuf {
        self.dir.join("manifests")
    }

    /// A file of the test's own, which goes with the cluster.
    #[must_use]
    pub fn scratch(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Writes the manifest `NAME.yaml`, or replaces it, at once.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn apply(&self, name: &str, objects: &[String]) -> Result<()> {
        let (partial, file) = (self.dir.join("partial"), self.file(name));
        fs::write(&partial, objects.concat()).path("write", &partial)?;
        fs::rename(&partial, &file).path("write", &file)
    }

    /// Removes the manifest `NAME.yaml`.
    ///
    /// # Errors
    /// There is none.
    pub fn delete(&self, name: &str) -> Result<()> {
        let file = self.file(name);
        fs::remove_file(&file).path("remove", &file)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.manifests().join(format!("{name}.yaml"))
    }

    /// The arguments with which [`start`](Self::start) calls kube-proxy, before those of the test.
    #[must_use]
    pub fn flags(&self) -> Vec<String> {
        let manifests = self.manifests();
        [
            "--manifests",
            &manifests.to_string_lossy(),
            "--hostname-override=node",
            "--cluster-cidr",
            CLUSTER_CIDRS,
        ]
        .map(str::to_owned)
        .into()
    }

    /// Starts kube-proxy with these flags besides the usual ones, and waits until it is in sync.
    ///
    /// # Errors
    /// It did not get so far; with what it said.
    pub fn start(&mut self, flags: &[&str]) -> Result<()> {
        let mut kube_proxy = self.begin(flags)?;
        kube_proxy.wait_for("in sync")?;
        self.kube_proxy = Some(kube_proxy);
        Ok(())
    }

    /// Starts kube-proxy with these flags besides the usual ones, for a test that follows it by itself.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn begin(&mut self, flags: &[&str]) -> Result<KubeProxy> {
        let (usual, log) = (self.flags(), self.new_log());
        let flags: Vec<_> = usual
            .iter()
            .map(String::as_str)
            .chain(flags.iter().copied())
            .collect();
        KubeProxy::start(&self.topology.node.namespace, &flags, &log)
    }

    /// A new file for what a kube-proxy says.
    pub fn new_log(&mut self) -> PathBuf {
        self.starts += 1;
        self.dir.join(format!("kube-proxy-{}.log", self.starts))
    }

    /// The running kube-proxy.
    ///
    /// # Errors
    /// None was started.
    pub fn kube_proxy(&mut self) -> Result<&mut KubeProxy> {
        self.kube_proxy.as_mut().ok_or_else(none)
    }

    /// Takes the running kube-proxy, to end it.
    ///
    /// # Errors
    /// None was started.
    pub fn take_kube_proxy(&mut self) -> Result<KubeProxy> {
        self.kube_proxy.take().ok_or_else(none)
    }

    /// What `ipvsadm -Sn` says on the node, sorted: the order in the kernel's table means nothing.
    ///
    /// # Errors
    /// `ipvsadm` failed.
    pub fn servers(&self) -> Result<String> {
        let said = self.topology.node.namespace.output("ipvsadm", &["-Sn"])?;
        Ok(sorted(&said))
    }

    /// Waits until `ipvsadm -Sn` says this, in whatever order.
    ///
    /// # Errors
    /// It does not in time; with what it says.
    pub fn expect_servers(&self, expected: &str) -> Result<()> {
        let expected = sorted(expected);
        eventually(|| {
            let found = self.servers()?;
            Ok(if found == expected {
                Ok(())
            } else {
                Err(format!(
                    "expected of ipvsadm -Sn\n{expected}\nand it says\n{found}"
                ))
            })
        })
    }

    /// Waits until `ipvsadm -Sn` has this line among others.
    ///
    /// # Errors
    /// It has not in time; with what it says.
    pub fn expect_server(&self, line: &str) -> Result<()> {
        eventually(|| {
            let found = self.servers()?;
            Ok(if found.lines().any(|found| found == line) {
                Ok(())
            } else {
                Err(format!("expected of ipvsadm -Sn\n{line}\nand it says\n{found}"))
            })
        })
    }

    /// Waits until neither IPVS, nor kube-ipvs0, nor netfilter has anything with this text, such as an address.
    ///
    /// # Errors
    /// Something is left; with what it is.
    pub fn expect_no_trace(&self, text: &str) -> Result<()> {
        eventually(|| {
            let all = [self.servers()?, self.addresses()?.join("\n"), self.ruleset()?].join("\n");
            let left: Vec<_> = all.lines().filter(|line| line.contains(text)).collect();
            Ok(if left.is_empty() {
                Ok(())
            } else {
                Err(format!("left of {text}:\n{}", left.join("\n")))
            })
        })
    }

    /// The addresses on kube-ipvs0 with their prefix lengths, sorted; none if there is no such link.
    ///
    /// # Errors
    /// `ip` failed.
    pub fn addresses(&self) -> Result<Vec<String>> {
        let said = self
            .topology
            .node
            .namespace
            .shell("ip -brief address show kube-ipvs0 2>/dev/null || true")?;
        let mut addresses: Vec<_> = said.split_whitespace().skip(2).map(str::to_owned).collect();
        addresses.sort();
        Ok(addresses)
    }

    /// Waits until these are the addresses on kube-ipvs0.
    ///
    /// # Errors
    /// They are not in time; with those that are there.
    pub fn expect_addresses(&self, expected: &[&str]) -> Result<()> {
        let mut expected = expected.to_vec();
        expected.sort_unstable();
        eventually(|| {
            let found = self.addresses()?;
            Ok(if found == expected {
                Ok(())
            } else {
                Err(format!(
                    "expected on kube-ipvs0 {expected:?}, and there are {found:?}"
                ))
            })
        })
    }

    /// What `nft list ruleset` says on the node.
    ///
    /// # Errors
    /// `nft` failed.
    pub fn ruleset(&self) -> Result<String> {
        self.topology.node.namespace.output("nft", &["list", "ruleset"])
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // What is left in a temporary directory harms nobody.
        let _ = fs::remove_dir_all(Path::new(&self.dir));
    }
}

fn none() -> Error {
    Error::Unavailable("no kube-proxy was started".into())
}

fn sorted(text: &str) -> String {
    let mut lines: Vec<_> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    lines.sort_unstable();
    lines.join("\n")
}

/// Waits until `check` is content; it says what is wrong as long as it is not.
///
/// # Errors
/// It is not content in time, or it failed.
pub fn eventually(mut check: impl FnMut() -> Result<std::result::Result<(), String>>) -> Result<()> {
    let start = Instant::now();
    loop {
        match check()? {
            Ok(()) => return Ok(()),
            Err(wrong) if start.elapsed() > PATIENCE => {
                let seconds = PATIENCE.as_secs();
                return Err(Error::Unavailable(format!("after {seconds} s: {wrong}")));
            }
            Err(_) => thread::sleep(POLL),
        }
    }
}
