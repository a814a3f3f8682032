//! Transfers between accounts, each with an entry that names the client and its number.
//!
//! Promise: the sum over all accounts never changes; an entry is there if and only if its
//! transfer is; an account's balance is what its entries say.

use super::{Commit, Failed, Outcome};
use pg::{Session, sql};
use rand::{Rng as _, rngs::StdRng};
use std::collections::HashSet;

const ACCOUNT_COUNT: i32 = 1_000;
const FIRST_BALANCE: i64 = 1_000_000;

pub(super) async fn prepare(session: &Session) -> pg::Result<()> {
    session
        .batch(&sql!(
            "create schema ledger; \
             create table ledger.account (id int primary key, balance bigint not null); \
             create table ledger.entry ( \
               id bigint generated always as identity primary key, \
               client int not null, sequence bigint not null, \
               debit int not null references ledger.account, \
               credit int not null references ledger.account, \
               amount bigint not null check (amount > 0), \
               at timestamptz not null default pg_catalog.now(), \
               unique (client, sequence)); \
             insert into ledger.account \
               select id, {} from pg_catalog.generate_series(1, {}) id;",
            FIRST_BALANCE,
            ACCOUNT_COUNT
        ))
        .await
}

/// One transfer. Accounts are locked in the order of their numbers.
pub(super) async fn transfer(
    session: &Session,
    (client, sequence): Commit,
    random: &mut StdRng,
) -> Result<(), Failed> {
    let debit = random.random_range(1..=ACCOUNT_COUNT);
    let credit = debit % ACCOUNT_COUNT + 1;
    let amount = random.random_range(1..100_i64);
    let step = |id: i32| if id == debit { -amount } else { amount };
    let (first, second) = (debit.min(credit), debit.max(credit));
    let statements = sql!(
        "begin; \
         update ledger.account set balance = balance + ({}) where id = {}; \
         update ledger.account set balance = balance + ({}) where id = {}; \
         insert into ledger.entry (client, sequence, debit, credit, amount) \
           values ({}, {}, {}, {}, {});",
        step(first),
        first,
        step(second),
        second,
        client,
        sequence,
        debit,
        credit,
        amount
    );
    session.batch(&statements).await.map_err(Failed::Before)?;
    session.batch(&sql!("commit")).await.map_err(Failed::DuringCommit)
}

pub(super) async fn check(outcome: &Outcome, session: &Session) -> pg::Result<Vec<String>> {
    let mut wrong = Vec::new();
    let sum = session
        .query_one(&sql!("select pg_catalog.sum(balance)::bigint from ledger.account"), &[])
        .await?;
    let expected_sum = i64::from(ACCOUNT_COUNT) * FIRST_BALANCE;
    let found_sum = sum.get::<_, Option<i64>>(0).unwrap_or(0);
    if found_sum != expected_sum {
        wrong.push(format!("the ledger's sum is {found_sum}, {expected_sum} was expected"));
    }
    let rows = session.query(&sql!("select client, sequence from ledger.entry"), &[]).await?;
    let found: Vec<Commit> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    let distinct: HashSet<Commit> = found.iter().copied().collect();
    let mut count = |what: &str, number: usize| {
        if number > 0 {
            wrong.push(format!("{number} commits of the ledger {what}"));
        }
    };
    count("are there twice", found.len() - distinct.len());
    count("were acknowledged and are lost", outcome.acknowledged.difference(&distinct).count());
    let invented = distinct.difference(&outcome.acknowledged);
    count(
        "are there and nobody made them",
        invented.filter(|it| !outcome.unknown.contains(it)).count(),
    );
    let unbalanced = sql!(
        "select count(*) from ledger.account a where balance <> {} \
           + (select coalesce(pg_catalog.sum(amount), 0) from ledger.entry where credit = a.id) \
           - (select coalesce(pg_catalog.sum(amount), 0) from ledger.entry where debit = a.id)",
        FIRST_BALANCE
    );
    let unbalanced: i64 = session.query_one(&unbalanced, &[]).await?.get(0);
    if unbalanced > 0 {
        wrong.push(format!("{unbalanced} accounts are not what their entries say"));
    }
    Ok(wrong)
}
