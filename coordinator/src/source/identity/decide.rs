//! Which publication each table goes to. Pure.
//!
//! In: the survey, the operator's choices. Out: a [`Decision`] per table, or every table that
//! waits for a choice. Promise: a table in the full publication has an identity, or gets FULL
//! before; so have all tables published through a root there.
//!
//! A partition root stands in the full publication only if its own primary key is immediate
//! (a new partition then has one too) and all its partitions can stand there; otherwise in the
//! insert-and-truncate publication, which still shows the first row of a new partition. Leaves
//! are named themselves in either case, so that a detached one goes on.

use super::{Cause, Identity, Persistence, Survey, TableIdentity};
use crate::filter::TablePattern;
use pg::{TableName, sql::quote_ident};
use proto::{
    status::Report,
    v1::{self, IdentityChoice},
};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;

/// Checked `identity` of the spec.
#[derive(Clone, Debug, Default)]
pub struct Choices {
    all: Option<Publish>,
    /// Literal names before wildcards, the longer before the shorter.
    tables: Vec<(TablePattern, Option<Publish>)>,
}

/// What the stream carries of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Publish {
    /// INSERT, UPDATE, DELETE, TRUNCATE.
    Full,
    /// INSERT and TRUNCATE.
    AppendOnly,
}

/// What happens to one table or partition root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    pub oid: u32,
    pub table: TableName,
    pub publish: Publish,
    /// REPLICA IDENTITY FULL is set first, and put back at teardown.
    pub set_full: bool,
    /// A partitioned table: holds no rows itself.
    pub is_root: bool,
    /// 18 and later: `publish_generated_columns = stored` is needed.
    pub publish_generated: bool,
}

/// A table that the operator has to choose for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MissingIdentity {
    pub oid: u32,
    pub table: TableName,
    pub cause: Cause,
    /// An index that could serve.
    pub candidate_index: Option<String>,
}

impl Choices {
    fn of(&self, table: &TableIdentity, root: Option<&TableName>) -> Option<Publish> {
        let named = |name: &TableName| self.tables.iter().find(|(p, _)| p.matches(name));
        let choice = named(&table.table).or_else(|| root.and_then(named));
        choice.map_or(self.all, |(_, choice)| *choice)
    }
}

impl TryFrom<Option<&v1::Identity>> for Choices {
    type Error = Report;

    /// # Errors
    /// `IDENTITY_INVALID` when a table's name cannot be read.
    fn try_from(identity: Option<&v1::Identity>) -> Result<Self, Report> {
        let Some(identity) = identity else { return Ok(Self::default()) };
        let mut tables = Vec::new();
        for (name, choice) in &identity.tables {
            let pattern = TablePattern::parse(name).map_err(|why| {
                let primary = format!("identity cannot be chosen for {}: {why}", quote_ident(name));
                Report::definite("IDENTITY_INVALID", primary).with_hint("Write schema.table.")
            })?;
            let choice = IdentityChoice::try_from(*choice).unwrap_or_default();
            tables.push((pattern, publish_of(choice), name.clone()));
        }
        tables.sort_by_key(|(pattern, _, name)| {
            (!pattern.is_literal(), std::cmp::Reverse(name.len()), name.clone())
        });
        Ok(Self {
            all: publish_of(identity.all()),
            tables: tables.into_iter().map(|(pattern, choice, _)| (pattern, choice)).collect(),
        })
    }
}

fn publish_of(choice: IdentityChoice) -> Option<Publish> {
    match choice {
        IdentityChoice::Unspecified => None,
        IdentityChoice::Full => Some(Publish::Full),
        IdentityChoice::AppendOnly => Some(Publish::AppendOnly),
    }
}

