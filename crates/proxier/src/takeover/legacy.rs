//! Upstream's chains in the tables of legacy iptables (xtables). They have no interface that a program could use
//! without linking iptables' own code, so the host's tool has to do it: the only child process of this library.

use std::{
    fmt::Write as _,
    fs,
    io::{self, Write as _},
    path::PathBuf,
    process::{Command, Stdio},
};

use ipvs::Family;

use super::chains::{Chain, FORWARD, Jump, Removal, is_of_service, is_upstreams};

/// Where to look for the tools besides `PATH`.
const SBIN: [&str; 3] = ["/usr/sbin", "/sbin", "/usr/local/sbin"];

/// Why legacy iptables could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel has tables of legacy iptables, and there is no tool to look into them.
    #[error(
        "this node has tables of legacy iptables, which {tool}-save is needed for and was not found: if upstream's \
         kube-proxy has used them, run its --cleanup on the node"
    )]
    NoTool {
        /// `iptables-legacy` or `ip6tables-legacy`.
        tool: String,
    },
    /// The tool cannot be run.
    #[error("cannot run {}: {source}", tool.display())]
    Run {
        /// The tool.
        tool: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The tool failed.
    #[error("{} failed: {said}", tool.display())]
    Failed {
        /// The tool.
        tool: PathBuf,
        /// What it said.
        said: String,
    },
}

/// Legacy iptables of a family, where the kernel has it in use.
#[derive(Debug)]
pub(super) struct Legacy {
    save: PathBuf,
    restore: PathBuf,
}

/// What goes, and what cannot.
#[derive(Debug, PartialEq, Eq)]
struct Script {
    /// The input of `iptables-restore --noflush`.
    text: String,
    chains: usize,
    /// FORWARD drops what KUBE-FORWARD accepts.
    forward_kept: bool,
}

/// What was removed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Removed {
    pub(super) chains: usize,
    /// KUBE-FORWARD was left in place because FORWARD's policy is DROP.
    pub(super) forward_kept: bool,
}

impl Legacy {
    /// Finds the tools, if the kernel has any table of legacy iptables: they would make those that they look for.
    pub(super) fn find(family: Family) -> Result<Option<Self>, Error> {
        let (names, tool) = match family {
            Family::Inet => ("/proc/net/ip_tables_names", "iptables"),
            Family::Inet6 => ("/proc/net/ip6_tables_names", "ip6tables"),
        };
        if fs::read_to_string(names).unwrap_or_default().trim().is_empty() {
            return Ok(None);
        }
        let legacy = format!("{tool}-legacy");
        // Without that name, iptables itself is legacy, or new enough to say that it is not.
        for name in [legacy.as_str(), tool] {
            if let (Some(save), Some(restore)) = (
                program(&format!("{name}-save")),
                program(&format!("{name}-restore")),
            ) && (name == legacy || !run(&save, &["--version"], None)?.contains("nf_tables"))
            {
                return Ok(Some(Self { save, restore }));
            }
        }
        Err(Error::NoTool { tool: legacy })
    }

    /// Whether upstream's mode iptables sends flows to endpoints here.
    pub(super) fn translates(&self) -> Result<bool, Error> {
        let saved = run(&self.save, &[], None)?;
        let mut names = saved.lines().filter_map(|line| Some(chain(line)?.0.name));
        Ok(names.any(|name| is_of_service(&name)))
    }

    /// Removes upstream's chains and the jumps to them, each table at once. With `in_use`, KUBE-FORWARD stays where the
    /// policy of FORWARD is DROP: traffic of Services depends on it then.
    pub(super) fn remove(&self, in_use: bool) -> Result<Removed, Error> {
        let script = script(&run(&self.save, &[], None)?, in_use);
        if !script.text.is_empty() {
            run(&self.restore, &["--noflush", "--wait"], Some(&script.text))?;
        }
        Ok(Removed {
            chains: script.chains,
            forward_kept: script.forward_kept,
        })
    }
}

fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(SBIN.map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|program| program.is_file())
}

/// Runs a tool with an input and returns its output.
fn run(tool: &PathBuf, arguments: &[&str], input: Option<&str>) -> Result<String, Error> {
    let cannot = |source| Error::Run {
        tool: tool.clone(),
        source,
    };
    let mut child = Command::new(tool)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(cannot)?;
    if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
        stdin.write_all(input.as_bytes()).map_err(cannot)?;
    }
    let output = child.wait_with_output().map_err(cannot)?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(Error::Failed {
            tool: tool.clone(),
            said: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        })
    }
}

