//! Constrained decoding: which tokens a completion may go on with, so that its text is what a grammar says.
//!
//! # Overview
//! [`Grammars`] compiles the grammar of a request, beside the engine's thread; the [`Constraint`] that comes out
//! follows one sequence. Before each token it names those that may come, and it is told which one did. Grammars,
//! JSON schemas in them, and the masks are llguidance's: Rust alone, so that a grammar which it does not take is a
//! refusal and never the end of the process.
//!
//! # Limits
//! A grammar has at most [`GRAMMAR_BYTES_MAX`], nested at most [`NESTING_MAX`] deep; what compiling it and one
//! step of it may cost is bounded by llguidance's own limits. Two are compiled at a time. Control tokens are
//! never allowed, but those that end a text, where the grammar is complete.

use std::{
    fmt::{self, Display},
    sync::{Arc, OnceLock},
};

use kelvin_proto::{Reason, Refusal};
use llguidance::{
    Matcher, ParserFactory,
    api::{GrammarInit, TopLevelGrammar},
    earley::SlicedBiasComputer,
    toktrie::{ApproximateTokEnv, InferenceCapabilities, SimpleVob, TokEnv, TokRxInfo, TokTrie},
};
use tokio::sync::Semaphore;

use crate::engine::TokenTexts;

/// Most bytes of a grammar.
const GRAMMAR_BYTES_MAX: usize = 256 << 10;
/// Most brackets that may be open at once: compiling recurses.
const NESTING_MAX: usize = 64;
/// Most states of a constraint's lexer, at 1 to 2 kB each.
const LEXER_STATES_MAX: usize = 20_000;
/// Most characters of a reason: it may hold the client's own text.
const REASON_CHARS_MAX: usize = 300;
/// Stack of a compilation: four times what the deepest nesting was seen to take.
const STACK_BYTES: usize = 16 << 20;

/// Compiles grammars for one vocabulary.
pub(crate) struct Grammars {
    texts: TokenTexts,
    /// Made by the first grammar: most workers never see one.
    factory: OnceLock<Result<ParserFactory, String>>,
    places: Semaphore,
}

impl Grammars {
    pub(crate) fn new(texts: TokenTexts) -> Self {
        Self { texts, factory: OnceLock::new(), places: Semaphore::new(2) }
    }

    /// Compiles a grammar, on a thread of its own, and has it follow the output that is there already.
    pub(crate) async fn compile(
        self: Arc<Self>,
        grammar: String,
        generated: Vec<u32>,
    ) -> Result<Constraint, Refusal> {
        check(&grammar)?;
        // The semaphore is never closed.
        let _place = self.places.acquire().await;
        let grammars = self.clone();
        let (sender, compiled) = tokio::sync::oneshot::channel();
        let work = move || drop(sender.send(grammars.compile_here(grammar, &generated)));
        let failed = |what: String| Refusal::new(Reason::Internal, format!("compile the grammar: {what}"));
        std::thread::Builder::new()
            .name("grammar".into())
            .stack_size(STACK_BYTES)
            .spawn(work)
            .map_err(|error| failed(error.to_string()))?;
        compiled.await.map_err(|_| failed("its thread panicked".into()))?
    }

    fn compile_here(&self, grammar: String, generated: &[u32]) -> Result<Constraint, Refusal> {
        let factory = self.factory.get_or_init(|| factory(&self.texts));
        let factory = factory.as_ref().map_err(|why| {
            Refusal::new(Reason::Internal, format!("grammars can't be had with this vocabulary: {why}"))
        })?;
        let init = GrammarInit::Serialized(TopLevelGrammar::from_lark(grammar));
        let parser = factory.create_parser_from_init_default(init);
        let mut matcher = Matcher::new(parser);
        if let Some(why) = matcher.get_error() {
            return Err(refused(&why));
        }
        let others = || Refusal::invalid("generated_tokens: the grammar does not allow these tokens");
        for &token in generated {
            matcher.consume_token(token).map_err(|_| others())?;
        }
        Ok(Constraint { matcher, ends: self.texts.ends.clone() })
    }
}

/// Follows one completion.
pub(crate) struct Constraint {
    matcher: Matcher,
    ends: Vec<u32>,
}

impl Constraint {
    /// Tokens that may come next; at least one.
    pub(crate) fn allowed(&mut self) -> Result<SimpleVob, Refusal> {
        let allowed = self.matcher.compute_mask_or_eos().map_err(|error| failed(&error))?;
        if allowed.is_zero() {
            return Err(refused("no token of this model's vocabulary can go on from here"));
        }
        Ok(allowed)
    }

    /// Whether nothing may follow any more.
    pub(crate) fn is_complete(&self) -> bool {
        self.matcher.is_stopped()
    }

    /// Whether a token ends the text. It may be chosen where the grammar is complete, and is not accepted.
    pub(crate) fn is_end(&self, token: u32) -> bool {
        self.ends.contains(&token)
    }

    /// Takes the token that came, one of those allowed; true when nothing may follow it.
    pub(crate) fn accept(&mut self, token: u32) -> Result<bool, Refusal> {
        self.matcher.consume_token(token).map_err(|error| failed(&error))?;
        Ok(self.is_complete())
    }
}

fn factory(texts: &TokenTexts) -> Result<ParserFactory, String> {
    let [end, ..] = texts.ends[..] else { return Err("it has no token that ends a text".into()) };
    let info = TokRxInfo::new(texts.pieces.len() as u32, end);
    let trie = TokTrie::from(&info, &texts.pieces).with_eos_tokens(&texts.ends);
    let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
    let slices = SlicedBiasComputer::general_slices();
    let mut factory = ParserFactory::new(&environment, InferenceCapabilities::default(), &slices)
        .map_err(|error| error.to_string())?;
    factory.quiet();
    let limits = factory.limits_mut();
    limits.verbose_errors = false;
    limits.max_lexer_states = LEXER_STATES_MAX;
    Ok(factory)
}

/// Refuses what would take too much to compile.
fn check(grammar: &str) -> Result<(), Refusal> {
    if grammar.len() > GRAMMAR_BYTES_MAX {
        let bytes = grammar.len();
        return Err(refused(&format!("it has {bytes} bytes; the limit is {GRAMMAR_BYTES_MAX}")));
    }
    // Brackets within strings count as well: who writes a hundred of them in a row is refused for it.
    let (mut open, mut deepest) = (0usize, 0);
    for byte in grammar.bytes() {
        match byte {
            b'{' | b'[' | b'(' => open += 1,
            b'}' | b']' | b')' => open = open.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(open);
    }
    if deepest > NESTING_MAX {
        return Err(refused(&format!("it is nested {deepest} deep; the limit is {NESTING_MAX}")));
    }
    Ok(())
}

fn refused(why: &str) -> Refusal {
    let first = why.lines().next().unwrap_or_default();
    let short: String = first.chars().take(REASON_CHARS_MAX).collect();
    Refusal::invalid(format!("grammar: {short}"))
}

fn failed(error: &impl Display) -> Refusal {
    let Refusal { message, .. } = refused(&error.to_string());
    Refusal::new(Reason::EngineFailed, message)
}

impl fmt::Debug for Constraint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Constraint")
            .field("stopped", &self.matcher.is_stopped())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
