-- The DDL of others: tables that are dropped, partitions that come and go, and functions that
-- somebody's copy of a table holds on to.

set search_path = pg_catalog, pg_temp;
set check_function_bodies = off; -- files come in any order

-- Drops the functions of a watch. What a trigger on a copy of the table still calls cannot be
-- dropped: it is left without a meaning. Two passes, because what uses_N() depends on can be
-- dropped once it depends on nothing.
create or replace function unstale.drop_functions(watch_id integer) returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
declare
    f record;
begin
    for pass in 1 .. 2 loop
        for f in
            select p.oid::regprocedure as signature, p.proname as name,
                   p.prorettype = 'trigger'::regtype as is_trigger_function
              from pg_proc p
             where p.pronamespace = 'unstale'::regnamespace
               and p.proname = any (select format('%s_%s', kind, watch_id)::name
                                      from unnest(unstale.function_kinds()) kind)
             order by p.proname !~ '^uses', p.proname -- it calls row_N() and fresh_N()
        loop
            begin
                execute format('drop function %s', f.signature);
            exception
                when dependent_objects_still_exist then
                    if f.is_trigger_function then
                        execute format(
                            'create or replace function %s returns trigger language plpgsql '
                            'as $body$ begin return null; end $body$', f.signature);
                    elsif f.name ~ '^uses' then
                        execute format(
                            'create or replace function %s returns boolean language sql '
                            'begin atomic select false; end', f.signature);
                    end if;
                when insufficient_privilege then
                    null; -- somebody else's, who put it here: it is of no use, and does no harm
            end;
        end loop;
    end loop;
end
$$;

-- What a partitioned table's triggers do not announce: partitions that come and go, and the
-- TRUNCATE of one that came after the watch, which gets a new file. A list of `oid filenode`, the
-- second empty where a TRUNCATE has a trigger; releases before kept its md5. Not
-- pg_partition_tree(), which waits for whoever locks a partition.
create or replace function unstale.layout(w unstale.watch) returns text
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return (
    with recursive tree(oid) as (
        select i.inhrelid from pg_inherits i
         where i.inhparent = w.relation and not i.inhdetachpending
        union all
        select i.inhrelid
          from tree join pg_inherits i on i.inhparent = tree.oid and not i.inhdetachpending
    )
    select coalesce(string_agg(
               format('%s %s', c.oid, case when t.oid is null then c.relfilenode end),
               ' ' order by c.oid), '')
      from tree
      join pg_class c on c.oid = tree.oid
      left join pg_trigger t on t.tgrelid = c.oid
       and t.tgname = format('unstale_%s_truncate', w.id));
end
$$;

-- Did a layout grow by partitions alone that never had a row? Nothing that is cached concerns
-- those: pg_partman and its relatives make some every day. A table's first file has its oid for a
-- name, and a TRUNCATE, after rows that were announced, gives it another.
create or replace function unstale.grew_by_empty(before text, after text) returns boolean
    language sql stable
    set search_path = pg_catalog, pg_temp
as $$
    with old as (select m[1] || ' ' || m[2] as entry
                   from regexp_matches(before, '(\d+) (\d*)', 'g') m),
         new as (select m[1]::oid as oid, m[1] || ' ' || m[2] as entry
                   from regexp_matches(after, '(\d+) (\d*)', 'g') m)
    select (before = '' or before ~ ' ')
       and not exists (select from old where entry not in (select entry from new))
       and not exists (select from new join pg_class c on c.oid = new.oid
                        where entry not in (select entry from old)
                          and not (c.relkind = 'p'
                                   or c.relkind = 'r' and c.relfilenode = c.oid
                                      and pg_relation_size(c.oid) = 0))
$$;

-- Announces what no trigger tells: DROP TABLE ... CASCADE, which takes the triggers along, and
-- partitions. Every listener calls it now and then, and before it catches up. It waits for nobody:
-- another call will do. A watch that cannot be dealt with keeps no other from it:
-- unstale.findings() names it.
-- Also forgets ended watches whose keys every instance has deleted.
create or replace function unstale.notice_ddl() returns void
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    known unstale.watch;
begin
    if not exists (select from unstale.to_notice()) then
        return;
    end if;
    begin
        lock table unstale.watch in share row exclusive mode nowait;
    exception when lock_not_available then
        return;
    end;
    for known in select (n).* from unstale.to_notice() n loop
        begin
            perform unstale.notice(known);
        exception when others then
            raise warning 'unstale: the watch of % cannot be brought up to date: %',
                known.table_name, sqlerrm;
        end;
    end loop;
end
$$;

-- The same for the tables of one name, whoever calls; the caller has the lock.
create or replace function unstale.notice_ddl_of(name text) returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
declare
    known unstale.watch;
begin
    for known in select (n).* from unstale.to_notice() n where n.table_name = name loop
        perform unstale.notice(known);
    end loop;
end
$$;

create or replace function unstale.notice(known unstale.watch) returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
declare
    layout_now text;
begin
    if known.ended is not null then
        delete from unstale.watch w where w.id = known.id;
    elsif not exists (select from pg_class c where c.oid = known.relation) then
        perform unstale.retire(known);
    else
        layout_now := unstale.layout(known);
        update unstale.watch w set layout = layout_now where w.id = known.id;
        if not unstale.grew_by_empty(known.layout, layout_now) then
            perform unstale.announce_all(known);
        end if;
    end if;
end
$$;

-- Called by the two above alone, and inlined there: so it has no SET of its own.
create or replace function unstale.to_notice() returns setof unstale.watch
    language sql stable
as $$
    select w.* from unstale.watch w left join pg_class c on c.oid = w.relation
     where w.ended is null
       and (c.oid is null
            or (c.relkind = 'p' or w.layout <> '')
               and (select w.layout not in (l.now, md5(l.now))
                      from (select unstale.layout(w) as now offset 0) l))
    union all
    -- Of instances that are forgotten, too: they are to delete all keys when they come back.
    select w.* from unstale.watch w
     where w.ended is not null and exists (select from unstale.instance)
       and not exists (select from unstale.instance i
                        where pg_visible_in_snapshot(w.ended, i.replay_log) is not true)
$$;
