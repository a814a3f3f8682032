//! The archive of the schema, read. Pure.
//!
//! ```text
//! pg_restore --verbose -f -        -> text of all entries, each under a header comment
//! pg_restore --list --section=...  -> which headers are true, and their section
//!                                     both -> Archive
//! ```
//! Promise: text inside a function body cannot pose as an entry. A header counts only if its
//! three numbers stand in the list and nowhere else in the text; an entry of the list without
//! text, or with two, is an error and not a guess.

use super::beside::LeafKey;
use super::entry::{Entry, HEAP, NO_TABLESPACE, Section, Stage, Staging};
use super::error::{Error, Result};
use std::collections::{BTreeMap, HashMap, HashSet};

/// All entries, in the order in which they can be restored.
#[derive(Clone, Debug, Default)]
pub struct Archive {
    /// Names the archive in marks on the target: a checksum of its file.
    pub digest: String,
    pub entries: Vec<Entry>,
    pub(super) staging: Staging,
    /// Foreign keys of leaf partitions that are restored.
    pub(super) leaf_keys: Vec<LeafKey>,
}

impl Archive {
    /// From what pg_restore prints.
    ///
    /// # Errors
    /// [`Error::Archive`] when list and text do not agree.
    pub fn parse(script: &str, pre_data: &str, post_data: &str) -> Result<Self> {
        let mut listed = BTreeMap::new();
        list(pre_data, Section::PreData, &mut listed)?;
        list(post_data, Section::PostData, &mut listed)?;
        let headers = headers(script, &listed)?;
        let mut state = State::default();
        let mut entries = Vec::with_capacity(headers.len());
        state.take(&script[..headers.first().map_or(script.len(), |header| header.begin)]);
        for (i, header) in headers.iter().enumerate() {
            let end = headers.get(i + 1).map_or(script.len(), |next| next.begin);
            let mut text = &script[header.end..end];
            if i + 1 == headers.len() {
                text = without_trailer(text);
            }
            let (kind, tag, schema, owner) = header.names(&listed)?;
            let entry = Entry {
                id: header.key.0,
                place: i,
                class_oid: header.key.1,
                oid: header.key.2,
                kind,
                schema,
                tag,
                owner,
                section: listed[&header.key].section,
                depends_on: header.depends_on.clone(),
                tablespace: state.tablespace.clone(),
                access_method: state.access_method.clone(),
                sql: state.take(text).trim().to_owned(),
            };
            entries.push(entry);
        }
        Ok(Self::of(entries))
    }

    /// Of entries in order.
    pub fn of(entries: Vec<Entry>) -> Self {
        let staging = Staging::of(&entries);
        Self { digest: String::new(), staging, entries, leaf_keys: Vec::new() }
    }

    /// The same with its digest, and the leaf keys whose table is in it.
    #[must_use]
    pub(super) fn with(self, digest: String, mut leaf_keys: Vec<LeafKey>) -> Self {
        let tables: HashSet<u32> =
            self.entries.iter().filter(|e| e.kind == "TABLE").map(|e| e.oid).collect();
        leaf_keys.retain(|key| tables.contains(&key.relid));
        Self { digest, leaf_keys, ..self }
    }

    /// Entries of a stage, in order.
    pub fn stage(&self, stage: Stage) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(move |entry| self.staging.stage(entry) == stage)
    }

    /// The entries by dump id.
    pub(super) fn by_id(&self) -> HashMap<u32, &Entry> {
        self.entries.iter().map(|entry| (entry.id, entry)).collect()
    }
}

/// Dump id, OID of the catalog, OID of the object.
type Key = (u32, u32, u32);

/// A line of `pg_restore --list`.
struct Listed<'a> {
    section: Section,
    /// Kind, schema, tag and owner, blanks between: not to be taken apart without the header.
    rest: &'a str,
}

