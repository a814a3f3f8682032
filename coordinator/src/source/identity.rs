//! Replica identity: what the server will use to name a row, per table.
//!
//! ```text
//! survey (set queries) -> Vec<TableIdentity> -> decide (pure) -> Vec<Decision>
//!                                            -> originals      -> skein.step on the target
//! originals -> set -> (migration) -> restore
//! ```
//! Promise: a table in the full publication has an identity that the server itself uses, so
//! that no UPDATE on the source fails because of us (55000); a setting is changed only after
//! the one before it was handed out to be made durable.
//!
//! What the server uses (relcache.c, `RelationGetIndexList`): FULL; with DEFAULT the primary
//! key if it is valid and immediate; with USING INDEX the marked index if it is valid, unique,
//! immediate and not partial; else nothing, whatever other indexes there are.

use pg::TableName;
use serde::{Deserialize, Serialize};

mod decide;
mod setting;
mod survey;

pub use decide::{Choices, Decision, MissingIdentity, Publish, decide};
pub use setting::{Original, Originals, originals, restore_identities, set_identities};
pub(in crate::source) use setting::{briefly_locked, holders_of};
pub use survey::{Survey, survey};

/// `pg_class.relreplident`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Setting {
    Default,
    Nothing,
    Full,
    Index,
}

/// How rows of this relation are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Persistence {
    Permanent,
    /// Not in the WAL: the stream cannot carry it.
    Unlogged,
    Temporary,
}

/// A unique index as far as identity asks.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Index {
    pub name: String,
    pub is_primary: bool,
    /// Marked by REPLICA IDENTITY USING INDEX.
    pub is_marked: bool,
    pub is_unique: bool,
    pub is_immediate: bool,
    /// `indisvalid` and `indislive`.
    pub is_valid: bool,
    pub is_partial: bool,
    pub has_expression: bool,
    pub key_columns: Vec<String>,
    pub nullable_columns: Vec<String>,
    pub generated_columns: Vec<String>,
}

impl Index {
    /// The server can name rows by it, whether it is marked or not.
    fn is_usable(&self) -> bool {
        self.is_unique
            && self.is_immediate
            && self.is_valid
            && !self.is_partial
            && !self.has_expression
            && self.nullable_columns.is_empty()
    }
}

/// What the server will use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    Full,
    Index { name: String, key_columns: Vec<String> },
    None(Cause),
}

/// Why a table has no identity that we can use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    NoPrimaryKey,
    DeferrablePrimaryKey(String),
    InvalidPrimaryKey(String),
    SetToNothing,
    /// USING INDEX, and the index is gone or can no longer serve.
    IndexGone,
    /// The marked index has columns that may be null.
    NullableKey(String),
    /// Columns of the identity that the stream leaves out (to 17).
    GeneratedKey(Vec<String>),
    /// FULL with virtual generated columns: UPDATE fails once published (18).
    VirtualGenerated(Vec<String>),
}

/// One table of the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableIdentity {
    pub oid: u32,
    pub table: TableName,
    /// `pg_class.relkind`: `r` or `p`.
    pub relkind: char,
    /// Holds rows: every table but a partitioned one.
    pub is_leaf: bool,
    /// The topmost partitioned table above a partition.
    pub root: Option<u32>,
    /// Parents by plain inheritance, not partitioning.
    pub inherits: Vec<u32>,
    pub persistence: Persistence,
    pub setting: Setting,
    pub identity: Identity,
    /// A new partition under it will have one too.
    pub has_immediate_primary_key: bool,
    /// Index of REPLICA IDENTITY USING INDEX, where it is there.
    pub marked_index: Option<String>,
    /// A unique index that could serve, where the identity is none.
    pub candidate_index: Option<String>,
    /// Stored generated columns within the identity: 18 must publish them.
    pub generated_in_identity: Vec<String>,
    pub generated: Generated,
}

impl TableIdentity {
    pub fn is_partitioned(&self) -> bool {
        self.relkind == 'p'
    }

    pub fn is_partition(&self) -> bool {
        self.root.is_some_and(|root| root != self.oid)
    }
}

/// Generated columns of a table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Generated {
    pub stored: Vec<String>,
    /// 18 and later.
    pub virtuals: Vec<String>,
}

