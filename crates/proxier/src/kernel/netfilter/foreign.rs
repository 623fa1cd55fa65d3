//! Packet filters of other programs, where they drop what Services need.
//!
//! IPVS takes a Service's packets at LOCAL_IN and sends them on through LOCAL_OUT; endpoints' answers pass FORWARD.
//! A packet that some chain drops at one of these hooks is lost, whatever our chains accept.
//!
//! `FORWARD` of iptables is seen to here, as kube-proxy has always done: a rule of ours admits answers there (C6). It
//! has iptables' own representation, because iptables refuses to list a table with any other. All else is told to
//! the operator.

use std::{fmt, fs};

use ipvs::Family;
use netlink_packet_core::{NLM_F_CREATE, NetlinkMessage};
use netlink_packet_netfilter::nftables::{NfTablesMessage, RuleAttribute, RuleMessage};
use tracing::{debug, info};

use super::{
    Error, Netfilter, Request, TABLE,
    expression::{accept_verdict, counter, established, verdict},
    listing, message,
    ruleset::comment,
};
use crate::kernel::nfnetlink::{Message, attributes, find, string};

/// The comment of our rule in iptables' tables, by which we know it. iptables, where it restores what it saved, puts
/// the text elsewhere in the rule.
const ANSWERS: &str = "kube-proxy: answers to the clients of Services";

/// Where iptables filters.
const IPTABLES_TABLE: &str = "filter";
const FORWARD: &str = "FORWARD";

/// Where a chain sees packets of Services.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Hook {
    /// Packets for the node, and so for service addresses and node ports.
    Input,
    /// Packets that pass the node, and so endpoints' answers to clients elsewhere.
    Forward,
    /// Packets from the node, and so what IPVS sends on to endpoints.
    Output,
}

impl Hook {
    /// `NF_INET_LOCAL_IN` and so on.
    const fn from_number(number: u32) -> Option<Self> {
        match number {
            1 => Some(Self::Input),
            2 => Some(Self::Forward),
            3 => Some(Self::Output),
            _ => None,
        }
    }

    /// iptables' chain at this hook.
    const fn iptables_chain(self) -> &'static str {
        match self {
            Self::Input => "INPUT",
            Self::Forward => FORWARD,
            Self::Output => "OUTPUT",
        }
    }
}

/// The family of an nftables table that sees IP packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TableFamily {
    /// Both.
    Inet,
    /// IPv4 or IPv6.
    Ip(Family),
}

impl TableFamily {
    /// `NFPROTO_*`
    const fn number(self) -> u8 {
        const NFPROTO_INET: u8 = 1;
        match self {
            Self::Inet => NFPROTO_INET,
            Self::Ip(family) => family.number() as u8,
        }
    }

    fn from_number(number: u8) -> Option<Self> {
        let known = [Self::Inet, Self::Ip(Family::Inet), Self::Ip(Family::Inet6)];
        known.into_iter().find(|family| family.number() == number)
    }

    /// The address families of the packets.
    fn families(self) -> &'static [Family] {
        match self {
            Self::Inet => &[Family::Inet, Family::Inet6],
            Self::Ip(Family::Inet) => &[Family::Inet],
            Self::Ip(Family::Inet6) => &[Family::Inet6],
        }
    }
}

impl fmt::Display for TableFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Inet => "inet",
            Self::Ip(family) => ip(*family),
        })
    }
}

/// What nft calls a family.
const fn ip(family: Family) -> &'static str {
    match family {
        Family::Inet => "ip",
        Family::Inet6 => "ip6",
    }
}

/// iptables' program for a family.
const fn iptables(family: Family) -> &'static str {
    match family {
        Family::Inet => "iptables",
        Family::Inet6 => "ip6tables",
    }
}

/// A filter chain of others.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Chain {
    /// The family of its table.
    pub family: TableFamily,
    /// Its table.
    pub table: String,
    /// Its name.
    pub name: String,
    /// Where it sees packets.
    pub hook: Hook,
}

impl Chain {
    /// The family of iptables that the chain belongs to.
    fn iptables(&self) -> Option<Family> {
        match self.family {
            TableFamily::Ip(family)
                if self.table == IPTABLES_TABLE && self.name == self.hook.iptables_chain() =>
            {
                Some(family)
            }
            _ => None,
        }
    }

