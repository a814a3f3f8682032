//! Splits a leaf into ctid ranges.
//!
//! Promise: the ranges are disjoint, without a gap, begin at block 0, and the last is open,
//! since a table grows between plan and copy (with `relpages` as an end, 100,118 of 150,000
//! rows were read).

use super::Chunk;

/// Size of a page; what `blocks` counts. A server built with another `block_size` only makes
/// the estimate wrong, never the ranges.
pub const BLOCK_BYTES: u64 = 8192;

/// Chunks of a table of `blocks` pages, each about `chunk_bytes`. `ranges` is false where TID
/// range scans do not exist (PostgreSQL 13), or the rows come by a condition.
pub fn split(blocks: u64, chunk_bytes: u64, ranges: bool) -> Vec<Chunk> {
    let per_chunk = (chunk_bytes / BLOCK_BYTES).max(1);
    // A rest of less than half a chunk goes to the one before it.
    let count = if ranges { ((blocks + per_chunk / 2) / per_chunk).max(1) } else { 1 };
    (0..count)
        .map(|i| {
            let first_block = i * per_chunk;
            let last = i + 1 == count;
            let end_block = (!last).then_some(first_block + per_chunk);
            let end_estimate = end_block.unwrap_or(blocks.max(first_block));
            Chunk { first_block, end_block, bytes: (end_estimate - first_block) * BLOCK_BYTES }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn chunks_cover_every_block_once(
            blocks in 0_u64..100_000, chunk_bytes in 1_u64..100_000_000, ranges: bool,
        ) {
            let chunks = split(blocks, chunk_bytes, ranges);
            prop_assert_eq!(chunks[0].first_block, 0);
            for pair in chunks.windows(2) {
                prop_assert_eq!(pair[0].end_block, Some(pair[1].first_block));
                prop_assert!(pair[0].first_block < pair[1].first_block);
            }
            prop_assert_eq!(chunks.last().unwrap().end_block, None);
            prop_assert_eq!(chunks.iter().map(|c| c.bytes).sum::<u64>(), blocks * BLOCK_BYTES);
        }
    }

    #[test]
    fn without_ranges_a_table_is_one_chunk() {
        assert_eq!(split(1_000_000, 8192, false).len(), 1);
        assert_eq!(split(1_000_000, 256 << 20, true).len(), 31);
    }
}
