//! What engines are computing right now: prompts that were sent to one and have no first token yet.
//!
//! An engine's events tell of a block once it is there. Until then others that begin alike would seem to cost as much
//! there as anywhere, and a burst of them would wait at the one engine that has their beginning, however many more
//! have it in work.
//!
//! # Precision
//! A prompt is known at some of its blocks, its marks: all of the first 16, then eight for each doubling. So a part
//! that two have in common counts as at most an eighth shorter than it is, and a prompt of 8,192 blocks has 88 marks.
//!
//! # Limits
//! There are as many prompts here as requests in work, and those of the last [`LINGER`].

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use kelvin_kvstore::SequenceHash;
use parking_lot::Mutex;

/// How long a prompt still counts once its first token came: its blocks' events come about then.
const LINGER: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Coming {
    known: Mutex<Known>,
    /// Marks known. Most of the time there are none, and nobody needs the lock to see that.
    len: AtomicUsize,
}

#[derive(Debug, Default)]
struct Known {
    /// Workers that compute a prompt up to a mark, with how many such prompts; each is at all marks before, too.
    marks: HashMap<SequenceHash, Vec<(u32, u32)>>,
    /// In the order of their times.
    lingering: VecDeque<(Instant, u32, Vec<SequenceHash>)>,
}

/// One prompt that a worker computes; until this is dropped.
#[derive(Debug)]
pub(crate) struct Underway {
    coming: Arc<Coming>,
    worker: u32,
    marks: Vec<SequenceHash>,
}

impl Underway {
    /// Its first token came.
    pub(crate) fn computed(mut self) {
        let marks = std::mem::take(&mut self.marks);
        if !marks.is_empty() {
            let mut known = self.coming.known.lock();
            known.lingering.push_back((Instant::now() + LINGER, self.worker, marks));
        }
    }
}

impl Drop for Underway {
    fn drop(&mut self) {
        if !self.marks.is_empty() {
            let mut known = self.coming.known.lock();
            known.remove(self.worker, &self.marks);
            self.coming.count(&known);
        }
    }
}

impl Coming {
    /// A prompt of these blocks was sent to a worker.
    pub(super) fn begin(self: &Arc<Self>, worker: u32, hashes: &[SequenceHash]) -> Underway {
        let marks: Vec<_> = marks(hashes.len()).map(|blocks| hashes[blocks - 1]).collect();
        let mut known = self.known.lock();
        known.expire(Instant::now());
        for mark in &marks {
            let workers = known.marks.entry(*mark).or_default();
            match workers.iter_mut().find(|(at, _)| *at == worker) {
                Some((_, prompts)) => *prompts += 1,
                None => workers.push((worker, 1)),
            }
        }
        self.count(&known);
        drop(known);
        Underway { coming: self.clone(), worker, marks }
    }

    /// Gives `found` each worker that computes any of the leading blocks, and how many.
    pub(super) fn prefixes(&self, hashes: &[SequenceHash], mut found: impl FnMut(u32, u32)) {
        if self.len.load(Ordering::Relaxed) == 0 {
            return;
        }
        let known = self.known.lock();
        let (mut before, mut blocks_before): (&[(u32, u32)], usize) = (&[], 0);
        for blocks in marks(hashes.len()) {
            let workers = known.marks.get(&hashes[blocks - 1]).map_or(&[][..], Vec::as_slice);
            // Whoever is here was there before: as many are the same ones.
            if workers.len() < before.len() {
                let gone = before.iter().filter(|(worker, _)| workers.iter().all(|(at, _)| at != worker));
                gone.for_each(|(worker, _)| found(*worker, blocks_before as u32));
            }
            (before, blocks_before) = (workers, blocks);
            if workers.is_empty() {
                break;
            }
        }
        before.iter().for_each(|(worker, _)| found(*worker, blocks_before as u32));
    }

    /// Marks known.
    pub(super) fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    /// Drops what lingered long enough.
    pub(super) fn expire(&self) {
        let mut known = self.known.lock();
        known.expire(Instant::now());
        self.count(&known);
    }

    fn count(&self, known: &Known) {
        self.len.store(known.marks.len(), Ordering::Relaxed);
    }
}

impl Known {
    fn expire(&mut self, now: Instant) {
        while self.lingering.front().is_some_and(|(until, ..)| *until <= now) {
            if let Some((_, worker, marks)) = self.lingering.pop_front() {
                self.remove(worker, &marks);
            }
        }
    }

