//! Numbers as people read them: bytes, counts, durations, positions, times. Pure, but for
//! [`now`], which is for display only.

use indicatif::HumanCount;
use postgres_types::PgLsn;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// `1.50 GiB`, `15.0 GiB`, `150 GiB`: three digits say enough.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    // 1023.5 and more of a unit would be rounded to 1024.
    let place = (0..6).find(|place| count >> (10 * place) < 1000).unwrap_or(6);
    let unit = UNITS[place];
    if place == 0 {
        return format!("{count} {unit}");
    }
    // Hundredths of the unit, in whole numbers: no float loses a byte of an exabyte.
    let hundredths = (u128::from(count) * 100) >> (10 * place);
    match hundredths {
        0..1000 => format!("{}.{:02} {unit}", hundredths / 100, hundredths % 100),
        1000..10_000 => format!("{}.{} {unit}", hundredths / 100, hundredths % 100 / 10),
        _ => format!("{} {unit}", hundredths / 100),
    }
}

/// `1,234,567`.
pub(crate) fn count(number: u64) -> String {
    HumanCount(number).to_string()
}

/// `1 check`, `2 checks`.
pub(crate) fn counted(number: usize, thing: &str) -> String {
    format!("{number} {thing}{}", if number == 1 { "" } else { "s" })
}

/// A rate as a whole number; rates are estimates, so the fraction says nothing.
pub(crate) fn rate(per_s: f64) -> u64 {
    // The text form has no sign and no fraction, so it always parses; NaN counts as nothing.
    format!("{:.0}", per_s.max(0.0)).parse().unwrap_or(0)
}

/// `0.120 s`, `42 s`, `3m 12s`, `2h 05m`, `3d 04h`.
pub(crate) fn seconds(value: f64) -> String {
    if !value.is_finite() || value < 0.0 {
        return "-".to_owned();
    }
    if value < 10.0 {
        return format!("{value:.3} s");
    }
    let whole = rate(value);
    match whole {
        0..60 => format!("{whole} s"),
        60..3600 => format!("{}m {:02}s", whole / 60, whole % 60),
        3600..86_400 => format!("{}h {:02}m", whole / 3600, whole % 3600 / 60),
        _ => format!("{}d {:02}h", whole / 86_400, whole % 86_400 / 3600),
    }
}

/// Whole seconds in the same words, without a fraction.
pub(crate) fn whole_seconds(value: u64) -> String {
    if value < 10 {
        return format!("{value} s");
    }
    // Below 2^52 (142 million years) the conversion is exact.
    #[expect(clippy::cast_precision_loss, reason = "a duration for display")]
    seconds(value as f64)
}

/// Part of a whole in percent, 0 to 100; an empty whole counts as nothing done.
pub(crate) fn percent(done: u64, total: u64) -> u64 {
    if total == 0 {
        return 0;
    }
    u64::try_from(u128::from(done.min(total)) * 100 / u128::from(total)).unwrap_or(100)
}

/// `16/B374D848`; 0 means that it is not known yet.
pub(crate) fn position(value: u64) -> Option<String> {
    (value != 0).then(|| PgLsn::from(value).to_string())
}

/// RFC 3339 in UTC, to the second.
pub(crate) fn instant(seconds: i64) -> Option<String> {
    let seconds = u64::try_from(seconds).ok().filter(|seconds| *seconds != 0)?;
    let time = UNIX_EPOCH.checked_add(Duration::from_secs(seconds))?;
    Some(humantime::format_rfc3339_seconds(time).to_string())
}

/// The time on this machine, for the first column of an event line.
#[expect(clippy::disallowed_methods, reason = "for display only; nothing is decided by it")]
pub(crate) fn now() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_three_digits() {
        let told = [0, 999, 1000, 5888, 12 << 20, 300 << 30, 1023 << 30, u64::MAX].map(bytes);
        let expected =
            ["0 B", "999 B", "0.97 KiB", "5.75 KiB", "12.0 MiB", "300 GiB", "0.99 TiB", "15.9 EiB"];
        assert_eq!(told, expected);
    }

    #[test]
    fn durations_grow_coarser_as_they_grow_longer() {
        let told = [0.0, 1.8434, 42.4, 192.0, 7500.0, 100_000.0, f64::NAN].map(seconds);
        assert_eq!(told, ["0.000 s", "1.843 s", "42 s", "3m 12s", "2h 05m", "1d 03h", "-"]);
    }

    #[test]
    fn a_position_is_printed_as_postgresql_prints_it() {
        assert_eq!(position(0x16_B374_D848).as_deref(), Some("16/B374D848"));
        assert_eq!(position(0), None);
    }

    #[test]
    fn a_percentage_stays_within_its_bounds() {
        assert_eq!((percent(0, 0), percent(5, 4), percent(1, 3)), (0, 100, 33));
        assert_eq!(percent(u64::MAX, u64::MAX), 100);
    }

    #[test]
    fn a_time_is_told_in_utc() {
        assert_eq!(instant(1_795_217_227).as_deref(), Some("2026-11-20T23:27:07Z"));
        assert_eq!(instant(0), None);
    }
}
