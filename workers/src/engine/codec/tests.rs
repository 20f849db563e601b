use proptest::prelude::*;

use super::*;

/// Two layers, two tokens; K rows of 4 bytes, V rows of 2 and 6; cells out of order.
const GOLDEN_BLOB: &[u8] = &[
    0xd8, 0x3c, 0x14, 0xaf, // magic
    7, 0, 0, 0, // source sequence
    1, 0, 0, 0, // streams
    2, 0, 0, 0, // cells
    33, 0, 0, 0, 1, 0, 0, 0, 7, 0, 0, 0, // position 33, one sequence, 7
    32, 0, 0, 0, 1, 0, 0, 0, 7, 0, 0, 0, // position 32
    0, 0, 0, 0, // v_transposed
    2, 0, 0, 0, // layers
    0, 0, 0, 0, // rotation_k
    0, 0, 0, 0, // rotation_v
    1, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, // layer 0: f16, 4 bytes a row
    0x10, 0x11, 0x12, 0x13, // K of 33
    0x14, 0x15, 0x16, 0x17, // K of 32
    1, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, // layer 1
    0x20, 0x21, 0x22, 0x23, // K of 33
    0x24, 0x25, 0x26, 0x27, // K of 32
    1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, // layer 0
    0x30, 0x31, // V of 33
    0x32, 0x33, // V of 32
    1, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0, // layer 1
    0x40, 0x41, 0x42, 0x43, 0x44, 0x45, // V of 33
    0x46, 0x47, 0x48, 0x49, 0x4a, 0x4b, // V of 32
];

const GOLDEN_BLOCK: &[u8] = &[
    0x14, 0x15, 0x16, 0x17, 0x10, 0x11, 0x12, 0x13, // layer 0, K of 32 and 33
    0x32, 0x33, 0x30, 0x31, // layer 0, V
    0x24, 0x25, 0x26, 0x27, 0x20, 0x21, 0x22, 0x23, // layer 1, K
    0x46, 0x47, 0x48, 0x49, 0x4a, 0x4b, 0x40, 0x41, 0x42, 0x43, 0x44, 0x45, // layer 1, V
];

fn row(bytes: usize) -> Row {
    Row { element_type: TYPE_F16, bytes }
}

fn golden_shape() -> StateShape {
    StateShape::new(vec![row(4), row(4)], vec![row(2), row(6)])
}

fn decoded(blob: &[u8], first: u32, tokens: u32, shape: &StateShape) -> Result<Vec<u8>, CodecError> {
    let mut block = vec![0xee; shape.block_bytes(tokens as usize)];
    decode(shape, blob, first, tokens, &mut block).map(|()| block)
}

#[test]
fn golden_blob_gives_golden_block() {
    assert_eq!(StateShape::read(GOLDEN_BLOB), Ok(golden_shape()));
    assert_eq!(decoded(GOLDEN_BLOB, 32, 2, &golden_shape()).as_deref(), Ok(GOLDEN_BLOCK));
    assert_eq!(golden_shape().blob_bytes(2), GOLDEN_BLOB.len());
    assert_eq!(golden_shape().block_bytes(2), GOLDEN_BLOCK.len());
}

