-- What is generated for each watch: small SQL functions over the table's row, trigger
-- functions, and their triggers. What those call is in wire.sql; the functions of
-- statements are in statements.sql.
--
-- delivery        triggers            a change is announced by NOTIFY, if nobody else is
--                                     announcing, and otherwise logged
-- row, statement  for each statement  yes, many rows to a payload; beyond a bound all is logged
-- log             for each statement  never: it is logged, and rung for
-- (Each is logged, too, if a sweep could not find it.)
--
-- Statement triggers do not fire for what logical replication applies, nor for a partition that is
-- written through its parent. So each has a row trigger beside it that fires in replica sessions
-- only. Partitions and inheritance children have row triggers alone, and so has an UPDATE with
-- only_columns, whose trigger has a WHEN.
--
-- Why generated: a generic trigger (to_jsonb(new), a loop over tg_argv) made a bulk UPDATE 8 times
-- slower, this about 1.5.
-- Why SQL functions with a BEGIN ATOMIC body: they are stored by column number, so RENAME COLUMN
-- keeps working, and PostgreSQL inlines them. Why no trigger names columns in a WHEN: PostgreSQL
-- reads its text anew for each statement, and even `true or` costs more than a look whether
-- uses_N() is still there, which DROP COLUMN ... CASCADE takes along. Without CASCADE, DROP COLUMN
-- is refused, with the names of the functions that need it.
-- Why the trigger functions have no SET search_path, as everything else here has: it cost a sixth.
-- They are the one thing that is parsed under the writer's search_path, so they hold nothing that
-- it could turn: no operator, type or name without its schema.
-- Why each begins with a look at the table that it stands on: a copy of a table's definition brings
-- the triggers along.

set search_path = pg_catalog, pg_temp;
set check_function_bodies = off; -- files come in any order

-- What is called for each watch by a session that makes many is plpgsql, whose plans are
-- kept; a SQL function with a SET is planned for each statement anew, and one without is
-- inlined, if it returns a set.

-- What a column is called now.
create or replace function unstale.column_now(relation regclass, attnum smallint) returns text
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return (select a.attname::text from pg_attribute a
             where a.attrelid = column_now.relation and a.attnum = column_now.attnum
               and not a.attisdropped);
end
$$;

-- The sweep's column as a timestamptz, with the same meaning in trigger and sweep whatever the
-- session's TimeZone.
create or replace function unstale.sweep_expression(relation regclass, attnum smallint,
                                                    variable text) returns text
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return (select format(case when a.atttypid = 'timestamp'::regtype
                               then 'timezone(''UTC'', (%s).%I)'
                               else '(%s).%I' end, variable, a.attname)
              from pg_attribute a
             where a.attrelid = sweep_expression.relation and a.attnum = sweep_expression.attnum);
end
$$;

-- A condition: do two rows differ in one of the columns, by image? 1.0 and 1.00, or two cases of a
-- citext, are equal but make other keys. Where equal values have one image, as the type's B-tree
-- tells, its operator is three times as quick.
create or replace function unstale.differ(relation regclass, attnums smallint[],
                                          one text, other text) returns text
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return (
    select coalesce(string_agg(
               format(case when exists (
                               select from pg_opclass c
                                 join pg_amproc p on p.amprocfamily = c.opcfamily
                                  and (p.amproclefttype, p.amprocrighttype)
                                      = (c.opcintype, c.opcintype)
                                  and p.amprocnum = 4
                                 left join pg_collation l on l.oid = a.attcollation
                                where c.opcmethod = (select oid from pg_am where amname = 'btree')
                                  and c.opcdefault
                                  and c.opcnamespace = 'pg_catalog'::regnamespace
                                  and c.opcintype = case a.atttypid
                                                    when 'varchar'::regtype then 'text'::regtype
                                                    else a.atttypid end
                                  and (p.amproc = 'btequalimage'::regproc
                                       or p.amproc = 'btvarstrequalimage'::regproc
                                          and l.collisdeterministic))
                           then '%1$s.%3$I is distinct from %2$s.%3$I'
                           else 'record_image_ne(row(%1$s.%3$I), row(%2$s.%3$I))' end,
                      one, other, a.attname),
               ' or ' order by a.attnum), 'false')
      from pg_attribute a where a.attrelid = relation and a.attnum = any(attnums));
