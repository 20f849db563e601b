//! Tokens of texts that come again and again: system prompts, documents, earlier turns.
//!
//! A tokenizer that splits at control tokens first, and then works on each piece by itself, gives a piece the
//! same tokens wherever it stands. So the tokens of long pieces are kept, the least recently used go first,
//! and what is new of a prompt is all that has to be tokenized.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use parking_lot::Mutex;

/// Shorter pieces are tokenized faster than they are worth.
const BYTES_MIN: usize = 256;

/// Splits `text` at every control text; control texts are pieces of their own. `None` where two overlap: which
/// of them is one is the tokenizer's business.
pub(super) fn split<'a>(text: &'a str, controls: &[String]) -> Option<Vec<&'a str>> {
    let mut cuts: Vec<(usize, usize)> = Vec::new();
    for control in controls.iter().filter(|control| !control.is_empty()) {
        cuts.extend(text.match_indices(control.as_str()).map(|(at, found)| (at, at + found.len())));
    }
    cuts.sort_unstable();
    let (mut pieces, mut at) = (Vec::new(), 0);
    for (from, to) in cuts {
        if from < at {
            return None;
        }
        pieces.extend((from > at).then(|| &text[at..from]));
        pieces.push(&text[from..to]);
        at = to;
    }
    pieces.extend((at < text.len()).then(|| &text[at..]));
    Some(pieces)
}

/// Tokens of long pieces.
#[derive(Debug)]
pub(super) struct Pieces {
    kept: Mutex<Kept>,
    tokens_max: usize,
}

#[derive(Debug, Default)]
struct Kept {
    tokens: HashMap<[u8; 32], (u64, Arc<[u32]>)>,
    by_use: BTreeMap<u64, [u8; 32]>,
    now: u64,
    total: usize,
}

impl Pieces {
    /// Keeps so many tokens at most.
    pub(super) fn new(tokens_max: usize) -> Self {
        Self { kept: Mutex::default(), tokens_max }
    }

    /// Appends the tokens of `piece`, which `tokenize` does if they are not kept.
    pub(super) fn append(
        &self,
        piece: &str,
        into: &mut Vec<u32>,
        tokenize: impl FnOnce(&str, &mut Vec<u32>),
    ) {
        if piece.len() < BYTES_MIN {
            return tokenize(piece, into);
        }
        let key = *blake3::hash(piece.as_bytes()).as_bytes();
        if let Some(tokens) = self.kept.lock().get(&key) {
            return into.extend_from_slice(&tokens);
        }
        let before = into.len();
        tokenize(piece, into);
        self.kept.lock().put(key, into[before..].into(), self.tokens_max);
    }
}

impl Kept {
    fn get(&mut self, key: &[u8; 32]) -> Option<Arc<[u32]>> {
        let (used, tokens) = self.tokens.get_mut(key)?;
        self.now += 1;
        self.by_use.remove(used);
        self.by_use.insert(self.now, *key);
        *used = self.now;
        Some(tokens.clone())
    }

    fn put(&mut self, key: [u8; 32], tokens: Arc<[u32]>, most: usize) {
        // Another thread may have been faster.
        if tokens.len() > most || self.tokens.contains_key(&key) {
            return;
        }
        self.total += tokens.len();
        self.now += 1;
        self.by_use.insert(self.now, key);
        self.tokens.insert(key, (self.now, tokens));
        while self.total > most {
            let Some((_, oldest)) = self.by_use.pop_first() else { return };
            if let Some((_, gone)) = self.tokens.remove(&oldest) {
                self.total -= gone.len();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn control_texts_are_pieces_of_their_own() {
        let controls = ["<s>", "</s>", "s>x", ""].map(str::to_owned);
        assert_eq!(split("<s>a b</s><s>", &controls).unwrap(), ["<s>", "a b", "</s>", "<s>"]);
        assert_eq!(split("plain", &controls).unwrap(), ["plain"]);
        assert!(split("", &controls).unwrap().is_empty());
        assert_eq!(split("a<s>x", &controls), None, "two of them overlap");
    }

    #[test]
    fn the_least_recently_used_goes() {
        let pieces = Pieces::new(1000);
        let text = |name: char| name.to_string().repeat(300);
        let ask = |name: char, expected: bool| {
            let mut made = false;
            let mut tokens = Vec::new();
            pieces.append(&text(name), &mut tokens, |piece, into| {
                made = true;
                into.extend(vec![u32::from(name); piece.len()]);
            });
            assert_eq!(tokens, vec![u32::from(name); 300]);
            assert_eq!(made, expected, "{name}");
        };
        ask('a', true);
        ask('b', true);
        ask('c', true);
        ask('a', false);
        ask('d', true);
        ask('b', true);
        ask('a', false);
        assert!(pieces.kept.lock().total <= 1000);
    }

    proptest! {
        #[test]
        fn pieces_are_the_text(text in "[a<>s/ ]{0,40}") {
            let controls = ["<s>", "</s>", "s>a"].map(str::to_owned);
            if let Some(pieces) = split(&text, &controls) {
                prop_assert_eq!(pieces.concat(), text);
            }
        }
    }
}
