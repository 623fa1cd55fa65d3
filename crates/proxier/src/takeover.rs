//! What upstream's kube-proxy leaves on a node, in each of its modes: found, and removed when it is in force no more.
//!
//! | mode | leaves |
//! |---|---|
//! | ipvs | kube-ipvs0 and virtual servers, which are adopted as they are; iptables chains; ipsets |
//! | iptables | iptables chains |
//! | nftables | nftables tables of our tables' name |
//!
//! What is kubelet's stays, and so does what others have made.

mod chains;
mod iptables;
mod legacy;
mod sets;

use ipvs::Family;
use tracing::info;

use self::{iptables::Iptables, legacy::Legacy};
pub use self::{legacy::Error as LegacyError, sets::Record};
use crate::kernel::{ipset::IpSets, netfilter};

/// Why something of upstream's could not be read or removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused to list or remove chains or sets.
    #[error(transparent)]
    Netfilter(#[from] netfilter::Error),
    /// Legacy iptables.
    #[error(transparent)]
    Legacy(#[from] legacy::Error),
    /// Rules that are not upstream's use its sets.
    #[error("others use upstream's ipsets {}: see `iptables-save | grep match-set`", .0.join(", "))]
    SetsInUse(Vec<String>),
    /// Traffic of Services depends on the chain.
    #[error(
        "the policy of FORWARD in legacy iptables is DROP, and upstream's chain KUBE-FORWARD stays to admit the replies of \
         Services; to be without it, add the rule `{tool} -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j \
         ACCEPT` and start again"
    )]
    ForwardKept {
        /// `iptables-legacy` or `ip6tables-legacy`.
        tool: &'static str,
    },
}

/// What upstream's kube-proxy has left in the network namespace that we run in.
#[derive(Debug)]
pub struct Upstream {
    iptables: Iptables,
    sets: Option<IpSets>,
}

impl Upstream {
    /// Opens netlink sockets.
    ///
    /// # Errors
    ///
    /// [`netfilter::Error::NotSupported`] if the kernel has no netfilter.
    pub fn connect() -> Result<Self, Error> {
        Ok(Self {
            iptables: Iptables::connect()?,
            sets: IpSets::connect()?,
        })
    }

    /// The virtual servers that upstream's mode ipvs has on record, besides those on kube-ipvs0.
    ///
    /// # Errors
    ///
    /// Any error: what is returned is never a part (I3).
    pub async fn records(&mut self) -> Result<Vec<Record>, Error> {
        match &mut self.sets {
            Some(sets) => Ok(sets::records(sets).await?),
            None => Ok(Vec::new()),
        }
    }

    /// Whether upstream's mode iptables sends the flows of Services to endpoints.
    ///
    /// # Errors
    ///
    /// The kernel does not tell; where it takes a tool to tell, and there is none, it does not.
    pub async fn translates(&mut self, family: Family) -> Result<bool, Error> {
        let by_legacy = || match Legacy::find(family) {
            Ok(Some(legacy)) => legacy.translates(),
            Ok(None) | Err(LegacyError::NoTool { .. }) => Ok(false),
            Err(error) => Err(error),
        };
        Ok(self.iptables.translates(family).await? || by_legacy()?)
    }

    /// Removes upstream's iptables chains and ipsets. With `in_use`, Services go on being served, and what they need of
    /// it stays.
    ///
    /// Returns why something could not be removed; the rest is gone nevertheless.
    pub async fn remove(&mut self, in_use: bool) -> Vec<Error> {
        let mut errors = Vec::new();
        for family in [Family::Inet, Family::Inet6] {
            match self.iptables.remove(family).await {
                Ok(0) => {}
                Ok(count) => info!("removed {count} iptables chains of upstream's kube-proxy, {family}"),
                Err(error) => errors.push(error.into()),
            }
            errors.extend(remove_legacy(family, in_use).err());
        }
        if let Some(sets) = &mut self.sets {
            match sets::remove(sets).await {
                Ok((count, in_use)) => {
                    if count > 0 {
                        info!("removed {count} ipsets of upstream's kube-proxy");
                    }
                    if !in_use.is_empty() {
                        errors.push(Error::SetsInUse(in_use));
                    }
                }
                Err(error) => errors.push(error.into()),
            }
        }
        errors
    }
}

fn remove_legacy(family: Family, in_use: bool) -> Result<(), Error> {
    let Some(legacy) = Legacy::find(family)? else {
        return Ok(());
    };
    let removed = legacy.remove(in_use)?;
    if removed.chains > 0 {
        info!(
            "removed {} legacy iptables chains of upstream's kube-proxy, {family}",
            removed.chains
        );
    }
    match (removed.forward_kept, family) {
        (false, _) => Ok(()),
        (true, Family::Inet) => Err(Error::ForwardKept {
            tool: "iptables-legacy",
        }),
        (true, Family::Inet6) => Err(Error::ForwardKept {
            tool: "ip6tables-legacy",
        }),
    }
}