end
$$;

-- The kinds of functions that a watch may have: its name is the kind, an
-- underscore, and the watch's number.
create or replace function unstale.function_kinds() returns text[]
    language sql immutable
    return array['row', 'same', 'fresh', 'table', 'uses', 'page', 'audit', 'insert', 'update',
                 'delete', 'truncate', 'inserts', 'updates', 'deletes'];

-- CREATE FUNCTION statements of a watch, as they should be.
create or replace function unstale.function_definitions(w unstale.watch) returns text[]
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    watched constant text := w.relation::text;
    head constant text := format('{"watch":%s,"rev":%s,', w.id, w.rev);
    presence_check constant text := unstale.presence_check(w);
    members text := '''{''';
    fresh text; -- SQL: will a sweep find the row `new`?
    definitions text[];
begin
    for i in 1 .. cardinality(w.columns) loop
        members := members || format(' || %L || %s',
            case when i > 1 then ',' else '' end || to_json(w.columns[i])::text || ':',
            unstale.json_expression(w.relation, w.attnums[i], 't'));
    end loop;

    definitions := array[
        -- The columns that the templates name, as a JSON object. Triggers and sweeps share it, so
        -- that both make equal keys.
        format($f$create or replace function unstale.row_%s(t %s) returns text
    language sql
begin atomic
    select %s || '}';
end$f$,
               w.id, watched, members),
        -- Are the keys of both rows the same?
        format($f$create or replace function unstale.same_%s(old_row %2$s, new_row %2$s)
    returns boolean
    language sql
begin atomic
    select not (%3$s);
end$f$,
               w.id, watched, unstale.differ(w.relation, w.attnums, '(old_row)', '(new_row)')),
        -- The table that all of this was made for, by whatever name and number it goes now.
        format($f$create or replace function unstale.table_%s() returns regclass
    language sql stable
begin atomic
    select %L::regclass;
end$f$,
               w.id, watched)];

    -- Will a sweep find this row by its stamp? A `timestamp` without a zone is read as
    -- UTC, here as in the sweep.
    if w.sweep_attnum is not null then
        fresh := format('unstale.fresh_%s(new)', w.id);
        definitions := definitions || format(
            $f$create or replace function unstale.fresh_%s(t %s) returns boolean
    language sql
begin atomic
    select coalesce(%s >= clock_timestamp() - unstale.margin(), false);
end$f$,
            w.id, watched, unstale.sweep_expression(w.relation, w.sweep_attnum, 't'));
        definitions := definitions || unstale.page_definition(w);
    end if;
    if w.version_attnum is not null then
        definitions := definitions || unstale.audit_definition(w);
    end if;

    definitions := definitions || array[
        unstale.trigger_function(w, 'insert', presence_check, fresh,
            format('unstale.one_row(%L, unstale.row_%s(new))', head || '"new":', w.id)),
        unstale.trigger_function(w, 'update', presence_check, 'same and ' || fresh, null),
        unstale.trigger_function(w, 'delete', presence_check, null,
            format('unstale.one_row(%L, unstale.row_%s(old))', head || '"old":', w.id)),
        unstale.trigger_function(w, 'truncate', presence_check, null,
            quote_literal(head || '"all":true}'))];

    -- Never called. It is dropped when DROP COLUMN ... CASCADE drops what the triggers call.
    definitions := definitions || format(
        'create or replace function unstale.uses_%s() returns boolean language sql '
        'begin atomic select unstale.row_%1$s(null) is null%s; end',
        w.id, case when w.sweep_attnum is not null
                   then format(' or unstale.fresh_%s(null)', w.id) else '' end);
    fresh := case when w.sweep_attnum is not null then format('unstale.fresh_%s(r.*)', w.id) end;
    return definitions || array(
        select unstale.statement_function(w, n.operation, presence_check,
                                          case n.operation when 'deletes' then null else fresh end)
          from unstale.trigger_names(w) n
         where n.operation in ('inserts', 'updates', 'deletes'));
