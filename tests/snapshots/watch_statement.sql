create or replace function unstale.row_1(t public.users) returns text
    language sql
begin atomic
    select '{' || '"id":' || coalesce('"' || (t).id::text || '"', 'null') || ',"email":' || case when octet_length((t).email) > 8192 then 'true' else coalesce(to_json((t).email)::text, 'null') end || '}';
end;

create or replace function unstale.same_1(old_row public.users, new_row public.users)
    returns boolean
    language sql
begin atomic
    select not ((old_row).id is distinct from (new_row).id or (old_row).email is distinct from (new_row).email);
end;

create or replace function unstale.table_1() returns regclass
    language sql stable
begin atomic
    select 'public.users'::regclass;
end;

create or replace function unstale.fresh_1(t public.users) returns boolean
    language sql
begin atomic
    select coalesce((t).updated_at >= clock_timestamp() - unstale.margin(), false);
end;

create or replace function unstale.row_1() returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $b$
begin
    perform set_config('role', 'none', true);
    raise exception 'what reads the table of watch 1 does not run as its owner'
        using errcode = 'object_not_in_prerequisite_state', hint = 'Call unstale.watch() again.';
exception when insufficient_privilege then
    return;
end
$b$;
create or replace function unstale.row_1(from_stamp timestamptz, after_stamp timestamptz, page_rows bigint)
    returns table (image text, stamp timestamptz)
    language sql stable
    set search_path = pg_catalog, pg_temp
    set row_security = off
    set enable_seqscan = off
    set enable_bitmapscan = off
begin atomic
    select unstale.row_1(t.*), t.updated_at from public.users t
     where t.updated_at >= $1 and t.updated_at > $2
     order by t.updated_at fetch first ($3) rows with ties;
end;
create or replace function unstale.page_1(from_stamp timestamptz, after_stamp timestamptz, page_rows bigint)
    returns table (image text, stamp timestamptz)
    language sql stable security definer
    set search_path = pg_catalog, pg_temp
    set row_security = off
begin atomic
    select unstale.row_1();
    select r.* from unstale.row_1($1, $2, $3) r;
end;

create or replace function unstale.insert_1() returns trigger
    language plpgsql security definer
as $body$
declare
    change pg_catalog.text;
    announced pg_catalog.bool;
begin
    if pg_catalog.to_regproc('unstale.uses_1') is null
       or pg_catalog.oidne(tg_relid, unstale.table_1())
    then
        -- a column was dropped with CASCADE, or this is a copy of the table that it was made for
        return null;
    end if;
    change := unstale.one_row('{"watch":1,"rev":1,"new":', unstale.row_1(new));
    announced := unstale.notified(change);
    if announced and unstale.fresh_1(new) then
        return null; -- a sweep finds it again
    elsif announced is null then
        announced := unstale.log_patiently(1, change);
        return null;
    end if;
    if pg_catalog.int4eq(unstale.part(), 1) then
        insert into unstale.change_log_1 (id, watch, announced, change)
            values (unstale.log_place(), 1, announced, change);
    elsif pg_catalog.int4eq(unstale.part(), 2) then
        insert into unstale.change_log_2 (id, watch, announced, change)
            values (unstale.log_place(), 1, announced, change);
    else
        insert into unstale.change_log_3 (id, watch, announced, change)
            values (unstale.log_place(), 1, announced, change);
    end if;
    return null;
end
$body$;

create or replace function unstale.update_1() returns trigger
    language plpgsql security definer
as $body$
declare
    same pg_catalog.bool;
    change pg_catalog.text;
    announced pg_catalog.bool;
begin
    if pg_catalog.to_regproc('unstale.uses_1') is null
       or pg_catalog.oidne(tg_relid, unstale.table_1())
    then
        -- a column was dropped with CASCADE, or this is a copy of the table that it was made for
        return null;
    end if;
    same := unstale.same_1(old, new);
    if same then
        change := unstale.one_row('{"watch":1,"rev":1,"new":', unstale.row_1(new));
    else
        change := unstale.two_rows(
            '{"watch":1,"rev":1,"new":', unstale.row_1(new), unstale.row_1(old));
    end if;
    announced := unstale.notified(change);
    if announced and same and unstale.fresh_1(new) then
        return null; -- a sweep finds it again
    elsif announced is null then
        announced := unstale.log_patiently(1, change);
        return null;
    end if;
    if pg_catalog.int4eq(unstale.part(), 1) then
        insert into unstale.change_log_1 (id, watch, announced, change)
            values (unstale.log_place(), 1, announced, change);
    elsif pg_catalog.int4eq(unstale.part(), 2) then
        insert into unstale.change_log_2 (id, watch, announced, change)
            values (unstale.log_place(), 1, announced, change);
    else
        insert into unstale.change_log_3 (id, watch, announced, change)
            values (unstale.log_place(), 1, announced, change);
    end if;
    return null;
