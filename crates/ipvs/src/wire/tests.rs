//! Against bytes that `ipvsadm` 1.31 sent and that Linux 6.12 answered on x86-64, without the generic netlink header.
#![cfg(target_endian = "little")]

use netlink_packet_core::{Emitable, ParseableParametrized};
use netlink_packet_generic::{GenlHeader, GenlMessage};
use proptest::prelude::*;

use super::{DestinationAttr, IpvsAttr, IpvsCmd, IpvsMessage, ListedService, ServiceAttr};
use crate::testing::{any_command, any_destination, any_service};
use crate::{
    Command, DaemonRole, Destination, Family, Forwarding, Netmask, Protocol, Scheduler, Service,
    ServiceFlags, ServiceKey, Stats, SyncDaemon, Timeouts, TunnelFlags, TunnelType,
};

/// `ipvsadm -A -t 10.0.0.1:80 -s mh -p 600 -b mh-port`
const NEW_SERVICE: &str = "54000180 06000100 02000000 06000200 06000000 14000300 0a000001 00000000 00000000 00000000 \
     06000400 00500000 07000600 6d680000 0c000700 11000000 ffffffff 08000800 58020000 08000900 \
     ffffffff";
/// `ipvsadm -a -t 10.0.0.1:80 -r 10.1.0.1:80 -i --tun-type gue --tun-port 6080 --tun-csum -w 7 -x 9 -y 3`
const NEW_DESTINATION: &str = "54000180 06000100 02000000 06000200 06000000 14000300 0a000001 00000000 00000000 00000000 \
     06000400 00500000 05000600 00000000 0c000700 00000000 ffffffff 08000800 00000000 08000900 \
     ffffffff 60000280 06000b00 02000000 14000100 0a010001 00000000 00000000 00000000 06000200 \
     00500000 08000300 02000000 08000400 07000000 05000d00 01000000 06000e00 17c00000 06000f00 \
     01000000 08000500 09000000 08000600 03000000";
/// `ipvsadm -A -f 5 -6 -s rr -p 30 -M 64`
const NEW_SERVICE_FWMARK_IPV6: &str = "38000180 06000100 0a000000 08000500 05000000 07000600 72720000 0c000700 01000000 ffffffff \
     08000800 1e000000 08000900 40000000";
/// `ipvsadm --start-daemon backup --mcast-interface eth0 --mcast-group ff02::81 --mcast-port 9000 --mcast-ttl 3
/// --sync-maxlen 1000 --syncid 7`
const NEW_DAEMON: &str = "4c000380 08000100 02000000 09000200 65746830 00000000 08000300 07000000 06000400 e8030000 \
     06000700 28230000 05000800 03000000 14000600 ff020000 00000000 00000000 00000081";
/// Linux 6.12's answers to `ipvsadm -Ln` and `ipvsadm -L --daemon`, after the commands above.
const INFO_ANSWER: &str = "08000100 01020100 08000200 00100000";
const SERVICE_ANSWER: &str = "2c010100 06000100 02000000 06000200 06000000 14000300 0a000001 00000000 00000000 00000000 \
     06000400 00500000 07000600 6d680000 0c000700 13000000 ffffffff 08000800 58020000 08000900 \
     ffffffff 5c000a00 08000100 00000000 08000200 00000000 08000300 00000000 0c000400 00000000 \
     00000000 0c000500 00000000 00000000 08000600 00000000 08000700 00000000 08000800 00000000 \
     08000900 00000000 08000a00 00000000 7c000c00 0c000100 00000000 00000000 0c000200 00000000 \
     00000000 0c000300 00000000 00000000 0c000400 00000000 00000000 0c000500 00000000 00000000 \
     0c000600 00000000 00000000 0c000700 00000000 00000000 0c000800 00000000 00000000 0c000900 \
     00000000 00000000 0c000a00 00000000 00000000";
const SERVICE_ANSWER_FWMARK_IPV6: &str = "10010100 06000100 0a000000 08000500 05000000 07000600 72720000 0c000700 03000000 ffffffff \
     08000800 1e000000 08000900 40000000 5c000a00 08000100 00000000 08000200 00000000 08000300 \
     00000000 0c000400 00000000 00000000 0c000500 00000000 00000000 08000600 00000000 08000700 \
     00000000 08000800 00000000 08000900 00000000 08000a00 00000000 7c000c00 0c000100 00000000 \
     00000000 0c000200 00000000 00000000 0c000300 00000000 00000000 0c000400 00000000 00000000 \
     0c000500 00000000 00000000 0c000600 00000000 00000000 0c000700 00000000 00000000 0c000800 \
     00000000 00000000 0c000900 00000000 00000000 0c000a00 00000000 00000000";
