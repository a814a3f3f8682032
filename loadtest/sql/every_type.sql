-- A table for each type of PostgreSQL and of a user, three times: with a key beside the value,
-- without any key, and with the value as its key. Then what else tables can be. Made for an empty
-- database, by a superuser, on PostgreSQL 14 and later. `every_type_changes.sql` goes with it.

create schema types;
create type types.mood as enum ('calm', 'it''s "so"', 'дикий');
create type types.pair as (x int, "Y y" text, m types.mood);
create domain types.positive as numeric check (value > 0 or value = 'NaN');
create domain types.moods as types.mood[];
create type types.span as range (subtype = float8, subtype_diff = float8mi, multirange_type_name = types.spans);
create type types.mood_range as range (subtype = types.mood, multirange_type_name = types.mood_ranges);

create table types.value (type text, number int, v text not null, primary key (type, number));
insert into types.value
select type, row_number() over (partition by type), v from (values
  ('bool', array['t', 'f']),
  ('bytea', array['\x', '\x00ff5c27220a', 'text\\with\\backslash']),
  ('"char"', array['a', '\', '']),
  ('name', array['a name', 'quote"d', '']),
  ('int2', array['-32768', '32767', '0']),
  ('int4', array['-2147483648', '2147483647', '0']),
  ('int8', array['-9223372036854775808', '9223372036854775807', '0']),
  ('int2vector', array['1 2 3', '', '-7']),
  ('oidvector', array['1 2 3', '', '4294967295']),
  ('text', array['', 'a', E'tab\tnew\nline\r\\N \\. quote'' " {,}', '数据 émoji 🦆', 'NULL']),
  ('bpchar(5)', array['', 'ab', 'ab  c']),
  ('bpchar', array['', 'ab', 'ab  c']),
  ('varchar(9)', array['', 'ab', 'ab  c  ']),
  ('oid', array['0', '4294967295']),
  ('tid', array['(0,1)', '(4294967295,65535)']),
  ('xid', array['0', '4294967295']),
  ('xid8', array['0', '18446744073709551615']),
  ('cid', array['0', '4294967295']),
  ('json', array['{"a": 1, "a" : 2 }', '[]', 'null', '"\u00e9"']),
  ('jsonb', array['{"a": 1.0, "b": [null, true]}', '[]', 'null', '1.00']),
  ('jsonpath', array['$."a"[*] ? (@ > 3)', 'strict $']),
  ('xml', array['<a b="c">&amp;</a>', 'text', '<?xml version="1.0"?><a/>']),
  ('point', array['(1,2)', '(NaN,Infinity)', '(-0,0)', '(0.1,1e-300)']),
  ('lseg', array['[(1,2),(3,4)]', '[(-0,0),(0,0)]']),
  ('path', array['[(1,2),(3,4)]', '((1,2),(3,4))']),
  ('box', array['(3,4),(1,2)', '(0,0),(0,0)']),
  ('polygon', array['((1,2),(3,4),(5,0))', '((0,0))']),
  ('line', array['{1,2,3}', '{0.5,-1,0}']),
  ('circle', array['<(1,2),3>', '<(0,0),0>']),
  ('float4', array['NaN', 'Infinity', '-Infinity', '-0', '0', '1e-45', '3.4028235e38', '0.1']),
  ('float8', array['NaN', 'Infinity', '-Infinity', '-0', '0', '5e-324', '1.7976931348623157e308', '0.1']),
  ('money', array['-$92,233,720,368,547,758.08', '0.01', '12']),
  ('numeric', array['NaN', 'Infinity', '-Infinity', '0', '1', '1.0', '1.00', '-0.000',
                    '12345678901234567890.123456789012345678901234567890', '1e-200', '1e300']),
  ('numeric(12,3)', array['NaN', '0', '-123456789.125']),
  ('date', array['infinity', '-infinity', '4713-01-01 BC', '5874897-12-31', '2001-02-01', '0044-03-15 BC']),
  ('time', array['00:00', '24:00:00', '23:59:59.999999']),
  ('time(2)', array['00:00', '12:34:56.78']),
  ('timetz', array['00:00+00', '24:00:00-15:59', '12:34:56.789+05:30']),
  ('timestamp', array['infinity', '-infinity', '4713-01-01 00:00:00 BC', '294276-12-31 23:59:59.999999', '2001-02-01 3:04']),
  ('timestamptz', array['infinity', '-infinity', '4713-01-02 00:00:00+00 BC', '294276-12-31 23:59:59.999999+00', '2001-02-01 3:04+05']),
  ('timestamptz(3)', array['2001-02-01 3:04:05.678+05']),
  ('interval', array['0', '-1 mons +2 days -03:04:05.678', '178000000 years', '1 mon', '30 days', '24:00', '1 day']),
  ('interval day to second', array['1 day 02:03:04']),
  ('bit(3)', array['101', '000']),
  ('varbit', array['', '1', '0101010101010101']),
  ('cidr', array['10.0.0.0/8', '::/0', '2001:db8::/32']),
  ('inet', array['10.1.2.3/8', '::1', '2001:db8::1/64', '1.2.3.4']),
  ('macaddr', array['08:00:2b:01:02:03']),
  ('macaddr8', array['08:00:2b:01:02:03:04:05']),
  ('uuid', array['00000000-0000-0000-0000-000000000000', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11']),
  ('pg_lsn', array['0/0', 'FFFFFFFF/FFFFFFFF']),
  ('pg_snapshot', array['10:20:10,14,15', '1:1:']),
  ('txid_snapshot', array['10:20:10,14,15', '1:1:']),
  ('refcursor', array['a cursor', '']),
  ('tsvector', array['''a'':1A,2 ''quote'''''':3', '']),
  ('tsquery', array['''a'' & !''b'' <-> ''c'':*AB', '']),
  ('aclitem', array['postgres=arwd*/postgres', '=r/postgres']),
  ('regclass', array['types.value', 'pg_class', '-']),
  ('regtype', array['types.mood', 'integer', 'text[]']),
  ('regproc', array['pg_catalog.now', '-']),
  ('regprocedure', array['pg_catalog.abs(bigint)', '-']),
  ('regoper', array['pg_catalog.||/', '0']),
  ('regoperator', array['pg_catalog.+(bigint,bigint)', '0']),
  ('regnamespace', array['types', 'pg_catalog']),
  ('regrole', array['postgres', '-']),
  ('regconfig', array['english', 'simple']),
  ('regdictionary', array['english_stem', 'simple']),
  ('regcollation', array['"C"', '"POSIX"']),
  ('int4range', array['empty', '[1,5)', '(,)', '[3,)']),
  ('int8range', array['empty', '[1,5)', '(,)', '(,-9]']),
  ('numrange', array['empty', '[1.0,1.00]', '(,NaN]', '[-1e-9,5.500)']),
  ('tsrange', array['empty', '[2001-02-01,infinity]', '(,2001-02-01 12:00)']),
  ('tstzrange', array['empty', '[2001-02-01 00:00+00,infinity)']),
  ('daterange', array['empty', '[2001-02-01,infinity)', '(,2001-02-01)']),
  ('int4multirange', array['{}', '{[1,5),[7,9)}', '{(,)}']),
  ('int8multirange', array['{}', '{[1,5),[7,9)}']),
  ('nummultirange', array['{}', '{[1.0,1.00],(5,NaN]}']),
  ('tsmultirange', array['{}', '{[2001-02-01,infinity]}']),
  ('tstzmultirange', array['{}', '{[2001-02-01 00:00+00,infinity)}']),
  ('datemultirange', array['{}', '{[2001-02-01,2001-03-01),[2002-01-01,)}']),
  ('types.mood', array['calm', 'it''s "so"', 'дикий']),
  ('types.pair', array['(1,"a,""b""",calm)', '(,,)', '(2,,дикий)']),
  ('types.positive', array['1', '1.00', 'NaN']),
  ('types.moods', array['{}', '{calm,NULL,дикий}']),
  ('types.span', array['empty', '[-0,NaN]', '[0.1,)']),
  ('types.spans', array['{}', '{[1,2),[3,Infinity]}']),
  ('types.mood_range', array['empty', '[calm,дикий)']),
  ('types.mood_ranges', array['{}', '{[calm,calm],[дикий,дикий]}'])
) as given (type, all_v), unnest(all_v) as v;

-- Every row and an array of all of them; NULL, the empty array, and one of two dimensions.
create function types.array_of(the_type text) returns text language sql as $$
  select coalesce('array[' || string_agg(format('%L::%s', v, the_type), ', ' order by number)
                  || format(', null]::%s[]', the_type), 'null')
    from types.value where type = the_type $$;
do $$
declare kind record; one record; elements text;
begin
  for kind in select distinct type, 'of_' || md5(type) as name from types.value loop
    elements := types.array_of(kind.type);
    execute format('create table types.%I (id int primary key, v %s, a %s[])', kind.name, kind.type, kind.type);
    execute format('comment on table types.%I is %L', kind.name, kind.type);
    execute format('create table types.%I (v %s, a %s[])', 'no_' || kind.name, kind.type, kind.type);
    for one in select number, v from types.value where type = kind.type loop
      execute format('insert into types.%I values (%s, %L::%s, %s)', kind.name, one.number, one.v, kind.type, elements);
      execute format('insert into types.%I select v, a from types.%I where id = %s', 'no_' || kind.name, kind.name, one.number);
      execute format('insert into types.%I select v, a from types.%I where id = %s', 'no_' || kind.name, kind.name, one.number);
    end loop;
    execute format('insert into types.%I values (100, null, null), (101, null, ''{}'')', kind.name);
    if kind.type <> 'types.moods' then  -- an array of a domain over arrays has one dimension
      execute format('insert into types.%I values (102, null, array[[(%s)[1], null], [null, (%s)[1]]])',
                     kind.name, elements, elements);
    end if;
    execute format('insert into types.%I select v, a from types.%I where id >= 100', 'no_' || kind.name, kind.name);
    begin
      execute format('create table types.%I (v %s primary key, n int)', 'by_' || kind.name, kind.type);
      execute format('insert into types.%I select distinct on (v) v, id from types.%I where v is not null', 'by_' || kind.name, kind.name);
    exception when undefined_object then null;  -- no btree: no key
    end;
  end loop;
end $$;

-- Partitions of each kind, one of them by an enum, one below another.
create schema part;
create table part.by_range (id int, at date, note text, primary key (id, at)) partition by range (at);
create table part.old partition of part.by_range for values from (minvalue) to ('2020-01-01');
create table part.new partition of part.by_range for values from ('2020-01-01') to ('2030-01-01') partition by list (id);
create table part.new_one partition of part.new for values in (1, 2, 3);
create table part.new_rest partition of part.new default;
create table part.rest partition of part.by_range default;
create table part.by_list (mood types.mood, n int, note text) partition by list (mood);
create table part.calm partition of part.by_list for values in ('calm', null);
create table part.wild partition of part.by_list default;
create table part.by_hash (id bigint primary key, note text) partition by hash (id);
create table part.hash_0 partition of part.by_hash for values with (modulus 3, remainder 0);
create table part.hash_1 partition of part.by_hash for values with (modulus 3, remainder 1);
create table part.hash_2 partition of part.by_hash for values with (modulus 3, remainder 2);
create table part.by_enum (mood types.mood, n int, note text, primary key (mood, n)) partition by hash (mood);
create table part.enum_0 partition of part.by_enum for values with (modulus 2, remainder 0);
create table part.enum_1 partition of part.by_enum for values with (modulus 2, remainder 1);
insert into part.by_range select i, date '2019-12-25' + i * 3, 'r' || i from generate_series(1, 60) i;
insert into part.by_range values (99, 'infinity', 'last');
insert into part.by_list select (enum_range(null::types.mood))[i % 3 + 1], i, 'l' || i from generate_series(1, 60) i;
insert into part.by_list values (null, 1, 'no mood');
insert into part.by_hash select i, 'h' || i from generate_series(1, 60) i;
insert into part.by_enum select (enum_range(null::types.mood))[i % 3 + 1], i, 'e' || i from generate_series(1, 60) i;

create schema odd;
create table odd.parent (id int primary key, note text);
create table odd.child (extra text, primary key (id)) inherits (odd.parent);
insert into odd.parent select i, 'parent' from generate_series(1, 20) i;
insert into odd.child select i, 'child', 'x' from generate_series(11, 30) i;
create unlogged table odd.unlogged (id int primary key, note text);
insert into odd.unlogged select i, 'u' from generate_series(1, 20) i;
create table odd.zero ();
insert into odd.zero select from generate_series(1, 5);
do $$ begin
  execute (select 'create table odd.broad (' || string_agg(format('c%s bool', i), ', ') || ', primary key (c1, c2))'
             from generate_series(1, 1600) i);
end $$;
insert into odd.broad (c1, c2, c3, c1600) values (true, true, false, true), (true, false, null, null);
create table odd.toast (id int primary key, note text, body text, raw bytea);
alter table odd.toast alter body set storage external;
insert into odd.toast select i, 'n', repeat(md5(i::text), 327680), decode(repeat(md5(i::text), 1000), 'hex') from generate_series(1, 2) i;
create table odd.secured (id int primary key, owner text);
alter table odd.secured enable row level security;
alter table odd.secured force row level security;
create policy nobody on odd.secured using (false);
insert into odd.secured select i, 'o' from generate_series(1, 10) i;
create table odd.always (id int generated always as identity primary key, n int, twice int generated always as (n * 2) stored);
insert into odd.always (n) select generate_series(1, 10);
create table odd.deferred (id int primary key deferrable initially deferred, place int unique deferrable initially deferred);
insert into odd.deferred select i, i from generate_series(1, 10) i;
create table odd.excluded (during int4range not null, note text, exclude using gist (during with &&));
insert into odd.excluded select int4range(i * 10, i * 10 + 5), 'x' from generate_series(1, 10) i;
create table odd.same (a int, b text);
insert into odd.same select i % 3, 'same' from generate_series(1, 30) i;
create table odd.guarded (id int primary key, parent int references odd.parent (id), n int);
alter table odd.guarded add check (n > 0) not valid;
insert into odd.guarded select i, i, i from generate_series(1, 10) i;
create table odd.audit (id bigserial primary key, what text);
create function odd.note() returns trigger language plpgsql as $$ begin
  insert into odd.audit (what) values (tg_op || ' ' || tg_table_name); return null; end $$;
create trigger note after insert or update or delete on odd.guarded for each row execute function odd.note();
create schema "Odd.""Schema""
новый";
create table "Odd.""Schema""
новый"."Таблица.с ""кавычками"" и
строкой" ("id.""x""" int primary key, "Имя
в две строки" text, "%s $1 ?" text, "select" int);
insert into "Odd.""Schema""
новый"."Таблица.с ""кавычками"" и
строкой" select i, '', null, i from generate_series(1, 10) i;
create table "Odd.""Schema""
новый"."名前名前名前名前名前名前名前名前名前名前名" ("名前名前名前名前名前名前名前名前名前名前名" int primary key, n int);
insert into "Odd.""Schema""
новый"."名前名前名前名前名前名前名前名前名前名前名" select i, i from generate_series(1, 10) i;