fn list<'a>(text: &'a str, section: Section, listed: &mut BTreeMap<Key, Listed<'a>>) -> Result<()> {
    for line in text.lines().filter(|line| !line.starts_with(';') && !line.is_empty()) {
        let parsed = (|| {
            let (id, rest) = line.split_once("; ")?;
            let (class_oid, rest) = rest.split_once(' ')?;
            let (oid, rest) = rest.split_once(' ')?;
            let key = (id.parse().ok()?, class_oid.parse().ok()?, oid.parse().ok()?);
            Some((key, rest))
        })();
        let (key, rest) = parsed.ok_or_else(|| Error::Archive("a line of its list".to_owned()))?;
        listed.insert(key, Listed { section, rest });
    }
    Ok(())
}

/// A header comment in the script.
struct Header<'a> {
    key: Key,
    /// Where its first line begins, and where the text behind it does.
    begin: usize,
    end: usize,
    depends_on: Vec<u32>,
    /// `NAME; Type: KIND; Schema: SCHEMA; Owner: OWNER[; Tablespace: NAME]`.
    name_line: &'a str,
}

impl Header<'_> {
    /// Kind, tag, schema, owner. The separators may stand in a name too, so that the list
    /// decides where the line is cut.
    #[allow(clippy::type_complexity)]
    fn names(
        &self,
        listed: &BTreeMap<Key, Listed<'_>>,
    ) -> Result<(String, String, Option<String>, Option<String>)> {
        let rest = listed[&self.key].rest;
        let named = |text: &str| (!text.is_empty() && text != "-").then(|| text.to_owned());
        for (type_at, _) in self.name_line.match_indices("; Type: ") {
            let tag = &self.name_line[..type_at];
            let behind = &self.name_line[type_at + "; Type: ".len()..];
            for (schema_at, _) in behind.match_indices("; Schema: ") {
                let kind = &behind[..schema_at];
                let behind = &behind[schema_at + "; Schema: ".len()..];
                for (owner_at, _) in behind.match_indices("; Owner: ") {
                    let schema = &behind[..owner_at];
                    let owner = &behind[owner_at + "; Owner: ".len()..];
                    let owner = owner.split_once("; Tablespace: ").map_or(owner, |(o, _)| o);
                    let front = format!("{kind} {schema} {tag}");
                    if rest.trim_end()
                        == format!("{front} {}", owner.trim_start_matches('-')).trim_end()
                        || rest.trim_end() == format!("{front} {owner}").trim_end()
                    {
                        return Ok((kind.to_owned(), tag.to_owned(), named(schema), named(owner)));
                    }
                }
            }
        }
        Err(Error::Archive(format!("header and list differ for entry {}", self.key.0)))
    }
}

const FIRST_LINE: &str = "-- TOC entry ";

fn headers<'a>(script: &'a str, listed: &BTreeMap<Key, Listed<'_>>) -> Result<Vec<Header<'a>>> {
    let mut found: Vec<Header<'a>> = Vec::with_capacity(listed.len());
    let mut seen: HashMap<Key, u32> = HashMap::with_capacity(listed.len());
    let mut at = 0;
    let mut before = 0;
    for line in script.split_inclusive('\n') {
        let begin = at;
        at += line.len();
        if let Some(key) = key_of(line).filter(|key| listed.contains_key(key))
            && let Some(header) = header(script, key, before, at)
        {
            *seen.entry(key).or_default() += 1;
            found.push(header);
        }
        before = begin;
    }
    for (key, listed) in listed {
        match seen.get(key) {
            Some(1) => {}
            None => return Err(Error::Archive(format!("no text for {}", listed.rest))),
            Some(_) => {
                return Err(Error::Archive(format!(
                    "the text of an object repeats the header of {}",
                    listed.rest
                )));
            }
        }
    }
    Ok(found)
}

/// `-- TOC entry N (class C OID O)`.
fn key_of(line: &str) -> Option<Key> {
    let (id, rest) = line.strip_prefix(FIRST_LINE)?.split_once(" (class ")?;
    let (class_oid, rest) = rest.split_once(" OID ")?;
    let oid = rest.trim_end().strip_suffix(')')?;
    Some((id.parse().ok()?, class_oid.parse().ok()?, oid.parse().ok()?))
}