end
$body$;

create or replace function unstale.delete_1() returns trigger
    language plpgsql security definer
as $body$
declare
    change pg_catalog.text;
    announced pg_catalog.bool;
begin
    if pg_catalog.to_regproc('unstale.uses_1') is null
       or pg_catalog.oidne(tg_relid, unstale.table_1())
    then
        -- a column was dropped with CASCADE, or this is a copy of the table that it was made for
        return null;
    end if;
    change := unstale.one_row('{"watch":1,"rev":1,"old":', unstale.row_1(old));
    announced := unstale.notified(change);
    if announced is null then
        announced := unstale.log_patiently(1, change);
        return null;
    end if;
    if pg_catalog.int4eq(unstale.part(), 1) then
        insert into unstale.change_log_1 (id, watch, announced, change)
            values (unstale.log_place(), 1, announced, change);
    elsif pg_catalog.int4eq(unstale.part(), 2) then
        insert into unstale.change_log_2 (id, watch, announced, change)
            values (unstale.log_place(), 1, announced, change);
    else
        insert into unstale.change_log_3 (id, watch, announced, change)
            values (unstale.log_place(), 1, announced, change);
    end if;
    return null;
end
$body$;

create or replace function unstale.truncate_1() returns trigger
    language plpgsql security definer
as $body$
declare
    change pg_catalog.text;
    announced pg_catalog.bool;
begin
    if pg_catalog.to_regproc('unstale.uses_1') is null
       or pg_catalog.oidne(tg_relid, unstale.table_1())
    then
        -- a column was dropped with CASCADE, or this is a copy of the table that it was made for
        return null;
    end if;
    change := '{"watch":1,"rev":1,"all":true}';
    announced := unstale.notified(change);
    if announced is null then
        announced := unstale.log_patiently(1, change);
        return null;
    end if;
    if pg_catalog.int4eq(unstale.part(), 1) then
        insert into unstale.change_log_1 (id, watch, announced, change)
            values (unstale.log_place(), 1, announced, change);
    elsif pg_catalog.int4eq(unstale.part(), 2) then
        insert into unstale.change_log_2 (id, watch, announced, change)
            values (unstale.log_place(), 1, announced, change);
    else
        insert into unstale.change_log_3 (id, watch, announced, change)
            values (unstale.log_place(), 1, announced, change);
    end if;
    return null;
end
$body$;

create or replace function unstale.uses_1() returns boolean language sql begin atomic select unstale.row_1(null) is null or unstale.fresh_1(null); end;

create or replace function unstale.inserts_1() returns trigger
    language plpgsql security definer
as $body$
declare
    is_single pg_catalog.bool;
    sweepable pg_catalog.bool;
    now pg_catalog.record;
    chunk pg_catalog.record;
    chunks pg_catalog.int8 default 0;
    change pg_catalog.text;
    announced pg_catalog.bool;
