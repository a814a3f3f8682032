//! Bytes, digests and attributes of large objects on one server.

use pg::{
    Result, Session, Sql, sql,
    sql::{Ident, Literal},
};
use std::collections::{BTreeMap, HashMap};

/// Bytes of an object in memory at once, and of one statement.
const PIECE_BYTES: i32 = 1 << 20;
/// Objects of a page: a transaction on the target takes a lock or two for each.
const PAGE: i64 = 500;

/// An object without its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Attributes {
    pub(super) oid: u32,
    pub(super) owner: String,
    pub(super) comment: Option<String>,
    /// `(grantee or public, privilege, with grant option)`, in order; None: never granted.
    pub(super) grants: Option<Vec<(Option<String>, String, bool)>>,
}

/// Objects in the order of their OIDs.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) objects: Vec<Attributes>,
    /// OID of the last one.
    pub(super) last: Option<u32>,
    /// There is nothing behind it.
    pub(super) is_last: bool,
}

impl Page {
    /// The objects behind `oid`, a page of them.
    pub(super) async fn after(session: &Session, oid: u32) -> Result<Self> {
        Self::read(session, oid, u32::MAX, PAGE).await
    }

    /// All objects behind `oid`, up to and with `upto`.
    pub(super) async fn between(session: &Session, oid: u32, upto: u32) -> Result<Self> {
        Self::read(session, oid, upto, i64::MAX).await
    }

    async fn read(session: &Session, after: u32, upto: u32, limit: i64) -> Result<Self> {
        let rows = session
            .query(
                &sql!(
                    "select m.oid, pg_get_userbyid(m.lomowner),
                            obj_description(m.oid, 'pg_largeobject'), m.lomacl is not null
                     from pg_largeobject_metadata m
                     where m.oid > $1 and m.oid <= $2 order by m.oid limit $3"
                ),
                &[&after, &upto, &limit],
            )
            .await?;
        let mut objects: BTreeMap<u32, Attributes> = rows
            .iter()
            .map(|row| {
                let oid = row.get(0);
                let grants = row.get::<_, bool>(3).then(Vec::new);
                (oid, Attributes { oid, owner: row.get(1), comment: row.get(2), grants })
            })
            .collect();
        let oids: Vec<u32> = objects.keys().copied().collect();
        let grants = session
            .query(
                &sql!(
                    "select m.oid, r.rolname, a.privilege_type, a.is_grantable
                     from pg_largeobject_metadata m, aclexplode(m.lomacl) a
                     left join pg_roles r on r.oid = a.grantee
                     where m.oid = any ($1) and (a.grantee = 0 or r.oid is not null)
                     order by 1, 2 nulls first, 3"
                ),
                &[&oids],
            )
            .await?;
        for row in grants {
            if let Some(object) = objects.get_mut(&row.get::<_, u32>(0))
                && let Some(grants) = object.grants.as_mut()
            {
                grants.push((row.get(1), row.get(2), row.get(3)));
            }
        }
        let is_last = i64::try_from(oids.len()).is_ok_and(|count| count < limit);
        Ok(Self { objects: objects.into_values().collect(), last: oids.last().copied(), is_last })
    }

    pub(super) fn oids(&self) -> Vec<u32> {
        self.objects.iter().map(|object| object.oid).collect()
    }

    /// Takes one out.
    pub(super) fn take(&mut self, oid: u32) -> Option<Attributes> {
        let at = self.objects.binary_search_by_key(&oid, |object| object.oid).ok()?;
        Some(self.objects.remove(at))
    }
}

impl Attributes {
    /// Grants to others than the owner.
    pub(super) fn granted(&self) -> Vec<&(Option<String>, String, bool)> {
        let all = self.grants.iter().flatten();
        all.filter(|(role, _, _)| role.as_ref() != Some(&self.owner)).collect()
    }

    pub(super) fn owner_sql(&self) -> Sql {
        sql!("alter large object {} owner to {}", self.oid, Ident(&self.owner))
    }

    pub(super) fn comment_sql(&self) -> Sql {
        match &self.comment {
            Some(comment) => {
                sql!("comment on large object {} is {}", self.oid, Literal(comment))
            }
            None => sql!("comment on large object {} is null", self.oid),
        }
    }

    /// From no grants to these; the owner's own stay with the object when it changes hands.
    pub(super) fn grants_sql(&self) -> Option<Sql> {
        self.grants.as_ref()?;
        let mut statements = sql!("revoke all on large object {} from public", self.oid);
        for (role, privilege, grantable) in self.granted() {
            let privilege = Sql::trusted(privilege);
            statements.push(sql!("; grant {} on large object {} to ", privilege, self.oid));
            match role {
                Some(role) => statements.push(Ident(role)),
                None => statements.push("public"),
            };
            if *grantable {
                statements.push(" with grant option");
            }
        }
        Some(statements)
    }
}

/// Copies an object piece by piece within the two open transactions.
pub(super) async fn copy(source: &Session, target: &Session, oid: u32) -> Result<()> {
    target.query(&sql!("select lo_create($1)"), &[&oid]).await?;
    let mut offset: i64 = 0;
    loop {
        let piece = source
            .query_one(&sql!("select lo_get($1, $2, $3)"), &[&oid, &offset, &PIECE_BYTES])
            .await?;
        let bytes: &[u8] = piece.get(0);
        if !bytes.is_empty() {
            target.query(&sql!("select lo_put($1, $2, $3)"), &[&oid, &offset, &bytes]).await?;
        }
        if bytes.len() < usize::try_from(PIECE_BYTES).unwrap_or(usize::MAX) {
            return Ok(());
        }
        offset += i64::from(PIECE_BYTES);
    }
}

/// SHA-256 over each object, made on its server piece by piece: size, then the pieces' own.
pub(super) async fn digests(session: &Session, oids: &[u32]) -> Result<HashMap<u32, String>> {
    // 262144 is INV_READ; a descriptor lives to the end of the transaction at most.
    let rows = session
        .query(
            &sql!(
                "select o.oid, s.bytes::text || ':' || coalesce((
                   select string_agg(encode(sha256(lo_get(o.oid, at, {})), 'hex'), '' order by at)
                   from generate_series(0::bigint, s.bytes - 1, {}::bigint) as p(at)), '')
                 from unnest($1::oid[]) as o(oid)
                 cross join lateral (select lo_open(o.oid, 262144) as fd offset 0) f
                 cross join lateral (select lo_lseek64(f.fd, 0, 2) as bytes offset 0) s
                 cross join lateral (select lo_close(f.fd + (s.bytes * 0)::int) offset 0) c",
                PIECE_BYTES,
                PIECE_BYTES
            ),
            &[&oids],
        )
        .await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}