end
$$;

-- `wanted` under the identity of `known`, with the digests of what would be generated, and the
-- functions themselves: to write those is a third of what a watch costs, so that whoever compares
-- and then creates them does it once.
create or replace function unstale.generated(wanted unstale.watch, known unstale.watch,
                                             out w unstale.watch, out definitions text[])
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    w := wanted;
    w.id := known.id;
    w.rev := known.rev;
    w.since := known.since;
    w.layout := known.layout;
    w.code := unstale.release();
    definitions := unstale.function_definitions(w);
    w.functions := md5(array_to_string(definitions, E'\n'));
    w.triggers := md5((select string_agg(t::text, E'\n' order by t.name)
                         from unstale.trigger_definitions(w) t));
end
$$;

-- SQL: does a trigger stand on another table than the one that it was made for? A
-- partition is below its root.
create or replace function unstale.foreign_condition(w unstale.watch) returns text
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return (select format(case when c.relkind <> 'p'
                               then 'pg_catalog.oidne(tg_relid, unstale.table_%s())'
                               when c.relispartition
                               then 'unstale.is_foreign(tg_relid, unstale.table_%s())'
                               else 'pg_catalog.oideq(pg_catalog.pg_partition_root(tg_relid), '
                                    'unstale.table_%s()) is not true' end, w.id)
              from pg_class c where c.oid = w.relation);
end
$$;

-- plpgsql: ends a trigger function where it has nothing to do.
create or replace function unstale.presence_check(w unstale.watch) returns text
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return format($f$    if pg_catalog.to_regproc('unstale.uses_%s') is null
       or %s
    then
        -- a column was dropped with CASCADE, or this is a copy of the table that it was made for
        return null;
    end if;
$f$, w.id, unstale.foreign_condition(w));
end
$$;

-- plpgsql: what an UPDATE changed. Two assignments, not one with a CASE in it: plpgsql looks each
-- function of an expression up once a transaction, which is half of what a trigger costs, and most
-- UPDATEs change no key.
create or replace function unstale.updated(w unstale.watch) returns text
    language plpgsql immutable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return format($f$    same := unstale.same_%1$s(old, new);
    if same then
        change := unstale.one_row(%2$L, unstale.row_%1$s(new));
    else
        change := unstale.two_rows(
            %2$L, unstale.row_%1$s(new), unstale.row_%1$s(old));
    end if;
$f$, w.id, format('{"watch":%s,"rev":%s,"new":', w.id, w.rev));
end
$$;

-- plpgsql: announces `change` or writes it to the log, as unstale.notify_or_log() does, without a
-- call. `sweepable` (null: never) is an expression.
create or replace function unstale.delivered(w unstale.watch, sweepable text) returns text
    language plpgsql immutable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return format($f$    announced := %2$s;
    if %3$sannounced is null then
        announced := unstale.log_patiently(%1$s, change);
        return null;
    end if;
    if pg_catalog.int4eq(unstale.part(), 1) then
        insert into unstale.change_log_1 (id, watch, announced, change)
            values (unstale.log_place(), %1$s, announced, change);
    elsif pg_catalog.int4eq(unstale.part(), 2) then
        insert into unstale.change_log_2 (id, watch, announced, change)
            values (unstale.log_place(), %1$s, announced, change);
    else
        insert into unstale.change_log_3 (id, watch, announced, change)
            values (unstale.log_place(), %1$s, announced, change);
    end if;
$f$, w.id,
     case when w.delivery = 'log' then 'unstale.rung()' else 'unstale.notified(change)' end,
     case when w.delivery = 'log' or sweepable is null then '' else format($f$announced and %s then
        return null; -- a sweep finds it again
    elsif $f$, sweepable) end);
