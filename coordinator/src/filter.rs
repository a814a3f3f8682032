//! Which objects belong to a migration. Pure.
//!
//! In: [`v1::Filter`] as the operator wrote it. Out: [`Filter`], asked by schema, copy and
//! replay alike. Promise: a table is in for all three or for none.
//!
//! Names are `schema` in the schema lists and `schema.table` in the table lists, read as psql
//! reads a `\d` pattern: outside double quotes letters are folded to lower case and `*` matches
//! any run of characters, inside them everything stands for itself. `_` and `?` are plain
//! characters. Each non-empty include list narrows, each exclude list takes away; a table must
//! pass the lists of its schema too. Schemas of the server and our own are never in.

use pg::TableName;
use proto::{status::Report, v1};
use std::fmt;

mod pattern;

use pattern::Pattern;

/// A kind of object that can be left out altogether.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Roles,
    LargeObjects,
    Publications,
    Subscriptions,
    EventTriggers,
    DatabaseSettings,
    MaterializedViewData,
    Comments,
    SecurityLabels,
    Policies,
    Privileges,
    Owners,
    Extensions,
}

impl Kind {
    /// Every kind, in the order of the contract.
    pub const ALL: [Self; 13] = [
        Self::Roles,
        Self::LargeObjects,
        Self::Publications,
        Self::Subscriptions,
        Self::EventTriggers,
        Self::DatabaseSettings,
        Self::MaterializedViewData,
        Self::Comments,
        Self::SecurityLabels,
        Self::Policies,
        Self::Privileges,
        Self::Owners,
        Self::Extensions,
    ];

    /// As `leave_out` spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Roles => "roles",
            Self::LargeObjects => "large_objects",
            Self::Publications => "publications",
            Self::Subscriptions => "subscriptions",
            Self::EventTriggers => "event_triggers",
            Self::DatabaseSettings => "database_settings",
            Self::MaterializedViewData => "materialized_view_data",
            Self::Comments => "comments",
            Self::SecurityLabels => "security_labels",
            Self::Policies => "policies",
            Self::Privileges => "privileges",
            Self::Owners => "owners",
            Self::Extensions => "extensions",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A pattern for `schema.table`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TablePattern {
    schema: Pattern,
    name: Pattern,
}

impl TablePattern {
    /// Reads `schema.table`.
    ///
    /// # Errors
    /// Why it cannot be read, as half a sentence.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        match Pattern::parse(text)?.as_slice() {
            [schema, name] => Ok(Self { schema: schema.clone(), name: name.clone() }),
            [_] => Err("its schema is missing"),
            _ => Err("it has more than two parts"),
        }
    }

    pub fn matches(&self, table: &TableName) -> bool {
        self.schema.matches(&table.schema) && self.name.matches(&table.name)
    }

    /// Fits one name alone.
    pub fn is_literal(&self) -> bool {
        self.schema.literal().is_some() && self.name.literal().is_some()
    }
}

impl fmt::Display for TablePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.schema, self.name)
    }
}

/// Checked filter. Holding one means that every pattern and every word can be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    include_schemas: Vec<Pattern>,
    exclude_schemas: Vec<Pattern>,
    include_tables: Vec<TablePattern>,
    exclude_tables: Vec<TablePattern>,
    leave_out: Vec<Kind>,
    exclude_objects: Vec<String>,
}

impl TryFrom<&v1::Filter> for Filter {
    type Error = Report;

    /// # Errors
    /// `FILTER_INVALID` with the key, the pattern, and what is allowed.
    fn try_from(filter: &v1::Filter) -> Result<Self, Report> {
        let checked = Self {
            include_schemas: schemas("include_schemas", &filter.include_schemas)?,
            exclude_schemas: schemas("exclude_schemas", &filter.exclude_schemas)?,
            include_tables: tables("include_tables", &filter.include_tables)?,
            exclude_tables: tables("exclude_tables", &filter.exclude_tables)?,
            leave_out: kinds(&filter.leave_out)?,
            exclude_objects: filter.exclude_objects.iter().map(|tag| one_space(tag)).collect(),
        };
        for table in &checked.include_tables {
            if table.schema.literal().is_some_and(|name| !checked.matches_schema(&name)) {
                let why = "its schema is not in the migration";
                return Err(refused("include_tables", &table.to_string(), why)
                    .with_hint("Add the schema to include_schemas, or take the table out."));
            }
        }
        Ok(checked)
    }
}

impl TryFrom<Option<&v1::Filter>> for Filter {
    type Error = Report;

    fn try_from(filter: Option<&v1::Filter>) -> Result<Self, Report> {
        filter.map_or_else(|| Ok(Self::default()), Self::try_from)
    }
}

impl Filter {
    /// Whether objects of this schema belong to the migration. Table lists are not asked.
    pub fn matches_schema(&self, schema: &str) -> bool {
        !is_system_schema(schema)
            && (self.include_schemas.is_empty()
                || self.include_schemas.iter().any(|pattern| pattern.matches(schema)))
            && !self.exclude_schemas.iter().any(|pattern| pattern.matches(schema))
    }

