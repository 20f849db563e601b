//! Prompts from a seed: prefixes that many requests share, and questions that differ.

use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

/// Common words, so that their tokens are neither rare nor long.
const WORDS: [&str; 64] = [
    "water", "house", "light", "paper", "river", "stone", "green", "music", "table", "window", "garden",
    "letter", "summer", "winter", "morning", "evening", "city", "road", "bridge", "train", "school",
    "teacher", "doctor", "market", "bread", "coffee", "sugar", "salt", "glass", "metal", "wood", "cotton",
    "engine", "wheel", "motor", "signal", "number", "answer", "question", "story", "book", "page", "word",
    "line", "circle", "square", "north", "south", "island", "ocean", "forest", "mountain", "valley", "field",
    "horse", "bird", "fish", "apple", "orange", "silver", "gold", "small", "large", "quiet",
];

/// Parts of one run draw from streams of their own, so that a flag for one does not change the other.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Stream {
    Calibration = 1,
    Reuse = 2,
    Load = 3,
    Arrivals = 4,
}

pub(crate) fn rng(seed: u64, stream: Stream) -> SmallRng {
    // seed_from_u64 spreads neighbouring numbers over the whole state.
    SmallRng::seed_from_u64(seed.wrapping_mul(16).wrapping_add(stream as u64))
}

/// `count` words, as running text.
pub(crate) fn words(rng: &mut SmallRng, count: usize) -> String {
    let words: Vec<&str> = (0..count).filter_map(|_| WORDS.choose(rng).copied()).collect();
    words.join(" ")
}

/// One conversation: a system message that others share, and a user message a turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Conversation {
    pub(crate) prefix: String,
    pub(crate) questions: Vec<String>,
}

/// What a set of conversations looks like; lengths in words.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) prefixes: usize,
    pub(crate) prefix_words: usize,
    pub(crate) suffix_words: usize,
    pub(crate) turns: usize,
}

impl Shape {
    /// `count` conversations; each has one of the prefixes, drawn evenly.
    pub(crate) fn conversations(&self, rng: &mut SmallRng, count: usize) -> Vec<Conversation> {
        let prefixes: Vec<String> = (0..self.prefixes).map(|_| words(rng, self.prefix_words)).collect();
        (0..count)
            .map(|_| Conversation {
                prefix: prefixes.choose(rng).cloned().unwrap_or_default(),
                questions: (0..self.turns).map(|_| question(rng, self.suffix_words)).collect(),
            })
            .collect()
    }
}

/// A question of about so many words.
pub(crate) fn question(rng: &mut SmallRng, count: usize) -> String {
    format!("Tell me about {}?", words(rng, count.saturating_sub(3).max(1)))
}

/// Seconds until the next of Poisson arrivals at `rate` a second.
pub(crate) fn arrival_gap(rng: &mut SmallRng, rate: f64) -> f64 {
    // random() is in [0, 1), so the logarithm's argument is in (0, 1].
    -(1.0 - rng.random::<f64>()).ln() / rate
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const SHAPE: Shape = Shape { prefixes: 3, prefix_words: 50, suffix_words: 8, turns: 2 };

    #[test]
    fn a_seed_is_a_set() {
        let make = |seed| SHAPE.conversations(&mut rng(seed, Stream::Load), 20);
        assert_eq!(make(7), make(7));
        assert_ne!(make(7), make(8));
        let prefixes: BTreeSet<_> = make(7).into_iter().map(|conversation| conversation.prefix).collect();
        assert_eq!(prefixes.len(), 3);
        for conversation in make(7) {
            assert_eq!(conversation.prefix.split(' ').count(), 50);
            assert_eq!(conversation.questions.len(), 2);
            assert_eq!(conversation.questions[0].split(' ').count(), 8);
        }
    }

    #[test]
    fn streams_differ() {
        assert_ne!(words(&mut rng(1, Stream::Load), 9), words(&mut rng(1, Stream::Reuse), 9));
    }

    #[test]
    fn arrivals_come_at_the_rate() {
        let mut rng = rng(1, Stream::Arrivals);
        let seconds: f64 = (0..10_000).map(|_| arrival_gap(&mut rng, 4.0)).sum();
        assert!((2_300.0..2_700.0).contains(&seconds), "{seconds}");
    }
}