/// The comment around the line that ends at `at` and is preceded by the line at `before`.
fn header(script: &str, key: Key, before: usize, at: usize) -> Option<Header<'_>> {
    if !script[before..].starts_with("--\n") {
        return None;
    }
    let mut end = at;
    let mut depends_on = Vec::new();
    let mut name_line = None;
    for line in script[at..].split_inclusive('\n') {
        end += line.len();
        let line = line.trim_end_matches('\n');
        if line == "--" {
            return Some(Header { key, begin: before, end, depends_on, name_line: name_line? });
        }
        let comment = line.strip_prefix("-- ")?;
        if let Some(ids) = comment.strip_prefix("Dependencies: ") {
            depends_on = ids.split(' ').filter_map(|id| id.parse().ok()).collect();
        } else if let Some(names) = comment.strip_prefix("Name: ") {
            name_line = Some(names);
        }
    }
    None
}

/// Settings that pg_restore prints only when they change, at the end of the text before the
/// entry that they are for.
struct State {
    tablespace: String,
    access_method: String,
}

impl Default for State {
    fn default() -> Self {
        Self { tablespace: NO_TABLESPACE.to_owned(), access_method: HEAP.to_owned() }
    }
}

impl State {
    /// Takes settings off the end of `text`; gives back what stands before them.
    fn take<'a>(&mut self, text: &'a str) -> &'a str {
        let mut rest = text.trim_end();
        let (mut tablespace, mut access_method) = (None, None);
        loop {
            let line_at = rest.rfind('\n').map_or(0, |at| at + 1);
            let line = &rest[line_at..];
            if let Some(value) = setting(line, "default_tablespace") {
                tablespace.get_or_insert(value);
            } else if let Some(value) = setting(line, "default_table_access_method") {
                access_method.get_or_insert(value);
            } else {
                break;
            }
            rest = rest[..line_at].trim_end();
        }
        if let Some(value) = tablespace {
            value.clone_into(&mut self.tablespace);
        }
        if let Some(value) = access_method {
            value.clone_into(&mut self.access_method);
        }
        rest
    }
}

fn setting<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    line.strip_prefix("SET ")?.strip_prefix(name)?.strip_prefix(" = ")?.strip_suffix(';')
}

