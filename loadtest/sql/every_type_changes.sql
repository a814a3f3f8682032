-- What happens to the tables of `every_type.sql` while they are replayed.

do $$
declare kind record;
begin
  for kind in select distinct type, 'of_' || md5(type) as name from types.value loop
    -- Every value as INSERT, as UPDATE to another, as DELETE; all but one of the equal rows stay.
    execute format('insert into types.%I select id + 1000, v, a from types.%I', kind.name, kind.name);
    execute format('update types.%1$I t set v = o.v from types.%1$I o where t.id between 1 and 99 and o.id = t.id %% (select count(*) from types.value where type = %2$L) + 1', kind.name, kind.type);
    execute format('update types.%I set a = null where id = 1001', kind.name);
    execute format('update types.%I set a = a || a[1:1] where id = 1002', kind.name);
    execute format('update types.%I set id = id + 5000 where id = 1', kind.name);
    execute format('delete from types.%I where id in (100, 1101)', kind.name);
    execute format('insert into types.%I select v, a from types.%I where id >= 1000', 'no_' || kind.name, kind.name);
    execute format('delete from types.%1$I where ctid = (select ctid from types.%1$I limit 1)', 'no_' || kind.name);
    execute format('update types.%1$I set a = a || a[1:1] where ctid in (select ctid from types.%1$I where a is not null order by ctid offset 1 limit 2)', 'no_' || kind.name);
    execute format('update types.%1$I set v = null where ctid = (select ctid from types.%1$I where v is not null order by ctid desc limit 1)', 'no_' || kind.name);
    execute format('delete from types.%I where v is null and a is null', 'no_' || kind.name);
    if to_regclass(format('types.%I', 'by_' || kind.name)) is not null then
      execute format('update types.%I set n = n + 1', 'by_' || kind.name);
      execute format('delete from types.%1$I where v = (select v from types.%1$I order by v limit 1)', 'by_' || kind.name);
      execute format('insert into types.%1$I select distinct on (v) v, 0 from types.%2$I o where v is not null and not exists (select from types.%1$I b where b.v = o.v)', 'by_' || kind.name, kind.name);
    end if;
  end loop;
end $$;
-- Another spelling of an equal key: it differs in bytes.
do $$ begin
  execute format('update types.%I set v = 1.000 where v = 1', 'by_of_' || md5('numeric'));
  execute format('update types.%I set v = 0 where v = 0', 'by_of_' || md5('float8'));
  execute format('update types.%I set v = ''1 month'' where v = ''30 days''', 'by_of_' || md5('interval'));
end $$;

-- Rows that move between partitions, change in place, go.
update part.by_range set at = at + 3650 where id % 5 = 0 and id < 90;
update part.by_range set note = note || '!' where id % 3 = 0;
delete from part.by_range where id % 7 = 0;
insert into part.by_range values (2, '2029-01-01', 'in'), (500, '2029-01-01', 'rest'), (501, '1999-01-01', 'old');
update part.by_list set mood = 'calm' where n % 4 = 0;
update part.by_list set note = note || '!' where n % 3 = 0;
delete from part.by_list where n % 7 = 0;
update part.by_hash set id = id + 1000 where id % 4 = 0;
update part.by_hash set note = note || '!' where id % 3 = 0;
delete from part.by_hash where id % 7 = 0;
update part.by_enum set mood = 'calm', n = n + 1000 where n % 4 = 0;
update part.by_enum set note = note || '!' where n % 3 = 0;
delete from part.by_enum where n % 7 = 0;
insert into part.by_enum values ('дикий', 5000, 'new');

update odd.parent set note = note || '!' where id % 3 = 0;
delete from only odd.parent where id = 20;
delete from odd.child where id = 15;
insert into odd.zero default values;
update odd.broad set c3 = not c3, c1600 = true;
insert into odd.broad (c1, c2, c800) values (false, false, true);
update odd.toast set note = 'toast unchanged' where id = 1;
update odd.toast set body = body || 'more' where id = 2;
insert into odd.toast select 3, null, repeat('0123456789abcdef', 655360), null;
update odd.secured set owner = 'p' where id % 2 = 0;
delete from odd.secured where id = 3;
insert into odd.always (n) select generate_series(11, 20);
update odd.always set n = n + 1 where id % 2 = 0;
delete from odd.always where id = 3;
-- Each of these is possible only because the constraint waits for the end.
update odd.deferred set id = 11 - id;
update odd.deferred set place = 11 - place;
update odd.excluded set note = 'y' where lower(during) = 20;
update odd.excluded set during = int4range(1000, 1001) where lower(during) = 30;
delete from odd.excluded where lower(during) = 40;
delete from odd.same where ctid in (select ctid from odd.same where a = 1 limit 3);
update odd.same set b = 'other' where ctid in (select ctid from odd.same where a = 2 limit 3);
insert into odd.guarded select i, null, i from generate_series(11, 20) i;
update odd.guarded set n = n + 1 where id % 2 = 0;
delete from odd.guarded where id = 13;
update odd.unlogged set note = note || '!' where id % 2 = 0;
update "Odd.""Schema""
новый"."Таблица.с ""кавычками"" и
строкой" set "%s $1 ?" = '', "Имя
в две строки" = null where "id.""x""" % 2 = 0;
delete from "Odd.""Schema""
новый"."Таблица.с ""кавычками"" и
строкой" where "select" = 3;
update "Odd.""Schema""
новый"."名前名前名前名前名前名前名前名前名前名前名" set n = n + 1;