    /// The family of iptables whose `FORWARD` the chain is, where our rule admits answers.
    fn forward_of_iptables(&self) -> Option<Family> {
        self.iptables().filter(|_| self.hook == Hook::Forward)
    }
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.family, self.table, self.name)
    }
}

/// Something that drops, or may drop, what Services need.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ForeignDrop {
    /// A chain that drops or rejects whatever its rules do not accept.
    Chain(Chain),
    /// Legacy iptables has a table `filter`. What it does only its own tool can tell.
    Legacy(Family),
}

impl ForeignDrop {
    /// The commands that admit Services, with `SERVICE-CIDR` and `POD-CIDR` for what the cluster has.
    pub fn remedy(&self) -> String {
        let chain = match self {
            Self::Legacy(family) => {
                let tool = format!("{}-legacy", iptables(*family));
                return format!(
                    "where `{tool} -S` says -P FORWARD DROP, `{}`; where it says -P INPUT DROP, `{}`",
                    iptables_rule(&tool, Hook::Forward),
                    iptables_rule(&tool, Hook::Input),
                );
            }
            Self::Chain(chain) => chain,
        };
        if let Some(family) = chain.iptables() {
            return format!("`{}`", iptables_rule(iptables(family), chain.hook));
        }
        let rules = chain.family.families().iter().map(|family| match chain.hook {
            Hook::Input => format!("{} daddr SERVICE-CIDR accept", ip(*family)),
            Hook::Forward => "ct state established,related accept".to_owned(),
            Hook::Output => format!("{} daddr POD-CIDR accept", ip(*family)),
        });
        let mut rules: Vec<_> = rules
            .map(|rule| format!("`nft insert rule {chain} {rule}`"))
            .collect();
        rules.dedup();
        rules.join(" and ")
    }
}

/// The command that has iptables admit Services at a hook.
fn iptables_rule(tool: &str, hook: Hook) -> String {
    let rule = match hook {
        Hook::Input => "-d SERVICE-CIDR",
        Hook::Forward => "-m conntrack --ctstate RELATED,ESTABLISHED",
        Hook::Output => "-d POD-CIDR",
    };
    format!("{tool} -I {} {rule} -j ACCEPT", hook.iptables_chain())
}

impl fmt::Display for ForeignDrop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Chain(chain) => write!(f, "chain {chain} drops what its rules do not accept"),
            Self::Legacy(family) => write!(
                f,
                "legacy {} has a table filter, which only its own tool can read",
                iptables(*family)
            ),
        }
    }
}

/// A filter chain of others, as it was read.
struct Filter {
    chain: Chain,
    /// Whether it drops or rejects whatever its rules do not accept.
    drops: bool,
    rules: Vec<Message>,
}

/// What is known of other programs' filters.
#[derive(Debug, Default)]
pub(super) struct Foreign {
    /// Every chain of others that sees packets of Services.
    chains: Vec<Chain>,
    drops: Vec<ForeignDrop>,
    /// Whether that was read since it changed last.
    current: bool,
}

impl Foreign {
    /// Something may have changed.
    pub(super) fn invalidate(&mut self) {
        self.current = false;
    }

    /// Whether a notification tells that something may have changed.
    pub(super) fn is_concerned(&self, message: &Message) -> bool {
        let Some((table, chain)) = listing::table_and_chain(message) else {
            return false;
        };
        let is_known = |known: &Chain| {
            known.family.number() == message.family
                && known.table == table
                && chain.as_ref().is_none_or(|chain| *chain == known.name)
        };
        read_chain(message).is_some() || self.chains.iter().any(is_known)
    }
}

impl Netfilter {
    /// Admits endpoints' answers in the chain `FORWARD` of iptables (of the kind that uses nftables) where it would
    /// drop them, and takes our rule back where it would not any more. Returns what else drops, or may drop, what
    /// Services need.
    ///
    /// The kernel is read only if something has changed.
    ///
    /// # Errors
    ///
    /// Other programs' chains could not be read.
    pub async fn see_to_foreign(&mut self) -> Result<Vec<ForeignDrop>, Error> {
        if !self.foreign.current {
            // What changes from now on makes it outdated again.
            self.foreign = Foreign {
                current: true,
                ..Foreign::default()
            };
            if let Err(error) = self.look_at_foreign().await {
                self.foreign.invalidate();
                return Err(error);
            }
        }
        let drops = self.foreign.drops.iter().cloned();
        Ok(drops.chain(legacy_tables()).collect())
    }

