//! Prompts for the index: a forest of sequences that share beginnings, made from a seed.

use std::collections::HashSet;

use kelvin_kvstore::SequenceHash;

/// Applications; each has its system prompt.
const APPLICATIONS: u64 = 64;

/// Blocks of a prompt: what its application, its session and its own last turn add.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) application: u64,
    pub(super) session: u64,
    pub(super) turn: u64,
    /// Turns that branch off a session.
    pub(super) turns: u64,
}

/// About 96 blocks, in runs of about 45.
pub(super) const LONG: Shape = Shape { application: 16, session: 32, turn: 48, turns: 4 };
/// Runs of 8: what an index is like whose sequences branch often.
pub(super) const SHORT: Shape = Shape { application: 8, session: 8, turn: 8, turns: 3 };

/// So many sessions of that shape.
#[derive(Clone, Copy, Debug)]
pub(super) struct Forest {
    seed: u64,
    shape: Shape,
    sessions: u64,
}

impl Forest {
    /// About `blocks` blocks.
    pub(super) fn new(seed: u64, shape: Shape, blocks: u64) -> Forest {
        let session_blocks = shape.session + shape.turn * shape.turns;
        Forest { seed, shape, sessions: (blocks / session_blocks).max(1) }
    }

    pub(super) fn prompts(&self) -> u64 {
        self.sessions * self.shape.turns
    }

    fn hash(&self, part: u64, of: u64, depth: u64) -> SequenceHash {
        let low = mix(self.seed ^ mix(part << 56 ^ of << 12 ^ depth));
        let high = mix(low ^ 0x5851_F42D_4C95_7F2D);
        SequenceHash::from_bytes((u128::from(high) << 64 | u128::from(low)).to_le_bytes())
    }

    /// The hashes of a prompt, into `into`.
    pub(super) fn prompt(&self, prompt: u64, into: &mut Vec<SequenceHash>) {
        let session = prompt / self.shape.turns;
        into.clear();
        into.extend((0..self.shape.application).map(|depth| self.hash(0, session % APPLICATIONS, depth)));
        into.extend((0..self.shape.session).map(|depth| self.hash(1, session, depth)));
        into.extend((0..self.shape.turn).map(|depth| self.hash(2, prompt, depth)));
    }

    /// The blocks that each prompt adds to those of the prompts before it, sessions in the order of arrival,
    /// their turns apart. As `(parent, blocks)`, of which each is at most `event_blocks` long.
    pub(super) fn log(&self, event_blocks: usize) -> Log {
        let mut log = Log { hashes: Vec::new(), events: Vec::new() };
        let mut prompt = Vec::new();
        for turn in 0..self.shape.turns {
            for session in 0..self.sessions {
                self.prompt(session * self.shape.turns + turn, &mut prompt);
                let known = match (turn, session) {
                    (0, 0..APPLICATIONS) => 0,
                    (0, _) => self.shape.application,
                    _ => self.shape.application + self.shape.session,
                } as usize;
                let mut parent = known.checked_sub(1).map(|at| prompt[at]);
                for event in prompt[known..].chunks(event_blocks) {
                    log.events.push((parent, event.len()));
                    log.hashes.extend(event);
                    parent = event.last().copied();
                }
            }
        }
        log
    }
}

/// Blocks in the order in which they are stored.
pub(super) struct Log {
    pub(super) hashes: Vec<SequenceHash>,
    events: Vec<(Option<SequenceHash>, usize)>,
}

impl Log {
    pub(super) fn blocks(&self) -> usize {
        self.hashes.len()
    }

    /// `(parent, blocks)`, one event after the other.
    pub(super) fn events(&self) -> impl Iterator<Item = (Option<SequenceHash>, &[SequenceHash])> {
        let mut start = 0;
        self.events.iter().map(move |(parent, blocks)| {
            start += blocks;
            (*parent, &self.hashes[start - blocks..start])
        })
    }

    /// `(parent, block)`, with the events of `width` sequences at a time interleaved block by block.
    pub(super) fn interleaved(&self, width: usize) -> Vec<(Option<SequenceHash>, SequenceHash)> {
        let mut blocks = Vec::with_capacity(self.blocks());
        let mut group: Vec<(Option<SequenceHash>, &[SequenceHash])> = Vec::new();
        let mut within: HashSet<SequenceHash> = HashSet::new();
        for (parent, event) in self.events() {
            // Nothing stands beside what it stands behind.
            if group.len() == width || parent.is_some_and(|parent| within.contains(&parent)) {
                interleave(&mut group, &mut blocks);
                within.clear();
            }
            group.push((parent, event));
            within.extend(event);
        }
        interleave(&mut group, &mut blocks);
        blocks
    }
}

/// Puts the events of a group block by block.
fn interleave(
    group: &mut Vec<(Option<SequenceHash>, &[SequenceHash])>,
    blocks: &mut Vec<(Option<SequenceHash>, SequenceHash)>,
) {
    let longest = group.iter().map(|(_, event)| event.len()).max().unwrap_or(0);
    for at in 0..longest {
        for (parent, event) in group.iter() {
            if let Some(hash) = event.get(at) {
                blocks.push((at.checked_sub(1).map_or(*parent, |before| Some(event[before])), *hash));
            }
        }
    }
    group.clear();
}

/// Spreads a number over 64 bits (the finalizer of SplitMix64).
pub(super) fn mix(number: u64) -> u64 {
    let number = number.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let number = (number ^ number >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let number = (number ^ number >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    number ^ number >> 31
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_log_has_every_block_once_and_behind_its_parent() {
        let forest = Forest::new(7, LONG, 50_000);
        let mut blocks = HashSet::new();
        let mut prompt = vec![];
        (0..forest.prompts()).for_each(|at| {
            forest.prompt(at, &mut prompt);
            blocks.extend(prompt.iter().copied());
        });
        let log = forest.log(usize::MAX);
        assert_eq!(log.blocks(), blocks.len());
        for order in [
            forest.log(16).events().flat_map(|(parent, event)| chain(parent, event)).collect(),
            log.interleaved(100),
        ] {
            let mut seen = HashSet::new();
            for (parent, hash) in order {
                assert!(parent.is_none_or(|parent| seen.contains(&parent)));
                assert!(seen.insert(hash));
            }
            assert_eq!(seen, blocks);
        }
    }

    fn chain(
        parent: Option<SequenceHash>,
        event: &[SequenceHash],
    ) -> Vec<(Option<SequenceHash>, SequenceHash)> {
        let parents = std::iter::once(parent).chain(event.iter().copied().map(Some));
        parents.zip(event.iter().copied()).collect()
    }
}
