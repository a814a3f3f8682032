//! Which entries of the archive are restored. Pure.
//!
//! In: entries and the operator's filter. Out: the entries that stay, and what was left out.
//! Promise: what needs an object that was left out is left out with it, and said; a table that
//! the filter takes in is never left out this way, but refused, since its rows would have no
//! place. Our own publications are never restored.

use super::entry::Entry;
use super::error::{Error, Result};
use crate::filter::{Filter, Kind};
use pg::TableName;
use proto::status::Report;
use std::collections::{HashMap, HashSet};

/// What the choice depends on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Choice<'a> {
    pub(super) filter: &'a Filter,
    /// Prefix of our own publications: `skein_NAME_`.
    pub(super) own_prefix: &'a str,
    /// Names by OID where the archive's own are not exact (new lines became blanks).
    pub(super) odd_names: &'a [(u32, TableName)],
}

impl Choice<'_> {
    /// The entries that stay, in order, and what was left out.
    ///
    /// # Errors
    /// `FILTER_BREAKS_TABLE` when a table that stays needs an object that does not.
    pub(super) fn choose(&self, entries: Vec<Entry>) -> Result<(Vec<Entry>, Vec<String>)> {
        let labels: HashMap<u32, String> = entries.iter().map(|e| (e.id, e.label())).collect();
        let mut left_out = self.sequences_of_excluded_tables(&entries);
        let mut bare = HashSet::new();
        let mut notes = Vec::new();
        let mut kept = Vec::with_capacity(entries.len());
        for entry in entries {
            let needed = entry.depends_on.iter().find(|id| left_out.contains(id));
            if self.is_ours(&entry) {
                bare.insert(entry.id);
                continue;
            }
            if entry.depends_on.iter().any(|id| bare.contains(id)) && is_attribute(&entry.kind) {
                continue;
            }
            if entry.kind == "EXTENSION"
                && (self.filter.leaves_out(Kind::Extensions)
                    || self.filter.excludes_object(&entry.label()))
            {
                // Expected on the target already: what needs it stays.
                notes.push(format!("{}: left out", entry.label()));
                bare.insert(entry.id);
                continue;
            }
            if self.excludes(&entry) || left_out.contains(&entry.id) {
                if !is_attribute(&entry.kind) || self.filter.excludes_object(&entry.label()) {
                    notes.push(format!("{}: left out", entry.label()));
                }
                left_out.insert(entry.id);
            } else if let Some(needed) = needed {
                if is_table(&entry.kind) {
                    return Err(breaks(&entry, &labels[needed]));
                }
                if !is_attribute(&entry.kind) {
                    notes.push(format!(
                        "{}: left out, since it needs {}",
                        entry.label(),
                        labels[needed]
                    ));
                }
                left_out.insert(entry.id);
            } else {
                kept.push(entry);
            }
        }
        Ok((kept, notes))
    }

    fn is_ours(&self, entry: &Entry) -> bool {
        entry.kind.starts_with("PUBLICATION") && entry.tag.starts_with(self.own_prefix)
    }

    fn excludes(&self, entry: &Entry) -> bool {
        let filter = self.filter;
        if filter.excludes_object(&entry.label()) {
            return true;
        }
        let by_kind = match entry.kind.as_str() {
            "COMMENT" => filter.leaves_out(Kind::Comments),
            "SECURITY LABEL" => filter.leaves_out(Kind::SecurityLabels),
            "ACL" | "DEFAULT ACL" => filter.leaves_out(Kind::Privileges),
            "POLICY" | "ROW SECURITY" => filter.leaves_out(Kind::Policies),
            "EVENT TRIGGER" => filter.leaves_out(Kind::EventTriggers),
            "MATERIALIZED VIEW DATA" => filter.leaves_out(Kind::MaterializedViewData),
            kind if kind.starts_with("PUBLICATION") => filter.leaves_out(Kind::Publications),
            kind if kind.starts_with("SUBSCRIPTION") => filter.leaves_out(Kind::Subscriptions),
            _ => false,
        };
        if by_kind {
            return true;
        }
        match (&entry.schema, entry.kind.as_str()) {
            (None, "SCHEMA") => !filter.matches_schema(&entry.tag),
            (None, _) => false,
            (Some(_), "TABLE" | "FOREIGN TABLE" | "VIEW" | "MATERIALIZED VIEW") => {
                !filter.matches_table(&self.name_of(entry))
            }
            (Some(schema), _) => !filter.matches_schema(schema),
        }
    }

    fn name_of(&self, entry: &Entry) -> TableName {
        let odd = self.odd_names.iter().find(|(oid, _)| *oid == entry.oid);
        odd.map_or_else(
            || TableName::new(entry.schema.clone().unwrap_or_default(), entry.tag.clone()),
            |(_, name)| name.clone(),
        )
    }

    /// A sequence goes with the table that owns it.
    fn sequences_of_excluded_tables(&self, entries: &[Entry]) -> HashSet<u32> {
        let excluded: HashSet<u32> = entries
            .iter()
            .filter(|entry| is_table(&entry.kind) && self.excludes(entry))
            .map(|entry| entry.id)
            .collect();
        let sequences: HashSet<u32> =
            entries.iter().filter(|e| e.kind == "SEQUENCE").map(|e| e.id).collect();
        entries
            .iter()
            .filter(|entry| entry.kind == "SEQUENCE OWNED BY")
            .filter(|entry| entry.depends_on.iter().any(|id| excluded.contains(id)))
            .flat_map(|entry| entry.depends_on.iter().filter(|id| sequences.contains(id)))
            .copied()
            .collect()
    }
}

