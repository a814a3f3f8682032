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
        let mut parts = self.sequences_of_excluded_tables(&entries);
        loop {
            let pass = self.pass(&entries, &parts)?;
            // A view over a key is two entries: a dummy, and its query as a rule.
            let halves: Vec<(u32, u32)> = entries
                .iter()
                .filter(|entry| entry.kind == "RULE" && pass.left_out.contains(&entry.id))
                .filter_map(|rule| Some((rule, rule.tag.strip_suffix(" _RETURN")?)))
                .flat_map(|(rule, tag)| {
                    let is_dummy = move |entry: &&Entry| {
                        entry.kind == "VIEW" && entry.tag == tag && entry.schema == rule.schema
                    };
                    entries.iter().filter(is_dummy).map(move |dummy| (dummy.id, rule.id))
                })
                .filter(|(dummy, _)| !pass.left_out.contains(dummy))
                .collect();
            if halves.is_empty() {
                let kept = entries.into_iter().filter(|entry| pass.kept.contains(&entry.id));
                return Ok((kept.collect(), pass.notes));
            }
            parts.extend(halves);
        }
    }

    /// Once through all entries; `parts` go with another object, whatever they need.
    fn pass(&self, entries: &[Entry], parts: &HashMap<u32, u32>) -> Result<Pass> {
        let by_id: HashMap<u32, &Entry> = entries.iter().map(|entry| (entry.id, entry)).collect();
        let mut pass = Pass::default();
        for entry in entries {
            if self.is_ours(entry) {
                pass.bare.insert(entry.id);
                continue;
            }
            if is_attribute(&entry.kind) && entry.depends_on.iter().any(|id| pass.bare.contains(id))
            {
                continue;
            }
            let excluded_by_name = self.filter.excludes_object(&entry.label());
            if entry.kind == "EXTENSION"
                && (excluded_by_name || self.filter.leaves_out(Kind::Extensions))
            {
                // Expected on the target already: what needs it stays.
                pass.notes.push(format!("{}: left out", entry.label()));
                pass.bare.insert(entry.id);
                continue;
            }
            let missing = entry.depends_on.iter().chain(parts.get(&entry.id));
            let missing: Vec<&Entry> = missing
                .filter(|id| pass.left_out.contains(id) || parts.get(&entry.id) == Some(id))
                .filter_map(|id| by_id.get(id).copied())
                .collect();
            if self.excludes(entry) {
                if !is_attribute(&entry.kind) || excluded_by_name {
                    pass.notes.push(format!("{}: left out", entry.label()));
                }
            } else if let Some(first) = missing.first() {
                if is_table(&entry.kind) {
                    return Err(breaks(entry, &first.label()));
                }
                // An index of a table that is gone is not worth a line, one of a table that
                // stays is.
                let with_owner =
                    missing.iter().any(|m| is_relation(&m.kind) || is_attribute(&m.kind));
                if !(is_attribute(&entry.kind) && (with_owner || is_remark(&entry.kind))) {
                    let needed = first.label();
                    let note = format!("{}: left out, since it needs {needed}", entry.label());
                    pass.notes.push(note);
                }
            } else {
                pass.kept.insert(entry.id);
                continue;
            }
            pass.left_out.insert(entry.id);
        }
        Ok(pass)
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

    /// A sequence goes with the table that owns it: sequence to table.
    fn sequences_of_excluded_tables(&self, entries: &[Entry]) -> HashMap<u32, u32> {
        let of_kind = |wanted: fn(&Entry) -> bool| -> HashSet<u32> {
            entries.iter().filter(|entry| wanted(entry)).map(|entry| entry.id).collect()
        };
        let mut excluded = of_kind(|entry| is_table(&entry.kind));
        let stays = |entry: &&Entry| is_table(&entry.kind) && !self.excludes(entry);
        for entry in entries.iter().filter(stays) {
            excluded.remove(&entry.id);
        }
        let sequences = of_kind(|entry| entry.kind == "SEQUENCE");
        let mut owned = HashMap::new();
        for entry in entries.iter().filter(|entry| entry.kind == "SEQUENCE OWNED BY") {
            let table = entry.depends_on.iter().find(|id| excluded.contains(id));
            let sequence = entry.depends_on.iter().find(|id| sequences.contains(id));
            if let (Some(table), Some(sequence)) = (table, sequence) {
                owned.insert(*sequence, *table);
            }
        }
        owned
    }
}

/// What one pass found, by dump id.
#[derive(Debug, Default)]
struct Pass {
    kept: HashSet<u32>,
    left_out: HashSet<u32>,
    /// Left out, while what needs them stays.
    bare: HashSet<u32>,
    notes: Vec<String>,
}

fn is_relation(kind: &str) -> bool {
    is_table(kind) || matches!(kind, "VIEW" | "MATERIALIZED VIEW")
}

fn is_remark(kind: &str) -> bool {
    matches!(kind, "COMMENT" | "SECURITY LABEL" | "ACL")
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
    fn a_view_goes_with_its_query_and_what_reads_it_too() {
        let entries = [
            sample(1, "VIEW", "by_key", &[]),
            sample(2, "VIEW", "reads", &[1]),
            sample(3, "TABLE", "t", &[]),
            sample(4, "RULE", "by_key _RETURN", &[3]),
        ];
        let filter = v1::Filter { exclude_tables: vec!["app.t".into()], ..Default::default() };
        let (kept, notes) = choose(filter, &entries).unwrap();
        assert!(kept.is_empty(), "{kept:?}");
        assert_eq!(notes[0], "VIEW app.by_key: left out, since it needs RULE app.by_key _RETURN");
    }

    #[test]
    fn a_default_that_loses_its_function_is_said() {
        let entries = [
            sample(1, "FUNCTION", "f()", &[]),
            sample(2, "TABLE", "t", &[]),
            sample(3, "DEFAULT", "t a", &[1, 2]),
        ];
        let filter =
            v1::Filter { exclude_objects: vec!["FUNCTION app.f()".into()], ..Default::default() };
        let (kept, notes) = choose(filter, &entries).unwrap();
        assert_eq!(kept, [2]);
        assert_eq!(notes[1], "DEFAULT app.t a: left out, since it needs FUNCTION app.f()");
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
