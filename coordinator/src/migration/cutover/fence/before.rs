//! What the source has before the fence.

use super::Error;
use pg::{Session, sql};
use serde::{Deserialize, Serialize};

/// Settings that the fence changes, as they were. Written down on the target first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Before {
    /// False with `--no-fence`: nothing is set and nothing taken back.
    pub fence: bool,
    /// The database's `default_transaction_read_only`, where it has one.
    pub database: Option<String>,
    /// Roles whose own setting would win over the database's.
    pub roles: Vec<RoleSetting>,
    /// Subscriptions into this database that were enabled.
    pub subscriptions: Vec<String>,
}

/// A role's `default_transaction_read_only` in this database; none where it has it only
/// everywhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoleSetting {
    pub role: String,
    pub in_database: Option<String>,
}

/// Reads it. With `fence` false nothing would be changed.
///
/// # Errors
/// When the source cannot be read.
pub async fn read_before(source: &Session, fence: bool) -> Result<Before, Error> {
    let read = async {
        let settings = source
            .query(
                &sql!(
                    "with setting as (
                       select s.setrole, s.setdatabase, split_part(c, '=', 2) as value
                         from pg_db_role_setting s cross join lateral unnest(s.setconfig) c
                        where split_part(c, '=', 1) = 'default_transaction_read_only'
                          and s.setdatabase in (0, (select oid from pg_database
                                                     where datname = current_database())))
                     select r.rolname::text,
                            max(value) filter (where setdatabase <> 0),
                            max(value) filter (where setdatabase = 0)
                       from setting left join pg_roles r on r.oid = setrole
                      where setrole <> 0 or setdatabase <> 0
                      group by r.rolname order by r.rolname"
                ),
                &[],
            )
            .await?;
        let mut before = Before { fence, ..Before::default() };
        for row in settings {
            let role: Option<String> = row.try_get(0)?;
            let (in_database, everywhere): (Option<String>, Option<String>) =
                (row.try_get(1)?, row.try_get(2)?);
            match role {
                None => before.database = in_database,
                Some(role) if !is_on(in_database.as_ref().or(everywhere.as_ref())) => {
                    before.roles.push(RoleSetting { role, in_database });
                }
                Some(_) => {}
            }
        }
        let subscriptions = source
            .query(
                &sql!(
                    "select s.subname::text from pg_subscription s
                       join pg_database d on d.oid = s.subdbid
                      where d.datname = current_database() and s.subenabled order by 1"
                ),
                &[],
            )
            .await?;
        for row in subscriptions {
            before.subscriptions.push(row.try_get(0)?);
        }
        Ok(before)
    };
    read.await.map_err(Error::source("the settings of database and roles"))
}

/// Words that the server takes for true.
fn is_on(value: Option<&String>) -> bool {
    value.is_some_and(|value| matches!(value.as_str(), "on" | "true" | "yes" | "1"))
}
