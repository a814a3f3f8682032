//! Order-free digests of rows, computed by the server.
//!
//! In: table, columns, key. Out: statements, and [`Digest`]s read from their rows. Promise: two
//! tables have equal digests if and only if (but for 2^-128) they hold the same rows the same
//! number of times; the hash is the one of hash partitioning, which no version changes.

use crate::task::Verify;
use pg::{Error, Result, Sql, TableName, sql, sql::Idents};
use tokio_postgres::Row;

/// Seeds of the two halves of a digest, and of the buckets.
const SEEDS: [i32; 2] = [0, 1];
const BUCKET_SEED: i32 = 7;

/// Characters of a key that are told: a table without a key names its rows by all their columns.
const KEY_CHARACTERS: i32 = 1_000;

/// Number of rows, and the sum of their two hashes modulo 2^64 each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Digest {
    pub(crate) rows: u64,
    halves: [u64; 2],
}

/// How the rows of one table are read.
#[derive(Debug)]
pub(super) struct Rows {
    table: TableName,
    columns: Vec<String>,
    /// Of the key; of the whole row where there is none.
    key_columns: Vec<String>,
    only: bool,
    /// The two servers' encodings differ: hash the UTF-8 form.
    pub(super) as_utf8: bool,
}

impl Digest {
    /// From columns `at` (count) and the two behind it (sums as text).
    pub(super) fn read(row: &Row, at: usize) -> Result<Self> {
        let unreadable = |_| Error::Result("a sum of hashes is no number".to_owned());
        let mut halves = [0; 2];
        for (i, half) in halves.iter_mut().enumerate() {
            let sum: i128 = row.get::<_, &str>(at + 1 + i).parse().map_err(unreadable)?;
            *half = modulo(sum);
        }
        let rows = u64::try_from(row.get::<_, i64>(at)).unwrap_or(0);
        Ok(Self { rows, halves })
    }

    /// One more row.
    pub(super) fn add(&mut self, hashes: [i64; 2]) {
        self.rows += 1;
        for (half, hash) in self.halves.iter_mut().zip(hashes) {
            *half = half.wrapping_add(modulo(hash.into()));
        }
    }

    /// 16 bytes, little end first.
    pub(crate) fn to_bytes(self) -> Vec<u8> {
        self.halves.iter().flat_map(|half| half.to_le_bytes()).collect()
    }
}

/// A sum of signed hashes modulo 2^64.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // the remainder fits
fn modulo(sum: i128) -> u64 {
    sum.rem_euclid(1 << 64) as u64
}

impl Rows {
    pub(super) fn new(verify: &Verify, table: TableName) -> Self {
        let key_columns = match verify.key_columns.as_slice() {
            [] => verify.columns.clone(),
            key_columns => key_columns.to_vec(),
        };
        let columns = verify.columns.clone();
        Self { table, columns, key_columns, only: verify.only, as_utf8: false }
    }

    /// Count and sums of all rows.
    pub(super) fn digest(&self) -> Sql {
        sql!("select {} from ({}) r", sums(), self.select())
    }

    /// Bucket, count and sums, a row per bucket that holds rows. `buckets` is a power of two.
    pub(super) fn buckets(&self, buckets: u64) -> Sql {
        let bucket = Self::bucket(buckets);
        sql!("select {}, {} from ({}) r group by 1", bucket, sums(), self.select())
    }

    /// The two hashes of the key and of the row, for each row in the buckets `$1`.
    pub(super) fn listed(&self, buckets: u64) -> Sql {
        let bucket = Self::bucket(buckets);
        let from = self.select();
        sql!("select {}, {} from ({}) r where {} = any($1)", hashes("k"), hashes("t"), from, bucket)
    }

    /// The two hashes of a key and its text in UTF-8, cut, for the first hashes `$1`.
    pub(super) fn named(&self) -> Sql {
        sql!(
            "select distinct {}, textsend(left(d, {})) from (select {} as k, {} as d from {} \
             offset 0) r where hashtextextended(k, {}) = any($1)",
            hashes("k"),
            KEY_CHARACTERS,
            self.text(&self.key_columns),
            sql!("row({})::text", Idents(&self.key_columns)),
            self.from(),
            SEEDS[0]
        )
    }

    fn bucket(buckets: u64) -> Sql {
        sql!("(hashtextextended(k, {}) & {}::int8)", BUCKET_SEED, buckets - 1)
    }

    /// `k` and `t` of each row. `offset 0` keeps the planner from computing `t` twice.
    fn select(&self) -> Sql {
        sql!(
            "select {} as k, {} as t from {} offset 0",
            self.text(&self.key_columns),
            self.text(&self.columns),
            self.from()
        )
    }

    fn from(&self) -> Sql {
        sql!("{}{}", if self.only { "only " } else { "" }, self.table)
    }

    /// A row's text, the same on every version under the pinned settings.
    fn text(&self, columns: &[String]) -> Sql {
        let row = sql!("row({})::text", Idents(columns));
        if self.as_utf8 {
            sql!("encode(convert_to({}, 'UTF8'), 'escape') collate \"C\"", row)
        } else {
            sql!("{} collate \"C\"", row)
        }
    }
}

/// Both hashes of a column of [`Rows::select`].
fn hashes(column: &'static str) -> Sql {
    sql!("hashtextextended({}, {}), hashtextextended({}, {})", column, SEEDS[0], column, SEEDS[1])
}

fn sums() -> Sql {
    sql!(
        "count(*), coalesce(sum(hashtextextended(t, {})::numeric), 0)::text, \
         coalesce(sum(hashtextextended(t, {})::numeric), 0)::text",
        SEEDS[0],
        SEEDS[1]
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// What the server sums as numeric and what we sum row by row agree.
        #[test]
        fn a_sum_of_hashes_is_the_same_in_any_order(
            mut hashes in proptest::collection::vec(any::<[i64; 2]>(), 0..40)
        ) {
            let total = |i: usize| hashes.iter().map(|pair| i128::from(pair[i])).sum::<i128>();
            let halves = [modulo(total(0)), modulo(total(1))];
            hashes.reverse();
            let mut digest = Digest::default();
            hashes.iter().for_each(|pair| digest.add(*pair));
            prop_assert_eq!(digest, Digest { rows: hashes.len() as u64, halves });
            prop_assert_eq!(digest.to_bytes().len(), 16);
        }
    }

    #[test]
    fn a_row_twice_is_not_a_row_once() {
        let (mut once, mut twice) = (Digest::default(), Digest::default());
        once.add([5, 6]);
        twice.add([5, 6]);
        twice.add([5, 6]);
        assert_ne!(once, twice);
        assert_ne!(once.to_bytes(), twice.to_bytes());
    }
}