    /// Whether this table (plain, partitioned, foreign, view, sequence) belongs to it.
    pub fn matches_table(&self, table: &TableName) -> bool {
        let named = |list: &[TablePattern]| list.iter().any(|pattern| pattern.matches(table));
        self.matches_schema(&table.schema)
            && (self.include_tables.is_empty() || named(&self.include_tables))
            && !named(&self.exclude_tables)
    }

    /// Whether a kind is left out altogether.
    pub fn leaves_out(&self, kind: Kind) -> bool {
        self.leave_out.contains(&kind)
    }

    /// Whether the operator took this one object out, as `TYPE schema.name`; runs of white
    /// space count as one.
    pub fn excludes_object(&self, tag: &str) -> bool {
        !self.exclude_objects.is_empty() && self.exclude_objects.contains(&one_space(tag))
    }

    /// Single objects taken out, as the operator wrote them but for white space.
    pub fn exclude_objects(&self) -> &[String] {
        &self.exclude_objects
    }

    /// Whether every object is in.
    pub fn is_everything(&self) -> bool {
        *self == Self::default()
    }

    /// Patterns that none of `schemas` and `tables` fits: most likely misspelt.
    pub fn idle_patterns<'a>(
        &self,
        schemas: impl Iterator<Item = &'a str> + Clone,
        tables: impl Iterator<Item = &'a TableName> + Clone,
    ) -> Vec<String> {
        let of_schemas = self.include_schemas.iter().chain(&self.exclude_schemas);
        let idle_schemas = of_schemas
            .filter(|pattern| !schemas.clone().any(|name| pattern.matches(name)))
            .map(ToString::to_string);
        let of_tables = self.include_tables.iter().chain(&self.exclude_tables);
        let idle_tables = of_tables
            .filter(|pattern| !tables.clone().any(|table| pattern.matches(table)))
            .map(ToString::to_string);
        idle_schemas.chain(idle_tables).collect()
    }
}

/// Schemas of the server (the prefix `pg_` is reserved), and our own.
fn is_system_schema(schema: &str) -> bool {
    schema.starts_with("pg_") || schema == "information_schema" || schema == "skein"
}