    /// Makes certain that `FORWARD` of iptables (of the kind that uses nftables) admits endpoints' answers as it is
    /// now, whatever notifications have told.
    ///
    /// # Errors
    ///
    /// Other programs' chains could not be read, or [`Error::AnswersDropped`].
    pub async fn ensure_answers(&mut self) -> Result<(), Error> {
        self.foreign.invalidate();
        let dropping = self
            .see_to_foreign()
            .await?
            .into_iter()
            .find_map(|drop| match drop {
                ForeignDrop::Chain(chain) => chain.forward_of_iptables().map(|_| chain),
                ForeignDrop::Legacy(_) => None,
            });
        dropping.map_or(Ok(()), |chain| Err(Error::AnswersDropped(chain)))
    }

    /// What drops, or may drop, what Services need. Nothing is changed.
    ///
    /// # Errors
    ///
    /// Other programs' chains could not be read.
    pub async fn foreign_drops(&mut self) -> Result<Vec<ForeignDrop>, Error> {
        let filters = self.foreign_filters().await?.into_iter();
        let dropping = filters.filter(|Filter { chain, drops, rules }| {
            let answers_pass = chain.forward_of_iptables().is_some()
                && rules.iter().any(|rule| handle_of_ours(rule).is_some());
            *drops && !answers_pass
        });
        let drops = dropping.map(|filter| ForeignDrop::Chain(filter.chain));
        Ok(drops.chain(legacy_tables()).collect())
    }

    async fn foreign_filters(&mut self) -> Result<Vec<Filter>, Error> {
        let listed = self.socket.dump(listing::chains()).await?;
        let mut filters = Vec::new();
        for (chain, policy_is_drop) in listed.iter().filter_map(read_chain) {
            let request = listing::chain_rules(chain.family.number(), &chain.table, &chain.name);
            let rules = self.socket.dump(request).await?;
            filters.push(Filter {
                drops: policy_is_drop || rules.last().is_some_and(drops_all),
                chain,
                rules,
            });
        }
        Ok(filters)
    }

    async fn look_at_foreign(&mut self) -> Result<(), Error> {
        for Filter { chain, drops, rules } in self.foreign_filters().await? {
            let mut answers_pass = false;
            if let Some(family) = chain.forward_of_iptables() {
                match self.admit_answers(family, drops, &rules).await {
                    Ok(()) => answers_pass = true,
                    Err(error) => debug!("no rule can be made in chain {chain}: {error}"),
                }
            }
            if drops && !answers_pass {
                self.foreign.drops.push(ForeignDrop::Chain(chain.clone()));
            }
            self.foreign.chains.push(chain);
        }
        Ok(())
    }

    /// Makes our rule the first in `FORWARD` of iptables if it is wanted and not there; deletes it if it is not wanted.
    async fn admit_answers(&mut self, family: Family, wanted: bool, rules: &[Message]) -> Result<(), Error> {
        let ours: Vec<_> = rules.iter().filter_map(handle_of_ours).collect();
        if wanted && ours.is_empty() {
            self.transaction([answers_rule(family)]).await?;
            info!(
                "answers to the clients of Services are admitted in {} FORWARD, which drops them",
                iptables(family)
            );
        }
        if !wanted && !ours.is_empty() {
            self.transaction(ours.into_iter().map(|handle| delete_rule(family, handle)))
                .await?;
            info!(
                "{} FORWARD does not drop the answers to Services' clients any more",
                iptables(family)
            );
        }
        Ok(())
    }

    /// Takes our rule back from the chain `FORWARD` of iptables.
    ///
    /// # Errors
    ///
    /// The chain cannot be read, or the rule not be deleted.
    pub(super) async fn withdraw_answers(&mut self, family: Family) -> Result<(), Error> {
        let request = listing::chain_rules(TableFamily::Ip(family).number(), IPTABLES_TABLE, FORWARD);
        let rules = self.socket.dump(request).await?;
        self.admit_answers(family, false, &rules).await
    }
}