const DESTINATION_ANSWER: &str = "50010200 14000100 0a010001 00000000 00000000 00000000 06000200 00500000 08000300 02000000 \
     08000400 07000000 05000d00 01000000 06000e00 17c00000 06000f00 01000000 08000500 09000000 \
     08000600 03000000 08000700 00000000 08000800 00000000 08000900 00000000 06000b00 02000000 \
     5c000a00 08000100 00000000 08000200 00000000 08000300 00000000 0c000400 00000000 00000000 \
     0c000500 00000000 00000000 08000600 00000000 08000700 00000000 08000800 00000000 08000900 \
     00000000 08000a00 00000000 7c000c00 0c000100 00000000 00000000 0c000200 00000000 00000000 \
     0c000300 00000000 00000000 0c000400 00000000 00000000 0c000500 00000000 00000000 0c000600 \
     00000000 00000000 0c000700 00000000 00000000 0c000800 00000000 00000000 0c000900 00000000 \
     00000000 0c000a00 00000000 00000000";
const DAEMON_ANSWER_MASTER: &str = "40000300 08000100 01000000 09000200 65746830 00000000 08000300 07000000 06000400 c0050000 \
     06000700 90220000 05000800 01000000 08000500 e0000051";
const DAEMON_ANSWER_BACKUP: &str = "4c000300 08000100 02000000 09000200 65746830 00000000 08000300 07000000 06000400 00040000 \
     06000700 28230000 05000800 03000000 14000600 ff020000 00000000 00000000 00000081";

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<char> = hex.chars().filter(|c| !c.is_whitespace()).collect();
    let pairs = digits.chunks(2).map(|pair| pair.iter().collect::<String>());
    pairs.map(|pair| u8::from_str_radix(&pair, 16).unwrap()).collect()
}

fn emit(message: &impl Emitable) -> Vec<u8> {
    let mut buffer = vec![0xff; message.buffer_len()];
    message.emit(&mut buffer);
    buffer
}

fn parse(cmd: IpvsCmd, buffer: &[u8]) -> IpvsMessage {
    let header = GenlHeader {
        cmd: cmd.into(),
        version: 1,
    };
    IpvsMessage::parse_with_param(buffer, header).unwrap()
}

/// The message that a command is.
fn message(command: &Command) -> IpvsMessage {
    IpvsMessage::parse_with_param(&emit(&command), GenlMessage::from_payload(command).header).unwrap()
}

fn service() -> Service {
    let key = ServiceKey::address("10.0.0.1:80".parse().unwrap(), Protocol::Tcp);
    Service {
        flags: ServiceFlags::PERSISTENT | ServiceFlags::MH_PORT,
        timeout: 600,
        ..Service::new(key, Scheduler::MAGLEV_HASH)
    }
}

fn fwmark_service() -> Service {
    let key = ServiceKey::Fwmark {
        family: Family::Inet6,
        mark: 5,
    };
    Service {
        flags: ServiceFlags::PERSISTENT,
        timeout: 30,
        netmask: Netmask::prefix(64),
        ..Service::new(key, Scheduler::ROUND_ROBIN)
    }
}

fn destination() -> Destination {
    Destination {
        forwarding: Forwarding::Tunnel(TunnelType::Gue {
            port: 6080,
            flags: TunnelFlags::CHECKSUM,
        }),
        weight: 7,
        upper_threshold: 9,
        lower_threshold: 3,
        ..Destination::new("10.1.0.1:80".parse().unwrap())
    }
}

#[test]
fn services_are_sent_as_ipvsadm_sends_them() {
    for (service, captured) in [
        (service(), NEW_SERVICE),
        (fwmark_service(), NEW_SERVICE_FWMARK_IPV6),
    ] {
        let message = message(&Command::NewService(service));
        assert_eq!(emit(&message), bytes(captured), "{service:?}");
        assert_eq!(parse(IpvsCmd::NewService, &bytes(captured)), message);
    }
}

