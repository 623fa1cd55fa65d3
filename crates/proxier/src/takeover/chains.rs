//! Which chains of iptables are upstream's, and what has to go for them to go. No I/O.

use std::collections::BTreeSet;

/// The tables of iptables that upstream's kube-proxy writes to.
pub(super) const TABLES: [&str; 3] = ["filter", "nat", "mangle"];

/// Where a forwarded flow's packets are accepted, whatever the policy of FORWARD.
pub(super) const FORWARD: &str = "KUBE-FORWARD";

/// Other software marks its own flows for masquerading here.
const MARK_FOR_MASQUERADE: &str = "KUBE-MARK-MASQ";

/// Chains of the nat table that upstream names after a Service or an endpoint: mode iptables.
const NAT_PREFIXES: [&str; 6] = [
    "KUBE-SVC-",
    "KUBE-SVL-",
    "KUBE-EXT-",
    "KUBE-FW-",
    "KUBE-XLB-",
    "KUBE-SEP-",
];

/// Whether a chain is of upstream's kube-proxy. kubelet's KUBE-FIREWALL (filter), KUBE-KUBELET-CANARY,
/// KUBE-IPTABLES-HINT and KUBE-MARK-DROP are not.
pub(super) fn is_upstreams(table: &str, chain: &str) -> bool {
    match table {
        "nat" => {
            matches!(
                chain,
                "KUBE-SERVICES"
                    | "KUBE-POSTROUTING"
                    | MARK_FOR_MASQUERADE
                    | "KUBE-PROXY-CANARY"
                    // Mode iptables.
                    | "KUBE-NODEPORTS"
                    // Mode ipvs; the last one before 1.25.
                    | "KUBE-NODE-PORT"
                    | "KUBE-LOAD-BALANCER"
                    | "KUBE-FIREWALL"
            ) || is_of_service(chain)
        }
        "filter" => matches!(
            chain,
            FORWARD
                | "KUBE-PROXY-FIREWALL"
                | "KUBE-PROXY-CANARY"
                // Mode iptables.
                | "KUBE-SERVICES"
                | "KUBE-EXTERNAL-SERVICES"
                | "KUBE-NODEPORTS"
                // Mode ipvs.
                | "KUBE-NODE-PORT"
                | "KUBE-SOURCE-RANGES-FIREWALL"
                | "KUBE-IPVS-FILTER"
                | "KUBE-IPVS-OUT-FILTER"
        ),
        "mangle" => chain == "KUBE-PROXY-CANARY",
        _ => false,
    }
}

/// Whether a chain of the nat table sends a Service's flows to its endpoints: mode iptables.
pub(super) fn is_of_service(chain: &str) -> bool {
    NAT_PREFIXES.iter().any(|prefix| chain.starts_with(prefix))
}

/// A chain of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chain {
    pub(super) name: String,
    /// Whether the kernel sends packets to it, as to INPUT, and not other chains only.
    pub(super) builtin: bool,
}

/// A rule that sends packets on to another chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Jump<R> {
    pub(super) from: String,
    pub(super) to: String,
    pub(super) rule: R,
}

/// What goes of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Removal<R> {
    /// Rules of built-in chains, with the chain that each is in.
    pub(super) jumps: Vec<(String, R)>,
    /// Chains that lose all their rules.
    pub(super) emptied: Vec<String>,
    /// Those of them that go.
    pub(super) removed: Vec<String>,
}