end
$$;

-- A row's trigger function. `presence_check` is what it begins with. `change` and `sweepable`
-- (null: never) are expressions. Assignments, not PERFORM or SELECT: plpgsql evaluates them by
-- itself, but looks each up once a transaction, so that few of them are quick.
create or replace function unstale.trigger_function(w unstale.watch, operation text,
                                                    presence_check text, sweepable text,
                                                    change text) returns text
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return format($f$create or replace function unstale.%2$s_%1$s() returns trigger
    language plpgsql security definer
as $body$
declare
%3$s    change pg_catalog.text;
    announced pg_catalog.bool;
begin
%4$s%5$s%6$s    return null;
end
$body$
$f$, w.id, operation,
     case operation when 'update' then E'    same pg_catalog.bool;\n' else '' end,
     presence_check,
     case operation when 'update' then unstale.updated(w)
                    else format(E'    change := %s;\n', change) end,
     unstale.delivered(w, sweepable));
end
$$;

-- The names of a watch's triggers, and when they fire: A always, O not in replica sessions, R only
-- in those. Partitions have row triggers: a statement's trigger fires only on the table that it
-- names. So have inheritance children, which PostgreSQL allows no transition tables. Written as it
-- is so that PostgreSQL inlines it: what looks at every watch is planned once.
create or replace function unstale.trigger_names(w unstale.watch)
    returns table (operation text, name text, enabled "char")
    language sql stable
begin atomic
    select t.operation, format('unstale_%s_%s', (w).id, t.operation), t.enabled::"char"
      from (select c.relkind = 'r'
                   and not exists (select from pg_inherits i where i.inhrelid = c.oid)
                       as by_statement,
                   (w).only_columns is null as updates_too
              from pg_class c where c.oid = (w).relation) s,
           lateral (values
               ('insert', case when by_statement then 'R' else 'A' end),
               ('update', case when by_statement and updates_too then 'R' else 'A' end),
               ('delete', case when by_statement then 'R' else 'A' end),
               ('truncate', 'A'),
               ('inserts', case when by_statement then 'O' end),
               ('updates', case when by_statement and updates_too then 'O' end),
               ('deletes', case when by_statement then 'O' end)
           ) t(operation, enabled)
     where t.enabled is not null;
end;

-- The triggers of a watch: name, event, level with its WHEN, function, and when it fires.
create or replace function unstale.trigger_definitions(w unstale.watch)
    returns table (name text, event text, condition text, function text, enabled "char")
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    counts text; -- only_columns as a condition on an UPDATE
    image smallint[];
begin
    if w.only_columns is not null then
        select array_agg(n order by n) into image
          from (select unstale.column_number(w.relation, c, 'only_columns')
                  from unnest(w.only_columns) c
                union select unnest(w.attnums)) used(n);
        counts := unstale.differ(w.relation, image, 'old', 'new');
        -- A stamp that is set back hides an earlier change of the row from
        -- the sweep: it counts, too.
        if w.sweep_attnum is not null then
            counts := counts || format(' or coalesce(new.%1$I < old.%1$I, true)',
                                       unstale.column_now(w.relation, w.sweep_attnum));
        end if;
    end if;

    return query
    select t.name, 'after ' || rtrim(t.operation, 's'),
           case t.operation
               -- Its transition table is there so that ATTACH PARTITION is refused, with the
               -- trigger's name: it would silence the others.
               when 'insert' then case when bool_or(t.operation = 'inserts') over ()
                                       then 'referencing new table as new_rows ' else '' end
                                  || 'for each row'
               when 'update' then 'for each row' || coalesce(' when (' || counts || ')', '')
               when 'delete' then 'for each row'
               when 'truncate' then 'for each statement'
               when 'inserts' then 'referencing new table as new_rows for each statement'
               when 'updates' then 'referencing old table as old_rows new table as new_rows '
                                   'for each statement'
               when 'deletes' then 'referencing old table as old_rows for each statement'
           end,
           format('unstale.%s_%s()', t.operation, w.id), t.enabled
      from unstale.trigger_names(w) t;
