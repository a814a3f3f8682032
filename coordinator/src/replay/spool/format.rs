//! Bytes of the spool's files: entries, and blocks of them. Pure.
//!
//! ```text
//! entry  kind u8 | xid u32 | length u32 | payload
//! block  header: magic, flags, stored and raw length, first and last end_lsn, CRC of the payload,
//!        CRC of the header | payload: entries, compressed with lz4
//! ```
//! Promise: what does not bear its checksum is [`Damaged`], never a panic and never an item.

use super::Begin;
use bytes::{Buf as _, BufMut as _, Bytes};
use pg::PgLsn;

/// What lies here was not written by us, or not wholly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Damaged;

/// Entries whose raw length reaches this become a block.
pub(super) const BLOCK_BYTES: usize = 256 * 1024;

/// A block's raw length beyond this is damage. One value may be 1 GiB, a row of several more;
/// lengths are 32 bits wide.
const MAX_RAW_BYTES: usize = (1 << 32) - 1;

/// Bytes of a block's header.
pub(super) const HEADER_BYTES: usize = 40;
const BLOCK_MAGIC: u32 = 0x534b_424c;

/// Bytes of a segment's header.
pub(super) const SEGMENT_HEADER_BYTES: usize = 28;
const SEGMENT_MAGIC: u64 = 0x534b_4549_4e53_5031;

/// Relation and Type messages known where a segment begins.
pub(super) const FLAG_SNAPSHOT: u32 = 1;
/// Holds Relation or Type messages: a reader that skips its transactions takes these.
pub(super) const FLAG_RELATIONS: u32 = 2;
/// Refers to transaction files.
pub(super) const FLAG_REFERENCES: u32 = 4;

/// Kind of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Change = 1,
    Relation = 2,
    Type = 3,
    Begin = 4,
    Commit = 5,
    Position = 6,
    Reference = 7,
}

/// One entry, a slice of its block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) kind: Kind,
    /// The subtransaction's; zero where none is known.
    pub(super) xid: u32,
    pub(super) payload: Bytes,
}

/// A committed transaction in a file of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reference {
    pub(super) begin: Begin,
    pub(super) generation: u64,
    /// Length of the file.
    pub(super) stored_bytes: u64,
    /// Subtransactions that were rolled back: their changes are left out by the reader.
    pub(super) aborted: Vec<u32>,
}

/// Bytes that an entry's head takes.
const ENTRY_HEAD_BYTES: usize = 9;

/// Writes an entry whose payload is `parts`, one behind the other.
pub(super) fn put_entry(out: &mut Vec<u8>, kind: Kind, xid: u32, parts: &[&[u8]]) {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    out.put_u8(kind as u8);
    out.put_u32(xid);
    out.put_u32(u32::try_from(len).expect("a pgoutput message is shorter than 4 GiB"));
    parts.iter().for_each(|part| out.put_slice(part));
}

/// Takes the next entry off `bytes`; None at the end.
pub(super) fn take_entry(bytes: &mut Bytes) -> Result<Option<Entry>, Damaged> {
    if bytes.is_empty() {
        return Ok(None);
    }
    if bytes.len() < ENTRY_HEAD_BYTES {
        return Err(Damaged);
    }
    let kind = match bytes.get_u8() {
        1 => Kind::Change,
        2 => Kind::Relation,
        3 => Kind::Type,
        4 => Kind::Begin,
        5 => Kind::Commit,
        6 => Kind::Position,
        7 => Kind::Reference,
        _ => return Err(Damaged),
    };
    let xid = bytes.get_u32();
    let len = usize::try_from(bytes.get_u32()).map_err(|_| Damaged)?;
    if bytes.len() < len {
        return Err(Damaged);
    }
    Ok(Some(Entry { kind, xid, payload: bytes.split_to(len) }))
}

pub(super) fn put_begin(out: &mut Vec<u8>, begin: &Begin) {
    out.put_u32(begin.xid);
    out.put_u64(begin.end_lsn.into());
    out.put_u64(begin.commit_lsn.into());
    out.put_i64(begin.commit_time_us);
    out.put_u64(begin.bytes);
}

const BEGIN_BYTES: usize = 36;

pub(super) fn take_begin(bytes: &mut Bytes) -> Result<Begin, Damaged> {
    if bytes.len() < BEGIN_BYTES {
        return Err(Damaged);
    }
    Ok(Begin {
        xid: bytes.get_u32(),
        end_lsn: bytes.get_u64().into(),
        commit_lsn: bytes.get_u64().into(),
        commit_time_us: bytes.get_i64(),
        bytes: bytes.get_u64(),
    })
}

pub(super) fn put_reference(out: &mut Vec<u8>, reference: &Reference) {
    put_begin(out, &reference.begin);
    out.put_u64(reference.generation);
    out.put_u64(reference.stored_bytes);
    reference.aborted.iter().for_each(|xid| out.put_u32(*xid));
}

pub(super) fn take_reference(mut bytes: Bytes) -> Result<Reference, Damaged> {
    let begin = take_begin(&mut bytes)?;
    if bytes.len() < 16 || !bytes.len().is_multiple_of(4) {
        return Err(Damaged);
    }
    let (generation, stored_bytes) = (bytes.get_u64(), bytes.get_u64());
    let aborted = std::iter::from_fn(|| bytes.try_get_u32().ok()).collect();
    Ok(Reference { begin, generation, stored_bytes, aborted })
}

pub(super) fn take_lsn(mut bytes: Bytes) -> Result<PgLsn, Damaged> {
    bytes.try_get_u64().map(PgLsn::from).map_err(|_| Damaged)
}

