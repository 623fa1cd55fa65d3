//! A kube-apiserver with its etcd on the host's loopback, for a guest to watch.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use crate::api::Client;
use crate::daemon::Daemon;
use crate::error::{Context, Result};
use crate::go::{Go, Program};
use crate::lab::Lab;
use crate::packages;
use crate::process::output;
use crate::progress::step;

/// Where a guest finds the host's loopback.
pub const HOST_OF_GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);

/// From which ClusterIPs are taken: one range of each family.
pub const SERVICE_RANGES: &str = "10.96.0.0/12,fd00:10:96::/112";

/// The first address of the first range: the ClusterIP of the server's own Service, `default/kubernetes`.
pub const OWN_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);

/// How long an API server may take to answer, on a machine that does other things too.
const START_LIMIT: Duration = Duration::from_secs(180);

/// The one user, who may do everything, shows a token or a certificate.
const TOKEN: &str = "lab";

/// An API server and its data. Both end with this value.
#[derive(Debug)]
pub struct ApiServer {
    programs: Programs,
    dir: PathBuf,
    port: u16,
    etcd_port: u16,
    etcd: Option<Daemon>,
    apiserver: Option<Daemon>,
}

#[derive(Debug)]
struct Programs {
    etcd: PathBuf,
    apiserver: PathBuf,
}

impl ApiServer {
    /// Builds what the lab lacks, and starts an API server without any objects but its own: the Service
    /// `default/kubernetes`, which has no endpoints here.
    ///
    /// # Errors
    /// The programs cannot be built or do not start.
    pub fn start(go: &Go) -> Result<Self> {
        let lab = Lab::open()?;
        let programs = Programs {
            etcd: go.build(&lab, Program::Etcd)?,
            apiserver: go.build(&lab, Program::KubeApiserver)?,
        };
        let mut server = Self {
            programs,
            dir: data_dir(&lab)?,
            port: free_port()?,
            etcd_port: free_port()?,
            etcd: None,
            apiserver: None,
        };
        let tokens = server.dir.join("tokens");
        fs::write(&tokens, format!("{TOKEN},lab,lab\n")).path("write", &tokens)?;
        server.make_client_certificate()?;
        server.resume()?;
        Ok(server)
    }

    /// Kills the API server and etcd, as a crash of their machine would; the data stays.
    pub fn kill(&mut self) {
        self.apiserver = None;
        self.etcd = None;
    }

    /// Starts both again, at the same address and with the same data, and waits until they answer.
    ///
    /// # Errors
    /// They do not start.
    pub fn resume(&mut self) -> Result<()> {
        step("starting kube-apiserver and etcd", || {
            let etcd = Daemon::start(
                &self.programs.etcd,
                &self.etcd_flags(),
                &self.dir.join("etcd.log"),
            )?;
            self.etcd = Some(etcd);
            let log = self.dir.join("kube-apiserver.log");
            let apiserver = Daemon::start(&self.programs.apiserver, &self.apiserver_flags(), &log)?;
            self.apiserver = Some(apiserver);
            self.wait()
        })
    }

