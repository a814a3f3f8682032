//! A network between client and server that can fail.
//!
//! ```text
//! client <--pump-- proxy <--pump-- server      each pump asks the fault in force before it passes
//!        --pump-->       --pump-->             bytes on
//! ```
//! Promise: a change of the fault reaches open connections at once; a reset is a real one (RST).

use super::{During as _, Result};
use crate::background::Background;
use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

/// What the network does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Passes everything.
    None,
    /// Passes everything later.
    Delay(Duration),
    /// A cut cable: nothing passes, nobody is told.
    Cut,
    /// Only what the client sends passes.
    CutAnswers,
    /// New connections are closed at once.
    Refuse,
    /// Every connection is reset once the server has sent so many bytes over it.
    ResetAfter(u64),
}

#[derive(Clone, Copy, Debug)]
struct State {
    fault: Fault,
    /// Connections of an older generation are reset.
    generation: u64,
}

/// A running proxy; its connections end with it.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    state: watch::Sender<State>,
    passed: Arc<AtomicU64>,
    _server: Background<()>,
}

impl Proxy {
    /// Listens on a port of the loopback for connections to `server_port` there.
    ///
    /// # Errors
    /// No port could be had.
    pub fn start(server_port: u16) -> Result<Self> {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).during("listen")?;
        listener.set_nonblocking(true).during("listen")?;
        let port = listener.local_addr().during("listen")?.port();
        let (state, watcher) = watch::channel(State { fault: Fault::None, generation: 0 });
        let passed = Arc::new(AtomicU64::new(0));
        let server = SocketAddr::from((Ipv4Addr::LOCALHOST, server_port));
        let counter = Arc::clone(&passed);
        let background =
            Background::start(move |stop| serve(listener, server, watcher, counter, stop))
                .during("start a proxy")?;
        Ok(Self { port, state, passed, _server: background })
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Bytes that servers sent through it so far.
    pub fn passed_bytes(&self) -> u64 {
        self.passed.load(Ordering::Relaxed)
    }

    /// Puts a fault in force, for open connections too.
    pub fn set(&self, fault: Fault) {
        self.state.send_modify(|state| state.fault = fault);
    }

    /// Resets every open connection.
    pub fn reset(&self) {
        self.state.send_modify(|state| state.generation += 1);
    }
}

async fn serve(
    listener: std::net::TcpListener,
    server: SocketAddr,
    state: watch::Receiver<State>,
    passed: Arc<AtomicU64>,
    stop: CancellationToken,
) {
    let Ok(listener) = TcpListener::from_std(listener) else { return };
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((client, _)) = accepted else { continue };
        let (state, passed) = (state.clone(), Arc::clone(&passed));
        connections.spawn(async move {
            if state.borrow().fault == Fault::Refuse {
                return reset(&client);
            }
            if let Ok(server) = TcpStream::connect(server).await {
                join(client, server, state, &passed).await;
            }
        });
        while connections.try_join_next().is_some() {}
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    ToServer,
    ToClient,
}

/// How a pump ended.
enum End {
    Closed,
    Reset,
}

async fn join(
    client: TcpStream,
    server: TcpStream,
    state: watch::Receiver<State>,
    passed: &AtomicU64,
) {
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (client_read, client_write) = client.into_split();
    let (server_read, server_write) = server.into_split();
    let mut to_server = (client_read, server_write);
    let mut to_client = (server_read, client_write);
    // When one side closes, so do we: a half-open connection is not what is tested here.
    let end = tokio::select! {
        end = pump(&mut to_server, Direction::ToServer, state.clone(), passed) => end,
        end = pump(&mut to_client, Direction::ToClient, state, passed) => end,
    };
    if matches!(end, End::Reset) {
        reset(to_server.0.as_ref());
        reset(to_client.0.as_ref());
    } else {
        let _ = (to_server.1.shutdown().await, to_client.1.shutdown().await);
    }
}

async fn pump(
    (read, write): &mut (OwnedReadHalf, OwnedWriteHalf),
    direction: Direction,
    mut state: watch::Receiver<State>,
    passed: &AtomicU64,
) -> End {
    let mut buffer = vec![0_u8; 64 * 1024];
    let mut sent_bytes = 0_u64;
    let generation = state.borrow().generation;
    loop {
        let fault = {
            let now = *state.borrow_and_update();
            if now.generation != generation {
                return End::Reset;
            }
            now.fault
        };
        let is_cut = match direction {
            Direction::ToServer => fault == Fault::Cut,
            Direction::ToClient => matches!(fault, Fault::Cut | Fault::CutAnswers),
        };
        if is_cut {
            if state.changed().await.is_err() {
                return End::Closed;
            }
            continue;
        }
        // Reading may be given up without loss; what was read is always passed on.
        let count = tokio::select! {
            changed = state.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return End::Closed,
            },
            count = read.read(&mut buffer) => match count {
                Ok(0) | Err(_) => return End::Closed,
                Ok(count) => count,
            },
        };
        if let Fault::Delay(delay) = fault {
            tokio::time::sleep(delay).await;
        }
        if write.write_all(&buffer[..count]).await.is_err() {
            return End::Closed;
        }
        if direction == Direction::ToClient {
            sent_bytes += count as u64;
            passed.fetch_add(count as u64, Ordering::Relaxed);
            if matches!(fault, Fault::ResetAfter(limit) if sent_bytes >= limit) {
                return End::Reset;
            }
        }
    }
}

/// Has the socket send RST when it is closed.
fn reset(stream: &TcpStream) {
    let _ = stream.set_zero_linger();
}
