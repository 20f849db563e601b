//! From llama.cpp's state blob of one sequence to a Kelvin block, and back. Safe Rust, no llama.cpp.
//!
//! # Overview
//! The blob of `cells` cells (little endian, plain C structs, flash attention on):
//!
//! ```text
//! u32 magic  i32 source sequence  u32 streams = 1  u32 cells
//! cells × { i32 position  u32 sequences = 1  i32 sequence }
//! u32 v_transposed = 0  u32 layers  u32 rotation_k = 0  u32 rotation_v = 0
//! layers × { i32 type  u64 row bytes  cells × K row }
//! layers × { i32 type  u64 row bytes  cells × V row }
//! ```
//!
//! Cells come in the order of the cache, not of the positions. A block (layout `layer-kv-token`) is, layer by
//! layer, the K rows in position order and then the V rows. So equal KV gives equal bytes.
//!
//! # Invariants
//! Input is untrusted: every count is checked against the expected shape before it is used, nothing is
//! allocated by a number that was read, and bytes missing or left over are an error. What llama.cpp itself
//! ignores on reading (sequence ids) is ignored here.

const MAGIC: u32 = 0xaf14_3cd8;
const HEAD_BYTES: usize = 16;
const CELL_BYTES: usize = 12;
const TENSOR_HEAD_BYTES: usize = 16;
const ROW_HEAD_BYTES: usize = 12;
/// ggml's number of the type f16.
pub(crate) const TYPE_F16: i32 = 1;

/// What is wrong with a blob or a block.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// It ends early.
    #[error("{bytes} bytes end before {what}")]
    Short {
        /// Bytes there are.
        bytes: usize,
        /// What was expected next.
        what: &'static str,
    },
    /// It goes on behind its end.
    #[error("{bytes} bytes are left over")]
    Trailing {
        /// Bytes behind the end.
        bytes: usize,
    },
    /// A field does not have the only value that fits.
    #[error("{what} is {found}, not {expected}")]
    Field {
        /// Which.
        what: &'static str,
        /// Its value.
        found: i64,
        /// The value that fits.
        expected: i64,
    },
    /// A position is outside of the block, or there twice.
    #[error("position {position} is twice in or outside of a block of {tokens} from {first}")]
    Position {
        /// The position.
        position: i32,
        /// First position of the block.
        first: u32,
        /// Tokens of the block.
        tokens: u32,
    },
    /// A buffer of the caller has the wrong size.
    #[error("{what} has {found} bytes, not {expected}")]
    Size {
        /// Which.
        what: &'static str,
        /// Bytes it has.
        found: usize,
        /// Bytes it must have.
        expected: usize,
    },
}

/// Type and bytes of one token's K (or V) in one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Row {
    /// ggml's number of the element type.
    pub(crate) element_type: i32,
    /// Bytes of the row.
    pub(crate) bytes: usize,
}

/// What a state blob of a model looks like.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct StateShape {
    keys: Vec<Row>,
    values: Vec<Row>,
}

impl StateShape {
    /// From K and V rows, one each a layer.
    #[cfg(test)]
    pub(crate) fn new(keys: Vec<Row>, values: Vec<Row>) -> Self {
        assert_eq!(keys.len(), values.len());
        Self { keys, values }
    }

    /// Learns the shape from a blob of the engine itself.
    pub(crate) fn read(blob: &[u8]) -> Result<Self, CodecError> {
        let mut reader = Reader { rest: blob, bytes: blob.len() };
        let cells = reader.head()?;
        reader.skip(cells.saturating_mul(CELL_BYTES), "cells")?;
        let layers = reader.tensor_head()?;
        let mut rows = |what| -> Result<Vec<Row>, CodecError> {
            // Grows with the bytes that are really there; `layers` alone allocates nothing.
            let mut rows = Vec::new();
            for _ in 0..layers {
                let row = reader.row_head()?;
                reader.skip(row.bytes.saturating_mul(cells), what)?;
                rows.push(row);
            }
            Ok(rows)
        };
        let shape = Self { keys: rows("K rows")?, values: rows("V rows")? };
        reader.end()?;
        Ok(shape)
    }

