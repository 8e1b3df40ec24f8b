-- What is generated for each watch: three small SQL functions over the table's row, four trigger functions, and their
-- triggers. With the functions just below, this is all that ever runs in a writer's transaction.
--
-- Why generated: a generic trigger (to_jsonb(new), a loop over tg_argv) made a bulk UPDATE 8 times slower, this about 2.
-- Why SQL functions with a BEGIN ATOMIC body: they are stored by column number, so RENAME COLUMN keeps working, and
-- PostgreSQL inlines them. Why each trigger's WHEN names every column that is used, behind a `true or` that costs nothing:
-- DROP COLUMN and ALTER COLUMN TYPE are then refused with the trigger's name, and DROP ... CASCADE takes the trigger along,
-- instead of leaving one behind that fails the next write.
-- Why the trigger functions have no SET search_path, as everything else here has: it cost a sixth. They are the one thing
-- that is parsed under the writer's search_path, so they hold nothing that it could turn: no operator, no cast, and no name
-- without its schema.
-- Safe while an older listener runs: nothing existed before.

-- A change that is not found again by `updated_at >= clock - margin` goes to the log. Sweeps read back twice as far, so
-- that the clock may step back by one margin. src/watermark.rs holds the same number.
create function unstale.margin() returns interval
    language sql immutable
    return interval '5 seconds';

-- What a change of one row says.
create function unstale.one_row(head text, one text) returns text
    language sql immutable
    return head || one || '}';

-- What an UPDATE says; `before` is null if no key changed.
create function unstale.two_rows(head text, after text, before text) returns text
    language sql immutable
    return head || after || coalesce(',"old":' || before, '') || '}';

-- Sends a change; false: it says only in which transaction's log the change is. A payload may have 7,999 bytes, and
-- NOTIFY would fail the write for a longer one.
create function unstale.announce(watch_id integer, change text) returns boolean
    language sql
    return case when octet_length(change) < 8000
                then pg_notify('unstale', change) is not null
                else pg_notify('unstale', '{"watch":' || watch_id::text || ',"log":"' || pg_current_xact_id()::text || '"}') is null
           end;

-- What a column is called now.
create function unstale.column_now(relation regclass, attnum smallint) returns text
    language sql stable
    set search_path = pg_catalog, pg_temp
as $$
    select a.attname::text from pg_attribute a where a.attrelid = column_now.relation and a.attnum = column_now.attnum and not a.attisdropped
$$;

-- The sweep's column as a timestamptz, with the same meaning in trigger and sweep whatever the session's TimeZone.
create function unstale.sweep_expression(relation regclass, attnum smallint, variable text) returns text
    language sql stable
    set search_path = pg_catalog, pg_temp
as $$
    select format(case when a.atttypid = 'timestamp'::regtype then 'timezone(''UTC'', (%s).%I)' else '(%s).%I' end, variable, a.attname)
      from pg_attribute a where a.attrelid = sweep_expression.relation and a.attnum = sweep_expression.attnum
$$;

-- CREATE FUNCTION statements of a watch, as they should be.
create function unstale.function_definitions(w unstale.watch) returns text[]
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    watched constant text := w.relation::text;
    head constant text := format('{"watch":%s,"rev":%s,', w.id, w.rev);
    members text := '''{''';
    old_image text := '';
    new_image text := '';
    fresh text; -- SQL: will a sweep find the row `new`?
    definitions text[];
