//! Bytes that arrive in pieces, as text of whole characters.

/// Decodes UTF-8 piece by piece: never half a character, and what is not UTF-8 becomes U+FFFD.
#[derive(Debug, Default)]
pub(super) struct Detokenizer {
    /// At most the first three bytes of a character.
    held: Vec<u8>,
}

impl Detokenizer {
    /// The text that is whole once `piece` is there.
    pub(super) fn push(&mut self, piece: &[u8]) -> String {
        self.held.extend_from_slice(piece);
        let mut text = String::new();
        let mut rest = self.held.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(whole) => {
                    text.push_str(whole);
                    rest = &[];
                    break;
                }
                Err(error) => {
                    let (whole, behind) = rest.split_at(error.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(whole));
                    rest = behind;
                    let Some(bad) = error.error_len() else { break };
                    text.push(char::REPLACEMENT_CHARACTER);
                    rest = &rest[bad..];
                }
            }
        }
        self.held = rest.to_vec();
        text
    }

    /// What is left when no more comes: nothing, or one U+FFFD for a character that never got whole.
    pub(super) fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.held)).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_character_comes_whole_or_not_yet() {
        let mut detokenizer = Detokenizer::default();
        let got: Vec<String> = "é🦀".bytes().map(|byte| detokenizer.push(&[byte])).collect();
        assert_eq!(got, ["", "é", "", "", "", "🦀"]);
        assert_eq!(detokenizer.finish(), "");
    }

    #[test]
    fn a_character_cut_off_is_replaced_at_the_end_only() {
        let mut detokenizer = Detokenizer::default();
        assert_eq!(detokenizer.push(&[b'a', 0xf0, 0x9f]), "a");
        assert_eq!(detokenizer.finish(), "\u{fffd}");
        assert_eq!(detokenizer.finish(), "");
    }

    proptest! {
        #[test]
        fn pieces_read_as_the_whole_does(bytes in proptest::collection::vec(any::<u8>(), 0..64), cuts in proptest::collection::vec(0usize..8, 0..64)) {
            let mut detokenizer = Detokenizer::default();
            let (mut text, mut rest) = (String::new(), bytes.as_slice());
            for cut in cuts {
                let (piece, behind) = rest.split_at(cut.min(rest.len()));
                text.push_str(&detokenizer.push(piece));
                prop_assert!(detokenizer.held.len() < 4);
                rest = behind;
            }
            text.push_str(&detokenizer.push(rest));
            text.push_str(&detokenizer.finish());
            prop_assert_eq!(text, String::from_utf8_lossy(&bytes));
        }
    }
}
