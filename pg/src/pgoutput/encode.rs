//! Writes messages as the server would: for tests only, here and in the crates that read them.

use super::{
    Commit, LogicalMessage, Message, OldTuple, Relation, ReplicaIdentity, Tuple, Value, tag,
};
use bytes::{BufMut as _, Bytes, BytesMut};

/// One message; with the xid of a stream block where the message carries one.
pub fn encode(message: &Message, stream_xid: Option<u32>) -> Bytes {
    let mut out = BytesMut::new();
    let out = &mut out;
    let change = |out: &mut BytesMut, tag: u8| {
        out.put_u8(tag);
        if let Some(xid) = stream_xid {
            out.put_u32(xid);
        }
    };
    match message {
        Message::Begin(begin) => {
            out.put_u8(tag::BEGIN);
            out.put_u64(begin.commit_lsn.into());
            out.put_i64(begin.commit_time_us);
            out.put_u32(begin.xid);
        }
        Message::Commit(commit) => {
            out.put_u8(tag::COMMIT);
            put_commit(out, commit);
        }
        Message::Origin(origin) => {
            out.put_u8(tag::ORIGIN);
            out.put_u64(origin.commit_lsn.into());
            put_string(out, &origin.name);
        }
        Message::Relation(relation) => {
            change(out, tag::RELATION);
            put_relation(out, relation);
        }
        Message::Type(kind) => {
            change(out, tag::TYPE);
            out.put_u32(kind.oid);
            put_string(out, &kind.schema);
            put_string(out, &kind.name);
        }
        Message::Insert(insert) => {
            change(out, tag::INSERT);
            out.put_u32(insert.relid);
            put_tuple(out, b'N', &insert.new);
        }
        Message::Update(update) => {
            change(out, tag::UPDATE);
            out.put_u32(update.relid);
            if let Some(old) = &update.old {
                put_old(out, old);
            }
            put_tuple(out, b'N', &update.new);
        }
        Message::Delete(delete) => {
            change(out, tag::DELETE);
            out.put_u32(delete.relid);
            put_old(out, &delete.old);
        }
        Message::Truncate(truncate) => {
            change(out, tag::TRUNCATE);
            out.put_u32(length(truncate.relids.len()));
            out.put_u8(u8::from(truncate.cascade) | u8::from(truncate.restart_identity) << 1);
            truncate.relids.iter().for_each(|relid| out.put_u32(*relid));
        }
        Message::Message(message) => {
            change(out, tag::MESSAGE);
            put_logical_message(out, message);
        }
        Message::StreamStart(start) => {
            out.put_u8(tag::STREAM_START);
            out.put_u32(start.xid);
            out.put_u8(start.is_first.into());
        }
        Message::StreamStop => out.put_u8(tag::STREAM_STOP),
        Message::StreamCommit(stream) => {
            out.put_u8(tag::STREAM_COMMIT);
            out.put_u32(stream.xid);
            put_commit(out, &stream.commit);
        }
        Message::StreamAbort(abort) => {
            out.put_u8(tag::STREAM_ABORT);
            out.put_u32(abort.xid);
            out.put_u32(abort.sub_xid);
        }
    }
    out.split().freeze()
}

fn put_commit(out: &mut BytesMut, commit: &Commit) {
    out.put_u8(0);
    out.put_u64(commit.commit_lsn.into());
    out.put_u64(commit.end_lsn.into());
    out.put_i64(commit.commit_time_us);
}

fn put_logical_message(out: &mut BytesMut, message: &LogicalMessage) {
    out.put_u8(message.is_transactional.into());
    out.put_u64(message.message_lsn.into());
    put_string(out, &message.prefix);
    out.put_u32(length(message.content.len()));
    out.put_slice(&message.content);
}

fn put_relation(out: &mut BytesMut, relation: &Relation) {
    out.put_u32(relation.relid);
    put_string(out, &relation.schema);
    put_string(out, &relation.name);
    out.put_u8(match relation.replica_identity {
        ReplicaIdentity::Default => b'd',
        ReplicaIdentity::Nothing => b'n',
        ReplicaIdentity::Full => b'f',
        ReplicaIdentity::Index => b'i',
    });
    out.put_u16(count(relation.columns.len()));
    for column in &relation.columns {
        out.put_u8(column.is_key.into());
        put_string(out, &column.name);
        out.put_u32(column.type_oid);
        out.put_i32(column.type_modifier);
    }
}

fn put_string(out: &mut BytesMut, text: &str) {
    out.put_slice(text.as_bytes());
    out.put_u8(0);
}

fn put_old(out: &mut BytesMut, old: &OldTuple) {
    match old {
        OldTuple::Key(tuple) => put_tuple(out, b'K', tuple),
        OldTuple::Full(tuple) => put_tuple(out, b'O', tuple),
    }
}

fn put_tuple(out: &mut BytesMut, kind: u8, tuple: &Tuple) {
    out.put_u8(kind);
    out.put_u16(count(tuple.len()));
    for value in tuple {
        match value {
            Value::Null => out.put_u8(b'n'),
            Value::UnchangedToast => out.put_u8(b'u'),
            Value::Text(bytes) => put_value(out, b't', bytes),
            Value::Binary(bytes) => put_value(out, b'b', bytes),
        }
    }
}

fn put_value(out: &mut BytesMut, kind: u8, bytes: &Bytes) {
    out.put_u8(kind);
    out.put_u32(length(bytes.len()));
    out.put_slice(bytes);
}

fn count(len: usize) -> u16 {
    u16::try_from(len).expect("a tuple has at most 1664 columns")
}

fn length(len: usize) -> u32 {
    u32::try_from(len).expect("a value is shorter than 1 GiB")
}
