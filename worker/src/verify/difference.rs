//! Finds the keys of rows that differ.
//!
//! ```text
//! buckets of the key on both sides -> those that differ -> hashes of their rows
//!     -> missing, extra, changed -> the keys behind the hashes
//! ```
//! Promise: at most the asked number; memory holds hashes of about [`SCAN_ROWS`] rows and the
//! keys that are told, however wide a row is.

use super::{Reader, digest::Digest};
use crate::error::Result;
use std::collections::BTreeMap;

/// Rows per bucket aimed at.
const BUCKET_ROWS: u64 = 1_000;
/// Fewest and most buckets; each is a row of the answer.
const BUCKETS: (u64, u64) = (1 << 10, 1 << 20);
/// Rows listed in one scan of the table.
const SCAN_ROWS: u64 = 200_000;

/// Digest per bucket or key.
type Digests<K> = BTreeMap<K, Digest>;
/// Both hashes of a key.
type KeyHash = [i64; 2];

/// A key whose rows differ.
#[derive(Debug, PartialEq, Eq)]
struct Difference {
    word: &'static str,
    key: KeyHash,
    source_rows: u64,
    target_rows: u64,
}

/// `missing KEY`, `extra KEY`, `changed KEY`, as seen from the source.
pub(super) async fn find(
    source: &Reader,
    target: &Reader,
    rows: u64,
    max_differences: usize,
) -> Result<Vec<String>> {
    let buckets = (rows / BUCKET_ROWS).next_power_of_two().clamp(BUCKETS.0, BUCKETS.1);
    let (left, right) = tokio::try_join!(source.buckets(buckets), target.buckets(buckets))?;
    let differing: Vec<i64> =
        left.keys().chain(right.keys()).copied().filter(|b| left.get(b) != right.get(b)).collect();
    let rows_per_bucket = (rows / buckets).max(1);
    let per_scan = usize::try_from(SCAN_ROWS / rows_per_bucket).unwrap_or(1).max(1);
    let mut differences = Vec::new();
    for scan in deduplicated(differing).chunks(per_scan) {
        let (left, right) =
            tokio::try_join!(source.listed(buckets, scan), target.listed(buckets, scan))?;
        compare(&left, &right, &mut differences);
        if differences.len() >= max_differences {
            differences.truncate(max_differences);
            break;
        }
    }
    let hashes: Vec<i64> = differences.iter().map(|difference| difference.key[0]).collect();
    let (mut names, on_target) = tokio::try_join!(source.named(&hashes), target.named(&hashes))?;
    names.extend(on_target);
    Ok(differences.iter().map(|difference| difference.told(&names)).collect())
}

fn deduplicated(mut buckets: Vec<i64>) -> Vec<i64> {
    buckets.sort_unstable();
    buckets.dedup();
    buckets
}

/// Adds what differs between two lists of keys.
fn compare(
    source: &Digests<KeyHash>,
    target: &Digests<KeyHash>,
    differences: &mut Vec<Difference>,
) {
    let none = Digest::default();
    for key in source.keys().chain(target.keys().filter(|key| !source.contains_key(*key))) {
        let left = source.get(key).unwrap_or(&none);
        let right = target.get(key).unwrap_or(&none);
        let word = match (left, right) {
            _ if left == right => continue,
            _ if left.rows > right.rows => "missing",
            _ if left.rows < right.rows => "extra",
            _ => "changed",
        };
        let (source_rows, target_rows) = (left.rows, right.rows);
        differences.push(Difference { word, key: *key, source_rows, target_rows });
    }
}

impl Difference {
    fn told(&self, names: &BTreeMap<KeyHash, String>) -> String {
        let Self { word, key, source_rows, target_rows } = self;
        let name = names.get(key).map_or("(changed since)", String::as_str);
        match source_rows.max(target_rows) {
            1 => format!("{word} {name}"),
            // Without a key a row may stand there several times.
            _ => {
                format!("{word} {name}: {source_rows} on the source, {target_rows} on the target")
            }
        }
    }
}

impl Reader {
    async fn buckets(&self, buckets: u64) -> Result<Digests<i64>> {
        let rows = self.session.query(&self.rows.buckets(buckets), &[]).await;
        let rows = rows.map_err(|error| self.error(error))?;
        let digests = rows.iter().map(|row| Ok((row.get(0), Digest::read(row, 1)?)));
        digests.collect::<pg::Result<_>>().map_err(|error| self.error(error))
    }

    async fn listed(&self, buckets: u64, listed: &[i64]) -> Result<Digests<KeyHash>> {
        let rows = self.session.query(&self.rows.listed(buckets), &[&listed]).await;
        let mut digests = Digests::new();
        for row in rows.map_err(|error| self.error(error))? {
            let digest: &mut Digest = digests.entry([row.get(0), row.get(1)]).or_default();
            digest.add([row.get(2), row.get(3)]);
        }
        Ok(digests)
    }

    /// Texts of keys, by the first of their hashes.
    async fn named(&self, hashes: &[i64]) -> Result<BTreeMap<KeyHash, String>> {
        let rows = self.session.query(&self.rows.named(), &[&hashes]).await;
        let rows = rows.map_err(|error| self.error(error))?;
        let names = rows.iter().map(|row| {
            let name = String::from_utf8_lossy(row.get::<_, &[u8]>(2)).into_owned();
            ([row.get(0), row.get(1)], name)
        });
        Ok(names.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_difference_has_its_word() {
        let digests = |rows: &[(i64, i64)]| {
            let mut digests = Digests::new();
            for (key, hash) in rows {
                let digest: &mut Digest = digests.entry([*key, 0]).or_default();
                digest.add([*hash, *hash]);
            }
            digests
        };
        let source = digests(&[(1, 1), (2, 2), (3, 3), (5, 5), (5, 5)]);
        let target = digests(&[(1, 1), (2, 9), (4, 4), (5, 5)]);
        let mut differences = Vec::new();
        compare(&source, &target, &mut differences);
        let names = (1..=5).map(|key| ([key, 0], format!("({key})"))).collect();
        let told: Vec<String> = differences.iter().map(|it| it.told(&names)).collect();
        let expected = [
            "changed (2)",
            "missing (3)",
            "missing (5): 2 on the source, 1 on the target",
            "extra (4)",
        ];
        assert_eq!(told, expected);
    }
}
