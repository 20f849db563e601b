use super::*;
use crate::testing::test_model;

const BLOCK_TOKENS: u32 = 16;

fn engine() -> LlamaEngine {
    let options = EngineOptions {
        block_tokens: BLOCK_TOKENS,
        slots: 2,
        context_tokens: 512,
        cells: Some(1024),
        ..Default::default()
    };
    LlamaEngine::load(&test_model(), &options).unwrap()
}

/// Token ids in the vocabulary of any model, without a pattern.
fn tokens(count: u32) -> Vec<u32> {
    (0..count).map(|i| 500 + (i * 7919) % 10_000).collect()
}

fn evaluate(engine: &mut LlamaEngine, sequence: u32, tokens: &[u32]) -> Vec<f32> {
    engine.evaluate(&[BatchItem { sequence, tokens, logits: true }]).unwrap();
    engine.logits(0).to_vec()
}

fn export(engine: &mut LlamaEngine, sequence: u32, blocks: u32) -> Vec<Vec<u8>> {
    (0..blocks)
        .map(|index| {
            let mut block = vec![0; engine.spec().block_bytes as usize];
            engine.export_block(sequence, index, &mut block).unwrap();
            block
        })
        .collect()
}

fn import(engine: &mut LlamaEngine, sequence: u32, blocks: &[Vec<u8>]) {
    blocks.iter().for_each(|block| engine.import_block(sequence, block).unwrap());
}

fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|logit| logit.to_bits()).collect()
}

#[test]
fn blocks_move_between_engines_bit_by_bit() {
    let prompt = tokens(4 * BLOCK_TOKENS + 5);
    let (prefix, tail) = prompt.split_at(4 * BLOCK_TOKENS as usize);
    let mut source = engine();
    source.evaluate(&[BatchItem { sequence: 0, tokens: prefix, logits: false }]).unwrap();
    let blocks = export(&mut source, 0, 4);
    let expected = evaluate(&mut source, 0, tail);

    let mut target = engine();
    import(&mut target, 0, &blocks);
    assert_eq!(target.len(0), 4 * BLOCK_TOKENS);
    assert_eq!(export(&mut target, 0, 4), blocks, "export after import gives the same bytes");
    assert_eq!(bits(&evaluate(&mut target, 0, tail)), bits(&expected), "logits after import");

    // Beside another sequence in the same cache, and with the prefix cut back to the imported blocks.
    import(&mut target, 1, &blocks);
    assert_eq!(bits(&evaluate(&mut target, 1, tail)), bits(&expected), "logits beside a sequence");
    target.truncate(0, 4 * BLOCK_TOKENS).unwrap();
    assert_eq!(bits(&evaluate(&mut target, 0, tail)), bits(&expected), "logits after truncation");
    assert_eq!(export(&mut target, 1, 4), blocks);
}

#[test]
fn a_sequence_in_a_batch_of_two_exports_its_own_blocks() {
    let (first, second) = (tokens(BLOCK_TOKENS), tokens(2 * BLOCK_TOKENS).split_off(BLOCK_TOKENS as usize));
    let mut engine = engine();
    engine
        .evaluate(&[
            BatchItem { sequence: 0, tokens: &first, logits: true },
            BatchItem { sequence: 1, tokens: &second, logits: true },
        ])
        .unwrap();
    assert_ne!(engine.logits(0), engine.logits(1));
    let (first, second) = (export(&mut engine, 0, 1), export(&mut engine, 1, 1));
    assert_ne!(first, second);
    engine.clear(0);
    engine.clear(1);
    import(&mut engine, 0, &second);
    assert_eq!(export(&mut engine, 0, 1), second);
}

#[test]
fn a_full_cache_is_an_error_and_leaves_the_others_alone() {
    let options = EngineOptions { slots: 2, context_tokens: 256, cells: Some(256), ..Default::default() };
    let mut engine = LlamaEngine::load(&test_model(), &options).unwrap();
    for chunk in tokens(240).chunks(120) {
        engine.evaluate(&[BatchItem { sequence: 0, tokens: chunk, logits: false }]).unwrap();
    }
    let block = export(&mut engine, 0, 1).remove(0);
    engine.import_block(1, &block).unwrap();
    assert!(matches!(engine.import_block(1, &block), Err(EngineError::Full { .. })));
    assert_eq!(engine.len(1), 16, "a failed import leaves the sequence as it was");
    let error = engine.evaluate(&[BatchItem { sequence: 1, tokens: &[1], logits: true }]).unwrap_err();
    assert!(error.is_retryable(), "{error}");
    assert_eq!((engine.len(0), engine.len(1)), (240, 0));
    assert_eq!(export(&mut engine, 0, 1).remove(0), block);
}

#[test]
fn the_spec_says_what_the_model_is() {
    let engine = engine();
    let spec = engine.spec();
    assert!(!spec.model_name.is_empty() && !spec.model_name.contains(char::is_whitespace));
    let fingerprint = &spec.fingerprint;
    assert_eq!((fingerprint.engine.as_str(), fingerprint.dtype.as_str()), ("llama.cpp", "f16"));
    for name in ["flash_attention", "layers", "kv_heads", "head_dim", "rope.freq_base", "context_train"] {
        assert!(fingerprint.attributes.contains_key(name), "{name} is missing in {fingerprint}");
    }
    let number = |name: &str| fingerprint.attributes[name].parse::<u64>().unwrap();
    let token_bytes = number("layers") * number("kv_heads") * number("head_dim") * 2 * 2;
    assert_eq!(spec.block_bytes, u64::from(BLOCK_TOKENS) * token_bytes, "K and V, two bytes each");
    assert_eq!(engine.spec(), super::tests::engine().spec(), "two engines of one file agree");
}

#[test]
fn files_that_are_no_model_say_what_to_change() {
    let check = |path: &Path, expected: &str| {
        let error = LlamaEngine::load(path, &EngineOptions::default()).err().unwrap().to_string();
        assert!(error.contains(expected) && error.contains(&*path.to_string_lossy()), "{error}");
    };
    check(Path::new("/nonexistent/model.gguf"), "give the path of a readable GGUF file");
    let folder = tempfile::tempdir().unwrap();
    check(folder.path(), "it is not a file");
    let file = folder.path().join("model.bin");
    std::fs::write(&file, b"PK\x03\x04....").unwrap();
    check(&file, "does not begin with GGUF");
    std::fs::write(&file, b"GGUF\x03\0\0\0").unwrap();
    check(&file, "complete GGUF file");
}
