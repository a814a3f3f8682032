-- A database with an object of every kind that pg_dump knows, under names that break naive
-- quoting. Made for an empty database, by a superuser, on PostgreSQL 13 and later; makes roles
-- `every_*` in the cluster. Safe as one simple-protocol message.

-- roles -------------------------------------------------------------------------------------
create role every_owner login password 'owner-secret' valid until '2040-01-01' connection limit 7;
create role every_reader nologin noinherit;
create role every_writer login createdb createrole;
create role "Every ""Odd"".Role" login;
create role every_replicator login replication bypassrls;
grant every_reader to every_writer with admin option;
grant every_reader to "Every ""Odd"".Role";
comment on role every_owner is 'owns; it''s a comment';
alter role every_owner set work_mem = '5MB';
alter role "Every ""Odd"".Role" set search_path = "$user", 'odd schema', public;

do $$ begin
  execute format('alter database %I set statement_timeout = ''61s''', current_database());
  execute format('alter database %I set datestyle = ''SQL, DMY''', current_database());
  execute format('alter role every_owner in database %I set application_name = ''it''''s "x"''', current_database());
  execute format('alter role every_owner in database %I set default_transaction_read_only = on', current_database());
  execute format('comment on database %I is ''the database''''s comment''', current_database());
  execute format('grant create, temporary on database %I to every_writer with grant option', current_database());
  execute format('revoke connect on database %I from public', current_database());
  execute format('alter database %I connection limit 55', current_database());
end $$;

-- schemas, extensions -------------------------------------------------------------------------
comment on schema public is 'public has another comment here';
create schema app authorization every_owner;
create schema "odd schema";
create schema "Схема.""q""";
grant usage on schema app to every_reader with grant option;
create extension hstore schema public;
create extension citext with schema "odd schema";
create extension btree_gist;
create extension pg_trgm;
comment on extension hstore is 'an extension with a comment';
alter default privileges for role every_owner in schema app grant select on tables to every_reader;
alter default privileges for role every_owner revoke execute on functions from public;