/// Where each table goes. Choices count for tables without a usable identity alone.
///
/// # Errors
/// Every table that has no identity and no choice.
pub fn decide(survey: &Survey, choices: &Choices) -> Result<Vec<Decision>, Vec<MissingIdentity>> {
    let permanent = || survey.tables.iter().filter(|t| t.persistence == Persistence::Permanent);
    let mut decisions = Vec::new();
    let mut missing = Vec::new();
    // roots over a leaf that cannot take UPDATE once published
    let mut narrow_roots: HashSet<u32> = survey.partly_taken_roots.clone();
    for table in permanent().filter(|table| table.is_leaf) {
        let root = table.root.and_then(|root| survey.table(root)).map(|root| &root.table);
        match leaf(table, choices.of(table, root)) {
            Ok(decision) => {
                if decision.publish == Publish::AppendOnly {
                    narrow_roots.extend(table.root);
                }
                decisions.push(decision);
            }
            Err(one) => missing.push(one),
        }
    }
    if !missing.is_empty() {
        return Err(missing);
    }
    let roots = permanent().filter(|table| table.is_partitioned() && !table.is_partition());
    for root in roots {
        let whole = root.has_immediate_primary_key && !narrow_roots.contains(&root.oid);
        decisions.push(Decision {
            oid: root.oid,
            table: root.table.clone(),
            publish: if whole { Publish::Full } else { Publish::AppendOnly },
            set_full: false,
            is_root: true,
            publish_generated: !root.generated_in_identity.is_empty(),
        });
    }
    Ok(decisions)
}

fn leaf(table: &TableIdentity, choice: Option<Publish>) -> Result<Decision, MissingIdentity> {
    let decision = |publish, set_full, publish_generated| Decision {
        oid: table.oid,
        table: table.table.clone(),
        publish,
        set_full,
        is_root: false,
        publish_generated,
    };
    let cause = match &table.identity {
        Identity::Full | Identity::Index { .. } => {
            return Ok(decision(Publish::Full, false, !table.generated_in_identity.is_empty()));
        }
        Identity::None(cause) => cause.clone(),
    };
    match choice {
        Some(Publish::AppendOnly) => Ok(decision(Publish::AppendOnly, false, false)),
        Some(Publish::Full) if table.generated.virtuals.is_empty() => {
            Ok(decision(Publish::Full, true, !table.generated.stored.is_empty()))
        }
        Some(Publish::Full) | None => Err(MissingIdentity {
            oid: table.oid,
            table: table.table.clone(),
            cause: if choice.is_some() {
                Cause::VirtualGenerated(table.generated.virtuals.clone())
            } else {
                cause
            },
            candidate_index: table.candidate_index.clone(),
        }),
    }
}

impl MissingIdentity {
    /// Statement to paste, the least change first.
    pub fn fix(&self) -> String {
        let setting = match (&self.cause, &self.candidate_index) {
            (_, Some(index)) => format!("using index {}", quote_ident(index)),
            (Cause::VirtualGenerated(_), None) => {
                return format!("choose append-only for {}", self.table);
            }
            (_, None) => "full".to_owned(),
        };
        format!("alter table {} replica identity {setting};", self.table)
    }
}