    fn remove(&mut self, worker: u32, marks: &[SequenceHash]) {
        for mark in marks {
            let Some(workers) = self.marks.get_mut(mark) else { continue };
            if let Some(place) = workers.iter().position(|(at, _)| *at == worker) {
                workers[place].1 -= 1;
                if workers[place].1 == 0 {
                    workers.swap_remove(place);
                }
            }
            if workers.is_empty() {
                self.marks.remove(mark);
            }
        }
    }
}

/// Numbers of leading blocks, of so many, at which a prompt is known.
fn marks(blocks: usize) -> impl Iterator<Item = usize> {
    let next = |at: &usize| Some(at + (1 << at.ilog2().saturating_sub(3)));
    std::iter::successors(Some(1), next).take_while(move |at| *at <= blocks)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn hashes(prompt: &[u8]) -> Vec<SequenceHash> {
        // Of each block and all before it.
        (1..=prompt.len())
            .map(|end| {
                let digest = blake3::hash(&prompt[..end]);
                SequenceHash::from_bytes(digest.as_bytes()[..16].try_into().unwrap())
            })
            .collect()
    }

    fn found(coming: &Coming, hashes: &[SequenceHash]) -> BTreeMap<u32, u32> {
        let mut all = BTreeMap::new();
        coming.prefixes(hashes, |worker, blocks| {
            assert!(all.insert(worker, blocks).is_none(), "each once");
        });
        all
    }

    #[test]
    fn marks_are_an_eighth_apart() {
        assert!(marks(0).next().is_none());
        assert_eq!(marks(16).collect::<Vec<_>>(), (1..=16).collect::<Vec<_>>());
        assert_eq!(marks(23).collect::<Vec<_>>()[15..], [16, 18, 20, 22]);
        assert_eq!(marks(8192).count(), 88);
        let all: Vec<_> = marks(8192).collect();
        assert!(all.windows(2).all(|pair| pair[1] - pair[0] <= pair[0].div_ceil(8)));
    }

    #[test]
    fn a_prompt_counts_until_it_is_computed_and_a_moment_longer() {
        let coming = Arc::new(Coming::default());
        let prompt = hashes(&[7; 9]);
        let first = coming.begin(3, &prompt);
        let second = coming.begin(3, &prompt[..4]);
        assert_eq!(found(&coming, &hashes(&[7; 12])), BTreeMap::from([(3, 9)]));
        drop(first);
        assert_eq!(found(&coming, &prompt), BTreeMap::from([(3, 4)]), "it failed");
        second.computed();
        coming.expire();
        assert_eq!(found(&coming, &prompt), BTreeMap::from([(3, 4)]), "its events may still be on their way");
        let later = Instant::now() + LINGER;
        coming.known.lock().expire(later);
        assert!(found(&coming, &prompt).is_empty() && coming.known.lock().marks.is_empty());
    }

    proptest! {
        #[test]
        fn the_longest_common_part_is_found(
            sent in prop::collection::vec((0u32..4, prop::collection::vec(0u8..2, 0..40)), 0..12),
            ended in prop::collection::vec(any::<bool>(), 12),
            asked in prop::collection::vec(0u8..2, 0..40),
        ) {
            let coming = Arc::new(Coming::default());
            let mut underway: Vec<_> =
                sent.iter().map(|(worker, prompt)| Some(coming.begin(*worker, &hashes(prompt)))).collect();
            underway.iter_mut().zip(&ended).filter(|(_, ended)| **ended).for_each(|(one, _)| *one = None);
            let mut expected = BTreeMap::new();
            for ((worker, prompt), _) in sent.iter().zip(&ended).filter(|(_, ended)| !**ended) {
                let common = prompt.iter().zip(&asked).take_while(|(a, b)| a == b).count();
                if let Some(blocks) = marks(common).last() {
                    let known = expected.entry(*worker).or_insert(0);
                    *known = blocks.max(*known as usize) as u32;
                }
            }
            prop_assert_eq!(found(&coming, &hashes(&asked)), expected);
            drop(underway);
            prop_assert!(coming.known.lock().marks.is_empty());
            prop_assert_eq!(coming.len.load(Ordering::Relaxed), 0);
        }
    }
}
