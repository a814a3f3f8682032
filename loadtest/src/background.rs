//! A thread with a runtime of its own: what runs in it goes on while a test blocks.

use std::{future::Future, io, thread::JoinHandle};
use tokio_util::sync::CancellationToken;

/// Work in its own thread. Told to stop, and waited for, when dropped.
#[derive(Debug)]
pub(crate) struct Background<T> {
    thread: Option<JoinHandle<T>>,
    stop: CancellationToken,
}

impl<T: Send + 'static> Background<T> {
    /// Runs `work`, which ends soon after its token is cancelled.
    pub(crate) fn start<F>(
        work: impl FnOnce(CancellationToken) -> F + Send + 'static,
    ) -> io::Result<Self>
    where
        F: Future<Output = T>,
    {
        let stop = CancellationToken::new();
        let token = stop.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::Builder::new()
            .name("background".to_owned())
            .spawn(move || runtime.block_on(work(token)))?;
        Ok(Self { thread: Some(thread), stop })
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Tells it to stop and waits; None when it panicked.
    pub(crate) fn stop(mut self) -> Option<T> {
        self.stop.cancel();
        self.thread.take()?.join().ok()
    }

    /// Waits for it to end by itself; None when it panicked.
    pub(crate) fn join(mut self) -> Option<T> {
        self.thread.take()?.join().ok()
    }
}

impl<T> Drop for Background<T> {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
