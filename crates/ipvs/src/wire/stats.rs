use netlink_batch::Attributes;
use netlink_packet_core::{DecodeError, NlasIterator, parse_u32, parse_u64};

use crate::Stats;

impl Stats {
    /// By the numbers of `IPVS_STATS_ATTR_*`, which begin at 1.
    const fn by_number(&mut self) -> [(u16, &mut u64); 10] {
        [
            (1, &mut self.connections),
            (2, &mut self.in_packets),
            (3, &mut self.out_packets),
            (4, &mut self.in_bytes),
            (5, &mut self.out_bytes),
            (6, &mut self.connections_per_second),
            (7, &mut self.in_packets_per_second),
            (8, &mut self.out_packets_per_second),
            (9, &mut self.in_bytes_per_second),
            (10, &mut self.out_bytes_per_second),
        ]
    }

    /// Reads the value of a `STATS` attribute, in which all but the byte counters have 32 bits, and wrap, or of a
    /// `STATS64` (since Linux 4.1), in which all have 64. What is missing is 0, what is unknown is passed over.
    pub(super) fn parse(value: &[u8]) -> Result<Self, DecodeError> {
        let mut stats = Self::default();
        let mut fields = stats.by_number();
        for attribute in NlasIterator::new(value) {
            let attribute = attribute?;
            let index = usize::from(attribute.kind()).wrapping_sub(1);
            if let Some((_, field)) = fields.get_mut(index) {
                let value = attribute.value();
                **field = match value.len() {
                    4 => parse_u32(value)?.into(),
                    _ => parse_u64(value)?,
                };
            }
        }
        Ok(stats)
    }

    /// Writes all with 64 bits: the reading side of this is userspace, which has to take both sizes.
    pub(super) fn write(mut self, attributes: &mut Attributes<'_>) {
        for (kind, field) in self.by_number() {
            attributes.value(kind, &field.to_ne_bytes());
        }
    }
}