impl std::fmt::Display for Cause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NoPrimaryKey => f.write_str("it has no primary key"),
            Self::DeferrablePrimaryKey(index) => {
                write!(f, "its primary key \"{index}\" is deferrable")
            }
            Self::InvalidPrimaryKey(index) => write!(f, "its primary key \"{index}\" is not valid"),
            Self::SetToNothing => f.write_str("its replica identity is set to nothing"),
            Self::IndexGone => {
                f.write_str("the index that its replica identity names is gone or not usable")
            }
            Self::NullableKey(index) => {
                write!(f, "its identity index \"{index}\" has columns that may be null")
            }
            Self::GeneratedKey(columns) => write!(
                f,
                "its identity has generated columns, which are not in the stream: {}",
                columns.join(", ")
            ),
            Self::VirtualGenerated(columns) => write!(
                f,
                "full would take in virtual generated columns, which cannot be published: {}",
                columns.join(", ")
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::identity::{Generated, Setting};

    fn table(oid: u32, identity: Identity) -> TableIdentity {
        TableIdentity {
            oid,
            table: TableName::new("app", format!("t{oid}")),
            relkind: 'r',
            is_leaf: true,
            root: None,
            inherits: Vec::new(),
            persistence: Persistence::Permanent,
            setting: Setting::Default,
            has_immediate_primary_key: matches!(identity, Identity::Index { .. }),
            identity,
            marked_index: None,
            candidate_index: None,
            generated_in_identity: Vec::new(),
            generated: Generated::default(),
        }
    }

    fn keyed(oid: u32) -> TableIdentity {
        let key_columns = vec!["id".to_owned()];
        table(oid, Identity::Index { name: "pkey".into(), key_columns })
    }

    fn keyless(oid: u32) -> TableIdentity {
        table(oid, Identity::None(Cause::NoPrimaryKey))
    }

    fn tree(root: TableIdentity, leaves: Vec<TableIdentity>) -> Survey {
        let oid = root.oid;
        let root = TableIdentity { relkind: 'p', is_leaf: false, root: Some(oid), ..root };
        let leaves = leaves.into_iter().map(|leaf| TableIdentity { root: Some(oid), ..leaf });
        Survey { tables: leaves.chain([root]).collect(), ..Survey::default() }
    }

    fn choices(all: IdentityChoice, tables: &[(&str, IdentityChoice)]) -> Choices {
        let identity = v1::Identity {
            all: all.into(),
            tables: tables.iter().map(|(n, c)| ((*n).to_owned(), (*c).into())).collect(),
        };
        Choices::try_from(Some(&identity)).unwrap()
    }

    fn publish(decisions: &[Decision], oid: u32) -> (Publish, bool) {
        let decision = decisions.iter().find(|decision| decision.oid == oid).unwrap();
        (decision.publish, decision.set_full)
    }

    #[test]
    fn every_table_without_identity_and_choice_is_named() {
        let survey = Survey { tables: vec![keyed(1), keyless(2), keyless(3)], ..Survey::default() };
        let missing = decide(&survey, &Choices::default()).unwrap_err();
        assert_eq!(missing.iter().map(|one| one.oid).collect::<Vec<_>>(), [2, 3]);
        assert_eq!(missing[0].fix(), r#"alter table "app"."t2" replica identity full;"#);
    }

    #[test]
    fn a_table_s_own_choice_wins_over_all_and_a_name_over_a_wildcard() {
        use IdentityChoice::{AppendOnly, Full, Unspecified};
        let survey = Survey {
            tables: vec![keyed(1), keyless(2), keyless(3), keyless(4)],
            ..Survey::default()
        };
        let choices =
            choices(Full, &[("app.t2", AppendOnly), ("app.*", AppendOnly), ("app.t4", Full)]);
        let decisions = decide(&survey, &choices).unwrap();
        assert_eq!(publish(&decisions, 1), (Publish::Full, false));
        assert_eq!(publish(&decisions, 2), (Publish::AppendOnly, false));
        assert_eq!(publish(&decisions, 3), (Publish::AppendOnly, false));
        assert_eq!(publish(&decisions, 4), (Publish::Full, true));
        let refusing = self::choices(Full, &[("app.t2", Unspecified)]);
        assert_eq!(decide(&survey, &refusing).unwrap_err().len(), 1);
    }

    #[test]
    fn a_root_is_published_whole_only_if_all_under_it_can_be() {
        let append = choices(IdentityChoice::AppendOnly, &[]);
        let of_root = |survey: &Survey| publish(&decide(survey, &append).unwrap(), 9).0;
        assert_eq!(of_root(&tree(keyed(9), vec![keyed(1), keyed(2)])), Publish::Full);
        assert_eq!(of_root(&tree(keyed(9), vec![keyed(1), keyless(2)])), Publish::AppendOnly);
        assert_eq!(of_root(&tree(keyless(9), vec![keyed(1)])), Publish::AppendOnly);
        // FULL does not pass on to a new partition
        let full = table(9, Identity::Full);
        assert_eq!(of_root(&tree(full, vec![keyed(1)])), Publish::AppendOnly);
        let mut partly = tree(keyed(9), vec![keyed(1)]);
        partly.partly_taken_roots.insert(9);
        assert_eq!(of_root(&partly), Publish::AppendOnly);
    }

    #[test]
    fn a_choice_for_a_root_counts_for_its_partitions() {
        let survey = tree(keyless(9), vec![keyless(1)]);
        let choices = choices(IdentityChoice::Unspecified, &[("app.t9", IdentityChoice::Full)]);
        assert_eq!(publish(&decide(&survey, &choices).unwrap(), 1), (Publish::Full, true));
    }

    #[test]
    fn what_is_not_in_the_wal_is_not_published() {
        let unlogged = TableIdentity { persistence: Persistence::Unlogged, ..keyless(1) };
        let survey = Survey { tables: vec![unlogged], ..Survey::default() };
        assert_eq!(decide(&survey, &Choices::default()), Ok(Vec::new()));
    }

    #[test]
    fn virtual_columns_leave_append_only_as_the_one_choice() {
        let virtuals = Generated { virtuals: vec!["v".into()], ..Generated::default() };
        let survey = Survey {
            tables: vec![TableIdentity { generated: virtuals, ..keyless(1) }],
            ..Survey::default()
        };
        assert!(decide(&survey, &choices(IdentityChoice::Full, &[])).is_err());
        assert!(decide(&survey, &choices(IdentityChoice::AppendOnly, &[])).is_ok());
    }

    proptest::proptest! {
        #[test]
        fn whatever_is_published_for_update_has_an_identity(
            leaves in proptest::collection::vec((0u8..4, 0u8..3, 0u8..4), 0..8),
            all in 0u8..3, root_keyed in proptest::bool::ANY, partly in proptest::bool::ANY,
        ) {
            let of = |n: u8| [IdentityChoice::Unspecified, IdentityChoice::Full,
                              IdentityChoice::AppendOnly][usize::from(n)];
            let mut own = Vec::new();
            let tables: Vec<TableIdentity> = (1u32..).zip(&leaves).map(|(oid, (kind, choice, more))| {
                if *choice > 0 { own.push((format!("app.t{oid}"), of(*choice))); }
                let mut table = match kind {
                    0 => keyed(oid),
                    1 => table(oid, Identity::Full),
                    2 => keyless(oid),
                    _ => TableIdentity { persistence: Persistence::Unlogged, ..keyless(oid) },
                };
                if *more == 0 { table.generated.virtuals.push("v".into()); }
                table
            }).collect();
            let root = if root_keyed { keyed(100) } else { keyless(100) };
            let mut survey = tree(root, tables);
            if partly { survey.partly_taken_roots.insert(100); }
            let own: Vec<(&str, IdentityChoice)> =
                own.iter().map(|(name, choice)| (name.as_str(), *choice)).collect();
            let Ok(decisions) = decide(&survey, &choices(of(all), &own)) else { return Ok(()) };
            for decision in &decisions {
                let table = survey.table(decision.oid).unwrap();
                proptest::prop_assert!(table.persistence == Persistence::Permanent);
                let full = decision.publish == Publish::Full;
                let nameless = matches!(table.identity, Identity::None(_));
                if decision.is_root {
                    let every_leaf = decisions.iter().all(|one| one.publish == Publish::Full);
                    proptest::prop_assert!(!full || (root_keyed && !partly && every_leaf));
                } else {
                    proptest::prop_assert_eq!(decision.set_full, full && nameless);
                    let unusable = decision.set_full && !table.generated.virtuals.is_empty();
                    proptest::prop_assert!(!unusable);
                }
            }
            let permanent = survey.tables.iter().filter(|t| t.persistence == Persistence::Permanent);
            proptest::prop_assert_eq!(permanent.count(), decisions.len());
        }
    }
}