/// Families in which legacy iptables has a filter table in this network namespace.
fn legacy_tables() -> impl Iterator<Item = ForeignDrop> {
    [
        (Family::Inet, "/proc/net/ip_tables_names"),
        (Family::Inet6, "/proc/net/ip6_tables_names"),
    ]
    .into_iter()
    .filter(|(_, path)| {
        // The file is there once the kernel's module is.
        let names = fs::read_to_string(path).unwrap_or_default();
        names.lines().any(|table| table == IPTABLES_TABLE)
    })
    .map(|(family, _)| ForeignDrop::Legacy(family))
}

/// `-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT`, as the first rule.
fn answers_rule(family: Family) -> NetlinkMessage<Request> {
    let expressions = [established(), counter(), verdict(accept_verdict())];
    let rule = RuleMessage {
        attributes: vec![
            RuleAttribute::Table(IPTABLES_TABLE.to_owned()),
            RuleAttribute::Chain(FORWARD.to_owned()),
            RuleAttribute::Expressions(expressions.into_iter().map(Into::into).collect()),
            RuleAttribute::UserData(comment(ANSWERS)),
        ],
    };
    message(family, NfTablesMessage::NewRule(rule), NLM_F_CREATE)
}

fn delete_rule(family: Family, handle: u64) -> NetlinkMessage<Request> {
    let rule = RuleMessage {
        attributes: vec![
            RuleAttribute::Table(IPTABLES_TABLE.to_owned()),
            RuleAttribute::Chain(FORWARD.to_owned()),
            RuleAttribute::Handle(handle),
        ],
    };
    message(family, NfTablesMessage::DeleteRule(rule), 0)
}

/// The handle of a rule that is ours.
fn handle_of_ours(rule: &Message) -> Option<u64> {
    const NFTA_RULE_HANDLE: u16 = 3;
    let text = ANSWERS.as_bytes();
    let ours = rule.attributes.windows(text.len()).any(|bytes| bytes == text);
    let handle = find(&rule.attributes, NFTA_RULE_HANDLE)?.first_chunk()?;
    ours.then_some(u64::from_be_bytes(*handle))
}

/// Whether a rule drops or rejects every packet.
fn drops_all(rule: &Message) -> bool {
    const NFTA_RULE_EXPRESSIONS: u16 = 4;
    const NFTA_EXPR_NAME: u16 = 1;
    const NFTA_EXPR_DATA: u16 = 2;
    const NFTA_TARGET_NAME: u16 = 1;
    let expressions = find(&rule.attributes, NFTA_RULE_EXPRESSIONS).unwrap_or_default();
    let mut drops = false;
    for (_, expression) in attributes(expressions) {
        let name = find(expression, NFTA_EXPR_NAME).map(string).unwrap_or_default();
        let data = find(expression, NFTA_EXPR_DATA).unwrap_or_default();
        match name.as_str() {
            "counter" | "log" => {}
            "reject" => drops = true,
            "immediate" if listing::is_drop(data) => drops = true,
            "target" if find(data, NFTA_TARGET_NAME).map(string).as_deref() == Some("REJECT") => drops = true,
            // A comparison, or something else that not every packet passes.
            _ => return false,
        }
    }
    drops
}

/// Reads a base chain of others that sees packets of Services, and whether its policy is to drop.
fn read_chain(message: &Message) -> Option<(Chain, bool)> {
    const NFTA_CHAIN_HOOK: u16 = 4;
    const NFTA_CHAIN_POLICY: u16 = 5;
    const NFTA_CHAIN_TYPE: u16 = 7;
    const NFTA_HOOK_HOOKNUM: u16 = 1;
    const NF_DROP: u32 = 0;
    let number = |bytes: &[u8]| bytes.first_chunk().map(|bytes| u32::from_be_bytes(*bytes));
    let hook = find(find(&message.attributes, NFTA_CHAIN_HOOK)?, NFTA_HOOK_HOOKNUM)?;
    if !listing::is_of_chain(message) {
        return None;
    }
    let (table, name) = listing::table_and_chain(message)?;
    let chain = Chain {
        family: TableFamily::from_number(message.family)?,
        table,
        name: name?,
        hook: Hook::from_number(number(hook)?)?,
    };
    let is_filter = find(&message.attributes, NFTA_CHAIN_TYPE).map(string).as_deref() == Some("filter");
    let policy = find(&message.attributes, NFTA_CHAIN_POLICY).and_then(number);
    (is_filter && chain.table != TABLE).then_some((chain, policy == Some(NF_DROP)))
}
