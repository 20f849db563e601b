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
/// Blocks go together over gaps that are cheaper to read than a request is to make. A long run is cut in even
/// pieces, as many as its bytes ask for but no more than its blocks allow: bytes alone would make a request of
/// each large block.
pub(super) fn plan(entries: &[PackEntry], cut: &Cut) -> Vec<Range<usize>> {
    let mut ranges = Vec::new();
    let mut start = 0;
    for end in 1..=entries.len() {
        if end == entries.len() || !near(&entries[end - 1], &entries[end], cut.gap_bytes_max) {
            pieces(entries, start..end, cut, &mut ranges);
            start = end;
        }
    }
    ranges
}

fn near(before: &PackEntry, after: &PackEntry, gap_bytes_max: u64) -> bool {
    let gap = before.end().and_then(|end| after.offset.checked_sub(end));
    gap.is_some_and(|gap| gap <= gap_bytes_max)
}

/// Cuts a run.
fn pieces(entries: &[PackEntry], run: Range<usize>, cut: &Cut, ranges: &mut Vec<Range<usize>>) {
    let from = entries[run.start].offset;
    let bytes = entries[run.end - 1].end().unwrap_or(u64::MAX) - from;
    let by_blocks = (run.len() / cut.get_blocks_min.max(1)).max(1) as u64;
    let count = bytes.div_ceil(cut.get_bytes_max).min(by_blocks);
    let piece_bytes = bytes.div_ceil(count.max(1)).max(1);
    let piece = |index: usize| (entries[index].offset - from) / piece_bytes;
    let mut start = run.start;
    for index in run.start + 1..run.end {
        if piece(index) != piece(index - 1) {
            ranges.push(start..index);
            start = index;
        }
    }
    ranges.push(start..run.end);
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
        assert_eq!(plan(&[(0, 80), (80, 80), (160, 80)]), [0..3], "nor one left over");
        assert_eq!(plan(&[(0, 60), (60, 20), (80, 20), (100, 1)]), [0..1, 1..4], "even by bytes");
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
            // Where no gap is too wide, blocks bound the requests.
            let runs = 1 + entries.windows(2).filter(|pair| !near(&pair[0], &pair[1], gap_bytes_max)).count();
            prop_assert!(ranges.len() <= runs.max(1) + entries.len() / get_blocks_min.max(1));
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
            }
            prop_assert_eq!(next, entries.len());
        }
    }
}
