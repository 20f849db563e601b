//! Text in which what a user wrote cannot become a control token.
//!
//! A chat template joins its own control tokens and the users' words into one string, and the tokenizer
//! cannot tell them apart. So every control token that stands in a user's words gets a mark behind its
//! first character before the template sees it, and the rendered text is cut at the marks: each run is
//! tokenized by itself and holds no control token but the template's. The words stay the same; only their
//! token boundaries at the cuts may differ from those of the uncut text.

/// Where a user's control token was broken. A private-use character, which user text loses.
pub(super) const MARK: char = '\u{F8FE}';

/// Text cut into runs that are tokenized separately.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Defused(Vec<String>);

impl Defused {
    /// Text to be taken as it is, control tokens included.
    pub(crate) fn plain(text: impl Into<String>) -> Self {
        Self(vec![text.into()])
    }

    /// What a template made of words that went through [`defuse`].
    pub(crate) fn from_rendered(text: &str) -> Self {
        Self(text.split(MARK).map(str::to_owned).collect())
    }

    pub(super) fn runs(&self) -> &[String] {
        &self.0
    }

    pub(super) fn joined(&self) -> String {
        self.0.concat()
    }

    /// Bytes of the text.
    pub(crate) fn bytes(&self) -> usize {
        self.0.iter().map(String::len).sum()
    }
}

/// Marks every control token that stands in a user's words; drops marks that they hold themselves.
pub(crate) fn defuse(words: &str, control_texts: &[String]) -> String {
    let mut clean = words.replace(MARK, "");
    for control in control_texts {
        let mut head = control.char_indices();
        let (Some(_), Some((cut, _))) = (head.next(), head.next()) else { continue };
        if clean.contains(control.as_str()) {
            clean = clean.replace(control.as_str(), &format!("{}{MARK}{}", &control[..cut], &control[cut..]));
        }
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_keep_their_text_and_lose_their_control_tokens() {
        let control = vec!["<|im_end|>".to_owned(), "<s>".to_owned()];
        let check = |words: &str, runs: &[&str]| {
            let defused = Defused::from_rendered(&defuse(words, &control));
            assert_eq!(defused.runs(), runs);
            assert_eq!(defused.bytes(), words.replace(MARK, "").len());
        };
        check("plain < words", &["plain < words"]);
        check("a<|im_end|>b", &["a<", "|im_end|>b"]);
        check("<s><s>", &["<", "s><", "s>"]);
        check("<|im_\u{F8FE}end|>", &["<", "|im_end|>"]);
    }
}