end
$$;

-- The table and, if it is partitioned, every table below it: a row trigger is cloned to them, a
-- TRUNCATE trigger is not. Not pg_partition_tree(), which waits for whoever locks a partition: a
-- sweep, and unstale.findings(), must not. Inlined, too.
create or replace function unstale.tree(relation regclass) returns setof regclass
    language sql stable
begin atomic
    with recursive tree(oid) as (
        select relation::oid
        union
        select i.inhrelid
          from tree
          join pg_inherits i on i.inhparent = tree.oid and not i.inhdetachpending
          join pg_class c on c.oid = i.inhrelid and c.relispartition
    )
    select t.oid::regclass from tree t;
end;

-- The triggers of the watch that are not there, or do not fire when they should; `fires` is null
-- for one that is missing. Scalar subqueries, here and below: a few of many triggers and functions,
-- by their index, whatever the planner thinks of a tree's size.
create or replace function unstale.wrong_triggers(w unstale.watch)
    returns table (relation regclass, name text, fires "char")
    language sql stable
begin atomic
    select r.relation, d.name, t.fires
      from unstale.tree((w).relation) r(relation)
     cross join unstale.trigger_names(w) d
     cross join lateral (
         select (select t.tgenabled from pg_trigger t
                  where t.tgrelid = r.relation and t.tgname = d.name::name)) t(fires)
     where t.fires is distinct from d.enabled;
end;

-- Those of them whose absence lets changes go unannounced. Not a TRUNCATE's on a
-- partition that came after the watch: its layout shows that (ddl.sql), and somebody's
-- maintenance makes one every day.
create or replace function unstale.silent_triggers(w unstale.watch)
    returns table (relation regclass, name text, fires "char")
    language sql stable
begin atomic
    select t.relation, t.name, t.fires from unstale.wrong_triggers(w) t
     where not (t.fires is null and t.name = format('unstale_%s_truncate', (w).id)
                and t.relation <> (w).relation
                and (select c.relkind = 'p' from pg_class c where c.oid = (w).relation));
end;

-- The generated functions of the watch that are not there.
create or replace function unstale.missing_functions(w unstale.watch) returns setof text
    language sql stable
begin atomic
    select format('%s_%s', kind, (w).id)
      from unnest(unstale.function_kinds()) kind
     where (kind not in ('fresh', 'page') or (w).sweep_attnum is not null)
       and (kind <> 'audit' or (w).version_attnum is not null)
       and (kind not in ('inserts', 'updates', 'deletes')
            or exists (select from unstale.trigger_names(w) n where n.operation = kind))
       and (select p.oid from pg_proc p
             where p.pronamespace = 'unstale'::regnamespace
               and p.proname = format('%s_%s', kind, (w).id)::name limit 1) is null;
end;

-- Are all triggers of the watch there, everywhere, firing when they should, and all functions,
-- owned as they should be?
create or replace function unstale.installed(w unstale.watch) returns boolean
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return (select not exists (select from unstale.wrong_triggers(w))
               and not exists (select from unstale.missing_functions(w))
               and unstale.page_is_right(w)
               and unstale.audit_is_right(w));
end
$$;

-- Triggers on the table that call our functions and are not the watch's: those that
-- another delivery had, and those of a watch of another database or table, which a dump or
-- a clone has brought along.
create or replace function unstale.surplus(w unstale.watch)
    returns table (name name, relation regclass)
    language sql stable
