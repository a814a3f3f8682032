//! A proxy before a server, which loses the answer to the COMMIT of a finishing mark.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU32, Ordering},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

/// What happens to the first COMMIT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loss {
    /// The server gets it; its answer is lost.
    Answer,
    /// The server never gets it.
    Request,
}

#[derive(Debug)]
pub(crate) struct Proxy {
    pub(crate) port: u16,
    /// Connections that were cut.
    pub(crate) cuts: Arc<AtomicU32>,
    _tasks: JoinSet<()>,
}

/// A simple query `commit`, as the driver sends it.
const COMMIT: &[u8] = b"Q\0\0\0\x0bcommit\0";

impl Proxy {
    pub(crate) async fn start(server_port: u16, loss: Loss) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let cuts = Arc::new(AtomicU32::new(0));
        let armed = Arc::new(AtomicBool::new(true));
        let mut tasks = JoinSet::new();
        let count = Arc::clone(&cuts);
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(("127.0.0.1", server_port)).await.unwrap();
                let (armed, count) = (Arc::clone(&armed), Arc::clone(&count));
                connections.spawn(async move {
                    if forward(client, server, loss, &armed).await {
                        count.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
        });
        Self { port, cuts, _tasks: tasks }
    }
}

/// Both ways until one ends; true when cut at a COMMIT.
async fn forward(client: TcpStream, server: TcpStream, loss: Loss, armed: &AtomicBool) -> bool {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let mut up = vec![0; 65536];
    let mut down = vec![0; 65536];
    loop {
        tokio::select! {
            read = from_client.read(&mut up) => {
                let Ok(length @ 1..) = read else { return false };
                let commits =
                    up[..length].windows(COMMIT.len()).any(|window| window == COMMIT);
                let cut = commits && armed.swap(false, Ordering::SeqCst);
                if cut && loss == Loss::Request {
                    return true;
                }
                if to_server.write_all(&up[..length]).await.is_err() {
                    return false;
                }
                if cut {
                    // The server has committed when it answers.
                    let _ = from_server.read(&mut down).await;
                    return true;
                }
            }
            read = from_server.read(&mut down) => {
                let Ok(length @ 1..) = read else { return false };
                if to_client.write_all(&down[..length]).await.is_err() {
                    return false;
                }
            }
        }
    }
}