begin
    for i in 1 .. cardinality(w.columns) loop
        members := members || format(' || %L || %s',
            case when i > 1 then ',' else '' end || to_json(w.columns[i])::text || ':',
            unstale.json_expression(w.relation, w.attnums[i], 't'));
        old_image := old_image || case when i > 1 then ', ' else '' end || format('(old_row).%I', unstale.column_now(w.relation, w.attnums[i]));
        new_image := new_image || case when i > 1 then ', ' else '' end || format('(new_row).%I', unstale.column_now(w.relation, w.attnums[i]));
    end loop;

    -- The columns that the templates name, as a JSON object. Triggers and sweeps share it, so that both make equal keys.
    definitions := array[format(
        $f$create or replace function unstale.row_%s(t %s) returns text language sql begin atomic select %s || '}'; end$f$,
        w.id, watched, members)];

    -- Are the keys of both rows the same? By image: 1.0 and 1.00, or two cases of a citext, are equal but make other keys.
    definitions := definitions || format(
        $f$create or replace function unstale.same_%s(old_row %2$s, new_row %2$s) returns boolean language sql begin atomic select %3$s; end$f$,
        w.id, watched,
        case when old_image = '' then 'true' else format('record_image_eq(row(%s), row(%s))', old_image, new_image) end);

    -- Will a sweep find this row by its stamp? A `timestamp` without a zone is read as UTC, here as in the sweep.
    if w.sweep_attnum is not null then
        fresh := format('unstale.fresh_%s(new)', w.id);
        definitions := definitions || format(
            $f$create or replace function unstale.fresh_%s(t %s) returns boolean language sql begin atomic select coalesce(%s >= clock_timestamp() - unstale.margin(), false); end$f$,
            w.id, watched, unstale.sweep_expression(w.relation, w.sweep_attnum, 't'));
    end if;

    return definitions || array[
        unstale.trigger_function(w.id, 'insert', fresh,
            format('unstale.one_row(%L, unstale.row_%s(new))', head || '"new":', w.id)),
        unstale.trigger_function(w.id, 'update', 'same and ' || fresh,
            format('unstale.two_rows(%L, unstale.row_%2$s(new), case when same then null else unstale.row_%2$s(old) end)', head || '"new":', w.id)),
        unstale.trigger_function(w.id, 'delete', null,
            format('unstale.one_row(%L, unstale.row_%s(old))', head || '"old":', w.id)),
        unstale.trigger_function(w.id, 'truncate', null, quote_literal(head || '"all":true}'))];
end
$$;

-- One trigger function: announce the change, and log it too unless it was announced in full and a sweep would find it.
-- `change` and `sweepable` (null: never) are expressions. IF, not PERFORM or SELECT: plpgsql evaluates it by itself.
create function unstale.trigger_function(watch_id integer, operation text, sweepable text, change text) returns text
    language sql immutable
    set search_path = pg_catalog, pg_temp
as $$
    select format($f$create or replace function unstale.%2$s_%1$s() returns trigger
    language plpgsql security definer
as $body$
declare
    %3$schange constant pg_catalog.text := %4$s;
    announced constant pg_catalog.bool := unstale.announce(%1$s, change);
begin
    if announced and %5$s then
        return null;
    end if;
    insert into unstale.change_log (watch, change) values (%1$s, change);
    return null;
end
$body$
$f$, watch_id, operation,
     case operation when 'update' then format(E'same constant pg_catalog.bool := unstale.same_%s(old, new);\n    ', watch_id) end,
     change, coalesce(sweepable, 'false'))
$$;

-- A condition on `new` or `old` that names every used column.
create function unstale.uses(w unstale.watch, variable text) returns text
    language sql stable
    set search_path = pg_catalog, pg_temp
as $$
    select coalesce(string_agg(format('%s.%I is null', variable, unstale.column_now(w.relation, n)), ' or ' order by n), 'true')
      from unnest(w.attnums || w.sweep_attnum) n where n is not null
$$;

-- The triggers of a watch: name, event with its WHEN, and the function.
create function unstale.trigger_definitions(w unstale.watch) returns table (name text, event text, condition text, function text)
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    uses constant text := unstale.uses(w, 'new'); -- depends on every used column
    counts text; -- only_columns as a condition on an UPDATE
    image text[];
