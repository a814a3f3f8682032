//! A spec as it came over the wire, checked.

use crate::filter::Filter;
use proto::{status::Report, v1};

/// Lanes at most: each is a session on the target.
const MAX_LANES: u32 = 64;

/// The spec, if it can be carried out.
///
/// # Errors
/// `SPEC_INVALID`, naming the field and what is allowed.
pub fn checked(spec: v1::MigrationSpec) -> Result<v1::MigrationSpec, Report> {
    let invalid = |field: &str, allowed: &str| {
        Report::definite("SPEC_INVALID", format!("{field} is not allowed"))
            .with_hint(format!("Give {allowed}."))
    };
    let mut letters = spec.name.chars();
    let first_is_letter = letters.next().is_some_and(|c| c.is_ascii_lowercase());
    let rest_is_plain = letters.all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if !first_is_letter || !rest_is_plain || spec.name.len() > 24 {
        return Err(invalid(
            &format!("name \"{}\"", spec.name),
            "1 to 24 of a-z, 0-9 and _, beginning with a letter: it names the slot",
        ));
    }
    if spec.source.is_empty() || spec.target.is_empty() {
        return Err(invalid("an empty source or target", "a reference or a connection string"));
    }
    let replay = spec.replay.unwrap_or_default();
    if replay.lanes > MAX_LANES {
        return Err(invalid(&format!("replay.lanes = {}", replay.lanes), "1 to 64"));
    }
    Filter::try_from(&spec.filter.clone().unwrap_or_default())?;
    Ok(spec)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str) -> v1::MigrationSpec {
        v1::MigrationSpec {
            name: name.into(),
            source: "env:S".into(),
            target: "env:T".into(),
            ..Default::default()
        }
    }

    #[test]
    fn a_name_that_cannot_be_a_slot_is_refused() {
        for name in ["", "1a", "Shop", "a-b", "abcdefghijklmnopqrstuvwxy"] {
            assert_eq!(checked(spec(name)).unwrap_err().reason, "SPEC_INVALID", "{name}");
        }
        assert!(checked(spec("shop_2")).is_ok());
    }
}
