//! Framing: tag, length, body; the simple query protocol on top.

use crate::{Error, Result, error::ServerError, stream::Duplex};
use bytes::{Buf as _, Bytes, BytesMut};
use postgres_protocol::message::{backend, frontend};
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};

/// CopyBothResponse, which the driver's parser does not know.
const COPY_BOTH_RESPONSE: u8 = b'W';

/// One read asks for this much: a walsender writes frames of some hundred bytes back to back.
const READ_BYTES: usize = 128 * 1024;

/// Largest message taken; the server's own limit of one value is 1 GiB.
const MAX_MESSAGE_BYTES: usize = (1 << 31) - 1;

/// Columns of a row, as text.
pub(super) type Row = Vec<Option<String>>;

/// A connection, by messages.
pub(super) struct Wire {
    pub(super) io: Box<dyn Duplex>,
    pub(super) input: Input,
}

/// What was read and not yet used.
#[derive(Default)]
pub(super) struct Input {
    buffer: BytesMut,
}

impl Input {
    /// The next message: tag and body. Cancel safe.
    pub(super) async fn next(&mut self, io: &mut (impl AsyncRead + Unpin)) -> Result<(u8, Bytes)> {
        loop {
            if let Some(message) = self.take()? {
                return Ok(message);
            }
            if io.read_buf(&mut self.buffer).await? == 0 {
                return Err(Error::Connection("the server closed the connection".to_owned()));
            }
        }
    }

    /// A message that is there already.
    pub(super) fn take(&mut self) -> Result<Option<(u8, Bytes)>> {
        let Some(header) = backend::Header::parse(&self.buffer)? else {
            self.buffer.reserve(READ_BYTES);
            return Ok(None);
        };
        let body_len = usize::try_from(header.len())
            .ok()
            .and_then(|len| len.checked_sub(4))
            .filter(|len| *len <= MAX_MESSAGE_BYTES)
            .ok_or_else(|| Error::Protocol("length of a message".to_owned()))?;
        let len = body_len + 5;
        if self.buffer.len() < len {
            self.buffer.reserve((len - self.buffer.len()).max(READ_BYTES));
            return Ok(None);
        }
        self.buffer.advance(5);
        Ok(Some((header.tag(), self.buffer.split_to(body_len).freeze())))
    }
}

impl Wire {
    pub(super) fn new(io: Box<dyn Duplex>) -> Self {
        Self { io, input: Input::default() }
    }

    pub(super) async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.io.write_all(bytes).await?;
        Ok(self.io.flush().await?)
    }

    /// The next message that is neither notice nor parameter; an ErrorResponse is an error.
    pub(super) async fn receive(&mut self) -> Result<(u8, Bytes)> {
        loop {
            let (tag, body) = self.input.next(&mut self.io).await?;
            match tag {
                backend::ERROR_RESPONSE_TAG => return Err(server_error(&body)),
                backend::NOTICE_RESPONSE_TAG | backend::NOTIFICATION_RESPONSE_TAG => {}
                _ => return Ok((tag, body)),
            }
        }
    }

    /// Runs one command; its rows. The connection is usable after a refusal.
    pub(super) async fn query(&mut self, command: &str) -> Result<Vec<Row>> {
        self.send_query(command).await?;
        let mut rows = Vec::new();
        loop {
            let (tag, body) = match self.receive().await {
                Err(Error::Server(error)) => {
                    self.until_ready().await?;
                    return Err(Error::Server(error));
                }
                other => other?,
            };
            match tag {
                backend::DATA_ROW_TAG => rows.push(row(body)?),
                backend::READY_FOR_QUERY_TAG => return Ok(rows),
                _ => {}
            }
        }
    }

    /// Runs START_REPLICATION up to its CopyBothResponse.
    pub(super) async fn start_copy_both(&mut self, command: &str) -> Result<()> {
        self.send_query(command).await?;
        loop {
            match self.receive().await?.0 {
                COPY_BOTH_RESPONSE => return Ok(()),
                backend::PARAMETER_STATUS_TAG => {}
                tag => return Err(unexpected(tag)),
            }
        }
    }

    async fn send_query(&mut self, command: &str) -> Result<()> {
        let mut out = BytesMut::new();
        frontend::query(command, &mut out)?;
        self.send(&out).await
    }

    async fn until_ready(&mut self) -> Result<()> {
        // A fatal error ends the connection instead: the refusal is what matters.
        while let Ok((tag, _)) = self.receive().await {
            if tag == backend::READY_FOR_QUERY_TAG {
                break;
            }
        }
        Ok(())
    }
}

/// What may not come here.
pub(super) fn unexpected(tag: u8) -> Error {
    Error::Protocol(format!("unexpected message 0x{tag:02x}"))
}

fn row(mut body: Bytes) -> Result<Row> {
    let truncated = || Error::Protocol("row is truncated".to_owned());
    let count = body.try_get_u16().map_err(|_| truncated())?;
    let mut row = Row::new();
    for _ in 0..count {
        let len = body.try_get_i32().map_err(|_| truncated())?;
        row.push(match usize::try_from(len) {
            Err(_) => None,
            Ok(len) if len > body.len() => return Err(truncated()),
            Ok(len) => Some(String::from_utf8_lossy(&body.split_to(len)).into_owned()),
        });
    }
    Ok(row)
}

/// Reads an ErrorResponse: a kind and a text each, up to a zero byte.
pub(super) fn server_error(body: &Bytes) -> Error {
    let mut fields = std::collections::HashMap::new();
    for part in body.split(|byte| *byte == 0) {
        if let Some((kind, text)) = part.split_first() {
            fields.insert(*kind, String::from_utf8_lossy(text).into_owned());
        }
    }
    let get = |kind: u8| fields.get(&kind).map(String::as_str);
    Error::Server(Box::new(ServerError::from_fields(
        get(b'C').unwrap_or("XX000"),
        get(b'M').unwrap_or("error without a message"),
        get(b'H'),
        [get(b's'), get(b't'), get(b'c'), get(b'n')],
    )))
}

/// An `io::Error` of the protocol crate is malformed input, not a broken pipe.
pub(super) fn malformed(error: &io::Error) -> Error {
    Error::Protocol(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_message_in_pieces_is_read_whole() {
        let (mut ours, mut theirs) = tokio::io::duplex(3);
        let writer = async move {
            theirs.write_all(&[b'd', 0, 0, 0, 7, 1, 2, 3, b'c', 0, 0, 0, 4]).await.unwrap();
        };
        let reader = async move {
            let mut input = Input::default();
            assert_eq!(
                input.next(&mut ours).await.unwrap(),
                (b'd', Bytes::from_static(&[1, 2, 3]))
            );
            assert_eq!(input.next(&mut ours).await.unwrap(), (b'c', Bytes::new()));
            assert!(matches!(input.next(&mut ours).await, Err(Error::Connection(_))));
        };
        tokio::join!(writer, reader);
    }

    #[test]
    fn an_error_response_keeps_code_and_message() {
        let body = Bytes::from_static(b"SERROR\0C55006\0Mslot is active\0\0");
        assert_eq!(server_error(&body).sqlstate(), Some("55006"));
    }
}