#[test]
fn encode_writes_the_blob_in_position_order() {
    let mut blob = vec![1, 2, 3];
    encode(&golden_shape(), GOLDEN_BLOCK, 32, 2, &mut blob).unwrap();
    assert_eq!(blob[..16], [0xd8, 0x3c, 0x14, 0xaf, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0]);
    assert_eq!(blob[16..40], [32, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 33, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(blob[40..68], GOLDEN_BLOB[40..68]);
    assert_eq!(blob[68..76], [0x14, 0x15, 0x16, 0x17, 0x10, 0x11, 0x12, 0x13]);
    assert_eq!(decoded(&blob, 32, 2, &golden_shape()).as_deref(), Ok(GOLDEN_BLOCK));
}

#[test]
fn errors_say_what_is_wrong() {
    let check = |offset: usize, value: u8, expected: &str| {
        let mut blob = GOLDEN_BLOB.to_vec();
        blob[offset] = value;
        let error = decoded(&blob, 32, 2, &golden_shape()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    check(0, 0, "magic is");
    check(8, 2, "streams is 2, not 1");
    check(12, 3, "cells is 3, not 2");
    check(16, 32, "position 32 is twice");
    check(16, 34, "position 34");
    check(20, 2, "sequences of a cell is 2, not 1");
    check(40, 1, "v_transposed is 1, not 0");
    check(44, 3, "layers is 3, not 2");
    check(48, 64, "rotation_k is 64, not 0");
    check(56, 0, "element type is 0, not 1");
    check(60, 8, "row bytes is 8, not 4");
    let long = [GOLDEN_BLOB, &[0]].concat();
    assert_eq!(
        decoded(&long, 32, 2, &golden_shape()),
        Err(CodecError::Trailing { bytes: 1 }),
        "bytes left over"
    );
    assert_eq!(
        decode(&golden_shape(), GOLDEN_BLOB, 32, 2, &mut [0; 3]),
        Err(CodecError::Size { what: "block", found: 3, expected: 32 })
    );
    assert!(encode(&golden_shape(), GOLDEN_BLOCK, u32::MAX, 2, &mut Vec::new()).is_err());
}

#[test]
fn absurd_counts_neither_panic_nor_allocate() {
    for offset in [12, 44, 60] {
        let mut blob = GOLDEN_BLOB.to_vec();
        blob[offset..offset + 4].fill(0xff);
        assert!(StateShape::read(&blob).is_err(), "count at {offset}");
    }
    let mut blob = GOLDEN_BLOB.to_vec();
    blob[60..68].fill(0xff);
    assert!(StateShape::read(&blob).is_err(), "a row of 2^64 - 1 bytes");
}

fn shapes() -> impl Strategy<Value = StateShape> {
    prop::collection::vec((1usize..9, 1usize..9), 1..5).prop_map(|layers| {
        let (keys, values): (Vec<_>, Vec<_>) = layers.into_iter().map(|(k, v)| (row(k), row(v))).unzip();
        StateShape::new(keys, values)
    })
}

/// A shape, tokens, first position and a block that fits.
fn blocks() -> impl Strategy<Value = (StateShape, u32, u32, Vec<u8>)> {
    (shapes(), 1u32..6, 0u32..1000).prop_flat_map(|(shape, tokens, first)| {
        let bytes = shape.block_bytes(tokens as usize);
        (Just(shape), Just(tokens), Just(first), prop::collection::vec(any::<u8>(), bytes))
    })
}

/// Where the rows of a blob stand.
fn payload(shape: &StateShape, tokens: u32) -> Vec<std::ops::Range<usize>> {
    let mut at = HEAD_BYTES + tokens as usize * CELL_BYTES + TENSOR_HEAD_BYTES;
    let mut ranges = Vec::new();
    for (row, _) in shape.rows(tokens as usize) {
        at += ROW_HEAD_BYTES;
        ranges.push(at..at + row.bytes * tokens as usize);
        at += row.bytes * tokens as usize;
    }
    ranges
}

/// Fields that say which sequence it was: not part of a block, ignored.
fn is_sequence_id(offset: usize, tokens: u32) -> bool {
    let cells = HEAD_BYTES..HEAD_BYTES + tokens as usize * CELL_BYTES;
    (4..8).contains(&offset) || (cells.contains(&offset) && (offset - HEAD_BYTES) % CELL_BYTES >= 8)
}

proptest! {
    #[test]
    fn a_block_survives_a_round_trip((shape, tokens, first, block) in blocks()) {
        let mut blob = Vec::new();
        encode(&shape, &block, first, tokens, &mut blob).unwrap();
        prop_assert_eq!(&StateShape::read(&blob), &Ok(shape.clone()));
        prop_assert_eq!(decoded(&blob, first, tokens, &shape), Ok(block));
    }

    #[test]
    fn a_flipped_bit_is_an_error_or_that_one_bit(
        (shape, tokens, first, block) in blocks(),
        place in any::<prop::sample::Index>(),
        bit in 0u32..8,
    ) {
        let mut blob = Vec::new();
        encode(&shape, &block, first, tokens, &mut blob).unwrap();
        let offset = place.index(blob.len());
        blob[offset] ^= 1 << bit;
        let _ = StateShape::read(&blob);
        match decoded(&blob, first, tokens, &shape) {
            Ok(found) if payload(&shape, tokens).iter().any(|range| range.contains(&offset)) => {
                let flipped: u32 =
                    found.iter().zip(&block).map(|(found, sent)| (found ^ sent).count_ones()).sum();
                prop_assert_eq!(flipped, 1);
            }
            Ok(found) => {
                prop_assert!(is_sequence_id(offset, tokens), "framing byte {} was not checked", offset);
                prop_assert_eq!(found, block);
            }
            Err(_) => prop_assert!(!is_sequence_id(offset, tokens)),
        }
    }

    #[test]
    fn a_truncated_blob_is_an_error(
        (shape, tokens, first, block) in blocks(),
        place in any::<prop::sample::Index>(),
    ) {
        let mut blob = Vec::new();
        encode(&shape, &block, first, tokens, &mut blob).unwrap();
        blob.truncate(place.index(blob.len()));
        prop_assert!(StateShape::read(&blob).is_err());
        prop_assert!(decoded(&blob, first, tokens, &shape).is_err());
    }

    #[test]
    fn noise_never_panics(noise in prop::collection::vec(any::<u8>(), 0..200), (shape, tokens, first, _) in blocks()) {
        prop_assert!(decoded(&noise, first, tokens, &shape).is_err());
        let framed = [&MAGIC.to_le_bytes()[..], &[0, 0, 0, 0, 1, 0, 0, 0], &noise].concat();
        if let Ok(read) = StateShape::read(&framed) {
            prop_assert!(read.layers() <= framed.len());
        }
    }
}