fn is_table(kind: &str) -> bool {
    matches!(kind, "TABLE" | "FOREIGN TABLE")
}

/// Part of the object it depends on: not worth a line of its own when that is left out.
fn is_attribute(kind: &str) -> bool {
    matches!(
        kind,
        "COMMENT"
            | "SECURITY LABEL"
            | "ACL"
            | "DEFAULT"
            | "INDEX"
            | "INDEX ATTACH"
            | "CONSTRAINT"
            | "CHECK CONSTRAINT"
            | "TABLE ATTACH"
            | "SEQUENCE"
            | "SEQUENCE OWNED BY"
            | "MATERIALIZED VIEW DATA"
            | "ROW SECURITY"
            | "PUBLICATION TABLE"
            | "STATISTICS"
    )
}

fn breaks(table: &Entry, needed: &str) -> Error {
    Error::Filter(
        Report::definite(
            "FILTER_BREAKS_TABLE",
            format!("{} cannot be made: the filter leaves out {needed}", table.label()),
        )
        .with_hint(format!("Leave the table out too, or take {needed} in.")),
    )
}

#[cfg(test)]
mod tests {
    use super::super::entry::sample;
    use super::*;
    use proto::v1;

    fn choose(filter: v1::Filter, entries: &[Entry]) -> Result<(Vec<u32>, Vec<String>)> {
        let filter = Filter::try_from(&filter).unwrap();
        let choice = Choice { filter: &filter, own_prefix: "skein_m_", odd_names: &[] };
        let (kept, notes) = choice.choose(entries.to_vec())?;
        Ok((kept.iter().map(|entry| entry.id).collect(), notes))
    }

    fn entries() -> Vec<Entry> {
        let mut ours = sample(9, "PUBLICATION", "skein_m_full", &[]);
        ours.schema = None;
        vec![
            sample(1, "TABLE", "t", &[]),
            sample(2, "SEQUENCE", "t_id_seq", &[]),
            sample(3, "SEQUENCE OWNED BY", "t_id_seq", &[1, 2]),
            sample(4, "VIEW", "v", &[1]),
            sample(5, "INDEX", "t_i", &[1]),
            sample(6, "COMMENT", "VIEW v", &[4]),
            sample(7, "TABLE", "other", &[]),
            sample(8, "FK CONSTRAINT", "other fk", &[7, 1]),
            ours,
            sample(10, "PUBLICATION TABLE", "skein_m_full t", &[9, 7]),
        ]
    }

    #[test]
    fn what_needs_an_excluded_table_goes_with_it_and_is_said() {
        let filter = v1::Filter { exclude_tables: vec!["app.t".into()], ..Default::default() };
        let (kept, notes) = choose(filter, &entries()).unwrap();
        assert_eq!(kept, [7]);
        assert_eq!(
            notes,
            [
                "TABLE app.t: left out",
                "VIEW app.v: left out, since it needs TABLE app.t",
                "FK CONSTRAINT app.other fk: left out, since it needs TABLE app.t"
            ]
        );
    }

    #[test]
    fn our_publications_stay_behind_without_a_word() {
        let (kept, notes) = choose(v1::Filter::default(), &entries()).unwrap();
        assert_eq!(kept, [1, 2, 3, 4, 5, 6, 7, 8]);
        assert!(notes.is_empty());
    }

    #[test]
    fn a_table_is_not_lost_with_what_it_needs() {
        let entries = [sample(1, "TYPE", "mood", &[]), sample(2, "TABLE", "t", &[1])];
        let filter =
            v1::Filter { exclude_objects: vec!["TYPE app.mood".into()], ..Default::default() };
        let error = choose(filter, &entries).unwrap_err();
        assert!(error.to_string().contains("leaves out TYPE app.mood"), "{error}");
    }
}