/// The last entry's text without what pg_restore prints at the end of the script.
fn without_trailer(text: &str) -> &str {
    let mut rest = text.trim_end();
    loop {
        let line_at = rest.rfind('\n').map_or(0, |at| at + 1);
        let line = &rest[line_at..];
        let ours = line == "--"
            || line.starts_with("\\unrestrict ")
            || line.starts_with("-- Completed on ")
            || line == "-- PostgreSQL database dump complete";
        if !ours || rest.is_empty() {
            return rest;
        }
        rest = rest[..line_at].trim_end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRE: &str = ";\n; Archive\n;\n13; 2615 20662 SCHEMA - app every owner\n\
        603; 1255 21680 FUNCTION app poser() postgres\n224; 1259 100 TABLE app t postgres\n\
        225; 1259 101 TABLE app odd; Type: X; Schema: Y name postgres\n\
        4164; 0 0 COMMENT app TABLE t \n";
    const POST: &str = "300; 1259 102 INDEX app i postgres\n301; 1259 103 INDEX app j postgres\n";

    fn header_text(key: &str, depends_on: &str, names: &str) -> String {
        let depends_on = if depends_on.is_empty() {
            String::new()
        } else {
            format!("-- Dependencies: {depends_on}\n")
        };
        format!("--\n-- TOC entry {key}\n{depends_on}-- Name: {names}\n-- Data Pos: 0\n--\n\n")
    }

    fn script(body: &str) -> String {
        let mut text =
            "--\n-- PostgreSQL database dump\n--\n\n\\restrict kEy\n\nSET row_security = off;\n\n"
                .to_owned();
        let parts = [
            (
                "13 (class 2615 OID 20662)",
                "",
                "app; Type: SCHEMA; Schema: -; Owner: every owner",
                "CREATE SCHEMA app;",
            ),
            (
                "603 (class 1255 OID 21680)",
                "13",
                "poser(); Type: FUNCTION; Schema: app; Owner: postgres",
                body,
            ),
            (
                "224 (class 1259 OID 100)",
                "13",
                "t; Type: TABLE; Schema: app; Owner: postgres; Tablespace: fast",
                "CREATE TABLE app.t ();\n\n\nSET default_tablespace = '';\n",
            ),
            (
                "225 (class 1259 OID 101)",
                "13",
                "odd; Type: X; Schema: Y name; Type: TABLE; Schema: app; Owner: postgres",
                "CREATE TABLE odd ();",
            ),
            (
                "4164 (class 0 OID 0)",
                "224",
                "TABLE t; Type: COMMENT; Schema: app; Owner: ",
                "COMMENT ON TABLE app.t IS 'x';",
            ),
            (
                "300 (class 1259 OID 102)",
                "224 13",
                "i; Type: INDEX; Schema: app; Owner: postgres",
                "CREATE INDEX i ON app.t (a);",
            ),
            (
                "301 (class 1259 OID 103)",
                "224",
                "j; Type: INDEX; Schema: app; Owner: postgres",
                "CREATE INDEX j ON app.t (b);",
            ),
        ];
        for (key, depends_on, names, sql) in parts {
            text.push_str(&header_text(key, depends_on, names));
            text.push_str(sql);
            text.push_str("\n\n\n");
        }
        text.push_str("-- Completed on 2026-11-20\n\n--\n-- PostgreSQL database dump complete\n--\n\n\\unrestrict kEy\n\n");
        text
    }

    const BODY: &str = "CREATE FUNCTION app.poser() AS $$\n--\n-- TOC entry 1 (class 1 OID 1)\n\
        -- Name: fake; Type: TABLE; Schema: a; Owner: b\n--\n\nDROP TABLE x;\n\
        SET default_tablespace = 'nowhere';\n\\unrestrict kEy\n$$;\n\n\n\
        SET default_tablespace = fast;\n\nSET default_table_access_method = mine;";

    #[test]
    fn entries_come_with_text_dependencies_and_settings() {
        let archive = Archive::parse(&script(BODY), PRE, POST).unwrap();
        let tags: Vec<_> = archive.entries.iter().map(Entry::label).collect();
        assert_eq!(
            tags,
            [
                "SCHEMA app",
                "FUNCTION app.poser()",
                "TABLE app.t",
                "TABLE app.odd; Type: X; Schema: Y name",
                "COMMENT app.TABLE t",
                "INDEX app.i",
                "INDEX app.j"
            ]
        );
        let table = &archive.entries[2];
        assert_eq!((table.tablespace.as_str(), table.access_method.as_str()), ("fast", "mine"));
        assert_eq!(table.sql, "CREATE TABLE app.t ();");
        assert_eq!(archive.entries[3].tablespace, "''");
        assert_eq!(archive.entries[0].sql, "CREATE SCHEMA app;");
        assert_eq!(archive.entries[0].owner.as_deref(), Some("every owner"));
        assert_eq!(archive.entries[4].owner, None);
        assert_eq!(archive.entries[5].depends_on, [224, 13]);
        assert_eq!(archive.entries[6].sql, "CREATE INDEX j ON app.t (b);");
    }

    #[test]
    fn a_body_cannot_pose_as_an_entry() {
        let archive = Archive::parse(&script(BODY), PRE, POST).unwrap();
        assert!(archive.entries[1].sql.contains("DROP TABLE x;"));
        assert!(archive.entries[1].sql.contains("\\unrestrict kEy\n$$;"));
        assert!(archive.entries[1].sql.ends_with("$$;"));
    }

    #[test]
    fn a_body_that_repeats_a_true_header_is_refused_not_guessed() {
        let twin = header_text(
            "300 (class 1259 OID 102)",
            "1",
            "i; Type: INDEX; Schema: app; Owner: postgres",
        );
        let body = format!("CREATE FUNCTION app.poser() AS $$\n{twin}drop table x;\n$$;");
        let refused = Archive::parse(&script(&body), PRE, POST).unwrap_err();
        assert!(refused.to_string().contains("repeats the header of INDEX app i"), "{refused}");
    }

    #[test]
    fn an_entry_of_the_list_without_text_is_an_error() {
        let more = format!("{POST}400; 1259 9 INDEX app gone postgres\n");
        assert!(Archive::parse(&script(BODY), PRE, &more).is_err());
    }
}
