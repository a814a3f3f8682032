//! The decoder: a cursor over one message.

use super::{
    Begin, Column, Commit, Delete, Insert, LogicalMessage, Message, OldTuple, Origin, Relation,
    ReplicaIdentity, StreamAbort, StreamCommit, StreamStart, Truncate, Tuple, Type, Update, Value,
    tag,
};
use crate::{Error, Result};
use bytes::{Buf as _, Bytes};
use postgres_types::PgLsn;

/// Decodes one message. `in_stream`: it stood between Stream Start and Stream Stop, where
/// changes carry the xid of their subtransaction behind the tag ([`stream_xid`]).
///
/// # Errors
/// [`Error::Protocol`] for what is truncated, malformed or unknown.
pub fn decode(bytes: &Bytes, in_stream: bool) -> Result<Message> {
    let mut cursor = Cursor { rest: bytes.clone() };
    let tag = cursor.u8()?;
    if in_stream && carries_stream_xid(tag) {
        cursor.u32()?;
    }
    let message = match tag {
        tag::BEGIN => Message::Begin(Begin {
            commit_lsn: cursor.lsn()?,
            commit_time_us: cursor.i64()?,
            xid: cursor.u32()?,
        }),
        tag::COMMIT => Message::Commit(cursor.commit()?),
        tag::ORIGIN => {
            Message::Origin(Origin { commit_lsn: cursor.lsn()?, name: cursor.string()? })
        }
        tag::RELATION => Message::Relation(cursor.relation()?),
        tag::TYPE => Message::Type(Type {
            oid: cursor.u32()?,
            schema: cursor.string()?,
            name: cursor.string()?,
        }),
        tag::INSERT => {
            let relid = cursor.u32()?;
            cursor.expect(b'N')?;
            Message::Insert(Insert { relid, new: cursor.tuple()? })
        }
        tag::UPDATE => Message::Update(cursor.update()?),
        tag::DELETE => {
            let relid = cursor.u32()?;
            let kind = cursor.u8()?;
            Message::Delete(Delete { relid, old: cursor.old_tuple(kind)? })
        }
        tag::TRUNCATE => Message::Truncate(cursor.truncate()?),
        tag::MESSAGE => Message::Message(cursor.logical_message()?),
        tag::STREAM_START => {
            Message::StreamStart(StreamStart { xid: cursor.u32()?, is_first: cursor.u8()? == 1 })
        }
        tag::STREAM_STOP => Message::StreamStop,
        tag::STREAM_COMMIT => {
            Message::StreamCommit(StreamCommit { xid: cursor.u32()?, commit: cursor.commit()? })
        }
        tag::STREAM_ABORT => {
            Message::StreamAbort(StreamAbort { xid: cursor.u32()?, sub_xid: cursor.u32()? })
        }
        other => return Err(malformed(format!("unknown message type 0x{other:02x}"))),
    };
    if cursor.rest.has_remaining() {
        return Err(malformed(format!("{} bytes left over", cursor.rest.len())));
    }
    Ok(message)
}

/// The xid that a change inside a stream block carries, and its tag and body without it: tag,
/// xid, body. None for messages that carry none.
///
/// # Errors
/// [`Error::Protocol`] when the message is truncated.
pub fn stream_xid(bytes: &Bytes) -> Result<Option<(u8, u32, Bytes)>> {
    let mut cursor = Cursor { rest: bytes.clone() };
    let tag = cursor.u8()?;
    if !carries_stream_xid(tag) {
        return Ok(None);
    }
    let xid = cursor.u32()?;
    Ok(Some((tag, xid, cursor.rest)))
}

fn carries_stream_xid(tag: u8) -> bool {
    matches!(
        tag,
        tag::RELATION
            | tag::TYPE
            | tag::INSERT
            | tag::UPDATE
            | tag::DELETE
            | tag::TRUNCATE
            | tag::MESSAGE
    )
}

fn malformed(what: impl std::fmt::Display) -> Error {
    Error::Protocol(format!("pgoutput: {what}"))
}

struct Cursor {
    rest: Bytes,
}

impl Cursor {
    fn need(&self, len: usize) -> Result<()> {
        if self.rest.len() < len {
            return Err(malformed("message is truncated"));
        }
        Ok(())
    }

    fn u8(&mut self) -> Result<u8> {
        self.need(1)?;
        Ok(self.rest.get_u8())
    }

    fn u16(&mut self) -> Result<u16> {
        self.need(2)?;
        Ok(self.rest.get_u16())
    }

    fn u32(&mut self) -> Result<u32> {
        self.need(4)?;
        Ok(self.rest.get_u32())
    }

    fn i32(&mut self) -> Result<i32> {
        self.need(4)?;
        Ok(self.rest.get_i32())
    }

    fn i64(&mut self) -> Result<i64> {
        self.need(8)?;
        Ok(self.rest.get_i64())
    }

    fn lsn(&mut self) -> Result<PgLsn> {
        self.need(8)?;
        Ok(PgLsn::from(self.rest.get_u64()))
    }

