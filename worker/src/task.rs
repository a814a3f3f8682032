//! A leased task, checked: the only place where a missing field is an error.
//!
//! In: [`v1::Task`]. Out: [`Task`]. Promise: inside the worker nothing required is an Option.

use crate::error::{Error, Result};
use pg::{Conninfo, SessionName, TableName};
use proto::v1;

/// A unit of work under a lease.
#[derive(Clone, Debug)]
pub(crate) struct Task {
    pub(crate) migration: String,
    pub(crate) id: u64,
    /// Grows with each grant; the target refuses an older one.
    pub(crate) token: u64,
    /// Term of the coordinator that granted it.
    pub(crate) epoch: u64,
    pub(crate) snapshot_epoch: u32,
    pub(crate) source: Conninfo,
    pub(crate) target: Conninfo,
    pub(crate) client_encoding: String,
    pub(crate) work: Work,
}

#[derive(Clone, Debug)]
pub(crate) enum Work {
    Copy(Box<Copy>),
    Build(Build),
    Verify(Verify),
}

/// One range of one table.
#[derive(Clone, Debug)]
pub(crate) struct Copy {
    pub(crate) source_table: TableName,
    /// Table or partition root that takes the rows.
    pub(crate) target_table: TableName,
    pub(crate) source_oid: u32,
    pub(crate) filenode: u32,
    pub(crate) columns: Vec<String>,
    pub(crate) binary: bool,
    pub(crate) blocks: Blocks,
    pub(crate) snapshots: Vec<String>,
    pub(crate) condition: String,
}

/// Blocks of a table: `first <= block < end`; no end: to wherever the table ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Blocks {
    pub(crate) first: u64,
    pub(crate) end: Option<u64>,
}

/// Statements on the target.
#[derive(Clone, Debug)]
pub(crate) struct Build {
    pub(crate) object: String,
    pub(crate) statements: Vec<String>,
}

/// One table on both sides.
#[derive(Clone, Debug)]
pub(crate) struct Verify {
    pub(crate) source_table: TableName,
    pub(crate) target_table: TableName,
    pub(crate) only: bool,
    pub(crate) columns: Vec<String>,
    pub(crate) key_columns: Vec<String>,
    pub(crate) max_differences: usize,
}

impl Task {
    /// `skein/MIGRATION/EPOCH/ROLE/TASK.TOKEN`.
    pub(crate) fn session_name(&self, role: &str) -> SessionName {
        let id = format_args!("{}.{}", self.id, self.token);
        SessionName::new(&self.migration, self.epoch, role, id)
    }

    /// Task and token as the target stores them.
    pub(crate) fn mark(&self) -> Result<(i64, i64)> {
        let id = i64::try_from(self.id).map_err(|_| malformed("task_id is out of range"))?;
        let token =
            i64::try_from(self.token).map_err(|_| malformed("fencing_token is out of range"))?;
        Ok((id, token))
    }
}

impl TryFrom<v1::Task> for Task {
    type Error = Error;

    fn try_from(task: v1::Task) -> Result<Self> {
        Ok(Self {
            migration: task.migration,
            id: task.task_id,
            token: task.fencing_token,
            epoch: task.epoch,
            snapshot_epoch: task.snapshot_epoch,
            source: conninfo(task.source, "source")?,
            target: conninfo(task.target, "target")?,
            client_encoding: task.client_encoding,
            work: task.work.ok_or_else(|| malformed("work is missing"))?.try_into()?,
        })
    }
}

impl TryFrom<v1::task::Work> for Work {
    type Error = Error;

    fn try_from(work: v1::task::Work) -> Result<Self> {
        Ok(match work {
            v1::task::Work::Copy(work) => Self::Copy(Box::new(work.try_into()?)),
            // Its mark would say that something was done.
            v1::task::Work::Build(work) if work.statements.is_empty() => {
                return Err(malformed("a build has no statements"));
            }
            v1::task::Work::Build(work) => {
                Self::Build(Build { object: work.object, statements: work.statements })
            }
            v1::task::Work::Verify(work) => Self::Verify(Verify {
                source_table: table(work.source_table, "source_table")?,
                target_table: table(work.target_table, "target_table")?,
                only: work.only,
                columns: work.columns,
                key_columns: work.key_columns,
                max_differences: usize::try_from(work.max_differences).unwrap_or(usize::MAX),
            }),
        })
    }
}

impl TryFrom<v1::CopyWork> for Copy {
    type Error = Error;

    fn try_from(work: v1::CopyWork) -> Result<Self> {
        let blocks = Blocks { first: work.first_block, end: work.end_block };
        if blocks.end.is_some_and(|end| end <= blocks.first) {
            return Err(malformed("block range is empty"));
        }
        let target_table = work.target_root.or(work.target_table);
        Ok(Self {
            source_table: table(work.source_table, "source_table")?,
            target_table: table(target_table, "target_table")?,
            source_oid: work.source_oid,
            filenode: work.filenode,
            columns: work.columns,
            binary: work.binary,
            blocks,
            snapshots: work.snapshots,
            condition: work.condition,
        })
    }
}

fn table(name: Option<v1::TableName>, field: &str) -> Result<TableName> {
    let name = name.ok_or_else(|| malformed(format!("{field} is missing")))?;
    Ok(TableName::new(name.schema, name.name))
}

/// A connection string; the error names the side, never the string.
fn conninfo(endpoint: Option<v1::Endpoint>, field: &str) -> Result<Conninfo> {
    let endpoint = endpoint.ok_or_else(|| malformed(format!("{field} is missing")))?;
    Conninfo::parse(&endpoint.conninfo)
        .map_err(|_| malformed(format!("connection string of the {field} cannot be read")))
}

pub(crate) fn malformed(what: impl Into<String>) -> Error {
    Error::Malformed { what: what.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_field_is_named_and_a_secret_is_not() {
        let endpoint = |conninfo: &str| {
            Some(v1::Endpoint { conninfo: conninfo.to_owned(), server_version: 150_000 })
        };
        let task = v1::Task { source: endpoint("host=a"), ..v1::Task::default() };
        assert!(Task::try_from(task).unwrap_err().to_string().contains("target is missing"));
        let task = v1::Task { source: endpoint("passwrd=hunter2"), ..v1::Task::default() };
        let text = Task::try_from(task).unwrap_err().to_string();
        assert!(text.contains("source") && !text.contains("hunter2"), "{text}");
    }

    #[test]
    fn an_empty_range_or_build_is_refused() {
        let work = v1::CopyWork { first_block: 5, end_block: Some(5), ..Default::default() };
        assert!(Copy::try_from(work).is_err());
        assert!(Work::try_from(v1::task::Work::Build(v1::BuildWork::default())).is_err());
    }
}
