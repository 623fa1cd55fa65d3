//! The firewall marks by which clients in the cluster are told from others (E1).

use foldhash::{HashMap, HashSet};
use ipvs::ServiceKey;

/// The first half of every mark of ours ("KP"); the other numbers them.
const BASE: u32 = 0x4b50_0000;

/// Which mark leads to the servers for clients in the cluster of which virtual server.
///
/// The kernel's IPVS compares a packet's whole mark, so a mark of ours replaces whatever mark the first packet of
/// such a flow had. The bit that asks for masquerading is never part of one.
#[derive(Debug)]
pub(crate) struct Marks {
    masquerade: u32,
    /// With those released: a virtual server that passes from one Service to another keeps its mark, and with
    /// it its connections.
    by_key: HashMap<ServiceKey, u32>,
    keys: HashMap<u32, ServiceKey>,
    in_use: HashSet<u32>,
    /// The number that was given last: the next one is another for as long as possible, so that a mark in use is
    /// not mistaken for one that is on its way out.
    last: u16,
}

impl Marks {
    pub(crate) fn new(masquerade_bit: u8) -> Self {
        let masquerade = 1_u32.wrapping_shl(masquerade_bit.into());
        Self {
            masquerade,
            by_key: HashMap::default(),
            keys: HashMap::default(),
            in_use: HashSet::default(),
            last: 0,
        }
    }

    /// The mark that the kernel has for a virtual server stays (I6).
    pub(crate) fn adopt(&mut self, key: ServiceKey, mark: u32) {
        if self.is_usable(mark) && !self.by_key.contains_key(&key) && !self.keys.contains_key(&mark) {
            self.keys.insert(mark, key);
            self.by_key.insert(key, mark);
            self.in_use.insert(mark);
            self.last = self.last.max((mark & 0xffff) as u16);
        }
    }

    pub(crate) fn get(&self, key: &ServiceKey) -> Option<u32> {
        self.by_key.get(key).copied()
    }

    pub(crate) fn key_of(&self, mark: u32) -> Option<ServiceKey> {
        self.keys.get(&mark).copied()
    }

    /// Gives a virtual server a mark, unless it has one, or all are in use.
    pub(crate) fn assign(&mut self, key: ServiceKey) {
        if let Some(mark) = self.by_key.get(&key) {
            self.in_use.insert(*mark);
            return;
        }
        let numbers = (1..=u16::MAX).map(|step| self.last.wrapping_add(step));
        let marks = numbers.map(|number| BASE & !self.masquerade | u32::from(number));
        if let Some(mark) = marks
            .into_iter()
            .find(|mark| self.is_usable(*mark) && !self.in_use.contains(mark))
        {
            self.last = (mark & 0xffff) as u16;
            if let Some(former) = self.keys.insert(mark, key) {
                self.by_key.remove(&former);
            }
            self.by_key.insert(key, mark);
            self.in_use.insert(mark);
        }
    }

    /// Others may get the mark, as late as possible.
    pub(crate) fn release(&mut self, key: &ServiceKey) {
        if let Some(mark) = self.by_key.get(key) {
            self.in_use.remove(mark);
        }
    }

    fn is_usable(&self, mark: u32) -> bool {
        mark & 0xffff_0000 == BASE & !self.masquerade && mark & 0xffff != 0 && mark & self.masquerade == 0
    }
}

/// Whether a mark is one of ours, whichever bit asks for masquerading.
pub(crate) fn is_ours(mark: u32) -> bool {
    let differs = (mark ^ BASE) & 0xffff_0000;
    differs & !BASE == 0 && differs.count_ones() <= 1 && mark & 0xffff != 0
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use ipvs::Protocol;

    use super::*;
    use crate::testing::ip;

    fn key(port: u16) -> ServiceKey {
        ServiceKey::Address {
            address: ip("10.96.0.1"),
            protocol: Protocol::Tcp,
            port,
        }
    }

    #[test]
    fn a_mark_is_one_servers_alone_and_has_not_the_masquerade_bit() {
        for bit in [0, 14, 20, 31] {
            let mut marks = Marks::new(bit);
            let given: HashSet<_> = (1..=1000)
                .map(|port| {
                    marks.assign(key(port));
                    marks.get(&key(port)).unwrap()
                })
                .collect();
            assert_eq!(given.len(), 1000);
            assert!(given.iter().all(|mark| mark & (1 << bit) == 0 && is_ours(*mark)));
        }
        for mark in [0, 1, 0x4000, BASE, 0x4b51_0001, 0x4840_0001, 0xcb50_0001] {
            assert!(!is_ours(mark), "{mark:#x}");
        }
    }

    #[test]
    fn i6_the_kernels_marks_stay() {
        let mut marks = Marks::new(14);
        marks.adopt(key(80), BASE | 7);
        marks.adopt(key(443), 0x1234);
        marks.assign(key(80));
        marks.assign(key(443));
        assert_eq!(marks.get(&key(80)), Some(BASE | 7));
        assert_eq!(
            marks.get(&key(443)),
            Some(BASE | 8),
            "a mark that is not ours is not kept"
        );
    }

    #[test]
    fn a_mark_that_was_released_waits_for_its_server_until_the_others_are_given() {
        let mut marks = Marks::new(14);
        marks.assign(key(80));
        let first = marks.get(&key(80));
        marks.release(&key(80));
        marks.assign(key(81));
        assert_ne!(marks.get(&key(81)), first);
        marks.assign(key(80));
        assert_eq!(marks.get(&key(80)), first);

        marks.release(&key(80));
        let others = 1000..;
        let takes_it = others
            .map(key)
            .find(|other| {
                marks.assign(*other);
                marks.get(other) == first
            })
            .unwrap();
        assert_eq!(marks.key_of(first.unwrap()), Some(takes_it));
        assert_eq!(marks.get(&key(80)), None);
    }
}