begin
    if pg_catalog.to_regproc('unstale.uses_1') is null
       or pg_catalog.oidne(tg_relid, unstale.table_1())
    then
        -- a column was dropped with CASCADE, or this is a copy of the table that it was made for
        return null;
    end if;
    select unstale.one_row('{"watch":1,"rev":1,"new":', unstale.row_1(r.*)), unstale.fresh_1(r.*),
           not exists (select from new_rows offset 1)
      into change, sweepable, is_single
      from new_rows r limit 1;
    if is_single then
        null; -- as most are
    elsif is_single is null then
        return null;
    else
        select n.fresh,
               case when pg_catalog.int8le(n.rows, 32)
                         and pg_catalog.int4lt(pg_catalog.octet_length(n.images), 7900)
                    then unstale.one_row(
                        '{"watch":1,"rev":1,"rows":[', pg_catalog.concat(n.images, ']')) end
          into sweepable, change
          from (select pg_catalog.count(*) as rows,
                       pg_catalog.string_agg(unstale.row_1(r.*), ',') as images,
                       pg_catalog.bool_and(unstale.fresh_1(r.*)) as fresh
                  from (select * from new_rows limit 33) r) n;
        if change is null then
            execute $joined$
                select case when pg_catalog.bool_and(i.short)
                            then pg_catalog.string_agg(i.image, E',\n') filter (where i.short)
                       end as images,
                       pg_catalog.bool_and(i.fresh) as fresh,
                       case when pg_catalog.bool_and(i.short) then pg_catalog.count(*)
                            else 0 end as rows
                  from (select s.image, s.fresh,
                               pg_catalog.int4le(pg_catalog.octet_length(s.image), 256) as short
                          from (select unstale.row_1(r.*) as image, unstale.fresh_1(r.*) as fresh
                                  from new_rows r offset 0 limit 500000) s) i$joined$ into now;
            for chunk in execute $chunks$
                select c.images, $3 as fresh from unstale.cut($1) c(images)
                union all
                select p.images, p.fresh
                  from (select s.part, pg_catalog.string_agg(s.image, ',') as images,
                               pg_catalog.bool_and(s.fresh) as fresh
                          from (select i.image, i.fresh,
                                       pg_catalog.sum(pg_catalog.octet_length(i.image)
                                                      operator(pg_catalog.+) 1)
                                           over (rows unbounded preceding)
                                           operator(pg_catalog./) 7000 as part
                                  from (select unstale.row_1(r.*) as image,
                                               unstale.fresh_1(r.*) as fresh
                                          from (select * from new_rows offset $2) r
                                        offset 0) i) s
                         group by s.part) p$chunks$
                using now.images, now.rows, now.fresh
            loop
                announced := unstale.notify_or_log(
                    1,
                    unstale.one_row(
                        '{"watch":1,"rev":1,"rows":[', pg_catalog.concat(chunk.images, ']')),
                    chunk.fresh, pg_catalog.int8lt(chunks, 64));
                chunks := pg_catalog.int8pl(chunks, 1);
            end loop;
            return null;
        end if;
    end if;
    announced := unstale.notified(change);
    if announced and sweepable then
        return null; -- a sweep finds it again
    elsif announced is null then
        announced := unstale.log_patiently(1, change);
        return null;
    end if;
    if pg_catalog.int4eq(unstale.part(), 1) then
        insert into unstale.change_log_1 (id, watch, announced, change)
            values (unstale.log_place(), 1, announced, change);
    elsif pg_catalog.int4eq(unstale.part(), 2) then
        insert into unstale.change_log_2 (id, watch, announced, change)
            values (unstale.log_place(), 1, announced, change);
    else
        insert into unstale.change_log_3 (id, watch, announced, change)
            values (unstale.log_place(), 1, announced, change);
    end if;
    return null;
end
$body$;

create or replace function unstale.updates_1() returns trigger
    language plpgsql security definer
as $body$
declare
    is_single pg_catalog.bool;
    sweepable pg_catalog.bool;
    now pg_catalog.record;
    was pg_catalog.record;
    chunk pg_catalog.record;
    chunks pg_catalog.int8 default 0;
    change pg_catalog.text;
    announced pg_catalog.bool;
