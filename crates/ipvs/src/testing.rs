//! Arbitrary values for property tests.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use proptest::option;
use proptest::prelude::*;

use crate::{
    Command, DaemonRole, Destination, Family, Forwarding, Netmask, Protocol, Service, ServiceFlags,
    ServiceKey, SyncDaemon, Timeouts, TunnelFlags, TunnelType,
};

/// Without an IPv6 scope, which IPVS has none of.
fn any_socket_addr() -> impl Strategy<Value = SocketAddr> {
    any::<(IpAddr, u16)>().prop_map(SocketAddr::from)
}

fn any_family() -> impl Strategy<Value = Family> {
    prop_oneof![Just(Family::Inet), Just(Family::Inet6)]
}

fn any_key() -> impl Strategy<Value = ServiceKey> {
    let protocol = prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp), Just(Protocol::Sctp)];
    prop_oneof![
        (any::<IpAddr>(), protocol, any::<u16>()).prop_map(|(address, protocol, port)| {
            ServiceKey::Address {
                address,
                protocol,
                port,
            }
        }),
        (any_family(), 1..=u32::MAX).prop_map(|(family, mark)| ServiceKey::Fwmark { family, mark }),
    ]
}

fn any_netmask(family: Family) -> BoxedStrategy<Netmask> {
    match family {
        Family::Inet => any::<Ipv4Addr>().prop_map(Netmask::from).boxed(),
        Family::Inet6 => (1..=128u8).prop_map(Netmask::prefix).boxed(),
    }
}

pub(crate) fn any_service() -> impl Strategy<Value = Service> {
    let names = ("rr|mh|sh|wlc|[a-z_-]{1,15}", option::of("sip|[a-z]{1,15}"));
    // All flags but IP_VS_SVC_F_HASHED, which is the kernel's.
    let flags = (0..0x40u32).prop_map(|bits| ServiceFlags::from_bits(bits).without(ServiceFlags::HASHED));
    (any_key(), names, flags, any::<u32>())
        .prop_flat_map(|(key, names, flags, timeout)| {
            let netmask = any_netmask(key.family());
            (Just((key, names, flags, timeout)), netmask)
        })
        .prop_map(
            |((key, (scheduler, persistence_engine), flags, timeout), netmask)| Service {
                key,
                scheduler: scheduler.parse().unwrap(),
                flags,
                timeout,
                netmask,
                persistence_engine: persistence_engine.map(|name| name.parse().unwrap()),
            },
        )
}

fn any_forwarding() -> impl Strategy<Value = Forwarding> {
    let flags = || (0..=3u16).prop_map(TunnelFlags::from_bits);
    let tunnel = prop_oneof![
        Just(TunnelType::Ipip),
        (any::<u16>(), flags()).prop_map(|(port, flags)| TunnelType::Gue { port, flags }),
        flags().prop_map(|flags| TunnelType::Gre { flags }),
        (3..=u8::MAX, any::<u16>(), flags()).prop_map(|(number, port, flags)| TunnelType::Other {
            number,
            port,
            flags
        }),
    ];
    prop_oneof![
        Just(Forwarding::Masquerade),
        Just(Forwarding::Local),
        tunnel.prop_map(Forwarding::Tunnel),
        Just(Forwarding::DirectRoute),
        Just(Forwarding::Bypass),
        (5..=7u8).prop_map(Forwarding::Unassigned),
    ]
}

pub(crate) fn any_destination() -> impl Strategy<Value = Destination> {
    (any_socket_addr(), any_forwarding(), any::<[u32; 3]>()).prop_map(
        |(address, forwarding, [weight, upper_threshold, lower_threshold])| Destination {
            address: address.ip(),
            port: address.port(),
            forwarding,
            weight,
            upper_threshold,
            lower_threshold,
        },
    )
}

fn any_role() -> impl Strategy<Value = DaemonRole> {
    prop_oneof![Just(DaemonRole::Master), Just(DaemonRole::Backup)]
}

fn any_daemon() -> impl Strategy<Value = SyncDaemon> {
    (
        any_role(),
        "[!-~]{1,15}",
        any::<u32>(),
        any::<(Option<u16>, Option<IpAddr>, Option<u16>, Option<u8>)>(),
    )
        .prop_map(
            |(role, interface, sync_id, (max_length, group, port, ttl))| SyncDaemon {
                role,
                interface,
                sync_id,
                max_length,
                group,
                port,
                ttl,
            },
        )
}

pub(crate) fn any_command() -> impl Strategy<Value = Command> {
    prop_oneof![
        any_service().prop_map(Command::NewService),
        any_service().prop_map(Command::SetService),
        any_key().prop_map(Command::DelService),
        (any_key(), any_destination()).prop_map(|(key, to)| Command::NewDestination(key, to)),
        (any_key(), any_destination()).prop_map(|(key, to)| Command::SetDestination(key, to)),
        (any_key(), any_socket_addr()).prop_map(|(key, to)| Command::DelDestination(key, to)),
        any_daemon().prop_map(Command::NewDaemon),
        any_role().prop_map(Command::DelDaemon),
        any::<[u32; 3]>().prop_map(|[tcp, tcp_fin, udp]| Command::SetTimeouts(Timeouts {
            tcp,
            tcp_fin,
            udp
        })),
        option::of(any_key()).prop_map(Command::Zero),
        Just(Command::Flush),
    ]
}
