//! SQL text whose parts are quoted: the only thing a [`crate::Session`] takes.
//!
//! In: static text, and fragments (identifiers, literals, numbers, other SQL). Out: [`Sql`].
//! Promise: a name or value never reaches the server unquoted, since a `String` is no fragment.
//!
//! ```
//! use pg::{sql, sql::{Ident, Literal}, TableName};
//! let table = TableName::new("public", "od\"d");
//! let statement = sql!("delete from {} where {} = {}", table, Ident("Id"), Literal("it's"));
//! assert_eq!(statement.as_str(), r#"delete from "public"."od""d" where "Id" = 'it''s'"#);
//! ```

use postgres_types::PgLsn;

/// One or more statements, safe to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sql(String);

impl Sql {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Text that came from the server itself (`pg_get_indexdef`, `pg_restore`): trusted as
    /// SQL, since whoever owns the source defines the target's schema.
    pub fn trusted(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Fragments joined by `separator`.
    pub fn join<F: Fragment>(parts: impl IntoIterator<Item = F>, separator: &'static str) -> Self {
        let mut out = String::new();
        for (i, part) in parts.into_iter().enumerate() {
            if i > 0 {
                out.push_str(separator);
            }
            part.render(&mut out);
        }
        Self(out)
    }

    /// Adds `more` behind.
    pub fn push(&mut self, more: impl Fragment) -> &mut Self {
        more.render(&mut self.0);
        self
    }

    #[doc(hidden)]
    pub fn from_macro(text: String) -> Self {
        Self(text)
    }
}

impl From<&'static str> for Sql {
    fn from(text: &'static str) -> Self {
        Self(text.to_owned())
    }
}

/// A part of a statement that knows how to write itself safely.
pub trait Fragment {
    fn render(&self, out: &mut String);
}

impl<F: Fragment + ?Sized> Fragment for &F {
    fn render(&self, out: &mut String) {
        (**self).render(out);
    }
}

/// An identifier; always quoted.
#[derive(Clone, Copy, Debug)]
pub struct Ident<'a>(pub &'a str);

/// Identifiers, separated by commas.
#[derive(Clone, Copy, Debug)]
pub struct Idents<'a>(pub &'a [String]);

/// A string literal.
#[derive(Clone, Copy, Debug)]
pub struct Literal<'a>(pub &'a str);

impl Fragment for Ident<'_> {
    fn render(&self, out: &mut String) {
        out.push_str(&quote_ident(self.0));
    }
}

impl Fragment for Idents<'_> {
    fn render(&self, out: &mut String) {
        for (i, name) in self.0.iter().enumerate() {
            if i > 0 {
                out.push_str(", ");
            }
            out.push_str(&quote_ident(name));
        }
    }
}

impl Fragment for Literal<'_> {
    fn render(&self, out: &mut String) {
        out.push_str(&quote_literal(self.0));
    }
}

impl Fragment for Sql {
    fn render(&self, out: &mut String) {
        out.push_str(&self.0);
    }
}

impl Fragment for &'static str {
    fn render(&self, out: &mut String) {
        out.push_str(self);
    }
}

impl Fragment for PgLsn {
    fn render(&self, out: &mut String) {
        out.push_str(&format!("'{self}'::pg_lsn"));
    }
}

macro_rules! number {
    ($($t:ty),*) => {$(
        impl Fragment for $t {
            fn render(&self, out: &mut String) { out.push_str(&self.to_string()); }
        }
    )*};
}
number!(i16, i32, i64, u16, u32, u64, usize, bool);

/// Quotes an identifier, always.
pub fn quote_ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Quotes a literal for standard_conforming_strings; an `E''` string where it holds a
/// backslash, so that it is right under either setting.
pub fn quote_literal(value: &str) -> String {
    let doubled = value.replace('\'', "''");
    if doubled.contains('\\') {
        format!(" E'{}'", doubled.replace('\\', "\\\\"))
    } else {
        format!("'{doubled}'")
    }
}

/// Renders one fragment; used by [`crate::sql!`].
#[doc(hidden)]
pub fn rendered(fragment: &(impl Fragment + ?Sized)) -> String {
    let mut out = String::new();
    fragment.render(&mut out);
    out
}

/// Builds [`Sql`] from static text with `{}` for each fragment.
#[macro_export]
macro_rules! sql {
    ($text:literal $(,)?) => { $crate::sql::Sql::from($text) };
    ($text:literal, $($part:expr),+ $(,)?) => {
        $crate::sql::Sql::from_macro(format!($text, $($crate::sql::rendered(&$part)),+))
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_values_are_quoted() {
        assert_eq!(quote_ident("a\"b"), "\"a\"\"b\"");
        assert_eq!(quote_literal("it's"), "'it''s'");
        assert_eq!(quote_literal(r"a\'b"), r" E'a\\''b'");
    }
}
