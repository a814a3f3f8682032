//! From tables and sizes to tasks. Pure: no IO, no clock.
//!
//! ```text
//! source/catalog -> Leaf -> chunk::split -> Task rows of schema skein -> lease/grant
//!                            order::next decides which is granted first
//! ```

pub mod chunk;
pub mod order;

use pg::TableName;
use serde::{Deserialize, Serialize};

/// A relation of the source that holds rows: an ordinary table, a leaf partition, a
/// configuration table of an extension. Kept as `skein.relation.plan`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leaf {
    pub relid: u32,
    pub source: TableName,
    /// Where its rows go: the table of the same name, or the partition root.
    pub target: TableName,
    /// `pg_relation_filenode` when the plan was made: another one means rewritten.
    pub filenode: u32,
    /// Pages of 8 KiB when the plan was made; an estimate, the last range is open.
    pub blocks: u64,
    /// Columns in attribute order, without generated ones.
    pub columns: Vec<String>,
    /// Their types, as `format_type` prints them: another list means that the schema changed.
    pub types: Vec<String>,
    /// Every column's type is safe in binary COPY between the two servers.
    pub binary: bool,
    pub unlogged: bool,
    /// Rows go through the root: the target is partitioned otherwise.
    pub through_root: bool,
    /// Bounds of a leaf partition (`pg_get_partition_constraintdef`), for its TRUNCATE.
    pub partition_constraint: Option<String>,
    /// Topmost partitioned table above it.
    #[serde(default)]
    pub root: Option<TableName>,
    /// Extra condition of an extension's configuration table.
    pub condition: Option<String>,
    /// Published for INSERT and TRUNCATE alone.
    pub append_only: bool,
}

/// A range of blocks of a leaf: `first_block <= block < end_block`; None: open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk {
    pub first_block: u64,
    pub end_block: Option<u64>,
    /// Estimated heap bytes.
    pub bytes: u64,
}

/// What a task does, as `skein.task.plan` keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Work {
    Copy(Chunk),
    Build { object: String, statements: Vec<String> },
    Refresh { object: String, statements: Vec<String> },
}

impl Work {
    /// `skein.task.kind`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Copy(_) => "copy",
            Self::Build { .. } => "build",
            Self::Refresh { .. } => "refresh",
        }
    }
}

/// Stage of a copy; builds have higher ones.
pub const COPY_STAGE: i32 = 0;
/// Builds of this stage wait for their own table only; of higher stages, for everything lower.
pub const TABLE_BUILD_STAGE: i32 = 1;
/// Statistics of partition roots, when every leaf and index is in.
pub const ANALYZE_ROOTS_STAGE: i32 = 90;
/// Materialised views, when replay has caught up.
pub const REFRESH_STAGE: i32 = 100;

/// A row of `skein.task` that is not finished.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    pub task_id: u64,
    /// 0 when it belongs to no single relation.
    pub relid: u32,
    pub snapshot_epoch: u32,
    pub stage: i32,
    pub size_bytes: u64,
    pub work: Work,
}
