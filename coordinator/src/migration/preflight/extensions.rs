//! Extensions of the source: whether the target offers them, in which version, to whom.

use super::{
    check::{CheckExt as _, Place, count, failure, pass, some, statements, warning},
    pair::names,
    server::Server,
};
use pg::{Session, Sql, sql, sql::quote_ident};
use proto::v1::Check;
use std::collections::{BTreeMap, BTreeSet};

pub(super) async fn checks(source: &Server, target: &Server) -> pg::Result<Vec<Check>> {
    let wanted: Vec<(String, String)> = pairs(
        &source.session,
        &sql!("select extname::text, extversion from pg_extension where extname <> 'plpgsql'"),
    )
    .await?;
    if wanted.is_empty() {
        return Ok(vec![pass("extensions", Place::Target, "none on the source")]);
    }
    let mut offered: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (name, version) in pairs(
        &target.session,
        &sql!("select name::text, version from pg_available_extension_versions"),
    )
    .await?
    {
        offered.entry(name).or_default().insert(version);
    }
    let needs_superuser = untrusted(target).await?;
    let missing: Vec<&String> =
        wanted.iter().map(|(name, _)| name).filter(|name| !offered.contains_key(*name)).collect();
    let other: Vec<String> = wanted
        .iter()
        .filter(|(name, version)| offered.get(name).is_some_and(|all| !all.contains(version)))
        .map(|(name, version)| format!("{name} {version}"))
        .collect();
    let refused: Vec<&String> = wanted
        .iter()
        .map(|(name, _)| name)
        .filter(|name| needs_superuser.contains(*name))
        .collect();
    let mut checks = Vec::new();
    if !missing.is_empty() {
        checks.push(
            failure("extensions", Place::Target, format!("not installed: {}", some(&missing)))
                .detail("The source uses them.")
                .fix("Install their packages on the target's machine, or add extensions to leave_out."),
        );
    }
    if !refused.is_empty() {
        let create: Vec<String> = refused
            .iter()
            .map(|name| format!("create extension {}; -- as superuser", quote_ident(name)))
            .collect();
        checks.push(
            failure(
                "extension_rights",
                Place::Target,
                format!("only a superuser creates: {}", some(&refused)),
            )
            .fix(statements(&create)),
        );
    }
    if !other.is_empty() {
        checks.push(
            warning(
                "extension_versions",
                Place::Target,
                format!("other versions: {}", some(&other)),
            )
            .detail(
                "The target creates its default version. Columns of types of these travel as \
                     text.",
            ),
        );
    }
    checks.extend(preloaded(source, target));
    if checks.is_empty() {
        checks.push(pass("extensions", Place::Target, count(wanted.len(), "extension")));
    }
    Ok(checks)
}

/// Extensions that our role may not create on the target and that are not there yet.
async fn untrusted(target: &Server) -> pg::Result<BTreeSet<String>> {
    if target.role.superuser {
        return Ok(BTreeSet::new());
    }
    let query = sql!(
        "select name::text from pg_available_extension_versions
          where name not in (select extname from pg_extension)
          group by name having not bool_or(trusted)"
    );
    Ok(names(&target.session, &query).await?.into_iter().collect())
}

/// Libraries that work only when they are loaded at the start.
fn preloaded(source: &Server, target: &Server) -> Option<Check> {
    let libraries = |server: &Server| -> Option<BTreeSet<String>> {
        let text = server.setting("shared_preload_libraries")?;
        Some(
            text.split(',')
                .map(|name| name.trim().trim_matches('"').to_owned())
                .filter(|name| !name.is_empty())
                .collect(),
        )
    };
    let (from, to) = (libraries(source)?, libraries(target)?);
    let missing: Vec<&String> = from.difference(&to).collect();
    (!missing.is_empty()).then(|| {
        let all: Vec<&str> = from.union(&to).map(String::as_str).collect();
        warning(
            "shared_preload_libraries",
            Place::Target,
            format!("loaded on the source only: {}", some(&missing)),
        )
        .fix(format!(
            "alter system set shared_preload_libraries = {}; -- then restart the target",
            all.iter().map(|name| pg::sql::quote_literal(name)).collect::<Vec<_>>().join(", ")
        ))
    })
}

async fn pairs(session: &Session, query: &Sql) -> pg::Result<Vec<(String, String)>> {
    let mut pairs = Vec::new();
    for row in session.query(query, &[]).await? {
        pairs.push((row.try_get(0)?, row.try_get(1)?));
    }
    Ok(pairs)
}
