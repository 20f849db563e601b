use super::*;
use crate::engine::{BatchItem, Engine, EngineOptions, toy::ToyEngine};
use crate::sampling::SamplingPlan;

fn grammars() -> Arc<Grammars> {
    let engine = ToyEngine::new(Default::default(), &EngineOptions::default());
    Arc::new(Grammars::new(engine.token_texts()))
}

fn compile(grammar: &str) -> Result<Constraint, Refusal> {
    check(grammar)?;
    grammars().compile_here(grammar.to_owned(), &[])
}

/// What the toy writes under a grammar, greedily or drawn by a seed, and whether the grammar ended it.
fn generate(grammar: &str, seed: Option<u64>, tokens_max: usize) -> (String, bool) {
    let mut engine = ToyEngine::new(Default::default(), &EngineOptions::default());
    let mut constraint = compile(grammar).unwrap();
    let sampling = kelvin_proto::worker::v1::Sampling {
        temperature: if seed.is_some() { 1.0 } else { 0.0 },
        top_p: 1.0,
        presence_penalty: if seed.is_some() { 0.5 } else { 0.0 },
        seed,
        ..Default::default()
    };
    let mut sampler = SamplingPlan::check(Some(&sampling), None, 64, 258).unwrap().sampler();
    let mut text = Vec::new();
    let mut tokens = vec![65];
    while text.len() < tokens_max {
        engine.evaluate(&[BatchItem { sequence: 0, tokens: &tokens, logits: true }]).unwrap();
        let allowed = constraint.allowed().unwrap();
        let token = sampler.sample_among(engine.logits(0), Some(&allowed)).unwrap().token;
        if constraint.is_end(token) {
            return (String::from_utf8(text).unwrap(), true);
        }
        text.push(u8::try_from(token).unwrap());
        if constraint.accept(token).unwrap() {
            return (String::from_utf8(text).unwrap(), true);
        }
        tokens = vec![token];
    }
    (String::from_utf8_lossy(&text).into_owned(), false)
}

#[test]
fn text_is_what_the_grammar_says_and_ends_with_it() {
    assert!(generate(r#"start: "yes" | "no!""#, None, 9).1);
    let schema = r#"start: %json {"type":"object","properties":{"a":{"enum":["x","yy"]},"b":{"type":"integer","minimum":0,"maximum":99}},
        "required":["a","b"],"additionalProperties":false,"x-guidance":{"whitespace_flexible":false}}"#;
    let mut texts = std::collections::BTreeSet::new();
    for seed in [None, Some(1), Some(2), Some(3), Some(4), Some(5)] {
        let (text, ended) = generate(schema, seed, 64);
        assert!(ended, "{text}");
        let inner = text.strip_prefix(r#"{"a":""#).and_then(|rest| rest.strip_suffix('}')).expect(&text);
        let (word, number) = inner.split_once(r#"","b":"#).expect(&text);
        assert!(["x", "yy"].contains(&word) && number.parse::<u32>().unwrap() < 100, "{text}");
        texts.insert(text);
    }
    assert!(texts.len() > 1, "seeds draw different texts: {texts:?}");
}

#[test]
fn what_cannot_be_compiled_is_refused_in_words() {
    let check = |grammar: &str, expected: &str| {
        let refusal = compile(grammar).err().unwrap();
        assert_eq!(refusal.reason, Reason::InvalidArgument);
        assert!(
            refusal.message.starts_with("grammar: ") && refusal.message.contains(expected),
            "{refusal:?}"
        );
        assert!(refusal.message.len() < 1000 && !refusal.message.contains('\n'), "{refusal:?}");
    };
    check("start: (", "");
    check("start: nothing", "nothing");
    check(r#"start: %json {"type":"objekt"}"#, "objekt");
    check(r#"start: %json {"type":"string","contains":1}"#, "contains");
    check(r#"start: %json {"type":"string","pattern":"("}"#, "");
    check(r##"start: %json {"$ref":"#/$defs/none"}"##, "none");
    check(r##"start: %json {"$ref":"https://example.com/x"}"##, "ref");
    check(r#"start: %json {"type":"string","minLength":5,"maxLength":4}"#, "nsatisfiable");
    check(&format!("start: {}\"a\"{}", "(".repeat(65), ")".repeat(65)), "nested 65 deep");
    check(&"a".repeat(GRAMMAR_BYTES_MAX + 1), "262145 bytes");
}

#[test]
fn references_to_themselves_end() {
    let tree = r##"start: %json {"$ref":"#/$defs/t","$defs":{"t":{"type":"object","properties":{"c":{"type":"array","items":{"$ref":"#/$defs/t"},
        "maxItems":1}},"required":["c"],"additionalProperties":false}}}"##;
    assert!(compile(tree).is_ok());
    // Nothing satisfies it, or anything does; either is an answer.
    let _ = compile(r##"start: %json {"$ref":"#"}"##);
    let _ = compile(r##"start: %json {"allOf":[{"$ref":"#"},{"type":"string"}]}"##);
    let _ = compile(r##"start: %json {"anyOf":[{"$ref":"#"},{"type":"string"}]}"##);
}

#[tokio::test]
async fn the_deepest_nesting_has_its_stack() {
    let depth = NESTING_MAX / 2 - 1;
    let schema = format!("{}{{}}{}", r#"{"type":"array","items":"#.repeat(depth), "}".repeat(depth));
    grammars().compile(format!("start: %json {schema}"), Vec::new()).await.unwrap();
    let properties = format!("{}{{}}{}", r#"{"properties":{"a":"#.repeat(depth), "}}".repeat(depth));
    grammars().compile(format!("start: %json {properties}"), Vec::new()).await.unwrap();
    let choices = format!("{}{{}}{}", r#"{"anyOf":[{"type":"null"},"#.repeat(depth), "]}".repeat(depth));
    grammars().compile(format!("start: %json {choices}"), Vec::new()).await.unwrap();
}
