//! Doors for the fuzz targets to decoders that are private otherwise. Each takes any bytes and must not panic.

pub use crate::{nvme::decode_any as nvme_header, object::decode_any as pack};

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_are_decoded_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..5000)) {
            super::nvme_header(&bytes);
            super::pack(&bytes);
        }
    }
}