begin
    if w.only_columns is not null then
        select array_agg(unstale.column_now(w.relation, n) order by n) into image
          from (select unstale.column_number(w.relation, c, 'only_columns') from unnest(w.only_columns) c union select unnest(w.attnums)) used(n);
        select format('record_image_ne(row(%s), row(%s))',
                      string_agg(format('old.%I', c), ', '), string_agg(format('new.%I', c), ', ')) into counts from unnest(image) c;
        -- A stamp that is set back hides an earlier change of the row from the sweep: it counts, too.
        if w.sweep_attnum is not null then
            counts := counts || format(' or coalesce(new.%1$I < old.%1$I, true)', unstale.column_now(w.relation, w.sweep_attnum));
        end if;
    end if;

    return query
    select format('unstale_%s_%s', w.id, o.operation), o.event, o.when_clause, format('unstale.%s_%s()', o.operation, w.id)
      from (values
        ('insert', 'after insert', 'for each row when (true or ' || uses || ')'),
        ('update', 'after update', 'for each row when (' || coalesce(counts, 'true') || ' or (false and (' || uses || ')))'),
        ('delete', 'after delete', 'for each row when (true or ' || unstale.uses(w, 'old') || ')'),
        ('truncate', 'after truncate', 'for each statement')
      ) as o(operation, event, when_clause);
end
$$;

-- The table and, if it is partitioned, every table below it: a row trigger is cloned to them, a TRUNCATE trigger is not.
create function unstale.tree(relation regclass) returns setof regclass
    language sql stable
    set search_path = pg_catalog, pg_temp
as $$
    select relation
    union
    select t.relid from pg_partition_tree(relation) t
$$;

-- Are all triggers of the watch there, everywhere, firing ALWAYS, and all functions?
create function unstale.installed(w unstale.watch) returns boolean
    language sql stable
    set search_path = pg_catalog, pg_temp
as $$
    select not exists (
        select from unstale.tree(w.relation) r(relation), unnest(array['insert', 'update', 'delete', 'truncate']) o(operation)
         where not exists (select from pg_trigger t
                            where t.tgrelid = r.relation and t.tgname = format('unstale_%s_%s', w.id, o.operation) and t.tgenabled = 'A'))
       and not exists (
        select from unnest(array['row', 'same', 'fresh', 'insert', 'update', 'delete', 'truncate']) f(name)
         where (f.name <> 'fresh' or w.sweep_attnum is not null)
           and not exists (select from pg_proc p
                            where p.pronamespace = 'unstale'::regnamespace and p.proname = format('%s_%s', f.name, w.id)))
$$;

-- Creates what is missing, and everything if `replace_all`. The caller holds the locks.
create function unstale.install(w unstale.watch, replace_all boolean) returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
declare
    definition record;
    r regclass;
begin
    for definition in select * from unstale.trigger_definitions(w) loop
        for r in select * from unstale.tree(w.relation) loop
            continue when r <> w.relation and definition.condition like 'for each row%'; -- cloned from the parent
            if replace_all or not exists (select from pg_trigger t where t.tgrelid = r and t.tgname = definition.name) then
                execute format('create or replace trigger %I %s on %s %s execute function %s',
                               definition.name, definition.event, r, definition.condition, definition.function);
            end if;
        end loop;
        -- ALWAYS: also under session_replication_role = replica, and for what logical replication applies.
        for r in select * from unstale.tree(w.relation) loop
            if exists (select from pg_trigger t where t.tgrelid = r and t.tgname = definition.name and t.tgenabled <> 'A') then
                execute format('alter table only %s enable always trigger %I', r, definition.name);
            end if;
        end loop;
    end loop;
end
$$;

-- The number of the column that a sweep may trust, null for none. Not unstale.watch.sweep_attnum: pg_restore numbers the
-- columns anew where some were dropped, but what unstale.fresh_N() reads is always what the triggers decided by.
create function unstale.sweep_column(w unstale.watch) returns smallint
    language sql stable
    set search_path = pg_catalog, pg_temp
as $$
    select d.refobjsubid::smallint
      from pg_proc p join pg_depend d on d.classid = 'pg_proc'::regclass and d.objid = p.oid
     where p.pronamespace = 'unstale'::regnamespace and p.proname = format('fresh_%s', w.id)
       and d.refclassid = 'pg_class'::regclass and d.refobjid = w.relation and d.refobjsubid > 0
$$;
