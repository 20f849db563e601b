//! How a prompt is cut into evaluation steps; one rule for prefill, decode and the reference.
//!
//! With flash attention the shape of a batch changes the last bits of the logits. Whoever evaluates a prompt
//! cuts it alike, so that the same prefix in the cache gives the same tokens.

/// Whole blocks of a prompt that are worth storing: at least one prompt token is always left over, since
/// logits are not part of a block.
pub(crate) fn prompt_blocks(prompt_tokens: usize, block_tokens: usize) -> usize {
    prompt_tokens.saturating_sub(1) / block_tokens
}

/// Tokens of the next step of a sequence with `evaluated` of `known` tokens, of which the first `prompt` are
/// the prompt: chunks up to the last whole block of the prompt, then the tail in one, then token by token, those
/// that are known already too.
pub(crate) fn next_chunk(
    evaluated: usize,
    known: usize,
    prompt: usize,
    block_tokens: usize,
    chunk_tokens: usize,
) -> usize {
    let aligned = prompt_blocks(prompt, block_tokens) * block_tokens;
    if evaluated < aligned {
        (aligned - evaluated).min(chunk_tokens)
    } else if evaluated < prompt {
        prompt.min(known) - evaluated
    } else {
        (known - evaluated).min(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_prompt_token_is_always_left() {
        assert_eq!([0, 1, 16, 17, 32, 33].map(|n| prompt_blocks(n, 16)), [0, 0, 0, 1, 1, 2]);
    }

    #[test]
    fn chunks_then_tail_then_single_tokens() {
        let mut evaluated = 0;
        let mut chunks = Vec::new();
        for known in [70, 70, 70, 71, 72] {
            let chunk = next_chunk(evaluated, known, 70, 16, 48);
            chunks.push(chunk);
            evaluated += chunk;
        }
        assert_eq!(chunks, [48, 16, 6, 1, 1]);
        assert_eq!(next_chunk(32, 33, 33, 16, 128), 1, "all blocks imported");
        assert_eq!(next_chunk(0, 7, 7, 16, 128), 7, "shorter than a block");
        assert_eq!([40, 70, 80].map(|n| next_chunk(n, 90, 70, 16, 48)), [24, 1, 1], "as it was generated");
    }
}