-- types ---------------------------------------------------------------------------------------
create type app.mood as enum ('sad', 'it''s "ok"', 'счастлив');
create type app.pair as (x int, "Y y" text collate "C");
comment on column app.pair.x is 'a column of a composite';
create type app.span as range (subtype = float8, subtype_diff = float8mi);
create domain app.positive as int default 1 not null constraint above_zero check (value > 0);
alter domain app.positive add constraint below check (value < 1000000) not valid;
comment on constraint above_zero on domain app.positive is 'on a domain';
create domain app.pairs as app.pair[];
create type app.shell;
create type app.box3;
create function app.box3_in(cstring) returns app.box3 language internal immutable strict as 'int4in';
create function app.box3_out(app.box3) returns cstring language internal immutable strict as 'int4out';
create type app.box3 (input = app.box3_in, output = app.box3_out, like = int4);
create collation app.german (provider = libc, locale = 'C');
create collation app.nocase (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
comment on collation app.german is 'c in disguise';

-- functions, operators, casts -------------------------------------------------------------------
create function app.add_pair(a app.pair, b app.pair) returns app.pair language sql immutable
  as $$ select row(a.x + b.x, a."Y y" || b."Y y")::app.pair $$;
create operator app.@+@ (leftarg = app.pair, rightarg = app.pair, function = app.add_pair,
  commutator = operator(app.@+@));
create function app.pair_text(app.pair) returns text language sql immutable as $$ select $1.x::text $$;
create cast (app.pair as text) with function app.pair_text(app.pair) as assignment;
create cast (app.mood as int) with inout as assignment;
create function app.pair_lt(app.pair, app.pair) returns bool language sql immutable as 'select $1.x < $2.x';
create function app.pair_cmp(app.pair, app.pair) returns int language sql immutable as 'select $1.x - $2.x';
create operator app.<<< (leftarg = app.pair, rightarg = app.pair, function = app.pair_lt);
create operator family app.pair_family using btree;
create operator class app.pair_class for type app.pair using btree family app.pair_family
  as operator 1 app.<<<, function 1 app.pair_cmp(app.pair, app.pair);
create aggregate app.pair_sum(app.pair) (sfunc = app.add_pair, stype = app.pair, initcond = '(0,)');
create conversion app.latin for 'LATIN1' to 'UTF8' from iso8859_1_to_utf8;
create text search dictionary app.plain (template = simple, stopwords = english);
create text search configuration app.plain (copy = simple);
alter text search configuration app.plain alter mapping for asciiword with app.plain;

-- bodies that pose as parts of an archive
create function app.poser() returns text language plpgsql as $body$
begin
  -- an archive would say:
--
-- TOC entry 1 (class 1259 OID 1)
-- Name: fake; Type: TABLE; Schema: public; Owner: nobody
-- Dependencies: 1 2 3
--

drop table if exists fake_table_of_a_body;

--
-- TOC entry 999999 (class 1259 OID 16384)
-- Name: fake2; Type: INDEX; Schema: public; Owner: nobody
--

SET default_tablespace = 'nowhere';
SET default_table_access_method = 'nothing';
/*
\restrict abc
\unrestrict abc
*/
  return 'x; y';
end
$body$;
create function "odd schema"."odd "".name
on two; -- lines"(a int default 1, variadic b text[] default '{}') returns text
  language sql stable as $$ select 'it''s $1; \' || a $$;
set check_function_bodies = off;
create function app.unknown_table_at_creation() returns bigint language sql
  as 'select count(*) from app.made_later';
set check_function_bodies = on;
create procedure app.proc(inout a int) language plpgsql as 'begin a := a + 1; commit; end';
create function app.on_change() returns trigger language plpgsql as 'begin return new; end';
create function app.on_ddl() returns event_trigger language plpgsql as 'begin end';
create function app.secured(int) returns int language sql security definer cost 5
  set search_path = app, pg_temp set work_mem = '3MB' as 'select $1';
grant execute on function app.secured(int) to every_reader;
create function app.every_handler() returns language_handler
  language c as '$libdir/plpgsql', 'plpgsql_call_handler';
create language every_language handler app.every_handler;

-- tables --------------------------------------------------------------------------------------
create table app.made_later (
  id bigint generated always as identity (start 5 increment 3) primary key,
  code text not null default 'c' collate app.german,
  mood app.mood default 'sad',
  pair app.pair,
  pairs app.pairs,
  amount app.positive,
  during tstzrange,
  doubled numeric generated always as (amount * 2.0) stored,
  body text compression pglz,
  constraint code_key unique (code) deferrable initially deferred,
  constraint no_overlap exclude using gist (code with =, during with &&),
  constraint code_not_empty check (code <> '')
);
alter table app.made_later alter column body set storage external;
alter table app.made_later alter column code set statistics 321;
alter table app.made_later alter column code set (n_distinct = -0.5);
alter table app.made_later set (fillfactor = 77, autovacuum_enabled = off);
alter table app.made_later add constraint later_check check (id > -1) not valid;
comment on table app.made_later is 'a table
with -- a comment; of two lines';
comment on column app.made_later.code is 'a column''s comment';
comment on constraint code_key on app.made_later is 'a key''s comment';
grant select, insert (code) on app.made_later to every_reader;
alter table app.made_later owner to every_owner;

create table app.child (
  id int primary key,
  parent bigint references app.made_later (id) on delete cascade deferrable,
  other bigint
);
alter table app.child add constraint weak foreign key (other) references app.made_later (id) not valid;
alter table app.child add foreign key (other) references app.made_later (id) deferrable initially deferred;
create table app."Таблица ""q"".dot; x
y" ("Колонка ""1""" serial, "select" text unique, primary key ("Колонка ""1"""));
insert into app."Таблица ""q"".dot; x
y" values (default, 'a'), (default, 'b');
create unlogged table app.unlogged (a int, b text);
create table app.keyless (a int, b text);
create table app.full_identity (a int);
alter table app.full_identity replica identity full;
create table app.index_identity (a int not null, b int);
create unique index index_identity_a on app.index_identity (a);
alter table app.index_identity replica identity using index index_identity_a;
create table app.nothing_identity (a int primary key);
alter table app.nothing_identity replica identity nothing;
create type app.row_type as (a int, b text);
create table app.typed of app.row_type (a with options not null, primary key (a));

