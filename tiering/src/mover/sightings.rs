//! How often a block was seen lately: a filter for "store it on the n-th sight".
//!
//! A count-min sketch of 4-bit counters. It may count a block too high (others share its counters), never
//! too low but by ageing: after a period of notes all counters are halved, so that what was seen long
//! ago is forgotten.

/// Rows of the sketch: a block's count is the least of its counters.
const ROWS: usize = 4;

/// The sketch.
#[derive(Debug, Clone)]
pub struct Sightings {
    /// Two counters a byte, row after row.
    counters: Vec<u8>,
    columns: usize,
    notes: u64,
    period: u64,
}

impl Sightings {
    /// For about so many blocks at a time; takes two bytes each.
    pub fn new(blocks: usize) -> Self {
        let columns = blocks.clamp(1 << 10, 1 << 26).next_power_of_two();
        Self { counters: vec![0; ROWS * columns / 2], columns, notes: 0, period: 8 * columns as u64 }
    }

    /// Counts a sight of a block by its (uniform) hash, and returns how many that makes, 15 at most.
    pub fn note(&mut self, hash: u64) -> u8 {
        self.notes += 1;
        if self.notes >= self.period {
            self.notes = 0;
            self.counters.iter_mut().for_each(|pair| *pair = (*pair >> 1) & 0x77);
        }
        let before = self.count(hash);
        if before < 15 {
            for row in 0..ROWS {
                let (at, shift) = self.at(row, hash);
                // Conservative update: only the counters that say the least are raised.
                if (self.counters[at] >> shift) & 0xf == before {
                    self.counters[at] += 1 << shift;
                }
            }
        }
        (before + 1).min(15)
    }

    /// Sights so far.
    pub fn count(&self, hash: u64) -> u8 {
        let counter = |row| {
            let (at, shift) = self.at(row, hash);
            (self.counters[at] >> shift) & 0xf
        };
        (0..ROWS).map(counter).min().unwrap_or(0)
    }

    fn at(&self, row: usize, hash: u64) -> (usize, u32) {
        // Another odd multiplier a row spreads one hash into independent columns.
        const ODD: [u64; ROWS] =
            [0x9e37_79b9_7f4a_7c15, 0xc2b2_ae3d_27d4_eb4f, 0x1656_67b1_9e37_79f9, 0xff51_afd7_ed55_8ccd];
        let column = (hash.wrapping_mul(ODD[row]) >> 33) as usize & (self.columns - 1);
        let counter = row * self.columns + column;
        (counter / 2, (counter as u32 & 1) * 4)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_up_to_fifteen() {
        let mut sightings = Sightings::new(1000);
        for n in 1..=20u8 {
            assert_eq!(sightings.note(42), n.min(15));
        }
        assert_eq!(sightings.count(42), 15);
    }

    #[test]
    fn blocks_seldom_share_all_their_counters() {
        let mut sightings = Sightings::new(4096);
        let hash = |n: u64| (n + 1).wrapping_mul(0xd6e8_feb8_6659_fd93);
        for n in 0..2000 {
            sightings.note(hash(n));
        }
        let wrong = (2000..4000).filter(|&n| sightings.count(hash(n)) > 0).count();
        assert!(wrong < 100, "{wrong} of 2000 unseen blocks count as seen");
        assert!((0..2000).all(|n| sightings.count(hash(n)) >= 1), "never too low");
    }

    #[test]
    fn forgets_with_time() {
        let mut sightings = Sightings::new(1);
        for _ in 0..4 {
            sightings.note(1);
        }
        for n in 0..sightings.period * 4 {
            sightings.note(n.wrapping_mul(0xa076_1d64_78bd_642f) | 2);
        }
        assert!(sightings.counters.iter().any(|pair| *pair != 0xff), "counters don't saturate for good");
    }
}