/// What removes upstream's chains from what `iptables-save` has printed.
fn script(saved: &str, in_use: bool) -> Script {
    let mut script = Script {
        text: String::new(),
        chains: 0,
        forward_kept: false,
    };
    let tables = saved.lines().filter(|line| !line.starts_with('#'));
    for table in tables.collect::<Vec<_>>().split(|line| *line == "COMMIT") {
        let Some(name) = table.iter().find_map(|line| line.strip_prefix('*')) else {
            continue;
        };
        let declared: Vec<_> = table.iter().filter_map(|line| chain(line)).collect();
        let (chains, policies): (Vec<_>, Vec<_>) = declared.into_iter().unzip();
        let drops = |name| {
            std::iter::zip(&chains, &policies).any(|(chain, policy)| chain.name == name && *policy == "DROP")
        };
        let mut exempt = Vec::new();
        if in_use && name == "filter" && drops("FORWARD") && chains.iter().any(|chain| chain.name == FORWARD)
        {
            exempt.push(FORWARD);
            script.forward_kept = true;
        }
        let jumps = table
            .iter()
            .filter_map(|line| jump(line))
            .filter(|jump| !is_upstreams(name, &jump.from))
            .collect();
        let removal = Removal::new(name, &chains, jumps, &exempt);
        if removal.is_empty() {
            continue;
        }
        script.chains += removal.removed.len();
        script.add(name, &removal);
    }
    script
}

impl Script {
    fn add(&mut self, table: &str, removal: &Removal<&str>) {
        // Writing to a String does not fail. To declare a chain is to empty it.
        let text = &mut self.text;
        _ = writeln!(text, "*{table}");
        for chain in &removal.emptied {
            _ = writeln!(text, ":{chain} - [0:0]");
        }
        for (_, rule) in &removal.jumps {
            _ = writeln!(text, "-D {rule}");
        }
        for chain in &removal.removed {
            _ = writeln!(text, "-X {chain}");
        }
        _ = writeln!(text, "COMMIT");
    }
}

/// Reads `:INPUT ACCEPT [0:0]`: the chain and its policy, which is `-` for those that are not built in.
fn chain(line: &str) -> Option<(Chain, &str)> {
    let mut words = line.strip_prefix(':')?.split_whitespace();
    let (name, policy) = (words.next()?.to_owned(), words.next()?);
    let builtin = policy != "-";
    Some((Chain { name, builtin }, policy))
}

/// Reads `-A INPUT -m comment --comment "a b" -j KUBE-SERVICES`; the rule is what follows `-A`.
fn jump(line: &str) -> Option<Jump<&str>> {
    let rule = line.strip_prefix("-A ")?;
    let mut words = words(rule);
    let from = words.next()?.to_owned();
    let to = words
        .skip_while(|word| !matches!(*word, "-j" | "-g"))
        .nth(1)?
        .to_owned();
    Some(Jump { from, to, rule })
}

/// The words of a rule; what is in quotation marks is one word.
fn words(rule: &str) -> impl Iterator<Item = &str> {
    let (mut quoted, mut escaped) = (false, false);
    let separates = move |c: char| {
        match c {
            '"' if !escaped => quoted = !quoted,
            _ => {}
        }
        escaped = c == '\\' && !escaped;
        c == ' ' && !quoted
    };
    rule.split(separates).filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAVED: &str = r#"# Generated by iptables-save
*nat
:PREROUTING ACCEPT [1:60]
:POSTROUTING ACCEPT [0:0]
:KUBE-KUBELET-CANARY - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-ABC - [0:0]
-A PREROUTING -m comment --comment "a \" -j KUBE-POSTROUTING" -j ACCEPT
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-SERVICES -d 10.96.0.10/32 -p tcp -j KUBE-SVC-ABC
COMMIT
*filter
:FORWARD DROP [0:0]
:KUBE-FIREWALL - [0:0]
:KUBE-FORWARD - [0:0]
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
"#;

    const NAT: &str = r#"*nat
:KUBE-POSTROUTING - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-ABC - [0:0]
-D PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-D POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-X KUBE-POSTROUTING
-X KUBE-SERVICES
-X KUBE-SVC-ABC
COMMIT
"#;

    /// C6, F2
    #[test]
    fn what_services_still_need_stays_while_they_are_in_use() {
        let in_use = script(SAVED, true);
        assert_eq!(in_use.text, NAT);
        assert!(in_use.forward_kept);
        assert_eq!(in_use.chains, 3);
    }

    /// F4
    #[test]
    fn a_cleanup_removes_all() {
        let all = script(SAVED, false);
        let filter = r#"*filter
:KUBE-FORWARD - [0:0]
-D FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-X KUBE-FORWARD
COMMIT
"#;
        assert_eq!(all.text, format!("{NAT}{filter}"));
        assert!(!all.forward_kept);
    }

    #[test]
    fn nothing_of_upstream_s_is_nothing_to_do() {
        let saved = "*filter\n:INPUT ACCEPT [0:0]\n:mine - [0:0]\n-A INPUT -j mine\nCOMMIT\n";
        assert_eq!(script(saved, false).text, "");
        assert_eq!(script("", false).text, "");
        assert_eq!(script("garbage\n*\n:\n-A\n-A x -j", false).text, "");
    }
}
