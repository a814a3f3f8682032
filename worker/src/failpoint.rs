//! Places where a test stops, fails or kills a worker. Nothing without feature `failpoints`.

use crate::error::Error;

/// Both transactions are open, the fence row is not yet taken.
pub(crate) const BEFORE_FENCE: &str = "worker::before_fence";
/// Some bytes of a chunk are on their way.
pub(crate) const MID_COPY: &str = "worker::mid_copy";
/// All rows are in, the mark is not.
pub(crate) const BEFORE_MARK: &str = "worker::before_mark";
/// The mark is written, COMMIT is not sent.
pub(crate) const BEFORE_COMMIT: &str = "worker::before_commit";
/// Committed on the target, the coordinator does not know.
pub(crate) const BEFORE_COMPLETE: &str = "worker::before_complete";

/// Does what the test configured for `name`: `return` fails, `sleep`, `pause` and `panic` are
/// themselves.
#[cfg(feature = "failpoints")]
pub(crate) async fn reach(name: &'static str) -> Result<(), Error> {
    // On a thread of its own: `pause` and `sleep` block.
    let evaluated = tokio::task::spawn_blocking(move || evaluate(name)).await;
    evaluated.unwrap_or(Err(Error::Panicked))
}

#[cfg(feature = "failpoints")]
fn evaluate(name: &'static str) -> Result<(), Error> {
    fail::fail_point!(name, |_| Err(Error::Failpoint { name }));
    Ok(())
}

#[cfg(not(feature = "failpoints"))]
#[allow(clippy::unused_async)] // as its other form
pub(crate) async fn reach(_name: &'static str) -> Result<(), Error> {
    Ok(())
}
