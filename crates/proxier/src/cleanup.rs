//! The removal of all that this proxier, or upstream's in any mode, has programmed (F4). What others have made stays,
//! and so do sysctls and timeouts, whose values of before nobody knows.

use std::{fmt, net::IpAddr, path::Path};

use ipnet::IpNet;
use ipvs::{Command, Family, Handle};
use tracing::info;

use crate::{
    Applied,
    kernel::{
        Observed,
        link::{self, Link},
        netfilter::{self, Netfilter},
    },
    takeover::{self, Upstream},
};

/// What could not be removed, or not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Virtual servers.
    #[error(transparent)]
    Ipvs(#[from] ipvs::Error),
    /// kube-ipvs0.
    #[error(transparent)]
    Link(#[from] link::Error),
    /// nftables.
    #[error(transparent)]
    Netfilter(#[from] netfilter::Error),
    /// Upstream's iptables chains or ipsets.
    #[error(transparent)]
    Upstream(#[from] takeover::Error),
}

/// All that went wrong.
#[derive(Debug)]
pub struct Incomplete(pub Vec<Error>);

impl fmt::Display for Incomplete {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let errors: Vec<_> = self.0.iter().map(Error::to_string).collect();
        write!(f, "not everything could be removed: {}", errors.join("; "))
    }
}

impl std::error::Error for Incomplete {}

/// Removes everything, as far as it is there. Virtual servers and addresses in the `excluded` CIDRs stay.
///
/// It needs no source of Services, loads no module that is not loaded, and does nothing the second time.
///
/// # Errors
///
/// What does not depend on what went wrong is removed nevertheless.
pub async fn cleanup(excluded: &[IpNet]) -> Result<(), Incomplete> {
    let mut errors = Vec::new();
    match Kernel::connect() {
        Ok(mut kernel) => kernel.cleanup(excluded, &mut errors).await,
        Err(error) => errors.push(error),
    }
    match errors.is_empty() {
        true => Ok(()),
        false => Err(Incomplete(errors)),
    }
}

struct Kernel {
    link: Link,
    /// Nothing, if the kernel has no netfilter.
    netfilter: Option<(Netfilter, Upstream)>,
}

impl Kernel {
    fn connect() -> Result<Self, Error> {
        let netfilter = match Netfilter::connect() {
            Ok(netfilter) => Some((netfilter, Upstream::connect()?)),
            Err(netfilter::Error::NotSupported) => None,
            Err(error) => return Err(error.into()),
        };
        Ok(Self {
            link: Link::connect()?,
            netfilter,
        })
    }

    /// In the order in which a Service is removed (I1).
    async fn cleanup(&mut self, excluded: &[IpNet], errors: &mut Vec<Error>) {
        // Records, by which what is ours is told, go last: another attempt needs them.
        let steps = [
            self.remove_servers(excluded).await,
            self.remove_link(excluded).await,
        ];
        errors.extend(steps.into_iter().filter_map(Result::err));
        if !errors.is_empty() {
            return;
        }
        if let Some((netfilter, upstream)) = &mut self.netfilter {
            errors.extend(netfilter.delete_tables().await.err().map(Error::from));
            errors.extend(upstream.remove(false).await.into_iter().map(Error::from));
        }
    }

    async fn remove_servers(&mut self, excluded: &[IpNet]) -> Result<(), Error> {
        // To connect would have the kernel load ip_vs.
        if !Path::new("/proc/net/ip_vs").exists() {
            return Ok(());
        }
        let mut ipvs = Handle::connect().await?;
        let addresses = self.link.addresses().await?;
        let mut observed = Observed {
            addresses: addresses.service,
            own_addresses: addresses.node,
            servers: ipvs
                .services()
                .await?
                .into_iter()
                .map(|entry| (entry.service, Vec::new()))
                .collect(),
            ..Observed::default()
        };
        if let Some((netfilter, upstream)) = &mut self.netfilter {
            for family in [Family::Inet, Family::Inet6] {
                match netfilter.elements(family).await {
                    Ok(elements) => observed.elements.extend(elements),
                    Err(netfilter::Error::NotSupported) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            observed.records = upstream.records().await?;
        }
        // Those by firewall mark are among them (I4).
        let applied = Applied::new(observed, excluded);
        let ours = applied.our_servers();
        let commands: Vec<_> = ours.map(|(key, _)| Command::DelService(*key)).collect();
        let mut failures = ipvs.batch(&commands).await.into_values();
        if let Some(error) = failures.find(|error| !error.is_not_found()) {
            return Err(error.into());
        }
        info!("removed {} virtual servers", commands.len());
        Ok(())
    }

    /// Removes kube-ipvs0, or, where it has excluded addresses, the others.
    async fn remove_link(&mut self, excluded: &[IpNet]) -> Result<(), Error> {
        let is_excluded = |address: &IpAddr| excluded.iter().any(|cidr| cidr.contains(address));
        let addresses = self.link.addresses().await?.service;
        let (kept, removed): (Vec<_>, Vec<_>) = addresses.into_iter().partition(is_excluded);
        if kept.is_empty() {
            return Ok(self.link.delete().await?);
        }
        info!("{} keeps {} excluded addresses", link::SERVICE_LINK, kept.len());
        let updates: Vec<_> = removed.into_iter().map(link::Update::Remove).collect();
        let mut failures = self.link.update(&updates).await.into_values();
        match failures.find(|error| *error != link::Error::NotFound) {
            Some(error) => Err(error.into()),
            None => Ok(()),
        }
    }
}
