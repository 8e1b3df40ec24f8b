create or replace function unstale.row_1(t public.events) returns text
    language sql
begin atomic
    select '{' || '"id":' || coalesce('"' || (t).id::text || '"', 'null') || '}';
end;

create or replace function unstale.same_1(old_row public.events, new_row public.events)
    returns boolean
    language sql
begin atomic
    select not ((old_row).id is distinct from (new_row).id);
end;

create or replace function unstale.table_1() returns regclass
    language sql stable
begin atomic
    select 'public.events'::regclass;
end;

create or replace function unstale.fresh_1(t public.events) returns boolean
    language sql
begin atomic
    select coalesce(timezone('UTC', (t).at) >= clock_timestamp() - unstale.margin(), false);
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
    select unstale.row_1(t.*), timezone('UTC', t.at) from public.events t
     where t.at >= timezone('UTC', $1) and t.at > timezone('UTC', $2)
     order by t.at fetch first ($3) rows with ties;
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
       or pg_catalog.oideq(pg_catalog.pg_partition_root(tg_relid), unstale.table_1()) is not true
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
       or pg_catalog.oideq(pg_catalog.pg_partition_root(tg_relid), unstale.table_1()) is not true
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
       or pg_catalog.oideq(pg_catalog.pg_partition_root(tg_relid), unstale.table_1()) is not true
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
       or pg_catalog.oideq(pg_catalog.pg_partition_root(tg_relid), unstale.table_1()) is not true
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

create or replace trigger unstale_1_delete after delete on public.events for each row execute function unstale.delete_1();

create or replace trigger unstale_1_insert after insert on public.events for each row execute function unstale.insert_1();

create or replace trigger unstale_1_truncate after truncate on public.events for each statement execute function unstale.truncate_1();

create or replace trigger unstale_1_truncate after truncate on public.events_1 for each statement execute function unstale.truncate_1();

create or replace trigger unstale_1_update after update on public.events for each row execute function unstale.update_1();

alter table only public.events enable always trigger unstale_1_delete;

alter table only public.events_1 enable always trigger unstale_1_delete;

alter table only public.events enable always trigger unstale_1_insert;

alter table only public.events_1 enable always trigger unstale_1_insert;

alter table only public.events enable always trigger unstale_1_truncate;

alter table only public.events_1 enable always trigger unstale_1_truncate;

alter table only public.events enable always trigger unstale_1_update;

alter table only public.events_1 enable always trigger unstale_1_update;
