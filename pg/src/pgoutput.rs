//! pgoutput: bytes in, [`Message`] out. No IO, no state.
//!
//! ```text
//! XLogData payload --decode--> Begin, Relation, Insert, ... Commit      (protocol 1)
//!                              StreamStart ... StreamStop, StreamCommit (protocol 2)
//! ```
//! In: one message as the walsender sends it (manual, "Logical Replication Message Formats").
//! Promise: truncated, malformed or unknown input is an error, never a panic; values are slices
//! of the input, nothing is copied; an error holds no value.

mod decode;
#[doc(hidden)]
pub mod encode;

pub use decode::{decode, stream_xid};

use bytes::Bytes;
use postgres_types::PgLsn;

/// One pgoutput message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    Begin(Begin),
    Commit(Commit),
    Origin(Origin),
    Relation(Relation),
    Type(Type),
    Insert(Insert),
    Update(Update),
    Delete(Delete),
    Truncate(Truncate),
    /// `pg_logical_emit_message`.
    Message(LogicalMessage),
    /// A block of an in-progress transaction begins.
    StreamStart(StreamStart),
    StreamStop,
    StreamCommit(StreamCommit),
    StreamAbort(StreamAbort),
}

/// A transaction begins; all of it follows, up to its Commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Begin {
    /// Where its commit record begins ("final LSN" in the manual).
    pub commit_lsn: PgLsn,
    /// Microseconds since 2000-01-01 UTC.
    pub commit_time_us: i64,
    pub xid: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Commit {
    pub commit_lsn: PgLsn,
    /// First byte after the commit record.
    pub end_lsn: PgLsn,
    /// Microseconds since 2000-01-01 UTC.
    pub commit_time_us: i64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    pub commit_lsn: PgLsn,
    pub name: String,
}

/// A table as it is for the changes that follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relation {
    /// OID on the source.
    pub relid: u32,
    /// Empty for `pg_catalog`.
    pub schema: String,
    pub name: String,
    pub replica_identity: ReplicaIdentity,
    pub columns: Vec<Column>,
}

/// `pg_class.relreplident`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplicaIdentity {
    Default,
    Nothing,
    Full,
    Index,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    pub name: String,
    /// Part of the replica identity.
    pub is_key: bool,
    /// OID on the source.
    pub type_oid: u32,
    pub type_modifier: i32,
}

/// A type that is not built in, named before a Relation that uses it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Type {
    pub oid: u32,
    pub schema: String,
    pub name: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Insert {
    pub relid: u32,
    pub new: Tuple,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Update {
    pub relid: u32,
    /// None: the identity did not change, and is in `new`.
    pub old: Option<OldTuple>,
    pub new: Tuple,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delete {
    pub relid: u32,
    pub old: OldTuple,
}

/// What the source says of the row before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OldTuple {
    /// The identity's columns; the others are [`Value::Null`].
    Key(Tuple),
    /// Every column: REPLICA IDENTITY FULL.
    Full(Tuple),
}

impl OldTuple {
    pub fn tuple(&self) -> &Tuple {
        match self {
            Self::Key(tuple) | Self::Full(tuple) => tuple,
        }
    }
}

/// One value per column of the Relation, in its order.
pub type Tuple = Vec<Value>;

/// A column's value. `Debug` prints its kind and length only.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Value {
    Null,
    /// TOASTed and not changed: the target's value stays.
    UnchangedToast,
    Text(Bytes),
    Binary(Bytes),
}

impl std::fmt::Debug for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Null => f.write_str("Null"),
            Self::UnchangedToast => f.write_str("UnchangedToast"),
            Self::Text(bytes) => write!(f, "Text({} bytes)", bytes.len()),
            Self::Binary(bytes) => write!(f, "Binary({} bytes)", bytes.len()),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Truncate {
    pub relids: Vec<u32>,
    pub cascade: bool,
    pub restart_identity: bool,
}

#[derive(Clone, PartialEq, Eq)]
pub struct LogicalMessage {
    /// Belongs to its transaction; else it comes at once, outside of any.
    pub is_transactional: bool,
    pub message_lsn: PgLsn,
    pub prefix: String,
    pub content: Bytes,
}

impl std::fmt::Debug for LogicalMessage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LogicalMessage({}, {} bytes)", self.prefix, self.content.len())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamStart {
    pub xid: u32,
    /// First block of this transaction on this connection.
    pub is_first: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamCommit {
    pub xid: u32,
    pub commit: Commit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamAbort {
    pub xid: u32,
    /// Equals `xid` when the whole transaction was rolled back.
    pub sub_xid: u32,
}

/// First byte of each message.
pub mod tag {
    pub const BEGIN: u8 = b'B';
    pub const COMMIT: u8 = b'C';
    pub const ORIGIN: u8 = b'O';
    pub const RELATION: u8 = b'R';
    pub const TYPE: u8 = b'Y';
    pub const INSERT: u8 = b'I';
    pub const UPDATE: u8 = b'U';
    pub const DELETE: u8 = b'D';
    pub const TRUNCATE: u8 = b'T';
    pub const MESSAGE: u8 = b'M';
    pub const STREAM_START: u8 = b'S';
    pub const STREAM_STOP: u8 = b'E';
    pub const STREAM_COMMIT: u8 = b'c';
    pub const STREAM_ABORT: u8 = b'A';
}
