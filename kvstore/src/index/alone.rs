//! Steps upwards in the tree: the block before another, the part of a sequence that no other shares.

use super::{HolderSet, RadixIndex};
use crate::SequenceHash;

impl<S: HolderSet> RadixIndex<S> {
    /// The block before this one; `None` at the start of a sequence, and of a block that is not known.
    pub fn parent(&self, hash: SequenceHash) -> Option<SequenceHash> {
        let seen = self.read(hash).ok()?;
        seen.run.parent_of(seen.at)
    }

    /// How many blocks at the end of `path` are of no other sequence: nothing is behind the last of them, and
    /// behind each of the others nothing but the next. Not one moment; a step a run, whatever is behind.
    pub fn alone(&self, path: &[SequenceHash]) -> usize {
        let mut left = path;
        let mut below: Option<SequenceHash> = None;
        while let Some(&hash) = left.last() {
            let Ok(seen) = self.read(hash) else { break };
            let (run, at) = (&seen.run, seen.at);
            let is_alone = match run.is_last(at) {
                true => self.arena.children(run).all(|child| {
                    let child = self.arena.node(child).run.read();
                    child.hashes().first().copied() == below
                }),
                false => Some(run.hashes()[at + 1]) == below,
            };
            let same =
                run.hashes()[..=at].iter().rev().zip(left.iter().rev()).take_while(|(a, b)| a == b).count();
            if !is_alone || same == 0 {
                break;
            }
            below = Some(left[left.len() - same]);
            left = &left[..left.len() - same];
            // The rest of the run is not of this path.
            if same <= at {
                break;
            }
        }
        path.len() - left.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::WorkerSet;

    fn hash(n: u16) -> SequenceHash {
        let mut bytes = [0; 16];
        bytes[..2].copy_from_slice(&n.to_le_bytes());
        SequenceHash::from_bytes(bytes)
    }

    fn run(from: u16, to: u16) -> Vec<SequenceHash> {
        (from..to).map(hash).collect()
    }

    #[test]
    fn the_end_of_a_sequence_is_alone_down_to_where_another_begins() {
        for run_blocks_max in [1, 3, 256] {
            let index = RadixIndex::<WorkerSet>::with(run_blocks_max, usize::MAX);
            let stem = run(0, 10);
            index.insert_run(None, &stem, 0, 1).unwrap();
            assert_eq!(index.alone(&stem), 10);
            assert_eq!(index.alone(&stem[..5]), 0, "more is behind");
            index.insert_run(Some(hash(5)), &run(100, 107), 0, 1).unwrap();
            assert_eq!(index.alone(&stem), 4, "runs of {run_blocks_max}");
            let branch = [&stem[..6], &run(100, 107)].concat();
            assert_eq!(index.alone(&branch), 7);
            assert_eq!(index.alone(&[&branch[..], &[hash(999)]].concat()), 0, "an unknown end");
            assert_eq!(index.alone(&[]), 0);
            assert_eq!(index.parent(hash(100)), Some(hash(5)));
            assert_eq!((index.parent(hash(0)), index.parent(hash(999))), (None, None));
        }
    }

    #[test]
    fn a_path_that_is_none_is_alone_as_far_as_it_is_right() {
        let index = RadixIndex::<WorkerSet>::new();
        index.insert_run(None, &run(0, 10), 0, 1).unwrap();
        assert_eq!(index.alone(&[hash(77), hash(8), hash(9)]), 2);
    }
}
