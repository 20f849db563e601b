//! Which blocks are read with which request: neighbours together, long runs in pieces side by side.

use std::ops::Range;

use super::PackEntry;

/// How reads are cut.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cut {
    pub(super) get_bytes_max: u64,
    pub(super) get_blocks_min: usize,
    pub(super) gap_bytes_max: u64,
}

/// Ranges of `entries`, each for one request. The entries ascend by offset and end within `u64`.
///
/// A request goes on over a gap that is cheaper to read than a request is to make, and ends when it has both
/// bytes and blocks enough: bytes alone would make a request of each large block, blocks alone a trickle of
/// small ones.
pub(super) fn plan(entries: &[PackEntry], cut: &Cut) -> Vec<Range<usize>> {
    let mut ranges: Vec<Range<usize>> = Vec::new();
    let (mut first, mut end) = (0, 0);
    for (index, entry) in entries.iter().enumerate() {
        let entry_end = entry.end().unwrap_or(u64::MAX);
        let joins = ranges.last().is_some_and(|range| {
            let gap = entry.offset.checked_sub(end);
            let near = gap.is_some_and(|gap| gap <= cut.gap_bytes_max);
            near && (range.len() < cut.get_blocks_min || entry_end - first <= cut.get_bytes_max)
        });
        match ranges.last_mut() {
            Some(range) if joins => range.end = index + 1,
            _ => {
                ranges.push(index..index + 1);
                first = entry.offset;
            }
        }
        end = entry_end;
    }
    ranges
}

#[cfg(test)]
mod tests {
    use kelvin_kernels::Checksum;
    use proptest::prelude::*;

    use super::*;

    fn entries(blocks: &[(u64, u32)]) -> Vec<PackEntry> {
        blocks
            .iter()
            .map(|&(offset, bytes)| PackEntry {
                hash: [0; 16],
                parent: None,
                offset,
                bytes,
                checksum: Checksum(0),
            })
            .collect()
    }

    #[test]
    fn cuts_where_told() {
        let cut = Cut { get_bytes_max: 100, get_blocks_min: 2, gap_bytes_max: 10 };
        let plan = |blocks: &[(u64, u32)]| plan(&entries(blocks), &cut);
        assert_eq!(plan(&[]), []);
        assert_eq!(plan(&[(0, 10), (10, 10), (30, 10), (51, 10)]), [0..3, 3..4], "the last gap is too wide");
        assert_eq!(plan(&[(0, 80), (80, 80), (160, 80), (240, 80)]), [0..2, 2..4], "two large ones at least");
        assert_eq!(plan(&[(0, 40), (40, 40), (80, 20), (100, 1)]), [0..3, 3..4], "a hundred bytes at most");
        assert_eq!(plan(&[(0, 10), (0, 10), (5, 10)]), [0..1, 1..2, 2..3], "no request has overlaps");
    }

    proptest! {
        #[test]
        fn every_block_is_in_one_request(
            mut blocks in prop::collection::vec((0u64..5000, 1u32..300), 0..60),
            get_bytes_max in 1u64..1000, get_blocks_min in 0usize..5, gap_bytes_max in 0u64..200,
        ) {
            blocks.sort_unstable();
            let entries = entries(&blocks);
            let ranges = plan(&entries, &Cut { get_bytes_max, get_blocks_min, gap_bytes_max });
            let mut next = 0;
            for range in ranges {
                prop_assert_eq!(range.start, next);
                prop_assert!(range.end > range.start);
                next = range.end;
                let run = &entries[range];
                for pair in run.windows(2) {
                    let gap = pair[1].offset.checked_sub(pair[0].end().unwrap());
                    prop_assert!(gap.is_some_and(|gap| gap <= gap_bytes_max));
                }
                let bytes = run[run.len() - 1].end().unwrap() - run[0].offset;
                prop_assert!(run.len() <= get_blocks_min.max(1) || bytes <= get_bytes_max);
            }
            prop_assert_eq!(next, entries.len());
        }
    }
}