/// What the server will use, and the generated columns in it. Pure.
fn identity_of(
    setting: Setting,
    indexes: &[Index],
    generated: &Generated,
    major: u32,
) -> (Identity, Vec<String>) {
    match setting {
        Setting::Full if generated.virtuals.is_empty() => {
            (Identity::Full, generated.stored.clone())
        }
        Setting::Full => {
            (Identity::None(Cause::VirtualGenerated(generated.virtuals.clone())), Vec::new())
        }
        Setting::Nothing => (Identity::None(Cause::SetToNothing), Vec::new()),
        Setting::Default => match indexes.iter().find(|index| index.is_primary) {
            None => (Identity::None(Cause::NoPrimaryKey), Vec::new()),
            Some(key) if !key.is_immediate => {
                (Identity::None(Cause::DeferrablePrimaryKey(key.name.clone())), Vec::new())
            }
            Some(key) if !key.is_valid => {
                (Identity::None(Cause::InvalidPrimaryKey(key.name.clone())), Vec::new())
            }
            Some(key) => by_index(key, indexes, major),
        },
        Setting::Index => match indexes.iter().find(|index| index.is_marked) {
            Some(index) if index.is_usable() => by_index(index, indexes, major),
            Some(index) if !index.nullable_columns.is_empty() => {
                (Identity::None(Cause::NullableKey(index.name.clone())), Vec::new())
            }
            Some(_) | None => (Identity::None(Cause::IndexGone), Vec::new()),
        },
    }
}

/// Generated columns are not in the stream to 17, so that there the others must name a row.
fn by_index(index: &Index, indexes: &[Index], major: u32) -> (Identity, Vec<String>) {
    let generated = &index.generated_columns;
    let published = |column: &String| !generated.contains(column);
    let rest_is_unique = || {
        indexes.iter().any(|other| {
            other.is_usable()
                && other
                    .key_columns
                    .iter()
                    .all(|column| published(column) && index.key_columns.contains(column))
        })
    };
    if major < 18 && !generated.is_empty() && !rest_is_unique() {
        return (Identity::None(Cause::GeneratedKey(generated.clone())), Vec::new());
    }
    let identity =
        Identity::Index { name: index.name.clone(), key_columns: index.key_columns.clone() };
    (identity, generated.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn unique(name: &str, columns: &[&str]) -> Index {
        Index {
            name: name.to_owned(),
            is_unique: true,
            is_immediate: true,
            is_valid: true,
            key_columns: columns.iter().map(|&column| column.to_owned()).collect(),
            ..Index::default()
        }
    }

    fn primary(columns: &[&str]) -> Index {
        Index { is_primary: true, ..unique("t_pkey", columns) }
    }

    fn of(setting: Setting, indexes: &[Index]) -> Identity {
        identity_of(setting, indexes, &Generated::default(), 15).0
    }

    #[test]
    fn default_uses_an_immediate_primary_key_and_nothing_else() {
        assert!(matches!(of(Setting::Default, &[primary(&["id"])]), Identity::Index { .. }));
        let deferrable = Index { is_immediate: false, ..primary(&["id"]) };
        assert_eq!(
            of(Setting::Default, &[deferrable, unique("u", &["id"])]),
            Identity::None(Cause::DeferrablePrimaryKey("t_pkey".into()))
        );
        assert_eq!(
            of(Setting::Default, &[unique("u", &["id"])]),
            Identity::None(Cause::NoPrimaryKey)
        );
    }

    #[test]
    fn using_an_index_that_is_gone_is_none_even_with_a_primary_key() {
        assert_eq!(of(Setting::Index, &[primary(&["id"])]), Identity::None(Cause::IndexGone));
        for broken in [
            Index { is_valid: false, is_marked: true, ..unique("u", &["a"]) },
            Index { is_partial: true, is_marked: true, ..unique("u", &["a"]) },
            Index { is_immediate: false, is_marked: true, ..unique("u", &["a"]) },
        ] {
            assert_eq!(of(Setting::Index, &[broken]), Identity::None(Cause::IndexGone));
        }
        let nullable =
            Index { is_marked: true, nullable_columns: vec!["a".into()], ..unique("u", &["a"]) };
        assert_eq!(of(Setting::Index, &[nullable]), Identity::None(Cause::NullableKey("u".into())));
    }

    #[test]
    fn a_generated_key_column_needs_a_unique_rest_before_18() {
        let key = Index { generated_columns: vec!["g".into()], ..primary(&["id", "g"]) };
        assert_eq!(
            of(Setting::Default, std::slice::from_ref(&key)),
            Identity::None(Cause::GeneratedKey(vec!["g".into()]))
        );
        let with_rest = [key.clone(), unique("u", &["id"])];
        assert!(matches!(of(Setting::Default, &with_rest), Identity::Index { .. }));
        let (identity, generated) =
            identity_of(Setting::Default, &[key], &Generated::default(), 18);
        assert!(matches!(identity, Identity::Index { .. }));
        assert_eq!(generated, ["g"]);
    }

    #[test]
    fn full_with_virtual_columns_cannot_be_published() {
        let generated = Generated { virtuals: vec!["v".into()], ..Generated::default() };
        let (identity, _) = identity_of(Setting::Full, &[], &generated, 18);
        assert_eq!(identity, Identity::None(Cause::VirtualGenerated(vec!["v".into()])));
    }
}
