//! Compares one table on both sides, exactly.
//!
//! ```text
//! digest of all rows, both sides at once --equal--> done
//!       \--differ--> digests of buckets of the key --> rows of differing buckets --> keys
//! ```
//! Promise: the digest does not depend on the order of rows and counts duplicates; keys that
//! differ go to who asked and into no log. Both sides must be quiet, or it compares two moments.

mod difference;
mod digest;

use crate::{
    error::{Error, Result, Side},
    run::{Outcome, Staged},
    sessions,
    task::{Task, Verify},
};
pub(crate) use digest::Digest;
use digest::Rows;
use pg::{Session, TableName, sql};

/// One side's table in one read-only transaction.
#[derive(Debug)]
struct Reader {
    session: Session,
    side: Side,
    table: TableName,
    rows: Rows,
}

/// Compares, and finds what differs.
pub(crate) async fn stage(task: &Task, verify: &Verify) -> Result<Staged> {
    let (source, target) = tokio::try_join!(
        Reader::open(task, verify, Side::Source),
        Reader::open(task, verify, Side::Target)
    )?;
    let same_encoding = source.encoding().await? == target.encoding().await?;
    let (source, target) = (source.hashing(same_encoding), target.hashing(same_encoding));
    let (left, right) = tokio::try_join!(source.digest(), target.digest())?;
    let differences = if left == right || verify.max_differences == 0 {
        Vec::new()
    } else {
        let rows = left.rows.max(right.rows);
        difference::find(&source, &target, rows, verify.max_differences).await?
    };
    Ok(Staged::Finished(Outcome::Verified { source: left, target: right, differences }))
}

impl Reader {
    async fn open(task: &Task, verify: &Verify, side: Side) -> Result<Self> {
        let table = match side {
            Side::Source => verify.source_table.clone(),
            Side::Target => verify.target_table.clone(),
        };
        // Names are sent, and keys come back, as UTF-8: no client_encoding of the source's.
        let session = sessions::open_read(task, side, "verify").await?;
        let rows = Rows::new(verify, table.clone());
        let reader = Self { session, side, table, rows };
        let begin =
            sql!("begin isolation level repeatable read read only; set local lock_timeout = '10s'");
        reader.session.batch(&begin).await.map_err(|error| reader.error(error))?;
        Ok(reader)
    }

    /// Bytes of a text depend on it, and so does a hash.
    async fn encoding(&self) -> Result<String> {
        let encoding = sql!("select current_setting('server_encoding')");
        let row = self.session.query_one(&encoding, &[]).await;
        Ok(row.map_err(|error| self.error(error))?.get(0))
    }

    fn hashing(mut self, same_encoding: bool) -> Self {
        self.rows.as_utf8 = !same_encoding;
        self
    }

    async fn digest(&self) -> Result<Digest> {
        let row = self.session.query_one(&self.rows.digest(), &[]).await;
        let row = row.map_err(|error| self.error(error))?;
        Digest::read(&row, 0).map_err(|error| self.error(error))
    }

    fn error(&self, source: pg::Error) -> Error {
        Error::Verify { table: self.table.clone(), side: self.side, source }
    }
}
