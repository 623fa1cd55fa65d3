use std::fmt;
use std::str::FromStr;

/// `IP_VS_SCHEDNAME_MAXLEN` and `IP_VS_PENAME_MAXLEN`, without the terminating NUL.
const MAX_LEN: usize = 15;

/// Why a name cannot be that of a kernel module.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no name for a scheduler or a persistence engine: those have 1 to 15 of the characters a-z, A-Z, 0-9, '_' and '-'"
)]
pub struct InvalidName(pub String);

/// The name of something that a kernel module provides, padded with NUL.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Name([u8; MAX_LEN]);

impl Name {
    const fn of(name: &'static str) -> Self {
        Self::copy(name.as_bytes())
    }

    #[allow(
        clippy::indexing_slicing,
        reason = "both indices are below the minimum of both lengths"
    )]
    const fn copy(bytes: &[u8]) -> Self {
        let mut name = [0; MAX_LEN];
        let mut i = 0;
        while i < bytes.len() && i < MAX_LEN {
            name[i] = bytes[i];
            i += 1;
        }
        Self(name)
    }

    fn as_str(&self) -> &str {
        let bytes = self.0.split(|byte| *byte == 0).next().unwrap_or_default();
        // Only ASCII gets in.
        std::str::from_utf8(bytes).unwrap_or_default()
    }
}

impl FromStr for Name {
    type Err = InvalidName;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
        if (1..=MAX_LEN).contains(&name.len()) && name.bytes().all(allowed) {
            Ok(Self::copy(name.as_bytes()))
        } else {
            Err(InvalidName(name.to_owned()))
        }
    }
}

macro_rules! module_name {
    ($(#[$doc:meta])* $type:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $type(Name);

        impl $type {
            /// The name, as the kernel has it.
            pub fn as_str(&self) -> &str {
                self.0.as_str()
            }
        }

        impl FromStr for $type {
            type Err = InvalidName;

            fn from_str(name: &str) -> Result<Self, Self::Err> {
                name.parse().map(Self)
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_tuple(stringify!($type)).field(&self.as_str()).finish()
            }
        }
    };
}

module_name! {
    /// How a virtual service chooses among its destinations (`IPVS_SVC_ATTR_SCHED_NAME`).
    ///
    /// Any name of 1 to 15 characters goes: the kernel loads the module `ip_vs_NAME` at first use, and refuses
    /// the service if there is none. `none` is a service without a scheduler.
    Scheduler
}

module_name! {
    /// What a persistent service tells clients apart by, beside their address (`IPVS_SVC_ATTR_PE_NAME`): the
    /// kernel has `sip` (module `ip_vs_pe_sip`).
    PersistenceEngine
}

impl Scheduler {
    /// One destination after the other.
    pub const ROUND_ROBIN: Self = Self(Name::of("rr"));
    /// One after the other, in proportion to their weights.
    pub const WEIGHTED_ROUND_ROBIN: Self = Self(Name::of("wrr"));
    /// The fewest connections.
    pub const LEAST_CONNECTION: Self = Self(Name::of("lc"));
    /// The fewest connections in proportion to the weight: `ipvsadm`'s default.
    pub const WEIGHTED_LEAST_CONNECTION: Self = Self(Name::of("wlc"));
    /// A table looked up by a hash of the source address.
    pub const SOURCE_HASH: Self = Self(Name::of("sh"));
    /// Google's Maglev consistent hash (since Linux 4.18).
    pub const MAGLEV_HASH: Self = Self(Name::of("mh"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive() {
        assert_eq!(Scheduler::MAGLEV_HASH.as_str(), "mh");
        assert_eq!("rr".parse(), Ok(Scheduler::ROUND_ROBIN));
        assert_eq!(
            "fifteen-letters".parse::<Scheduler>().unwrap().to_string(),
            "fifteen-letters"
        );
        assert_eq!(format!("{:?}", Scheduler::ROUND_ROBIN), r#"Scheduler("rr")"#);
    }

    #[test]
    fn what_the_kernel_would_cut_is_refused() {
        for name in ["", "sixteen-letters-", "a b", "r\0r", "é"] {
            assert_eq!(name.parse::<Scheduler>(), Err(InvalidName(name.to_owned())));
        }
    }
}
