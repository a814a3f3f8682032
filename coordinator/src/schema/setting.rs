//! Settings as ALTER ROLE and ALTER DATABASE take them. Pure.
//!
//! In: `name=value` as `pg_db_role_setting` keeps it. Out: `"name" to 'value'`. Promise: a list
//! whose members are names (search_path) stays a list; everything else is one literal.

use pg::{
    Sql, sql,
    sql::{Ident, Literal},
};

/// Settings kept as a list of quoted names (GUC_LIST_QUOTE in the server's guc_tables.c; no
/// extension may have one).
const NAME_LISTS: [&str; 7] = [
    "local_preload_libraries",
    "oauth_validator_libraries",
    "search_path",
    "session_preload_libraries",
    "shared_preload_libraries",
    "temp_tablespaces",
    "unix_socket_directories",
];

/// `"name" to 'value'`, and the setting's name; None when there is no `=`.
pub(super) fn assignment(config: &str) -> Option<(Sql, &str)> {
    let (name, value) = config.split_once('=')?;
    let quoted_name = Sql::join(name.split('.').map(Ident), ".");
    let value = if NAME_LISTS.contains(&name.to_lowercase().as_str()) {
        let names = names(value);
        if names.is_empty() {
            sql!("''")
        } else {
            Sql::join(names.iter().map(|name| Literal(name)), ", ")
        }
    } else {
        sql!("{}", Literal(value))
    };
    Some((sql!("{} to {}", quoted_name, value), name))
}

/// Names of a list: commas between them, double quotes around some.
fn names(list: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut name = String::new();
    let mut characters = list.chars().peekable();
    let (mut quoted, mut was_quoted) = (false, false);
    while let Some(character) = characters.next() {
        match character {
            '"' if quoted && characters.peek() == Some(&'"') => {
                name.push('"');
                characters.next();
            }
            '"' => {
                quoted = !quoted;
                was_quoted = true;
            }
            ',' if !quoted => {
                names.push(std::mem::take(&mut name));
                was_quoted = false;
            }
            c if !quoted && c.is_whitespace() => {}
            c => name.push(c),
        }
    }
    if was_quoted || !name.is_empty() {
        names.push(name);
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(config: &str) -> String {
        assignment(config).unwrap().0.as_str().to_owned()
    }

    #[test]
    fn a_list_of_names_stays_a_list() {
        assert_eq!(
            text(r#"search_path="$user", "odd ""schema", public"#),
            r#""search_path" to '$user', 'odd "schema', 'public'"#
        );
        assert_eq!(text("search_path="), "\"search_path\" to ''");
        assert_eq!(text("search_path=\"\""), "\"search_path\" to ''");
    }

    #[test]
    fn everything_else_is_one_literal() {
        assert_eq!(text("datestyle=SQL, DMY"), "\"datestyle\" to 'SQL, DMY'");
        assert_eq!(text("my.setting=it's=x"), "\"my\".\"setting\" to 'it''s=x'");
    }
}
