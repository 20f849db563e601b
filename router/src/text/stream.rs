//! Tokens in, sendable text out.

use std::sync::Arc;

use super::{Vocabulary, detokenizer::Detokenizer, stops::StopScanner};

/// One completion's text as its tokens come.
pub(crate) struct TextStream {
    vocabulary: Arc<Vocabulary>,
    detokenizer: Detokenizer,
    scanner: StopScanner,
    decoded_chars: usize,
    sent_chars: usize,
}

/// What one token made sendable.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// May be empty.
    pub(crate) text: String,
    /// A stop string stands right behind `text`: the completion is over.
    pub(crate) stopped: bool,
}

impl TextStream {
    /// A stream that ends at any of `stops`.
    pub(crate) fn new(vocabulary: Arc<Vocabulary>, stops: Vec<String>) -> Self {
        Self {
            vocabulary,
            detokenizer: Detokenizer::default(),
            scanner: StopScanner::new(stops),
            decoded_chars: 0,
            sent_chars: 0,
        }
    }

    /// Takes one token.
    pub(crate) fn push(&mut self, token: u32) -> Piece {
        let text = self.detokenizer.push(&self.vocabulary.piece(token));
        self.decoded_chars += text.chars().count();
        let (text, stopped) = self.scanner.push(&text);
        self.sent_chars += text.chars().count();
        Piece { text, stopped }
    }

    /// What is left when no more tokens come.
    pub(crate) fn finish(&mut self) -> Piece {
        let (mut text, stopped) = self.scanner.push(&self.detokenizer.finish());
        if !stopped {
            text.push_str(&self.scanner.finish());
        }
        self.sent_chars += text.chars().count();
        Piece { text, stopped }
    }

    /// Characters of text decoded so far, sent or held back: where the next token's text begins.
    pub(crate) fn decoded_chars(&self) -> usize {
        self.decoded_chars
    }

    /// Characters of text given out so far.
    pub(crate) fn sent_chars(&self) -> usize {
        self.sent_chars
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stop_strings_are_found_in_decoded_text() {
        let mut stream = TextStream::new(Arc::new(Vocabulary::Toy), vec!["é!".into()]);
        let pieces: Vec<Piece> = "aé!b".bytes().take(4).map(|byte| stream.push(byte.into())).collect();
        let text: String = pieces.iter().map(|piece| piece.text.as_str()).collect();
        assert_eq!(text, "a");
        assert!(pieces[3].stopped);
        assert_eq!((stream.decoded_chars(), stream.sent_chars()), (3, 1));
    }

    #[test]
    fn the_end_gives_out_what_was_held_back() {
        let mut stream = TextStream::new(Arc::new(Vocabulary::Toy), vec!["xyz".into()]);
        assert_eq!(stream.push(b'x'.into()), Piece { text: "".into(), stopped: false });
        assert_eq!(stream.push(0xc3), Piece { text: "".into(), stopped: false });
        assert_eq!(stream.finish(), Piece { text: "x\u{fffd}".into(), stopped: false });
    }
}
