//! The few statements of an archive whose text is read: ends of constraints, names. Pure.
//!
//! Promise: quoted names and literals are passed over whole, whatever they hold.

/// Whether a constraint is NOT VALID on the source (or not enforced there at all), as
/// `pg_get_constraintdef` prints it: at the end.
pub(super) fn is_not_valid(sql: &str) -> bool {
    let sql = body(sql);
    sql.ends_with(" NOT VALID") || sql.ends_with(" NOT ENFORCED")
}

/// The statement without the semicolon at its end.
pub(super) fn body(sql: &str) -> &str {
    sql.trim_end().strip_suffix(';').unwrap_or_else(|| sql.trim_end()).trim_end()
}

/// `ALTER TABLE [ONLY] table ADD CONSTRAINT name ...`, taken apart; names as SQL.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct AddConstraint<'a> {
    pub(super) table: &'a str,
    pub(super) name: &'a str,
    /// Without ONLY: the table is partitioned.
    pub(super) partitioned: bool,
}

impl<'a> AddConstraint<'a> {
    pub(super) fn parse(sql: &'a str) -> Option<Self> {
        let rest = sql.trim_start().strip_prefix("ALTER TABLE ")?;
        let (partitioned, rest) = match rest.strip_prefix("ONLY ") {
            Some(rest) => (false, rest),
            None => (true, rest),
        };
        let (table, rest) = name(rest)?;
        let rest = rest.trim_start().strip_prefix("ADD CONSTRAINT ")?;
        let (name, _) = name(rest)?;
        Some(Self { table, name, partitioned })
    }
}

/// A name, qualified and quoted as it may be, from the front of `text`; and the rest.
pub(super) fn name(text: &str) -> Option<(&str, &str)> {
    let mut quoted = false;
    for (at, character) in text.char_indices() {
        match character {
            '"' => quoted = !quoted,
            _ if quoted => {}
            ' ' | '\n' | '(' | ';' | ',' => return (at > 0).then(|| text.split_at(at)),
            _ => {}
        }
    }
    (!quoted && !text.is_empty()).then_some((text, ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_constraint_is_taken_apart_whatever_its_names_hold() {
        let sql = "ALTER TABLE ONLY app.\"a ADD CONSTRAINT \"\"b\"\n    ADD CONSTRAINT \"c d\" \
                   FOREIGN KEY (x) REFERENCES y(z);\n\n\n";
        let found = AddConstraint::parse(sql).unwrap();
        assert_eq!(found.table, "app.\"a ADD CONSTRAINT \"\"b\"");
        assert_eq!(found.name, "\"c d\"");
        assert!(!found.partitioned);
        assert!(AddConstraint::parse("ALTER TABLE a\n    ADD CONSTRAINT b").unwrap().partitioned);
    }

    #[test]
    fn not_valid_stands_at_the_end_only() {
        assert!(is_not_valid("ALTER TABLE t ADD CONSTRAINT c CHECK (a) NOT VALID;\n\n"));
        assert!(!is_not_valid("ALTER TABLE t ADD CONSTRAINT c CHECK (a <> ' NOT VALID');"));
    }
}
