//! The store of one machine: a redb file in the coordinator's directory.
//!
//! redb, not plain files: compare-and-set over several keys in one durable transaction, safe
//! under kill -9, without our own write-ahead log.

use super::{Answer, Error, Revision, Store, Versioned};
use redb::{Database, ReadableDatabase, ReadableTable as _, TableDefinition};
use std::{fmt, path::Path, sync::Arc};

/// Key to (revision, value).
const RECORDS: TableDefinition<'_, &str, (u64, &[u8])> = TableDefinition::new("record");

/// A [`Store`] in one local file.
#[derive(Clone)]
pub struct Embedded {
    database: Arc<Database>,
}

impl fmt::Debug for Embedded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Embedded")
    }
}

fn unusable(error: impl fmt::Display) -> Error {
    Error::Unusable { reason: error.to_string() }
}

impl Embedded {
    /// Opens or makes the file.
    ///
    /// # Errors
    /// When another process has it open, or the disk refuses.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let database = Database::create(path).map_err(unusable)?;
        let write = database.begin_write().map_err(unusable)?;
        write.open_table(RECORDS).map_err(unusable)?;
        write.commit().map_err(unusable)?;
        Ok(Self { database: Arc::new(database) })
    }

    fn read(&self, key: &str) -> Result<Option<Versioned>, Error> {
        let read = self.database.begin_read().map_err(unusable)?;
        let table = read.open_table(RECORDS).map_err(unusable)?;
        let found = table.get(key).map_err(unusable)?;
        Ok(found.map(|guard| {
            let (revision, value) = guard.value();
            Versioned { value: value.to_vec(), revision: Revision(revision) }
        }))
    }

    /// Writes `value`, or deletes the key without one, if it is still at `expected`.
    fn change(
        &self,
        key: &str,
        value: Option<&[u8]>,
        expected: Option<Revision>,
    ) -> Result<Revision, Error> {
        let write = self.database.begin_write().map_err(unusable)?;
        let next = {
            let mut table = write.open_table(RECORDS).map_err(unusable)?;
            let current = table.get(key).map_err(unusable)?.map(|guard| guard.value().0);
            if current != expected.map(|revision| revision.0) {
                return Err(Error::Conflict { key: key.to_owned() });
            }
            let next = current.unwrap_or(0) + 1;
            match value {
                Some(value) => drop(table.insert(key, (next, value)).map_err(unusable)?),
                None => drop(table.remove(key).map_err(unusable)?),
            }
            next
        };
        write.commit().map_err(unusable)?;
        Ok(Revision(next))
    }

    fn read_prefix(&self, prefix: &str) -> Result<Vec<(String, Versioned)>, Error> {
        let read = self.database.begin_read().map_err(unusable)?;
        let table = read.open_table(RECORDS).map_err(unusable)?;
        let mut found = Vec::new();
        for entry in table.range(prefix..).map_err(unusable)? {
            let (key, guard) = entry.map_err(unusable)?;
            if !key.value().starts_with(prefix) {
                break;
            }
            let (revision, value) = guard.value();
            let versioned = Versioned { value: value.to_vec(), revision: Revision(revision) };
            found.push((key.value().to_owned(), versioned));
        }
        Ok(found)
    }
}

impl Store for Embedded {
    fn get<'a>(&'a self, key: &'a str) -> Answer<'a, Option<Versioned>> {
        Box::pin(async move { self.read(key) })
    }

    fn put_if<'a>(
        &'a self,
        key: &'a str,
        value: Vec<u8>,
        expected: Option<Revision>,
    ) -> Answer<'a, Revision> {
        // A commit syncs the file (milliseconds): off the async threads.
        let store = self.clone();
        let key = key.to_owned();
        Box::pin(async move {
            tokio::task::spawn_blocking(move || store.change(&key, Some(&value), expected))
                .await
                .map_err(unusable)?
        })
    }

    fn delete_if<'a>(&'a self, key: &'a str, expected: Revision) -> Answer<'a, ()> {
        let store = self.clone();
        let key = key.to_owned();
        Box::pin(async move {
            tokio::task::spawn_blocking(move || store.change(&key, None, Some(expected)))
                .await
                .map_err(unusable)?
                .map(|_| ())
        })
    }

    fn list<'a>(&'a self, prefix: &'a str) -> Answer<'a, Vec<(String, Versioned)>> {
        Box::pin(async move { self.read_prefix(prefix) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn of_two_writers_at_one_revision_one_wins() {
        let dir = tempfile::tempdir().unwrap();
        let store = Embedded::open(&dir.path().join("state.redb")).unwrap();
        let first = store.put_if("/migration/a", b"1".to_vec(), None).await.unwrap();
        assert!(store.put_if("/migration/a", b"x".to_vec(), None).await.is_err());
        let second = store.put_if("/migration/a", b"2".to_vec(), Some(first)).await.unwrap();
        let late = store.put_if("/migration/a", b"3".to_vec(), Some(first)).await;
        assert!(matches!(late, Err(Error::Conflict { .. })));
        assert_eq!(store.get("/migration/a").await.unwrap().unwrap().value, b"2");
        assert!(store.delete_if("/migration/a", first).await.is_err());
        store.delete_if("/migration/a", second).await.unwrap();
        assert_eq!(store.get("/migration/a").await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_prefix_lists_its_keys_only_and_survives_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.redb");
        {
            let store = Embedded::open(&path).unwrap();
            for key in ["/migration/a", "/migration/b", "/other"] {
                store.put_if(key, b"v".to_vec(), None).await.unwrap();
            }
        }
        let store = Embedded::open(&path).unwrap();
        let keys: Vec<String> =
            store.list("/migration/").await.unwrap().into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys, ["/migration/a", "/migration/b"]);
    }
}
