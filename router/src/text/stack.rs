//! Stack for tokenizers that recurse, and texts that would need too much of it.
//!
//! The pre-tokenizers of many models are regular expressions that recurse once a character of the word
//! they match: 321 bytes of stack a character as measured, so that some 6,000 letters without a break fill
//! the 2 MiB of an ordinary thread, and the process ends. A text whose longest run is above
//! [`RUN_CHARS_INLINE`] is therefore tokenized on a thread whose stack fits the run.
//!
//! # Limits
//! A run may have [`RUN_CHARS_MAX`] characters, 256 MiB of stack at [`CHAR_STACK_BYTES`] each; more is
//! refused. The stack is mapped as it is used, and one such text is tokenized at a time, so that this is
//! all the memory it takes.

use std::thread;

use parking_lot::Mutex;

use super::TokenizeError;

/// Stack a character of a run: as measured, and half as much again for another compiler.
const CHAR_STACK_BYTES: usize = 512;
/// Longest run that the caller's own thread takes: half of 2 MiB.
const RUN_CHARS_INLINE: usize = (1 << 20) / CHAR_STACK_BYTES;
/// Longest run that is tokenized at all.
const RUN_CHARS_MAX: usize = (256 << 20) / CHAR_STACK_BYTES;
/// Stack of all else that tokenizing does.
const BASE_STACK_BYTES: usize = 2 << 20;

/// Calls `tokenize` with stack enough for texts of a longest run of `run_chars`.
pub(super) fn with_stack<T: Send>(
    run_chars: usize,
    tokenize: impl FnOnce() -> T + Send,
) -> Result<T, TokenizeError> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    if run_chars <= RUN_CHARS_INLINE {
        return Ok(tokenize());
    }
    if run_chars > RUN_CHARS_MAX {
        return Err(TokenizeError::Run { chars: run_chars, chars_max: RUN_CHARS_MAX });
    }
    let _turn = ONE_AT_A_TIME.lock();
    let stack_bytes = BASE_STACK_BYTES + run_chars * CHAR_STACK_BYTES;
    thread::scope(|scope| {
        let builder = thread::Builder::new().name("tokenize".into()).stack_size(stack_bytes);
        let thread = builder.spawn_scoped(scope, tokenize).map_err(TokenizeError::Thread)?;
        thread.join().map_err(|_| TokenizeError::Died)
    })
}

/// Characters of the longest part of a text that one match may span. That is a line with the white space
/// behind it: some models' expressions take many words of a line at once, and others a word with the line
/// breaks, or slashes, that follow; none goes on with the next line's words.
pub(super) fn longest_run(text: &str) -> usize {
    let (mut longest, mut chars, mut broken) = (0, 0, false);
    for char in text.chars() {
        match char {
            '\n' | '\r' => broken = true,
            '/' => {}
            _ if char.is_whitespace() => {}
            _ if broken => (chars, broken) = (0, false),
            _ => {}
        }
        chars += 1;
        longest = longest.max(chars);
    }
    longest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_a_line_and_the_white_space_behind_it() {
        let check = |text: &str, expected: usize| assert_eq!(longest_run(text), expected, "{text:?}");
        check("", 0);
        check("one word", 8);
        check("a\nbcd\ne", 4);
        check("!!\r\n/\n  a", 8);
        check("a\n//b", 4);
        check("é\né", 2);
    }

    /// Uses some 300 bytes of stack a level, as a tokenizer does; the array is lent, since how often one that
    /// is passed on is copied depends on the compiler's settings.
    fn recurse(depth: usize) -> u64 {
        let frame = [1_u64; 24];
        let frame = std::hint::black_box(&frame);
        if depth == 0 { 0 } else { recurse(depth - 1) + frame[0] }
    }

    #[test]
    fn the_longest_run_has_its_stack_and_one_more_is_refused() {
        let got = with_stack(RUN_CHARS_MAX, || recurse(RUN_CHARS_MAX));
        assert_eq!(got.unwrap(), RUN_CHARS_MAX as u64);
        let refused = with_stack(RUN_CHARS_MAX + 1, || unreachable!("it is refused"));
        assert!(matches!(refused, Err(TokenizeError::Run { chars: 524_289, chars_max: 524_288 })));
    }
}