#[test]
fn destinations_are_sent_as_ipvsadm_sends_them() {
    let message = message(&Command::NewDestination(service().key, destination()));
    let captured = parse(IpvsCmd::NewDestination, &bytes(NEW_DESTINATION));
    // ipvsadm also sends scheduler, flags, timeout and netmask of the service, which the kernel does not look at.
    assert_eq!(message.attributes[1], captured.attributes[1]);
    assert!(bytes(NEW_DESTINATION).ends_with(&emit(&message.attributes[1])));
}

#[test]
fn daemons_are_sent_with_what_ipvsadm_sends() {
    let daemon = SyncDaemon {
        group: Some("ff02::81".parse().unwrap()),
        port: Some(9000),
        ttl: Some(3),
        max_length: Some(1000),
        ..SyncDaemon::new(DaemonRole::Backup, "eth0", 7)
    };
    let captured = parse(IpvsCmd::NewDaemon, &bytes(NEW_DAEMON));
    assert_eq!(captured.sync_daemon().unwrap(), daemon);
    let message = message(&Command::NewDaemon(daemon));
    assert_eq!(emit(&message).len(), bytes(NEW_DAEMON).len());
}

#[test]
fn info_is_understood() {
    let info = parse(IpvsCmd::SetInfo, &bytes(INFO_ANSWER)).info().unwrap();
    assert_eq!(info.version.to_string(), "1.2.1");
    assert_eq!(info.connection_table_size, 4096);
}

#[test]
fn what_was_sent_is_what_is_answered() {
    for (service, captured) in [
        (service(), SERVICE_ANSWER),
        (fwmark_service(), SERVICE_ANSWER_FWMARK_IPV6),
    ] {
        let answer = parse(IpvsCmd::NewService, &bytes(captured));
        assert_eq!(answer.service_entry().unwrap().unwrap().service, service);
        let header = GenlMessage::from_payload(answer.clone()).header;
        let listed = ListedService::parse_with_param(&bytes(captured), header).unwrap();
        assert_eq!(listed.0, answer.service_entry().unwrap());
    }
    let answer = parse(IpvsCmd::NewDestination, &bytes(DESTINATION_ANSWER));
    assert_eq!(
        answer.destination_entry(Family::Inet).unwrap().destination,
        destination()
    );
}

#[test]
fn daemons_are_understood() {
    let master = parse(IpvsCmd::NewDaemon, &bytes(DAEMON_ANSWER_MASTER));
    assert_eq!(
        master.sync_daemon().unwrap(),
        SyncDaemon {
            max_length: Some(1472),
            group: Some("224.0.0.81".parse().unwrap()),
            port: Some(8848),
            ttl: Some(1),
            ..SyncDaemon::new(DaemonRole::Master, "eth0", 7)
        }
    );
    let backup = parse(IpvsCmd::NewDaemon, &bytes(DAEMON_ANSWER_BACKUP));
    assert_eq!(
        backup.sync_daemon().unwrap().group,
        Some("ff02::81".parse().unwrap())
    );
}

#[test]
fn timeouts_are_what_they_were() {
    let timeouts = Timeouts {
        tcp: 900,
        tcp_fin: 120,
        udp: 300,
    };
    let message = message(&Command::SetTimeouts(timeouts));
    assert_eq!(parse(IpvsCmd::SetConfig, &emit(&message)).timeouts(), timeouts);
}

#[test]
fn a_destination_without_a_family_has_its_services() {
    let mut answer = parse(IpvsCmd::NewDestination, &bytes(DESTINATION_ANSWER));
    let IpvsAttr::Destination(attributes) = &mut answer.attributes[0] else {
        panic!("{answer:?}");
    };
    attributes.retain(|attribute| !matches!(attribute, DestinationAttr::Family(_)));
    assert_eq!(
        answer.destination_entry(Family::Inet).unwrap().destination,
        destination()
    );
    let entry = answer.destination_entry(Family::Inet6).unwrap();
    assert_eq!(entry.destination.address.to_string(), "a01:1::");
}

