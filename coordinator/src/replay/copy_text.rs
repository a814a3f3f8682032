//! Rows as COPY's text format takes them (manual, COPY, "Text Format"). Pure.
//!
//! In: values as pgoutput gives them. Out: lines. The encodings a server can have keep ASCII
//! bytes for ASCII alone, so escaping by byte is right in each.

use super::row::Value;
use bytes::{BufMut as _, BytesMut};

/// Adds one line.
pub fn line<'a>(out: &mut BytesMut, values: impl Iterator<Item = &'a Value>) {
    for (i, value) in values.enumerate() {
        if i > 0 {
            out.put_u8(b'\t');
        }
        match value {
            Value::Null | Value::UnchangedToast => out.put_slice(b"\\N"),
            Value::Text(bytes) | Value::Binary(bytes) => escape(out, bytes),
        }
    }
    out.put_u8(b'\n');
}

fn escape(out: &mut BytesMut, bytes: &[u8]) {
    let mut rest = bytes;
    while let Some(at) = rest.iter().position(|b| matches!(b, b'\\' | b'\n' | b'\r' | b'\t')) {
        out.put_slice(&rest[..at]);
        out.put_u8(b'\\');
        out.put_u8(match rest[at] {
            b'\n' => b'n',
            b'\r' => b'r',
            b'\t' => b't',
            other => other,
        });
        rest = &rest[at + 1..];
    }
    out.put_slice(rest);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_means_something_to_copy_is_escaped() {
        let mut out = BytesMut::new();
        let values = [Value::Text("a\tb\\N\r\n".into()), Value::Null, Value::Text("".into())];
        line(&mut out, values.iter());
        assert_eq!(&out[..], b"a\\tb\\\\N\\r\\n\t\\N\t\n");
        let mut end = BytesMut::new();
        line(&mut end, [Value::Text("\\.".into())].iter());
        assert_eq!(&end[..], b"\\\\.\n");
    }
}