begin
    if pg_catalog.to_regproc('unstale.uses_1') is null
       or pg_catalog.oidne(tg_relid, unstale.table_1())
    then
        -- a column was dropped with CASCADE, or this is a copy of the table that it was made for
        return null;
    end if;
    select unstale.two_rows(
               '{"watch":1,"rev":1,"new":', unstale.row_1(r.*),
               case when not unstale.same_1(o.*, r.*) then unstale.row_1(o.*) end),
           unstale.same_1(o.*, r.*) and unstale.fresh_1(r.*),
           not exists (select from new_rows offset 1)
      into change, sweepable, is_single
      from new_rows r, old_rows o limit 1;
    if is_single then
        null; -- as most are
    elsif is_single is null then
        return null;
    else
        select n.fresh and pg_catalog.texteq(n.images, o.images),
               case when pg_catalog.int8le(n.rows, 32)
                         and pg_catalog.int4lt(pg_catalog.int4pl(pg_catalog.octet_length(n.images),
                                                                 pg_catalog.octet_length(o.images)),
                                               7900)
                    then unstale.one_row('{"watch":1,"rev":1,"rows":[', pg_catalog.concat(
                        n.images,
                        case when pg_catalog.texteq(n.images, o.images) then null else ',' end,
                        case when pg_catalog.texteq(n.images, o.images) then null
                             else o.images end,
                        ']')) end
          into sweepable, change
          from (select pg_catalog.count(*) as rows,
                       pg_catalog.string_agg(unstale.row_1(r.*), ',') as images,
                       pg_catalog.bool_and(unstale.fresh_1(r.*)) as fresh
                  from (select * from new_rows limit 33) r) n,
               (select pg_catalog.count(*) as rows,
                       pg_catalog.string_agg(unstale.row_1(r.*), ',') as images,
                       false as fresh
                  from (select * from old_rows limit 33) r) o;
        if change is null then
            execute $joined$
                select case when pg_catalog.bool_and(i.short)
                            then pg_catalog.string_agg(i.image, E',\n') filter (where i.short)
                       end as images,
                       pg_catalog.bool_and(i.fresh) as fresh,
                       case when pg_catalog.bool_and(i.short) then pg_catalog.count(*)
                            else 0 end as rows
                  from (select s.image, s.fresh,
                               pg_catalog.int4le(pg_catalog.octet_length(s.image), 256) as short
                          from (select unstale.row_1(r.*) as image, unstale.fresh_1(r.*) as fresh
                                  from new_rows r offset 0 limit 500000) s) i$joined$ into now;
            execute $joined$
                select case when pg_catalog.bool_and(i.short)
                            then pg_catalog.string_agg(i.image, E',\n') filter (where i.short)
                       end as images,
                       false as fresh,
                       case when pg_catalog.bool_and(i.short) then pg_catalog.count(*)
                            else 0 end as rows
                  from (select s.image, s.fresh,
                               pg_catalog.int4le(pg_catalog.octet_length(s.image), 256) as short
                          from (select unstale.row_1(r.*) as image, false as fresh
                                  from old_rows r offset 0 limit 500000) s) i$joined$ into was;
            for chunk in execute $chunks$
                select c.images, $3 as fresh from unstale.cut($1) c(images)
                union all
                select c.images, false
                  from unstale.cut(
                      case when pg_catalog.texteq($1, $4) then null else $4 end) c(images)
                union all
                select e.images, e.fresh
                  from (select s.part, pg_catalog.string_agg(s.image, ',') as images,
                               pg_catalog.bool_and(s.fresh) as fresh
                          from (select i.image, i.fresh,
                                       pg_catalog.sum(pg_catalog.octet_length(i.image)
                                                      operator(pg_catalog.+) 1)
                                           over (rows unbounded preceding)
                                           operator(pg_catalog./) 7000 as part
                                  from (select unstale.row_1(r.*) as image,
                                               unstale.fresh_1(r.*) as fresh
                                          from (select * from new_rows offset $2) r
                                        offset 0) i) s
                         group by s.part) n
                  full join
                       (select s.part, pg_catalog.string_agg(s.image, ',') as images,
                               pg_catalog.bool_and(s.fresh) as fresh
                          from (select i.image, i.fresh,
                                       pg_catalog.sum(pg_catalog.octet_length(i.image)
                                                      operator(pg_catalog.+) 1)
                                           over (rows unbounded preceding)
                                           operator(pg_catalog./) 7000 as part
                                  from (select unstale.row_1(r.*) as image,
                                               false as fresh
                                          from (select * from old_rows offset $5) r
                                        offset 0) i) s
                         group by s.part) o on o.part operator(pg_catalog.=) n.part
                 cross join lateral (
                     values (n.images, n.fresh),
                            (case when pg_catalog.texteq(n.images, o.images) then null
                                  else o.images end, false)) e(images, fresh)
                 where e.images is not null$chunks$
                using now.images, now.rows, now.fresh, was.images, was.rows
            loop
                announced := unstale.notify_or_log(
                    1,
                    unstale.one_row(
                        '{"watch":1,"rev":1,"rows":[', pg_catalog.concat(chunk.images, ']')),
                    chunk.fresh, pg_catalog.int8lt(chunks, 64));
                chunks := pg_catalog.int8pl(chunks, 1);
            end loop;
            return null;
        end if;
    end if;
    announced := unstale.notified(change);
    if announced and sweepable then
        return null; -- a sweep finds it again
    elsif announced is null then
        announced := unstale.log_patiently(1, change);
        return null;
    end if;
    if pg_catalog.int4eq(unstale.part(), 1) then
        insert into unstale.change_log_1 (id, watch, announced, change)
            values (unstale.log_place(), 1, announced, change);
    elsif pg_catalog.int4eq(unstale.part(), 2) then
        insert into unstale.change_log_2 (id, watch, announced, change)
            values (unstale.log_place(), 1, announced, change);
    else
        insert into unstale.change_log_3 (id, watch, announced, change)
            values (unstale.log_place(), 1, announced, change);
    end if;
    return null;
end
$body$;

create or replace function unstale.deletes_1() returns trigger
    language plpgsql security definer
as $body$
declare
    is_single pg_catalog.bool;
    sweepable pg_catalog.bool;
    now pg_catalog.record;
    chunk pg_catalog.record;
    chunks pg_catalog.int8 default 0;
    change pg_catalog.text;
    announced pg_catalog.bool;