    /// Layers with a KV cache.
    pub(crate) fn layers(&self) -> usize {
        self.keys.len()
    }

    /// Whether every element has this type.
    pub(crate) fn all_elements_are(&self, element_type: i32) -> bool {
        self.keys.iter().chain(&self.values).all(|row| row.element_type == element_type)
    }

    /// Bytes of a block of so many tokens.
    pub(crate) fn block_bytes(&self, tokens: usize) -> usize {
        tokens * self.keys.iter().chain(&self.values).map(|row| row.bytes).sum::<usize>()
    }

    /// Bytes of a blob of so many tokens.
    pub(crate) fn blob_bytes(&self, tokens: usize) -> usize {
        let framing = HEAD_BYTES + tokens * CELL_BYTES + TENSOR_HEAD_BYTES;
        framing + 2 * self.layers() * ROW_HEAD_BYTES + self.block_bytes(tokens)
    }

    /// Rows of a blob in the order they come, each with the offset of the first one's place in a block.
    fn rows(&self, tokens: usize) -> impl Iterator<Item = (Row, usize)> {
        let mut offset = 0;
        let mut key_offsets = Vec::with_capacity(self.layers());
        let mut value_offsets = Vec::with_capacity(self.layers());
        for (key, value) in self.keys.iter().zip(&self.values) {
            key_offsets.push((*key, offset));
            offset += key.bytes * tokens;
            value_offsets.push((*value, offset));
            offset += value.bytes * tokens;
        }
        key_offsets.into_iter().chain(value_offsets)
    }
}

/// Writes the block that a blob of positions `first..first + tokens` holds into `target`.
pub(crate) fn decode(
    shape: &StateShape,
    blob: &[u8],
    first: u32,
    tokens: u32,
    target: &mut [u8],
) -> Result<(), CodecError> {
    let count = tokens as usize;
    check_size("block", target.len(), shape.block_bytes(count))?;
    let mut reader = Reader { rest: blob, bytes: blob.len() };
    expect("cells", reader.head()? as i64, i64::from(tokens))?;
    let places = reader.places(first, tokens)?;
    expect("layers", reader.tensor_head()? as i64, shape.layers() as i64)?;
    for (row, offset) in shape.rows(count) {
        let found = reader.row_head()?;
        expect("element type", found.element_type.into(), row.element_type.into())?;
        expect("row bytes", found.bytes as i64, row.bytes as i64)?;
        let source = reader.take(row.bytes * count, "rows")?;
        let target = &mut target[offset..offset + row.bytes * count];
        match &places {
            None => target.copy_from_slice(source),
            Some(places) => {
                for (row_bytes, &place) in source.chunks_exact(row.bytes).zip(places) {
                    target[place * row.bytes..][..row.bytes].copy_from_slice(row_bytes);
                }
            }
        }
    }
    reader.end()
}

/// Makes the blob that holds `block` at positions `first..first + tokens`, in place of what `blob` held.
pub(crate) fn encode(
    shape: &StateShape,
    block: &[u8],
    first: u32,
    tokens: u32,
    blob: &mut Vec<u8>,
) -> Result<(), CodecError> {
    let count = tokens as usize;
    check_size("block", block.len(), shape.block_bytes(count))?;
    let Some(last) = first.checked_add(tokens).filter(|&end| end <= i32::MAX as u32) else {
        return Err(CodecError::Position { position: i32::MAX, first, tokens });
    };
    blob.clear();
    blob.reserve_exact(shape.blob_bytes(count));
    let mut put = |bytes: &[u8]| blob.extend_from_slice(bytes);
    [MAGIC, 0, 1, tokens].iter().for_each(|word| put(&word.to_le_bytes()));
    for position in first..last {
        [position, 1, 0].iter().for_each(|word| put(&word.to_le_bytes()));
    }
    [0, shape.layers() as u32, 0, 0].iter().for_each(|word| put(&word.to_le_bytes()));
    for (row, offset) in shape.rows(count) {
        put(&row.element_type.to_le_bytes());
        put(&(row.bytes as u64).to_le_bytes());
        put(&block[offset..offset + row.bytes * count]);
    }
    debug_assert_eq!(blob.len(), shape.blob_bytes(count));
    Ok(())
}