create table app.measure (at date not null, device int not null, value float8 default 0)
  partition by range (at);
create table app.measure_2025 partition of app.measure for values from ('2025-01-01') to ('2026-01-01');
create table app.measure_2026 partition of app.measure for values from ('2026-01-01') to ('2027-01-01')
  partition by list (device);
create table app.measure_2026_1 partition of app.measure_2026 for values in (1);
create table app.measure_2026_rest partition of app.measure_2026 default;
alter table app.measure add constraint measure_key primary key (at, device);
create index measure_value on app.measure (value);
create index measure_2025_only on app.measure_2025 (device) where value > 0;
alter table app.measure add foreign key (device) references app.child (id);
create table app.refers (at date, device int,
  foreign key (at, device) references app.measure (at, device) on update cascade);
create table app.refers_parted (id int, at date, device int,
  foreign key (at, device) references app.measure (at, device)) partition by range (id);
create table app.refers_parted_1 partition of app.refers_parted for values from (0) to (100);
create table app.hashed (m app.mood, x int) partition by hash (m);
create table app.hashed_0 partition of app.hashed for values with (modulus 2, remainder 0);
create table app.hashed_1 partition of app.hashed for values with (modulus 2, remainder 1);

create table app.base (a int check (a > 0), b text);
create table app.derived (c int) inherits (app.base);
create index derived_lower on app.derived (lower(b) desc nulls last) include (c) with (fillfactor = 60);
create index trgm on app.base using gin (b gin_trgm_ops);
alter index app.derived_lower alter column 1 set statistics 99;
comment on index app.trgm is 'an index''s comment';
alter table app.derived cluster on derived_lower;
create statistics app.stats (dependencies, mcv) on a, b from app.base;
alter statistics app.stats set statistics 77;
comment on statistics app.stats is 'statistics';

create sequence app.counter as int increment -2 minvalue -1000 maxvalue 1000 start 500 cycle;
create table app.owns_counter (n int default nextval('app.counter'));
alter sequence app.counter owned by app.owns_counter.n;
create sequence app.free_sequence;
select setval('app.free_sequence', 42);

-- foreign -------------------------------------------------------------------------------------
create extension file_fdw;
create foreign data wrapper every_wrapper options (debug 'x');
create server every_server foreign data wrapper every_wrapper options (host 'h''1');
create user mapping for every_owner server every_server options (password 'not-printed');
create foreign table app.far (a int options (column_name 'A'), b text) server every_server options (t '1');
grant usage on foreign server every_server to every_reader;

-- views, rules, SQL bodies ------------------------------------------------------------------------
create view app.by_key as
  select m.id, m.code, m.mood, count(c.id) from app.made_later m left join app.child c on c.parent = m.id
  group by m.id;
create view app.checked with (security_barrier) as select * from app.keyless where a > 0
  with cascaded check option;