    /// Length, then as many bytes.
    fn sized(&mut self) -> Result<Bytes> {
        let len = usize::try_from(self.i32()?).map_err(|_| malformed("negative length"))?;
        self.need(len)?;
        Ok(self.rest.split_to(len))
    }

    /// Ends with a zero byte. In a database of another encoding a name that is not ASCII is an
    /// error: the driver of ordinary sessions could not read it either.
    fn string(&mut self) -> Result<String> {
        let end = self
            .rest
            .iter()
            .position(|byte| *byte == 0)
            .ok_or_else(|| malformed("name has no end"))?;
        let text = self.rest.split_to(end);
        self.rest.advance(1);
        String::from_utf8(text.into()).map_err(|_| malformed("name is not UTF-8"))
    }

    fn expect(&mut self, kind: u8) -> Result<()> {
        if self.u8()? == kind { Ok(()) } else { Err(malformed("unexpected tuple kind")) }
    }

    fn commit(&mut self) -> Result<Commit> {
        self.u8()?; // flags, unused
        Ok(Commit { commit_lsn: self.lsn()?, end_lsn: self.lsn()?, commit_time_us: self.i64()? })
    }

    fn relation(&mut self) -> Result<Relation> {
        let (relid, schema, name) = (self.u32()?, self.string()?, self.string()?);
        let replica_identity = match self.u8()? {
            b'd' => ReplicaIdentity::Default,
            b'n' => ReplicaIdentity::Nothing,
            b'f' => ReplicaIdentity::Full,
            b'i' => ReplicaIdentity::Index,
            _ => return Err(malformed("unknown replica identity")),
        };
        let column_count = self.u16()?;
        let mut columns = Vec::new();
        for _ in 0..column_count {
            columns.push(Column {
                is_key: self.u8()? & 1 == 1,
                name: self.string()?,
                type_oid: self.u32()?,
                type_modifier: self.i32()?,
            });
        }
        Ok(Relation { relid, schema, name, replica_identity, columns })
    }

    fn update(&mut self) -> Result<Update> {
        let relid = self.u32()?;
        let mut kind = self.u8()?;
        let mut old = None;
        if kind != b'N' {
            old = Some(self.old_tuple(kind)?);
            kind = self.u8()?;
        }
        if kind != b'N' {
            return Err(malformed("update without a new tuple"));
        }
        Ok(Update { relid, old, new: self.tuple()? })
    }

    fn old_tuple(&mut self, kind: u8) -> Result<OldTuple> {
        match kind {
            b'K' => Ok(OldTuple::Key(self.tuple()?)),
            b'O' => Ok(OldTuple::Full(self.tuple()?)),
            _ => Err(malformed("unexpected tuple kind")),
        }
    }

    fn tuple(&mut self) -> Result<Tuple> {
        let column_count = self.u16()?;
        // One byte a column is the least: a count beyond the message is refused before it
        // reserves memory.
        self.need(usize::from(column_count))?;
        let mut tuple = Vec::with_capacity(usize::from(column_count));
        for _ in 0..column_count {
            tuple.push(match self.u8()? {
                b'n' => Value::Null,
                b'u' => Value::UnchangedToast,
                b't' => Value::Text(self.sized()?),
                b'b' => Value::Binary(self.sized()?),
                _ => return Err(malformed("unknown kind of value")),
            });
        }
        Ok(tuple)
    }

    fn truncate(&mut self) -> Result<Truncate> {
        let count = self.u32()?;
        let options = self.u8()?;
        let mut relids = Vec::new();
        for _ in 0..count {
            relids.push(self.u32()?);
        }
        Ok(Truncate { relids, cascade: options & 1 != 0, restart_identity: options & 2 != 0 })
    }

