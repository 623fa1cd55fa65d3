//! Upstream's chains in the tables of iptables-nft, which are tables of nftables.

use ipvs::Family;
use netlink_batch::{Errno, Socket, TransactionError};
use netlink_packet_core::{DefaultNla, NetlinkMessage};
use netlink_sys::protocols::NETLINK_NETFILTER;

use super::chains::{Chain, Jump, Removal, TABLES, is_of_service, is_upstreams};
use crate::kernel::{
    netfilter::Error,
    nfnetlink::{Message, attributes, find, string, text},
};

const NFNL_SUBSYS_NFTABLES: u8 = 10;
const NFT_MSG_GETCHAIN: u8 = 4;
const NFT_MSG_DELCHAIN: u8 = 5;
const NFT_MSG_GETRULE: u8 = 7;
const NFT_MSG_DELRULE: u8 = 8;

const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;

const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_HANDLE: u16 = 3;
const NFTA_RULE_EXPRESSIONS: u16 = 4;

/// How often chains are listed anew because others have changed them before they could be removed.
const ATTEMPTS: usize = 3;

/// iptables-nft in the network namespace that we run in.
#[derive(Debug)]
pub(super) struct Iptables {
    socket: Socket,
}

impl Iptables {
    pub(super) fn connect() -> Result<Self, Error> {
        Ok(Self {
            socket: Socket::connect(NETLINK_NETFILTER)?,
        })
    }

    /// Whether upstream's mode iptables sends flows to endpoints here.
    pub(super) async fn translates(&mut self, family: Family) -> Result<bool, Error> {
        let chains = self.chains(family).await?;
        Ok(chains
            .iter()
            .any(|(table, chain)| table == "nat" && is_of_service(&chain.name)))
    }

    /// Removes upstream's chains and the jumps to them, all at once; returns how many chains that were.
    pub(super) async fn remove(&mut self, family: Family) -> Result<usize, Error> {
        let mut attempt = 1;
        loop {
            let removals = self.removals(family).await?;
            let messages = removals.iter().flat_map(|(table, removal)| {
                let delete_rule = |(chain, handle): &(String, u64)| {
                    let handle = DefaultNla::new(NFTA_RULE_HANDLE, handle.to_be_bytes().to_vec());
                    let place = [text(NFTA_RULE_TABLE, table), text(NFTA_RULE_CHAIN, chain), handle];
                    request(NFT_MSG_DELRULE, family, &place)
                };
                let empty = |chain: &String| {
                    let place = [text(NFTA_RULE_TABLE, table), text(NFTA_RULE_CHAIN, chain)];
                    request(NFT_MSG_DELRULE, family, &place)
                };
                let remove = |chain: &String| {
                    let place = [text(NFTA_CHAIN_TABLE, table), text(NFTA_CHAIN_NAME, chain)];
                    request(NFT_MSG_DELCHAIN, family, &place)
                };
                let jumps = removal.jumps.iter().map(delete_rule);
                let emptied = removal.emptied.iter().map(empty);
                jumps.chain(emptied).chain(removal.removed.iter().map(remove))
            });
            match self.socket.transaction(NFNL_SUBSYS_NFTABLES, messages).await {
                // Somebody has added a jump, or removed a rule, since they were listed.
                Err(TransactionError::Refused(_)) if attempt < ATTEMPTS => attempt += 1,
                result => {
                    result?;
                    return Ok(removals.iter().map(|(_, removal)| removal.removed.len()).sum());
                }
            }
        }
    }

    async fn removals(&mut self, family: Family) -> Result<Vec<(&'static str, Removal<u64>)>, Error> {
        let mut removals = Vec::new();
        let listed = self.chains(family).await?;
        for table in TABLES {
            let chains: Vec<_> = listed
                .iter()
                .filter(|(of, _)| of == table)
                .map(|(_, chain)| chain.clone())
                .collect();
            if !chains.iter().any(|chain| is_upstreams(table, &chain.name)) {
                continue;
            }
            let mut jumps = Vec::new();
            // Upstream's own rules can be very many, and go unread.
            for chain in chains.iter().filter(|chain| !is_upstreams(table, &chain.name)) {
                jumps.extend(self.jumps(family, table, &chain.name).await?);
            }
            removals.push((table, Removal::new(table, &chains, jumps, &[])));
        }
        removals.retain(|(_, removal)| !removal.is_empty());
        Ok(removals)
    }

    /// The chains of a family with their tables.
    async fn chains(&mut self, family: Family) -> Result<Vec<(String, Chain)>, Error> {
        match self.socket.dump(request(NFT_MSG_GETCHAIN, family, &[])).await {
            Ok(listed) => Ok(listed.iter().filter_map(read_chain).collect()),
            Err(error) => match error.into() {
                // Without nf_tables there is no iptables-nft.
                Error::NotSupported => Ok(Vec::new()),
                error => Err(error),
            },
        }
    }

    /// The jumps of a chain, each with its rule's handle.
    async fn jumps(&mut self, family: Family, table: &str, chain: &str) -> Result<Vec<Jump<u64>>, Error> {
        let place = [text(NFTA_RULE_TABLE, table), text(NFTA_RULE_CHAIN, chain)];
        match self.socket.dump(request(NFT_MSG_GETRULE, family, &place)).await {
            Err(error) if error.errno() == Some(Errno::NOENT) => Ok(Vec::new()),
            listed => Ok(listed?.iter().filter_map(read_jump).collect()),
        }
    }
}

fn request(command: u8, family: Family, attributes: &[DefaultNla]) -> NetlinkMessage<Message> {
    let message_type = u16::from_be_bytes([NFNL_SUBSYS_NFTABLES, command]);
    Message::new(message_type, family.number() as u8, attributes)
}

fn read_chain(message: &Message) -> Option<(String, Chain)> {
    let table = string(find(&message.attributes, NFTA_CHAIN_TABLE)?);
    let chain = Chain {
        name: string(find(&message.attributes, NFTA_CHAIN_NAME)?),
        builtin: find(&message.attributes, NFTA_CHAIN_HOOK).is_some(),
    };
    Some((table, chain))
}

/// iptables-nft puts a jump into an immediate verdict.
fn read_jump(message: &Message) -> Option<Jump<u64>> {
    const NFTA_EXPR_DATA: u16 = 2;
    const NFTA_IMMEDIATE_DATA: u16 = 2;
    const NFTA_DATA_VERDICT: u16 = 2;
    const NFTA_VERDICT_CHAIN: u16 = 2;
    let to = attributes(find(&message.attributes, NFTA_RULE_EXPRESSIONS)?).find_map(|(_, expression)| {
        let data = find(find(expression, NFTA_EXPR_DATA)?, NFTA_IMMEDIATE_DATA)?;
        find(find(data, NFTA_DATA_VERDICT)?, NFTA_VERDICT_CHAIN)
    })?;
    Some(Jump {
        from: string(find(&message.attributes, NFTA_RULE_CHAIN)?),
        to: string(to),
        rule: u64::from_be_bytes(*find(&message.attributes, NFTA_RULE_HANDLE)?.first_chunk()?),
    })
}