/// A block's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BlockHeader {
    pub(super) flags: u32,
    pub(super) stored_bytes: u32,
    raw_bytes: u32,
    /// Zero in transaction files.
    pub(super) first_end_lsn: PgLsn,
    pub(super) last_end_lsn: PgLsn,
    payload_crc: u32,
}

impl BlockHeader {
    pub(super) fn parse(bytes: &[u8; HEADER_BYTES]) -> Result<Self, Damaged> {
        let mut rest = &bytes[..];
        let magic = rest.get_u32();
        let header = Self {
            flags: rest.get_u32(),
            stored_bytes: rest.get_u32(),
            raw_bytes: rest.get_u32(),
            first_end_lsn: rest.get_u64().into(),
            last_end_lsn: rest.get_u64().into(),
            payload_crc: rest.get_u32(),
        };
        let is_whole =
            magic == BLOCK_MAGIC && rest.get_u32() == crc32c::crc32c(&bytes[..HEADER_BYTES - 4]);
        if is_whole { Ok(header) } else { Err(Damaged) }
    }

    /// Checks and decompresses what was stored behind this header.
    pub(super) fn open(&self, stored: &[u8]) -> Result<Bytes, Damaged> {
        if crc32c::crc32c(stored) != self.payload_crc {
            return Err(Damaged);
        }
        let raw_bytes = usize::try_from(self.raw_bytes).map_err(|_| Damaged)?;
        lz4_flex::block::decompress(stored, raw_bytes).map(Bytes::from).map_err(|_| Damaged)
    }
}

/// Header and compressed payload of `raw`.
pub(super) fn seal_block(raw: &[u8], flags: u32, first: PgLsn, last: PgLsn) -> Vec<u8> {
    assert!(raw.len() <= MAX_RAW_BYTES, "a block is shorter than 4 GiB");
    let length = |len: usize| u32::try_from(len).expect("checked: shorter than 4 GiB");
    let mut out = vec![0; HEADER_BYTES + lz4_flex::block::get_maximum_output_size(raw.len())];
    let stored = lz4_flex::block::compress_into(raw, &mut out[HEADER_BYTES..])
        .expect("the buffer has the most that lz4 can write");
    out.truncate(HEADER_BYTES + stored);
    let payload_crc = crc32c::crc32c(&out[HEADER_BYTES..]);
    let mut head = &mut out[..HEADER_BYTES];
    head.put_u32(BLOCK_MAGIC);
    head.put_u32(flags);
    head.put_u32(length(stored));
    head.put_u32(length(raw.len()));
    head.put_u64(first.into());
    head.put_u64(last.into());
    head.put_u32(payload_crc);
    let header_crc = crc32c::crc32c(&out[..HEADER_BYTES - 4]);
    (&mut out[HEADER_BYTES - 4..HEADER_BYTES]).put_u32(header_crc);
    out
}

/// A segment's header: its number, and the end of what lies before it.
pub(super) fn segment_header(segment: u64, base_lsn: PgLsn) -> Vec<u8> {
    let mut out = Vec::with_capacity(SEGMENT_HEADER_BYTES);
    out.put_u64(SEGMENT_MAGIC);
    out.put_u64(segment);
    out.put_u64(base_lsn.into());
    let crc = crc32c::crc32c(&out);
    out.put_u32(crc);
    out
}

/// `base_lsn` of a segment.
pub(super) fn parse_segment_header(
    bytes: &[u8; SEGMENT_HEADER_BYTES],
    segment: u64,
) -> Result<PgLsn, Damaged> {
    let mut rest = &bytes[..];
    let (magic, number, base_lsn) = (rest.get_u64(), rest.get_u64(), rest.get_u64());
    let crc = crc32c::crc32c(&bytes[..SEGMENT_HEADER_BYTES - 4]);
    if magic == SEGMENT_MAGIC && number == segment && rest.get_u32() == crc {
        Ok(base_lsn.into())
    } else {
        Err(Damaged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_block_is_read_as_written(payload in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let mut raw = Vec::new();
            put_entry(&mut raw, Kind::Change, 7, &[b"I", &payload]);
            let block = seal_block(&raw, FLAG_RELATIONS, PgLsn::from(1), PgLsn::from(2));
            let header =
                BlockHeader::parse(block[..HEADER_BYTES].try_into().unwrap()).unwrap();
            prop_assert_eq!(header.last_end_lsn, PgLsn::from(2));
            let mut opened = header.open(&block[HEADER_BYTES..]).unwrap();
            let entry = take_entry(&mut opened).unwrap().unwrap();
            prop_assert_eq!((entry.kind, entry.xid), (Kind::Change, 7));
            prop_assert_eq!(&entry.payload[1..], &payload[..]);
            prop_assert_eq!(take_entry(&mut opened), Ok(None));
        }

        #[test]
        fn one_changed_byte_is_found(payload in proptest::collection::vec(any::<u8>(), 0..300),
                                     at: prop::sample::Index, change in 1_u8..) {
            let mut block = seal_block(&payload, 0, PgLsn::from(1), PgLsn::from(2));
            let at = at.index(block.len());
            block[at] ^= change;
            let opened = BlockHeader::parse(block[..HEADER_BYTES].try_into().unwrap())
                .and_then(|header| header.open(&block[HEADER_BYTES..]));
            prop_assert!(opened.is_err());
        }

        #[test]
        fn random_entries_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let mut bytes = Bytes::from(bytes);
            let _ = take_reference(bytes.clone());
            while let Ok(Some(_)) = take_entry(&mut bytes) {}
        }
    }
}