fn one_space(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn schemas(key: &str, texts: &[String]) -> Result<Vec<Pattern>, Report> {
    texts
        .iter()
        .map(|text| match Pattern::parse(text).map_err(|why| refused(key, text, why))?.as_slice() {
            [schema] => Ok(schema.clone()),
            _ => Err(refused(key, text, "a schema has one part")
                .with_hint("Write the schema alone, or use the table lists.")),
        })
        .collect()
}

fn tables(key: &str, texts: &[String]) -> Result<Vec<TablePattern>, Report> {
    texts
        .iter()
        .map(|text| {
            TablePattern::parse(text).map_err(|why| {
                refused(key, text, why)
                    .with_hint("Write schema.table; a name with a dot into double quotes.")
            })
        })
        .collect()
}

fn kinds(words: &[String]) -> Result<Vec<Kind>, Report> {
    words
        .iter()
        .map(|word| {
            Kind::ALL.into_iter().find(|kind| kind.as_str() == word.trim()).ok_or_else(|| {
                let allowed: Vec<_> = Kind::ALL.iter().map(|kind| kind.as_str()).collect();
                refused("leave_out", word, "no such kind")
                    .with_hint(format!("Allowed: {}.", allowed.join(", ")))
            })
        })
        .collect()
}

fn refused(key: &str, text: &str, why: &str) -> Report {
    let primary = format!("filter {key} cannot take {text}: {why}");
    Report::definite("FILTER_INVALID", primary)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lists(include: &[&str], exclude: &[&str], tables: &[&str], not: &[&str]) -> v1::Filter {
        let owned = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect();
        v1::Filter {
            include_schemas: owned(include),
            exclude_schemas: owned(exclude),
            include_tables: owned(tables),
            exclude_tables: owned(not),
            ..v1::Filter::default()
        }
    }

    fn has(filter: &v1::Filter, schema: &str, name: &str) -> bool {
        Filter::try_from(filter).unwrap().matches_table(&TableName::new(schema, name))
    }

    #[test]
    fn an_empty_filter_takes_everything_but_the_servers_schemas() {
        let all = v1::Filter::default();
        assert!(has(&all, "public", "Orders"));
        assert!(!has(&all, "pg_catalog", "pg_class"));
        assert!(!has(&all, "information_schema", "tables"));
        assert!(!has(&all, "skein", "task"));
        assert!(Filter::try_from(&all).unwrap().is_everything());
    }

    #[test]
    fn names_fold_unless_quoted_and_a_quoted_star_is_a_star() {
        let filter = lists(&[], &[], &["Public.Orders", "\"Shop\".\"a*b\"", "app.*"], &[]);
        assert!(has(&filter, "public", "orders"));
        assert!(!has(&filter, "Public", "Orders"));
        assert!(has(&filter, "Shop", "a*b"));
        assert!(!has(&filter, "Shop", "axb"));
        assert!(has(&filter, "app", "Anything.at all"));
    }

    #[test]
    fn quotes_hold_dots_and_double_quotes() {
        let filter = lists(&[], &[], &[r#""we.ird"."od""d""#, "app.half\"Upper\"*"], &[]);
        assert!(has(&filter, "we.ird", "od\"d"));
        assert!(has(&filter, "app", "halfUpper_1"));
        assert!(!has(&filter, "app", "halfupper_1"));
    }

    #[test]
    fn an_underscore_is_no_wildcard() {
        let filter = lists(&["a_b"], &[], &[], &[]);
        assert!(has(&filter, "a_b", "t"));
        assert!(!has(&filter, "axb", "t"));
    }

    #[test]
    fn exclusion_wins_and_a_table_needs_its_schema() {
        let filter = lists(&["app*"], &["app_old"], &[], &["*.tmp_*"]);
        assert!(has(&filter, "app", "orders"));
        assert!(!has(&filter, "app_old", "orders"));
        assert!(!has(&filter, "app", "tmp_1"));
        assert!(!has(&filter, "public", "orders"));
    }

    #[test]
    fn a_table_outside_the_included_schemas_is_refused_not_lost() {
        let filter = lists(&["app"], &[], &["other.t"], &[]);
        let report = Filter::try_from(&filter).unwrap_err();
        assert_eq!(report.reason, "FILTER_INVALID");
        assert!(report.primary.contains("other"));
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        for tables in ["orders", "a.b.c", "", "a.", ".b", "\"a", "a.\"\""] {
            assert!(Filter::try_from(&lists(&[], &[], &[tables], &[])).is_err(), "{tables}");
        }
        assert!(Filter::try_from(&lists(&["a.b"], &[], &[], &[])).is_err());
    }

    #[test]
    fn an_unknown_kind_names_the_known_ones() {
        let mut filter = v1::Filter { leave_out: vec!["roles".into()], ..v1::Filter::default() };
        let checked = Filter::try_from(&filter).unwrap();
        assert!(checked.leaves_out(Kind::Roles) && !checked.leaves_out(Kind::Owners));
        filter.leave_out.push("rolls".into());
        let report = Filter::try_from(&filter).unwrap_err();
        assert!(report.hint.contains("event_triggers") && report.hint.contains("roles"));
    }

    #[test]
    fn an_object_is_excluded_whatever_its_spaces() {
        let filter = v1::Filter {
            exclude_objects: vec!["FUNCTION  public.f(integer,\ttext)".into()],
            ..v1::Filter::default()
        };
        let checked = Filter::try_from(&filter).unwrap();
        assert!(checked.excludes_object("FUNCTION public.f(integer, text)"));
        assert!(!checked.excludes_object("FUNCTION public.g(integer)"));
    }

    #[test]
    fn patterns_that_fit_nothing_are_named() {
        let filter = lists(&[], &["old"], &["app.orders", "app.odrers"], &[]);
        let checked = Filter::try_from(&filter).unwrap();
        let tables = [TableName::new("app", "orders")];
        assert_eq!(
            checked.idle_patterns(["app"].into_iter(), tables.iter()),
            ["\"old\"", "\"app\".\"odrers\""]
        );
    }

    proptest! {
        #[test]
        fn a_quoted_name_matches_itself_and_nothing_else(
            schema in "[^\0]{1,12}", name in "[^\0]{1,12}", other in "[^\0]{1,12}",
        ) {
            prop_assume!(!is_system_schema(&schema));
            let table = TableName::new(&schema, &name);
            let filter = lists(&[], &[], &[&table.to_string()], &[]);
            prop_assert!(has(&filter, &schema, &name));
            prop_assert_eq!(has(&filter, &schema, &other), other == name);
        }

        #[test]
        fn a_table_is_in_only_where_its_schema_is(
            include in prop::collection::vec("[a-c*]{1,3}", 0..3),
            exclude in prop::collection::vec("[a-c*]{1,3}", 0..3),
            not in prop::collection::vec("[a-c*]{1,2}\\.[a-c*]{1,2}", 0..3),
            schema in "[a-c]{1,3}", name in "[a-c]{1,3}",
        ) {
            let filter = v1::Filter {
                include_schemas: include, exclude_schemas: exclude, exclude_tables: not,
                ..v1::Filter::default()
            };
            let filter = Filter::try_from(&filter).unwrap();
            let table = TableName::new(&schema, &name);
            prop_assert!(!filter.matches_table(&table) || filter.matches_schema(&schema));
        }

        #[test]
        fn reading_never_panics(text in ".{0,20}") {
            let _ = Filter::try_from(&lists(&[&text], &[], &[&text], &[]));
        }
    }
}