    fn logical_message(&mut self) -> Result<LogicalMessage> {
        Ok(LogicalMessage {
            is_transactional: self.u8()? & 1 == 1,
            message_lsn: self.lsn()?,
            prefix: self.string()?,
            content: self.sized()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pgoutput::encode::encode;
    use proptest::prelude::*;

    fn lsn() -> impl Strategy<Value = PgLsn> {
        any::<u64>().prop_map(PgLsn::from)
    }

    fn name() -> impl Strategy<Value = String> {
        "[^\0]{0,12}"
    }

    fn tuple() -> impl Strategy<Value = Tuple> {
        let bytes = || proptest::collection::vec(any::<u8>(), 0..20).prop_map(Bytes::from);
        let value = prop_oneof![
            Just(Value::Null),
            Just(Value::UnchangedToast),
            bytes().prop_map(Value::Text),
            bytes().prop_map(Value::Binary),
        ];
        proptest::collection::vec(value, 0..6)
    }

    fn old_tuple() -> impl Strategy<Value = OldTuple> {
        prop_oneof![tuple().prop_map(OldTuple::Key), tuple().prop_map(OldTuple::Full)]
    }

    fn commit() -> impl Strategy<Value = Commit> {
        (lsn(), lsn(), any::<i64>()).prop_map(|(commit_lsn, end_lsn, commit_time_us)| Commit {
            commit_lsn,
            end_lsn,
            commit_time_us,
        })
    }

    fn relation() -> impl Strategy<Value = Relation> {
        let column = (name(), any::<bool>(), any::<u32>(), any::<i32>()).prop_map(
            |(name, is_key, type_oid, type_modifier)| Column {
                name,
                is_key,
                type_oid,
                type_modifier,
            },
        );
        let identity = prop_oneof![
            Just(ReplicaIdentity::Default),
            Just(ReplicaIdentity::Nothing),
            Just(ReplicaIdentity::Full),
            Just(ReplicaIdentity::Index),
        ];
        (any::<u32>(), name(), name(), identity, proptest::collection::vec(column, 0..5)).prop_map(
            |(relid, schema, name, replica_identity, columns)| Relation {
                relid,
                schema,
                name,
                replica_identity,
                columns,
            },
        )
    }

    fn message() -> impl Strategy<Value = Message> {
        prop_oneof![
            (lsn(), any::<i64>(), any::<u32>()).prop_map(|(commit_lsn, commit_time_us, xid)| {
                Message::Begin(Begin { commit_lsn, commit_time_us, xid })
            }),
            commit().prop_map(Message::Commit),
            (lsn(), name())
                .prop_map(|(commit_lsn, name)| Message::Origin(Origin { commit_lsn, name })),
            relation().prop_map(Message::Relation),
            (any::<u32>(), name(), name()).prop_map(|(oid, schema, name)| Message::Type(Type {
                oid,
                schema,
                name
            })),
            (any::<u32>(), tuple()).prop_map(|(relid, new)| Message::Insert(Insert { relid, new })),
            (any::<u32>(), proptest::option::of(old_tuple()), tuple())
                .prop_map(|(relid, old, new)| Message::Update(Update { relid, old, new })),
            (any::<u32>(), old_tuple())
                .prop_map(|(relid, old)| Message::Delete(Delete { relid, old })),
            (proptest::collection::vec(any::<u32>(), 0..4), any::<bool>(), any::<bool>()).prop_map(
                |(relids, cascade, restart_identity)| {
                    Message::Truncate(Truncate { relids, cascade, restart_identity })
                }
            ),
            (any::<bool>(), lsn(), name(), proptest::collection::vec(any::<u8>(), 0..9)).prop_map(
                |(is_transactional, message_lsn, prefix, content)| {
                    let content = Bytes::from(content);
                    Message::Message(LogicalMessage {
                        is_transactional,
                        message_lsn,
                        prefix,
                        content,
                    })
                }
            ),
            (any::<u32>(), any::<bool>())
                .prop_map(|(xid, is_first)| Message::StreamStart(StreamStart { xid, is_first })),
            Just(Message::StreamStop),
            (any::<u32>(), commit())
                .prop_map(|(xid, commit)| Message::StreamCommit(StreamCommit { xid, commit })),
            (any::<u32>(), any::<u32>())
                .prop_map(|(xid, sub_xid)| Message::StreamAbort(StreamAbort { xid, sub_xid })),
        ]
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_decoded(message in message()) {
            prop_assert_eq!(decode(&encode(&message, None), false).unwrap(), message);
        }

        #[test]
        fn a_stream_xid_is_read_and_left_out(message in message(), xid: u32) {
            let bytes = encode(&message, Some(xid));
            prop_assert_eq!(decode(&bytes, true).unwrap(), message.clone());
            if let Some((tag, found, body)) = stream_xid(&bytes).unwrap() {
                prop_assert_eq!(found, xid);
                let plain: Bytes = [&[tag], &body[..]].concat().into();
                prop_assert_eq!(decode(&plain, false).unwrap(), message);
            }
        }

        #[test]
        fn a_cut_message_is_an_error(message in message(), cut: prop::sample::Index) {
            let bytes = encode(&message, None);
            let short = bytes.slice(..cut.index(bytes.len()));
            prop_assert!(decode(&short, false).is_err());
        }

        #[test]
        fn random_bytes_never_panic(tag in prop::sample::select(b"BCORYIUDTMSEcA".to_vec()),
                                    body in proptest::collection::vec(any::<u8>(), 0..80),
                                    in_stream: bool) {
            let bytes: Bytes = [&[tag], &body[..]].concat().into();
            let _ = decode(&bytes, in_stream);
            let _ = stream_xid(&bytes);
        }
    }

    #[test]
    fn an_error_and_a_debug_print_hold_no_value() {
        let insert = Message::Insert(Insert { relid: 1, new: vec![Value::Text("4111".into())] });
        assert!(!format!("{insert:?}").contains("4111"));
        let bytes = encode(&insert, None);
        let error = decode(&bytes.slice(..bytes.len() - 1), false).unwrap_err();
        assert!(!error.to_string().contains("411"));
    }
}