begin
    if pg_catalog.to_regproc('unstale.uses_1') is null
       or pg_catalog.oidne(tg_relid, unstale.table_1())
    then
        -- a column was dropped with CASCADE, or this is a copy of the table that it was made for
        return null;
    end if;
    select unstale.one_row('{"watch":1,"rev":1,"old":', unstale.row_1(r.*)), false,
           not exists (select from old_rows offset 1)
      into change, sweepable, is_single
      from old_rows r limit 1;
    if is_single then
        null; -- as most are
    elsif is_single is null then
        return null;
    else
        select n.fresh,
               case when pg_catalog.int8le(n.rows, 32)
                         and pg_catalog.int4lt(pg_catalog.octet_length(n.images), 7900)
                    then unstale.one_row(
                        '{"watch":1,"rev":1,"rows":[', pg_catalog.concat(n.images, ']')) end
          into sweepable, change
          from (select pg_catalog.count(*) as rows,
                       pg_catalog.string_agg(unstale.row_1(r.*), ',') as images,
                       false as fresh
                  from (select * from old_rows limit 33) r) n;
        if change is null then
            execute $joined$
                select case when pg_catalog.bool_and(i.short)
                            then pg_catalog.string_agg(i.image, E',\n') filter (where i.short)
                       end as images,
                       false as fresh,
                       case when pg_catalog.bool_and(i.short) then pg_catalog.count(*)
                            else 0 end as rows
                  from (select s.image, s.fresh,
                               pg_catalog.int4le(pg_catalog.octet_length(s.image), 256) as short
                          from (select unstale.row_1(r.*) as image, false as fresh
                                  from old_rows r offset 0 limit 500000) s) i$joined$ into now;
            for chunk in execute $chunks$
                select c.images, $3 as fresh from unstale.cut($1) c(images)
                union all
                select p.images, p.fresh
                  from (select s.part, pg_catalog.string_agg(s.image, ',') as images,
                               pg_catalog.bool_and(s.fresh) as fresh
                          from (select i.image, i.fresh,
                                       pg_catalog.sum(pg_catalog.octet_length(i.image)
                                                      operator(pg_catalog.+) 1)
                                           over (rows unbounded preceding)
                                           operator(pg_catalog./) 7000 as part
                                  from (select unstale.row_1(r.*) as image,
                                               false as fresh
                                          from (select * from old_rows offset $2) r
                                        offset 0) i) s
                         group by s.part) p$chunks$
                using now.images, now.rows, now.fresh
            loop
                announced := unstale.notify_or_log(
                    1,
                    unstale.one_row(
                        '{"watch":1,"rev":1,"rows":[', pg_catalog.concat(chunk.images, ']')),
                    chunk.fresh, pg_catalog.int8lt(chunks, 64));
                chunks := pg_catalog.int8pl(chunks, 1);
            end loop;
            return null;
        end if;
    end if;
    announced := unstale.notified(change);
    if announced is null then
        announced := unstale.log_patiently(1, change);
        return null;
    end if;
    if pg_catalog.int4eq(unstale.part(), 1) then
        insert into unstale.change_log_1 (id, watch, announced, change)
            values (unstale.log_place(), 1, announced, change);
    elsif pg_catalog.int4eq(unstale.part(), 2) then
        insert into unstale.change_log_2 (id, watch, announced, change)
            values (unstale.log_place(), 1, announced, change);
    else
        insert into unstale.change_log_3 (id, watch, announced, change)
            values (unstale.log_place(), 1, announced, change);
    end if;
    return null;
end
$body$;

create or replace trigger unstale_1_delete after delete on public.users for each row execute function unstale.delete_1();

create or replace trigger unstale_1_deletes after delete on public.users referencing old table as old_rows for each statement execute function unstale.deletes_1();

create or replace trigger unstale_1_insert after insert on public.users referencing new table as new_rows for each row execute function unstale.insert_1();

create or replace trigger unstale_1_inserts after insert on public.users referencing new table as new_rows for each statement execute function unstale.inserts_1();

create or replace trigger unstale_1_truncate after truncate on public.users for each statement execute function unstale.truncate_1();

create or replace trigger unstale_1_update after update on public.users for each row execute function unstale.update_1();

create or replace trigger unstale_1_updates after update on public.users referencing old table as old_rows new table as new_rows for each statement execute function unstale.updates_1();

alter table only public.users enable replica trigger unstale_1_delete;

alter table only public.users enable replica trigger unstale_1_insert;

alter table only public.users enable always trigger unstale_1_truncate;

alter table only public.users enable replica trigger unstale_1_update;
