//! What the source has beside tables: TimescaleDB, large objects, what the stream leaves out.

use super::{
    Plan,
    check::{CheckExt as _, Place, count, failure, or_not_made, pass, warning},
    server::Server,
};
use crate::filter::Kind;
use pg::sql;
use proto::v1::Check;

pub(super) async fn of_source(source: &Server, plan: &Plan<'_>) -> Vec<Check> {
    let place = Place::Source;
    let mut checks = or_not_made("timescaledb", place, timescaledb(source).await);
    checks.extend(or_not_made("large_objects", place, large_objects(source, plan).await));
    checks.extend(or_not_made("subscriptions", place, writers_within(source).await));
    checks.extend(or_not_made("stream_limits", place, stream_limits(source).await));
    checks
}

/// Chunk rows would be lost in silence by what moves plain tables.
async fn timescaledb(source: &Server) -> pg::Result<Vec<Check>> {
    let version = source
        .session
        .query_opt(&sql!("select extversion from pg_extension where extname = 'timescaledb'"), &[])
        .await?;
    let Some(row) = version else { return Ok(Vec::new()) };
    let version: String = row.try_get(0)?;
    let hypertables = source
        .session
        .query_one(&sql!("select count(*) from _timescaledb_catalog.hypertable"), &[])
        .await
        .and_then(|row| Ok(row.try_get::<_, i64>(0)?))
        .ok();
    let found = format!("TimescaleDB {version}");
    Ok(vec![match hypertables {
        Some(0) => warning("timescaledb", Place::Source, format!("{found}, no hypertable"))
            .detail("A hypertable made while the migration runs would not be moved.")
            .fix("drop extension timescaledb; -- if it is not used"),
        hypertables => failure(
            "timescaledb",
            Place::Source,
            match hypertables {
                Some(number) => format!(
                    "{found}, {}",
                    count(usize::try_from(number).unwrap_or(0), "hypertable")
                ),
                None => found,
            },
        )
        .detail(
            "Hypertables come with a later version of Skein: their chunks are not ordinary \
             tables, and rows would be lost.",
        )
        .fix("Wait for that version, or move the hypertables by other means first."),
    }])
}

/// Large objects that take a good part of the default timeout of a cutover, 60 s, to read.
const MANY_GIGABYTES: i64 = 2;

async fn large_objects(source: &Server, plan: &Plan<'_>) -> pg::Result<Vec<Check>> {
    let row = source
        .session
        .query_one(&sql!("select count(*) from pg_largeobject_metadata"), &[])
        .await?;
    let number = usize::try_from(row.try_get::<_, i64>(0)?).unwrap_or(0);
    if number == 0 {
        return Ok(Vec::new());
    }
    let found = count(number, "large object");
    if plan.filter.leaves_out(Kind::LargeObjects) {
        return Ok(vec![warning("large_objects", Place::Source, format!("{found}, left out"))]);
    }
    let hidden = source
        .session
        .query_one(
            &sql!(
                "select count(*) from pg_largeobject_metadata
                  where lomacl is null and not pg_has_role(lomowner, 'usage')"
            ),
            &[],
        )
        .await?
        .try_get::<_, i64>(0)?;
    if hidden > 0 && !source.role.superuser && source.setting("lo_compat_privileges") != Some("on")
    {
        let found = format!("{found}, {hidden} owned by others");
        return Ok(vec![
            failure("large_objects", Place::Source, found)
                .detail("Our role may not read them, and pg_dump would fail.")
                .fix("Grant their owners to the role, or add large_objects to leave_out."),
        ]);
    }
    // Their table is the whole of them; whoever may not read it may ask its size.
    let bytes = source
        .session
        .query_one(&sql!("select pg_relation_size('pg_catalog.pg_largeobject'::regclass)"), &[])
        .await?
        .try_get::<_, i64>(0)?;
    let gigabytes = bytes >> 30;
    let stop = if gigabytes >= MANY_GIGABYTES {
        format!(
            " At {gigabytes} GiB that may take longer than the cutover's timeout: reading them \
             alone is some {} s of stopped writes at 100 MiB/s, so give --timeout more than that.",
            bytes / (100 << 20)
        )
    } else {
        String::new()
    };
    Ok(vec![
        warning("large_objects", Place::Source, found)
            .detail(format!(
                "Their changes are not in the stream. They are copied with the schema, and again \
                 while writes are stopped at cutover.{stop}"
            ))
            .fix("Add large_objects to leave_out, if they are not needed."),
    ])
}

/// What writes without a session: subscriptions into this database, scheduled jobs.
async fn writers_within(source: &Server) -> pg::Result<Vec<Check>> {
    let row = source
        .session
        .query_one(
            &sql!(
                "select (select count(*) from pg_subscription s
                           join pg_database d on d.oid = s.subdbid
                          where d.datname = current_database() and s.subenabled),
                        exists (select from pg_extension where extname = 'pg_cron')"
            ),
            &[],
        )
        .await?;
    let (subscriptions, jobs): (i64, bool) = (row.try_get(0)?, row.try_get(1)?);
    let mut checks = Vec::new();
    if subscriptions > 0 {
        let found = count(usize::try_from(subscriptions).unwrap_or(0), "subscription");
        checks.push(
            warning("subscriptions", Place::Source, format!("{found} into this database")).detail(
                "They write on. Cutover disables them; on the target they are made disabled, and \
                 without a slot.",
            ),
        );
    }
    if jobs {
        checks.push(
            warning("scheduled_jobs", Place::Source, "extension pg_cron")
                .detail("Its jobs write on by themselves until cutover stops them.")
                .fix("Unschedule them before cutover, and schedule them on the target after."),
        );
    }
    Ok(checks)
}

/// One note of what pgoutput does not carry.
async fn stream_limits(source: &Server) -> pg::Result<Vec<Check>> {
    let row = source
        .session
        .query_one(
            &sql!(
                "select count(*) from pg_class c join pg_namespace n on n.oid = c.relnamespace
                  where c.relkind = 'S' and n.nspname !~ '^pg_'"
            ),
            &[],
        )
        .await?;
    let sequences = usize::try_from(row.try_get::<_, i64>(0)?).unwrap_or(0);
    Ok(vec![pass("stream_limits", Place::Source, count(sequences, "sequence")).detail(
        "The stream carries rows and TRUNCATE. Sequences are set at cutover. Schema changes \
             are not carried: one in a migrated table stops replay at that change until resume. \
             While tables are copied, CREATE INDEX CONCURRENTLY and REINDEX CONCURRENTLY on the \
             source wait for the snapshot.",
    )])
}
