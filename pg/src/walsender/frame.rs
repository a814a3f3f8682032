//! What flows after START_REPLICATION: frames in, status updates out.

use super::wire::{Input, Wire, server_error, unexpected};
use crate::{Error, PgLsn, Result, stream::Duplex};
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use postgres_protocol::message::backend;
use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};
use tokio::io::{AsyncWriteExt as _, ReadHalf, WriteHalf};

/// What a walsender sends.
#[derive(Clone, PartialEq, Eq)]
pub enum Frame {
    /// One message of the output plugin. The positions went back 5,389 times in a mixed run:
    /// take none from here.
    XLogData { wal_start: PgLsn, wal_end: PgLsn, payload: Bytes },
    /// The server is alive; everything before `wal_end` was decoded and sent.
    Keepalive { wal_end: PgLsn, reply_requested: bool },
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::XLogData { wal_start, payload, .. } => {
                write!(f, "XLogData({wal_start}, {} bytes)", payload.len())
            }
            Self::Keepalive { wal_end, .. } => write!(f, "Keepalive({wal_end})"),
        }
    }
}

/// A running stream. Closed when both halves are dropped.
pub struct ReplicationStream {
    reader: FrameReader,
    sender: StatusSender,
    backend_pid: i32,
}

impl fmt::Debug for ReplicationStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ReplicationStream(pid {})", self.backend_pid)
    }
}

impl ReplicationStream {
    pub(super) fn new(wire: Wire, backend_pid: i32) -> Self {
        let (reading, writing) = tokio::io::split(wire.io);
        let server_time_us = Arc::new(AtomicI64::new(0));
        let reader = FrameReader {
            io: reading,
            input: wire.input,
            server_time_us: Arc::clone(&server_time_us),
        };
        Self { reader, sender: StatusSender { io: writing, server_time_us }, backend_pid }
    }

    /// The walsender's process on the server.
    pub fn backend_pid(&self) -> i32 {
        self.backend_pid
    }

    /// Reading and answering, apart: answers must not wait for a reader that has stopped.
    pub fn split(self) -> (FrameReader, StatusSender) {
        (self.reader, self.sender)
    }
}

/// The receiving half.
pub struct FrameReader {
    io: ReadHalf<Box<dyn Duplex>>,
    input: Input,
    server_time_us: Arc<AtomicI64>,
}

impl fmt::Debug for FrameReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FrameReader")
    }
}

impl FrameReader {
    /// The next frame. Cancel safe.
    ///
    /// # Errors
    /// When the connection is lost, or the server ends the stream.
    pub async fn next(&mut self) -> Result<Frame> {
        loop {
            let (tag, body) = self.input.next(&mut self.io).await?;
            if let Some(frame) = self.frame(tag, body)? {
                return Ok(frame);
            }
        }
    }

    /// A frame that was received already, without waiting.
    ///
    /// # Errors
    /// As [`FrameReader::next`].
    pub fn buffered(&mut self) -> Result<Option<Frame>> {
        while let Some((tag, body)) = self.input.take()? {
            if let Some(frame) = self.frame(tag, body)? {
                return Ok(Some(frame));
            }
        }
        Ok(None)
    }

    fn frame(&self, tag: u8, body: Bytes) -> Result<Option<Frame>> {
        match tag {
            backend::COPY_DATA_TAG => {
                let (frame, server_time_us) = copy_data(body)?;
                self.server_time_us.store(server_time_us, Ordering::Relaxed);
                Ok(Some(frame))
            }
            backend::ERROR_RESPONSE_TAG => Err(server_error(&body)),
            backend::NOTICE_RESPONSE_TAG | backend::PARAMETER_STATUS_TAG => Ok(None),
            backend::COPY_DONE_TAG | backend::COMMAND_COMPLETE_TAG => {
                Err(Error::Connection("the server ended the stream".to_owned()))
            }
            other => Err(unexpected(other)),
        }
    }
}

/// A frame and the server's clock when it was sent, microseconds since 2000-01-01 UTC.
fn copy_data(mut body: Bytes) -> Result<(Frame, i64)> {
    let truncated = |_| Error::Protocol("replication frame is truncated".to_owned());
    match body.try_get_u8().map_err(truncated)? {
        b'w' => {
            let wal_start = body.try_get_u64().map_err(truncated)?.into();
            let wal_end = body.try_get_u64().map_err(truncated)?.into();
            let time_us = body.try_get_i64().map_err(truncated)?;
            Ok((Frame::XLogData { wal_start, wal_end, payload: body }, time_us))
        }
        b'k' => {
            let wal_end = body.try_get_u64().map_err(truncated)?.into();
            let time_us = body.try_get_i64().map_err(truncated)?;
            let reply_requested = body.try_get_u8().map_err(truncated)? == 1;
            Ok((Frame::Keepalive { wal_end, reply_requested }, time_us))
        }
        other => Err(unexpected(other)),
    }
}

/// Whether a status update asks the server for a keepalive at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    NotNeeded,
    Requested,
}

/// The answering half.
pub struct StatusSender {
    io: WriteHalf<Box<dyn Duplex>>,
    server_time_us: Arc<AtomicI64>,
}

impl fmt::Debug for StatusSender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StatusSender")
    }
}

impl StatusSender {
    /// Tells the server what was received, what is durable (this confirms it to the slot), and
    /// what is applied. The time sent is the server's own, as last heard.
    ///
    /// # Errors
    /// When the connection is lost.
    pub async fn status(
        &mut self,
        write_lsn: PgLsn,
        flush_lsn: PgLsn,
        apply_lsn: PgLsn,
        reply: Reply,
    ) -> Result<()> {
        let mut out = BytesMut::with_capacity(39);
        out.put_u8(b'd');
        out.put_i32(38);
        out.put_u8(b'r');
        out.put_u64(write_lsn.into());
        out.put_u64(flush_lsn.into());
        out.put_u64(apply_lsn.into());
        out.put_i64(self.server_time_us.load(Ordering::Relaxed));
        out.put_u8(u8::from(reply == Reply::Requested));
        self.io.write_all(&out).await?;
        Ok(self.io.flush().await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn random_frames_never_panic(body in proptest::collection::vec(any::<u8>(), 0..40)) {
            let _ = copy_data(body.into());
        }
    }

    #[test]
    fn a_keepalive_is_read() {
        let mut body = BytesMut::new();
        body.put_u8(b'k');
        body.put_u64(7);
        body.put_i64(9);
        body.put_u8(1);
        let frame = Frame::Keepalive { wal_end: PgLsn::from(7), reply_requested: true };
        assert_eq!(copy_data(body.freeze()).unwrap(), (frame, 9));
    }
}