fn expect(what: &'static str, found: i64, expected: i64) -> Result<(), CodecError> {
    if found == expected { Ok(()) } else { Err(CodecError::Field { what, found, expected }) }
}

fn check_size(what: &'static str, found: usize, expected: usize) -> Result<(), CodecError> {
    if found == expected { Ok(()) } else { Err(CodecError::Size { what, found, expected }) }
}

/// Takes a blob apart from its front.
struct Reader<'a> {
    rest: &'a [u8],
    bytes: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, bytes: usize, what: &'static str) -> Result<&'a [u8], CodecError> {
        let (taken, rest) =
            self.rest.split_at_checked(bytes).ok_or(CodecError::Short { bytes: self.bytes, what })?;
        self.rest = rest;
        Ok(taken)
    }

    fn skip(&mut self, bytes: usize, what: &'static str) -> Result<(), CodecError> {
        self.take(bytes, what).map(|_| ())
    }

    fn u32(&mut self, what: &'static str) -> Result<u32, CodecError> {
        let bytes = self.take(4, what)?.first_chunk().copied();
        bytes.map(u32::from_le_bytes).ok_or(CodecError::Short { bytes: self.bytes, what })
    }

    fn u64(&mut self, what: &'static str) -> Result<u64, CodecError> {
        let bytes = self.take(8, what)?.first_chunk().copied();
        bytes.map(u64::from_le_bytes).ok_or(CodecError::Short { bytes: self.bytes, what })
    }

    /// Reads up to the cells and returns how many there are.
    fn head(&mut self) -> Result<usize, CodecError> {
        expect("magic", self.u32("magic")?.into(), MAGIC.into())?;
        self.u32("source sequence")?;
        expect("streams", self.u32("streams")?.into(), 1)?;
        Ok(self.u32("cell count")? as usize)
    }

    /// Reads the cells and returns each one's place in the block, or `None` when they are in order.
    fn places(&mut self, first: u32, tokens: u32) -> Result<Option<Vec<usize>>, CodecError> {
        let cells = self.take((tokens as usize).saturating_mul(CELL_BYTES), "cells")?;
        let mut seen = vec![false; tokens as usize];
        let mut places = Vec::with_capacity(tokens as usize);
        let mut reader = Reader { rest: cells, bytes: self.bytes };
        while !reader.rest.is_empty() {
            let position = reader.u32("position")? as i32;
            let place = i64::from(position) - i64::from(first);
            let free = usize::try_from(place).ok().and_then(|place| seen.get_mut(place));
            match free {
                Some(taken) if !*taken => *taken = true,
                _ => return Err(CodecError::Position { position, first, tokens }),
            }
            places.push(place as usize);
            expect("sequences of a cell", reader.u32("sequence count")?.into(), 1)?;
            reader.u32("sequence")?;
        }
        let in_order = places.iter().enumerate().all(|(index, &place)| index == place);
        Ok(if in_order { None } else { Some(places) })
    }

    /// Reads what stands before the tensors and returns the number of layers.
    fn tensor_head(&mut self) -> Result<usize, CodecError> {
        expect("v_transposed", self.u32("v_transposed")?.into(), 0)?;
        let layers = self.u32("layer count")? as usize;
        expect("rotation_k", self.u32("rotation_k")?.into(), 0)?;
        expect("rotation_v", self.u32("rotation_v")?.into(), 0)?;
        Ok(layers)
    }

    fn row_head(&mut self) -> Result<Row, CodecError> {
        let element_type = self.u32("element type")? as i32;
        let bytes = self.u64("row bytes")?;
        // A row as long as the whole blob is an error in any case; the bound keeps sums far from overflow.
        match usize::try_from(bytes) {
            Ok(bytes) if (1..=self.bytes).contains(&bytes) => Ok(Row { element_type, bytes }),
            _ => Err(CodecError::Short { bytes: self.bytes, what: "rows" }),
        }
    }

    fn end(self) -> Result<(), CodecError> {
        if self.rest.is_empty() { Ok(()) } else { Err(CodecError::Trailing { bytes: self.rest.len() }) }
    }
}

#[cfg(test)]
mod tests;