alter view app.checked alter column b set default 'd';
create recursive view app.ten (n) as select 1 union all select n + 1 from ten where n < 10;
create view app.circle_a as select 1 as x;
create view app.circle_b as select x from app.circle_a;
create or replace view app.circle_a as select x from (select 1 as x) s;
create materialized view app.summary as select code, count(*) from app.by_key group by code;
create unique index summary_code on app.summary (code);
create materialized view app.on_summary as select sum(count) from app.summary;
create materialized view app.unfilled as select * from app.keyless with no data;
create function app.reads_summary() returns numeric language sql stable as 'select sum(count) from app.summary';
create materialized view app.over_function as select app.reads_summary() as s;
do $$ begin
  if current_setting('server_version_num')::int >= 140000 then
    execute 'create function app.atomic_key() returns setof text language sql stable
      begin atomic; select m.code || m.mood::text from app.made_later m group by m.id; end';
    execute 'create view app.over_atomic as select * from app.atomic_key() as t';
  end if;
end $$;
create rule keyless_log as on insert to app.keyless do also insert into app.unlogged values (new.a, new.b);
create rule keyless_always as on delete to app.keyless do instead nothing;
alter table app.keyless enable always rule keyless_log;
create rule by_key_instead as on delete to app.by_key do instead nothing;
comment on rule keyless_log on app.keyless is 'a rule';

-- triggers, policies ---------------------------------------------------------------------------
create trigger plain before insert or update of code on app.made_later for each row
  when (new.code <> 'x') execute function app.on_change();
create trigger "Always" after insert on app.made_later for each row execute function app.on_change();
alter table app.made_later enable always trigger "Always";
create trigger in_replica after insert on app.made_later for each row execute function app.on_change();
alter table app.made_later enable replica trigger in_replica;
create trigger off after insert on app.made_later for each row execute function app.on_change();
alter table app.made_later disable trigger off;
create constraint trigger late after insert on app.keyless deferrable initially deferred
  for each row execute function app.on_change();
create trigger on_measure after insert on app.measure for each row execute function app.on_change();
alter table app.measure_2025 disable trigger on_measure;
comment on trigger plain on app.made_later is 'a trigger';
alter table app.child enable row level security;
alter table app.child force row level security;
create policy own_rows on app.child as restrictive for select to every_reader, "Every ""Odd"".Role"
  using (id in (select count from app.by_key));
create policy all_rows on app.child using (true) with check (id > 0);
comment on policy own_rows on app.child is 'a policy';

-- publications, subscriptions, event triggers ------------------------------------------------------
create publication every_publication for table app.made_later, app.keyless with (publish = 'insert');
create publication every_all for all tables;
comment on publication every_publication is 'published';
create subscription every_subscription connection 'host=127.0.0.1 port=1 dbname=nowhere'
  publication p, "Q q" with (connect = false, slot_name = 'every_slot');
create event trigger every_ddl on ddl_command_end when tag in ('CREATE OPERATOR') execute function app.on_ddl();
alter event trigger every_ddl enable always;
alter event trigger every_ddl owner to postgres;
comment on event trigger every_ddl is 'watches';

-- large objects, transforms, access methods ----------------------------------------------------------
select lo_from_bytea(770001, decode(repeat('00ff', 5000), 'hex'));
select lo_from_bytea(770002, '');
select lo_from_bytea(770003, convert_to('третий', 'UTF8'));
alter large object 770001 owner to every_owner;
grant select on large object 770001 to every_reader;
comment on large object 770003 is 'a large object''s comment';
create access method every_heap type table handler heap_tableam_handler;
create table app.other_method (a int primary key) using every_heap;
create table app.after_other_method (a int primary key);
create transform for hstore language plpgsql (from sql with function pg_catalog.prsd_lextype(internal), to sql with function public.hstore_recv(internal));

-- rows that a view or a key may stumble on ------------------------------------------------------------
insert into app.made_later (code, amount, during) values ('a', 1, '[2026-01-01,2026-02-01)'), ('b', 2, null);
insert into app.child values (1, 5, null);
insert into app.measure values ('2025-05-05', 1, 1), ('2026-06-06', 1, 2);
insert into app.refers values ('2025-05-05', 1);
insert into app.refers_parted values (1, '2026-06-06', 1);
refresh materialized view app.summary;
