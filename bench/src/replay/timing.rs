//! How long an engine's pass takes.
//!
//! The polynomials are those of Dynamo's mocker (`lib/mocker`, its `PerfModel::Polynomial`), so that figures
//! of both can stand side by side.

/// Milliseconds to evaluate so many new prompt tokens of one batch.
pub(crate) fn prefill_ms(tokens: u64) -> f64 {
    if tokens == 0 {
        return 0.0;
    }
    let tokens = tokens as f64;
    4.209989e-7 * tokens * tokens + 1.518344e-2 * tokens + 16.50142
}

/// Milliseconds of a step that gives each running sequence a token, with so much of the KV memory in use.
pub(crate) fn decode_ms(active_blocks: usize, capacity_blocks: usize) -> f64 {
    let share = (active_blocks as f64 / capacity_blocks.max(1) as f64).min(1.0);
    (-25.74 * share * share + 54.01 * share + 5.74).max(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_polynomials_are_the_published_ones() {
        let close = |value: f64, expected: f64| assert!((value - expected).abs() < 1e-6, "{value}");
        close(prefill_ms(0), 0.0);
        close(prefill_ms(1_000), 16.50142 + 15.18344 + 0.4209989);
        close(decode_ms(0, 16_384), 5.74);
        close(decode_ms(8_192, 16_384), -6.435 + 27.005 + 5.74);
        close(decode_ms(99_999, 16_384), 34.01);
    }
}