    /// The server's port on the loopback address.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// A kubeconfig for the loopback address. Its users are the same one, by token and by certificate, and somebody whom
    /// the server does not know.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.join("kubeconfig")
    }

    /// A client on this machine.
    ///
    /// # Errors
    /// The server has never been ready.
    pub fn client(&self) -> Result<Client> {
        let kubeconfig = self.kubeconfig();
        Client::new(&fs::read_to_string(&kubeconfig).path("read", &kubeconfig)?)
    }

    fn write_kubeconfig(&self) -> Result<()> {
        let chain = self.certificates().join("apiserver.crt");
        let chain = fs::read_to_string(&chain).path("read", &chain)?;
        // The server made its certificate itself, and wrote that of the signing authority behind it.
        let authority = chain.rfind("-----BEGIN").and_then(|at| chain.get(at..));
        let cluster = json!({
            "server": format!("https://127.0.0.1:{}", self.port),
            "certificate-authority-data": BASE64_STANDARD.encode(authority.unwrap_or_default()),
        });
        let kubeconfig = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "lab", "cluster": cluster}],
            "users": [
                {"name": "lab", "user": {"token": TOKEN}},
                {"name": "lab-by-certificate", "user": self.by_certificate("client")?},
                {"name": "stranger", "user": self.by_certificate("stranger")?},
            ],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lab"}}],
            "current-context": "lab",
        });
        let file = self.kubeconfig();
        fs::write(&file, kubeconfig.to_string()).path("write", &file)
    }

    /// A user of a kubeconfig with a certificate of this name.
    fn by_certificate(&self, name: &str) -> Result<Value> {
        Ok(json!({
            "client-certificate-data": self.encoded(&format!("{name}.crt"))?,
            "client-key-data": self.encoded(&format!("{name}.key"))?,
        }))
    }

    /// Makes an authority for clients' certificates, a certificate for the one user, and one that nobody vouches for.
    fn make_client_certificate(&self) -> Result<()> {
        packages::require("openssl", "openssl", "to make a client certificate")?;
        let new_certificate = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2";
        for signed in [
            "-subj /CN=lab-clients -keyout client-ca.key -out client-ca.crt",
            "-subj /CN=lab -keyout client.key -out client.crt -CA client-ca.crt -CAkey client-ca.key",
            "-subj /CN=stranger -keyout stranger.key -out stranger.crt",
        ] {
            let arguments = new_certificate.split(' ').chain(signed.split(' '));
            output(Command::new("openssl").args(arguments).current_dir(&self.dir))?;
        }
        Ok(())
    }

    /// A file of the server's directory, as a kubeconfig has it.
    fn encoded(&self, name: &str) -> Result<String> {
        let file = self.dir.join(name);
        Ok(BASE64_STANDARD.encode(fs::read(&file).path("read", &file)?))
    }

    /// Waits until every part of the server is ready and the objects that it makes itself are there.
    fn wait(&mut self) -> Result<()> {
        let start = Instant::now();
        loop {
            for daemon in [&mut self.etcd, &mut self.apiserver].into_iter().flatten() {
                daemon.check()?;
            }
            // The certificate is there some time after the start.
            let answer = self
                .write_kubeconfig()
                .and_then(|()| self.client())
                .and_then(|client| client.ready());
            match answer {
                Ok(()) => return Ok(()),
                Err(error) if start.elapsed() > START_LIMIT => return Err(error),
                Err(_) => thread::sleep(Duration::from_millis(100)),
            }
        }
    }

    fn certificates(&self) -> PathBuf {
        self.dir.join("certificates")
    }

    fn etcd_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.etcd_port)
    }

    fn etcd_flags(&self) -> Vec<String> {
        vec![
            format!("--data-dir={}", self.dir.join("etcd").display()),
            format!("--listen-client-urls={}", self.etcd_url()),
            format!("--advertise-client-urls={}", self.etcd_url()),
            "--listen-peer-urls=http://127.0.0.1:0".into(),
            // Nothing here has to survive the machine's own crash.
            "--unsafe-no-fsync".into(),
        ]
    }

    fn apiserver_flags(&self) -> Vec<String> {
        let certificates = self.certificates();
        // The key of its certificate, made at the first start before any key is read, signs its tokens too.
        let key = certificates.join("apiserver.key");
        vec![
            "--bind-address=127.0.0.1".into(),
            format!("--secure-port={}", self.port),
            // Programs in a guest may use this one; the certificate is good for both.
            format!("--advertise-address={HOST_OF_GUEST}"),
            format!("--cert-dir={}", certificates.display()),
            format!("--service-account-key-file={}", key.display()),
            format!("--service-account-signing-key-file={}", key.display()),
            "--service-account-issuer=https://kubernetes.default.svc".into(),
            format!("--token-auth-file={}", self.dir.join("tokens").display()),
            format!("--client-ca-file={}", self.dir.join("client-ca.crt").display()),
            // As every cluster has it, for its DaemonSets.
            "--allow-privileged".into(),
            // Who shows nothing is nobody, lest a client without its credentials go unnoticed.
            "--anonymous-auth=false".into(),
            "--authorization-mode=AlwaysAllow".into(),
            format!("--etcd-servers={}", self.etcd_url()),
            format!("--service-cluster-ip-range={SERVICE_RANGES}"),
            // The guest could not reach the address that would be published.
            "--endpoint-reconciler-type=none".into(),
        ]
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.kill();
        // The logs stay for whoever wants to read them, until a later run finds that this process has ended.
        let _ = fs::remove_dir_all(self.dir.join("etcd"));
    }
}

/// A new directory for one server's data and logs.
fn data_dir(lab: &Lab) -> Result<PathBuf> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let dir = lab.path(format!("runs/{}-apiserver-{count}", std::process::id()));
    fs::create_dir_all(&dir).path("make", &dir)?;
    Ok(dir)
}

/// A port of the loopback address that nobody uses now.
fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    let address = listener.and_then(|listener| listener.local_addr());
    Ok(address.context(|| "find a free port".into())?.port())
}