impl<R> Removal<R> {
    /// What goes of these chains: upstream's, and the jumps to them from built-in ones. `jumps` are those of all chains
    /// but upstream's. Nothing goes of the `exempt` chains.
    ///
    /// A jump from somebody's own chain is not upstream's to take back: the chain that it needs stays, but empty.
    /// Only the one that marks flows for masquerading keeps its rule then, which has the same meaning with us.
    pub(super) fn new(table: &str, chains: &[Chain], jumps: Vec<Jump<R>>, exempt: &[&str]) -> Self {
        let goes = |name: &str| is_upstreams(table, name) && !exempt.contains(&name);
        let is_builtin = |name: &str| chains.iter().any(|chain| chain.builtin && chain.name == name);
        let (back, needed): (Vec<_>, Vec<_>) = jumps
            .into_iter()
            .filter(|jump| goes(&jump.to))
            .partition(|jump| is_builtin(&jump.from) && jump.to != MARK_FOR_MASQUERADE);
        let needed: BTreeSet<_> = needed.into_iter().map(|jump| jump.to).collect();
        let names = || chains.iter().map(|chain| &chain.name).filter(|name| goes(name));
        let is_needed = |name: &&String| needed.contains(*name);
        Self {
            jumps: back.into_iter().map(|jump| (jump.from, jump.rule)).collect(),
            emptied: names()
                .filter(|name| *name != MARK_FOR_MASQUERADE || !is_needed(name))
                .cloned()
                .collect(),
            removed: names().filter(|name| !is_needed(name)).cloned().collect(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.jumps.is_empty() && self.removed.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chains(builtin: &[&str], others: &[&str]) -> Vec<Chain> {
        let chain = |builtin| {
            move |name: &&str| Chain {
                name: (*name).to_owned(),
                builtin,
            }
        };
        let builtin = builtin.iter().map(chain(true));
        builtin.chain(others.iter().map(chain(false))).collect()
    }

    fn jumps(jumps: &[(&str, &str)]) -> Vec<Jump<usize>> {
        let jump = |(rule, (from, to)): (usize, &(&str, &str))| Jump {
            from: (*from).to_owned(),
            to: (*to).to_owned(),
            rule,
        };
        jumps.iter().enumerate().map(jump).collect()
    }

    /// F2, F4
    #[test]
    fn chains_of_upstream_go_with_the_jumps_to_them_and_those_of_others_stay() {
        let chains = chains(
            &["PREROUTING", "OUTPUT"],
            &["KUBE-SERVICES", "KUBE-SVC-ABC", "KUBE-KUBELET-CANARY", "cali-x"],
        );
        let jumps = jumps(&[("PREROUTING", "cali-x"), ("PREROUTING", "KUBE-SERVICES")]);
        let removal = Removal::new("nat", &chains, jumps, &[]);
        assert_eq!(removal.jumps, [("PREROUTING".to_owned(), 1)]);
        assert_eq!(removal.emptied, ["KUBE-SERVICES", "KUBE-SVC-ABC"]);
        assert_eq!(removal.removed, removal.emptied);
    }

    /// I4
    #[test]
    fn a_chain_that_others_need_stays_empty_and_the_mark_for_masquerading_whole() {
        let chains = chains(
            &["PREROUTING"],
            &["KUBE-SERVICES", "KUBE-MARK-MASQ", "CNI-HOSTPORT-SETMARK", "mine"],
        );
        let jumps = jumps(&[
            ("PREROUTING", "KUBE-SERVICES"),
            ("mine", "KUBE-SERVICES"),
            ("CNI-HOSTPORT-SETMARK", "KUBE-MARK-MASQ"),
        ]);
        let removal = Removal::new("nat", &chains, jumps, &[]);
        assert_eq!(removal.jumps, [("PREROUTING".to_owned(), 0)]);
        assert_eq!(removal.emptied, ["KUBE-SERVICES"]);
        assert_eq!(removal.removed, [""; 0]);
    }

    /// C6
    #[test]
    fn an_exempt_chain_stays_in_force() {
        let chains = chains(&["FORWARD"], &["KUBE-FORWARD", "KUBE-PROXY-FIREWALL"]);
        let jumps = jumps(&[("FORWARD", "KUBE-PROXY-FIREWALL"), ("FORWARD", "KUBE-FORWARD")]);
        let removal = Removal::new("filter", &chains, jumps, &[FORWARD]);
        assert_eq!(removal.jumps, [("FORWARD".to_owned(), 0)]);
        assert_eq!(removal.removed, ["KUBE-PROXY-FIREWALL"]);
    }

    #[test]
    fn kubelet_s_chains_are_not_upstream_s_kube_proxy_s() {
        for (table, chain) in [
            ("filter", "KUBE-FIREWALL"),
            ("filter", "KUBE-KUBELET-CANARY"),
            ("nat", "KUBE-MARK-DROP"),
            ("nat", "KUBE-KUBELET-CANARY"),
            ("mangle", "KUBE-IPTABLES-HINT"),
            ("nat", "KUBE-SVCX"),
            ("raw", "KUBE-SERVICES"),
        ] {
            assert!(!is_upstreams(table, chain), "{table} {chain}");
        }
    }
}
