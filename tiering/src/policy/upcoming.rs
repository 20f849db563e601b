//! The order in which tails would go, and what stands behind them after that.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::hash::{BuildHasher, Hash};

/// The first `blocks` to go, by rank, were nothing used meanwhile. `tails` comes in order of rank; `children` is
/// how many resident children a block has; `above` is the resident parent of a block and its rank.
pub(super) fn peel<K, R, H>(
    blocks: usize,
    tails: impl Iterator<Item = (R, K)>,
    children: impl Fn(&K) -> usize,
    above: impl Fn(&K) -> Option<(R, K)>,
) -> Vec<K>
where
    K: Copy + Eq + Hash,
    R: Copy + Ord,
    H: BuildHasher + Default,
{
    let mut tails = tails.peekable();
    let mut next = Vec::with_capacity(blocks.min(1024));
    // Blocks that become tails, and how many of their children are left.
    let mut freed: BinaryHeap<Reverse<(R, Item<K>)>> = BinaryHeap::new();
    let mut left: HashMap<K, usize, H> = HashMap::default();
    while next.len() < blocks {
        let first_freed = freed.peek().map(|Reverse((rank, _))| *rank);
        let from_tails = match (tails.peek(), first_freed) {
            (None, None) => break,
            (Some((rank, _)), Some(freed)) => *rank <= freed,
            (tail, _) => tail.is_some(),
        };
        let key = match from_tails {
            true => tails.next().map(|(_, key)| key),
            false => freed.pop().map(|Reverse((_, Item(key)))| key),
        };
        let Some(key) = key else { break };
        next.push(key);
        let Some((rank, parent)) = above(&key) else { continue };
        let left = left.entry(parent).or_insert_with(|| children(&parent));
        *left -= 1;
        if *left == 0 {
            freed.push(Reverse((rank, Item(parent))));
        }
    }
    next
}

/// A key that does not count in the order.
struct Item<K>(K);

impl<K> PartialEq for Item<K> {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl<K> Eq for Item<K> {}

impl<K> PartialOrd for Item<K> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<K> Ord for Item<K> {
    fn cmp(&self, _: &Self) -> std::cmp::Ordering {
        std::cmp::Ordering::Equal
    }
}