begin atomic
    select t.tgname, t.tgrelid::regclass
      from unstale.tree((w).relation) tree(relation)
     cross join lateral (
         select t.tgname, t.tgrelid, t.tgfoid from pg_trigger t
          where t.tgrelid = tree.relation and t.tgparentid = 0 and not t.tgisinternal offset 0) t
     where (select p.pronamespace from pg_proc p where p.oid = t.tgfoid) = 'unstale'::regnamespace
       and t.tgname not in (select d.name::name from unstale.trigger_names(w) d);
end;

-- The statements that create what is missing, and all that differs if `replace_all`, and drop what
-- another delivery had. Each that is spared is a lock held for less. By columns:
-- pg_get_triggerdef() costs more than to make a trigger. One with a WHEN always differs: PostgreSQL
-- words it in its own way.
create or replace function unstale.trigger_statements(w unstale.watch, replace_all boolean)
    returns setof text
    language sql stable
begin atomic
    with wanted as (
        select d.*, r.relation,
               (select t.tgenabled from pg_trigger t
                 where t.tgrelid = r.relation and t.tgname = d.name::name) as tgenabled,
               r.relation <> (w).relation and d.condition like '%for each row%'
                   as is_clone, -- of the parent's
               coalesce((
                   select replace_all
                      and not (own.tgfoid = to_regprocedure(d.function)
                               and own.tgqual is null and d.condition not like '% when %'
                               and own.tgtype
                                   = case d.event when 'after insert' then 4
                                                  when 'after delete' then 8
                                                  when 'after update' then 16
                                                  when 'after truncate' then 32 end
                                     + case when d.condition like '%for each row%'
                                            then 1 else 0 end
                               and (own.tgoldtable is not distinct from
                                    case when d.condition like '%old table as old_rows%'
                                         then 'old_rows' end)
                               and (own.tgnewtable is not distinct from
                                    case when d.condition like '%new table as new_rows%'
                                         then 'new_rows' end)
                               and own.tgnargs = 0 and own.tgattr::text = ''
                               and own.tgconstraint = 0)
                     from pg_trigger own
                    where own.tgrelid = case when d.condition like '%for each row%'
                                             then (w).relation else r.relation end
                      and own.tgname = d.name::name), true) as is_made
          from unstale.trigger_definitions(w) d
         cross join unstale.tree((w).relation) r(relation)
    )
    select s.statement from (
        select 1 as step, wanted.name, wanted.relation,
               format('create or replace trigger %I %s on %s %s execute function %s',
                      wanted.name, event, wanted.relation, condition, function) as statement
          from wanted where is_made and not is_clone
        union all
        -- ALWAYS: also under session_replication_role = replica, and for changes that logical
        -- replication applies. A new trigger is 'O'.
        select 2, wanted.name, wanted.relation,
               format('alter table only %s enable %s trigger %I', wanted.relation,
                      case enabled when 'A' then 'always' when 'R' then 'replica' else '' end,
                      wanted.name)
          from wanted where enabled <> case when is_made then 'O' else tgenabled end
        union all
        select 3, surplus.name, surplus.relation,
               format('drop trigger %I on %s', surplus.name, surplus.relation)
          from unstale.surplus(w) surplus
    ) s order by s.step, s.name, s.relation::text;
end;

-- Executes them. The caller holds the locks.
create or replace function unstale.install(w unstale.watch, replace_all boolean) returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
declare
    statement text;
begin
    foreach statement in array array(
        select s.statement from unstale.trigger_statements(w, replace_all) s(statement))
    loop
        execute statement;
    end loop;
    -- What another delivery had; a trigger on somebody's copy of the table may still call it.
    foreach statement in array array(
        select format('drop function unstale.%I()', p.proname)
          from unnest(array['inserts', 'updates', 'deletes']) kind
          join pg_proc p on p.proname = format('%s_%s', kind, w.id)::name
           and p.pronamespace = 'unstale'::regnamespace
         where kind not in (select n.operation from unstale.trigger_names(w) n))
    loop
        begin
            execute statement;
        exception when dependent_objects_still_exist then
            null;
        end;
    end loop;
end
$$;
