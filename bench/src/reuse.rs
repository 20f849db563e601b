//! The headline: what a stored prefix saves. For each of some prefixes the first request is cold; those behind
//! it, with other questions behind the same prefix, are warm; all in the same run, alone on the machine.
//!
//! What a warm request still evaluates is its question, so the saving depends on how long that is: each
//! length asked for is measured on every prefix.

use anyhow::bail;

use crate::client::{Client, Completed, Message};
use crate::prompts::{Stream, question, rng, words};
use crate::report::{Report, number};

/// A first request that finds more than this share of its prompt stored was not cold.
const COLD_SHARE_MAX: f64 = 0.2;

pub(crate) struct Reuse {
    pub(crate) prefixes: usize,
    pub(crate) prefix_words: usize,
    /// Lengths of the warm requests' questions; the cold request has the first.
    pub(crate) question_words: Vec<usize>,
}

/// A prefix's cold request and one of its warm ones.
struct Pair {
    cold: Completed,
    warm: Completed,
}

impl Pair {
    fn ratio(&self) -> f64 {
        self.cold.first.as_secs_f64() / self.warm.first.as_secs_f64()
    }

    /// Prompt tokens that the warm request did not find.
    fn evaluated(&self) -> u64 {
        self.warm.usage.prompt_tokens.saturating_sub(self.warm.usage.cached_tokens)
    }
}

impl Reuse {
    /// Measures and reports. Fails when a request fails or when the prefixes were stored before.
    pub(crate) async fn run(&self, client: &Client, seed: u64, report: &mut Report) -> anyhow::Result<()> {
        let mut rng = rng(seed, Stream::Reuse);
        let Some(&first_words) = self.question_words.first() else { return Ok(()) };
        let mut by_length: Vec<Vec<Pair>> = self.question_words.iter().map(|_| Vec::new()).collect();
        for index in 0..self.prefixes {
            let prefix = words(&mut rng, self.prefix_words);
            let mut ask = async |question_words: usize| {
                let question = question(&mut rng, question_words);
                let messages = [Message::new("system", prefix.clone()), Message::new("user", question)];
                // Four tokens: the first is the one that counts.
                client
                    .chat(&messages, 4)
                    .await
                    .map_err(|failure| anyhow::anyhow!("a request failed: {failure}"))
            };
            let cold = ask(first_words).await?;
            let share = cold.usage.cached_tokens as f64 / cold.usage.prompt_tokens.max(1) as f64;
            if share > COLD_SHARE_MAX {
                bail!(
                    "prefix {index} was stored before this run ({} of {} prompt tokens), so that its first request is \
                     not cold; give another --seed",
                    cold.usage.cached_tokens,
                    cold.usage.prompt_tokens
                );
            }
            let mut said = Vec::new();
            for (pairs, &words) in by_length.iter_mut().zip(&self.question_words) {
                let pair = Pair { cold: cold.clone(), warm: ask(words).await? };
                said.push(format!("{}x", number(pair.ratio())));
                pairs.push(pair);
            }
            eprintln!("prefix {} of {}: {}", index + 1, self.prefixes, said.join(", "));
        }
        for (number, pairs) in by_length.iter().enumerate().filter(|(_, pairs)| !pairs.is_empty()) {
            tell(number, pairs, report);
        }
        Ok(())
    }
}

fn tell(length: usize, pairs: &[Pair], report: &mut Report) {
    let evaluated = median(pairs.iter().map(|pair| pair.evaluated() as f64));
    report.line(format!(
        "\nprefix reuse: time to first token of the same prefix, first time and again, {} tokens left to evaluate",
        number(evaluated)
    ));
    report.line(format!(
        "  {:<8}{:>14}{:>10}{:>12}{:>12}{:>12}",
        "prefix", "prompt tokens", "cached", "cold ms", "warm ms", "cold/warm"
    ));
    for (index, pair) in pairs.iter().enumerate() {
        report.line(format!(
            "  {index:<8}{:>14}{:>10}{:>12}{:>12}{:>11}x",
            pair.warm.usage.prompt_tokens,
            pair.warm.usage.cached_tokens,
            number(pair.cold.first.as_secs_f64() * 1e3),
            number(pair.warm.first.as_secs_f64() * 1e3),
            number(pair.ratio()),
        ));
    }
    let cold = median(pairs.iter().map(|pair| pair.cold.first.as_secs_f64() * 1e3));
    let warm = median(pairs.iter().map(|pair| pair.warm.first.as_secs_f64() * 1e3));
    let cached = median(pairs.iter().map(|pair| pair.warm.usage.cached_tokens as f64));
    let prompt = median(pairs.iter().map(|pair| pair.warm.usage.prompt_tokens as f64));
    let ratio = median(pairs.iter().map(Pair::ratio));
    let worst = pairs.iter().map(Pair::ratio).fold(f64::INFINITY, f64::min);
    report.line(format!(
        "  {:<8}{:>14}{:>10}{:>12}{:>12}{:>11}x   worst {}x",
        "median",
        number(prompt),
        number(cached),
        number(cold),
        number(warm),
        number(ratio),
        number(worst)
    ));
    let name = |what: &str| format!("reuse.question_{length}.{what}");
    report.figure(name("cold_first_token_median"), cold, "ms");
    report.compared(name("warm_first_token_median"), warm, "ms", cold, ratio);
    report.compared(name("cached_tokens_median"), cached, "tokens", prompt, cached / prompt);
    report.figure(name("cold_to_warm_worst"), worst, "x");
}

/// Of at least one value.
fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len().is_multiple_of(2) { (values[middle - 1] + values[middle]) / 2.0 } else { values[middle] }
}

#[cfg(test)]
mod tests {
    #[test]
    fn medians() {
        assert_eq!(super::median([3.0, 1.0, 2.0].into_iter()), 2.0);
        assert_eq!(super::median([4.0, 1.0, 2.0, 3.0].into_iter()), 2.5);
    }
}