#[test]
fn counters_of_64_bits_win_over_those_of_32() {
    let answer = SERVICE_ANSWER
        .replacen("08000100 00000000", "08000100 01000000", 1)
        .replacen("0c000400 00000000", "0c000400 02000000", 1)
        .replacen("0c000100 00000000 00000000", "0c000100 00000000 00010000", 1);
    let mut answer = parse(IpvsCmd::NewService, &bytes(&answer));
    let stats = |answer: &IpvsMessage| answer.service_entry().unwrap().unwrap().stats;
    let new = Stats {
        connections: 1 << 40,
        ..Stats::default()
    };
    assert_eq!(stats(&answer), new);
    let IpvsAttr::Service(attributes) = &mut answer.attributes[0] else {
        panic!("{answer:?}");
    };
    attributes.retain(|attribute| !matches!(attribute, ServiceAttr::Stats64(_)));
    let old = Stats {
        connections: 1,
        in_bytes: 2,
        ..Stats::default()
    };
    assert_eq!(stats(&answer), old);
}

#[test]
fn a_service_of_another_protocol_is_none() {
    let mut answer = parse(IpvsCmd::NewService, &bytes(SERVICE_ANSWER));
    let IpvsAttr::Service(attributes) = &mut answer.attributes[0] else {
        panic!("{answer:?}");
    };
    for attribute in attributes {
        if let ServiceAttr::Protocol(number) = attribute {
            *number = 47;
        }
    }
    assert_eq!(answer.service_entry().unwrap(), None);
}

#[test]
fn a_mark_of_zero_is_no_mark() {
    let key = ServiceKey::Fwmark {
        family: Family::Inet,
        mark: 0,
    };
    let message = message(&Command::DelService(key));
    assert_eq!(
        message.attributes,
        [IpvsAttr::Service(vec![ServiceAttr::Family(2)])]
    );
}

#[test]
fn command_numbers_are_those_of_the_kernel() {
    for number in 0..=u8::MAX {
        assert_eq!(u8::from(IpvsCmd::from(number)), number);
    }
    assert_eq!(IpvsCmd::from(17), IpvsCmd::Flush);
    assert_eq!(IpvsCmd::from(18), IpvsCmd::Other(18));
}

#[test]
fn what_is_unknown_is_kept() {
    // A service of a family and an attribute 255, and another attribute 255 beside it.
    let buffer = bytes("14000180 06000100 02000000 0800ff00 01020304 0800ff00 01020304");
    let message = parse(IpvsCmd::NewService, &buffer);
    assert_eq!(emit(&message), buffer);
}

proptest! {
    #[test]
    fn a_command_is_the_message_of_its_attributes(command in any_command()) {
        prop_assert_eq!(emit(&message(&command)), emit(&&command));
    }

    #[test]
    fn services_survive(service in any_service()) {
        let message = message(&Command::NewService(service));
        let entry = parse(message.cmd, &emit(&message)).service_entry().unwrap().unwrap();
        prop_assert_eq!(entry.service, service);
    }

    #[test]
    fn destinations_survive(service in any_service(), destination in any_destination()) {
        let message = message(&Command::NewDestination(service.key, destination));
        let entry = parse(message.cmd, &emit(&message)).destination_entry(Family::Inet).unwrap();
        prop_assert_eq!(entry.destination, destination);
    }

    /// I8
    #[test]
    fn no_bytes_panic(cmd: u8, buffer: Vec<u8>) {
        let header = GenlHeader { cmd, version: 1 };
        let _ = ListedService::parse_with_param(&buffer, header);
        if let Ok(message) = IpvsMessage::parse_with_param(&buffer, header) {
            examine(&message);
        }
    }

    /// I8
    #[test]
    fn no_damage_panics(at in 0usize..320, value: u8) {
        for (cmd, captured) in [
            (IpvsCmd::NewService, SERVICE_ANSWER),
            (IpvsCmd::NewDestination, DESTINATION_ANSWER),
            (IpvsCmd::NewDaemon, DAEMON_ANSWER_BACKUP),
            (IpvsCmd::SetInfo, INFO_ANSWER),
        ] {
            let mut buffer = bytes(captured);
            let at = at % buffer.len();
            buffer[at] = value;
            let header = GenlHeader { cmd: cmd.into(), version: 1 };
            let _ = ListedService::parse_with_param(&buffer, header);
            if let Ok(message) = IpvsMessage::parse_with_param(&buffer, header) {
                examine(&message);
            }
        }
    }
}

/// Everything that is done with an answer.
fn examine(message: &IpvsMessage) {
    let _ = message.service_entry();
    let _ = message.destination_entry(Family::Inet);
    let _ = message.sync_daemon();
    let _ = message.timeouts();
    let _ = message.info();
}
