//! Wall-clock time, for display only: durations and deadlines use `tokio::time::Instant`.

use std::time::{Duration, SystemTime};

fn since_1970() -> Duration {
    #[allow(clippy::disallowed_methods)] // the one place; for display
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

/// Seconds since 1970.
pub fn now() -> u64 {
    since_1970().as_secs()
}

/// As the wire has it.
pub fn timestamp(seconds: u64) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: i64::try_from(seconds).unwrap_or(0), nanos: 0 }
}

/// The time that was `elapsed` ago.
pub fn timestamp_before(elapsed: Duration) -> prost_types::Timestamp {
    timestamp(since_1970().saturating_sub(elapsed).as_secs())
}

/// Seconds between 1970 and PostgreSQL's own zero, 2000-01-01.
const POSTGRES_EPOCH_S: u64 = 946_684_800;

/// Seconds since the last applied commit, while there is more to apply; 0 otherwise. Compares the
/// source's clock with ours: for display.
pub fn lag_s(last_commit_time_us: i64, behind: bool) -> f64 {
    if !behind || last_commit_time_us == 0 {
        return 0.0;
    }
    let committed = Duration::from_micros(u64::try_from(last_commit_time_us).unwrap_or(0))
        + Duration::from_secs(POSTGRES_EPOCH_S);
    since_1970().saturating_sub(committed).as_secs_f64()
}
