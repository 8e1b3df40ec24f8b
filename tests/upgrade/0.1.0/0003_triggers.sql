-- What is generated for each watch: small SQL functions over the table's row, trigger functions, and their triggers. With the
-- functions just below, this is all that ever runs in a writer's transaction.
--
-- delivery    triggers                     each change goes to
-- row         for each row                 NOTIFY, and to the log if a sweep could not find it
-- statement   for each statement           NOTIFY, many rows to a payload; likewise the log; beyond a bound only to the log
-- log         for each statement, or row   the log, and a bell that hardly anybody has to ring
--
-- Statement triggers do not fire for what logical replication applies, nor for a partition that is written through its parent.
-- So each has a row trigger beside it that fires in replica sessions only, and partitions have row triggers alone.
--
-- Why generated: a generic trigger (to_jsonb(new), a loop over tg_argv) made a bulk UPDATE 8 times slower, this about 2.
-- Why SQL functions with a BEGIN ATOMIC body: they are stored by column number, so RENAME COLUMN keeps working, and
-- PostgreSQL inlines them. Why each row trigger's WHEN names uses_N() behind a `true or`: it depends on every column that is used,
-- so that DROP COLUMN is refused with the trigger's name, and DROP ... CASCADE takes the trigger along, instead of leaving one
-- behind that fails the next write. Not the columns themselves: PostgreSQL reads the text of a WHEN anew for each statement, and
-- that of the columns cost more than all the rest of a trigger.
-- Why the statement triggers have no WHEN: even `true or` costs more than a look whether uses_N() is still there.
-- Why the trigger functions have no SET search_path, as everything else here has: it cost a sixth. They are the one thing
-- that is parsed under the writer's search_path, so they hold nothing that it could turn: no operator, type or name without its
-- schema.
-- Safe while an older listener runs: nothing existed before.

-- A change that is not found again by `updated_at >= clock - margin` goes to the log. Sweeps read back twice as far, so
-- that the clock may step back by one margin. src/watermark.rs holds the same number.
create function unstale.margin() returns interval
    language sql immutable
    return interval '5 seconds';

-- Key of the advisory lock that a ringing writer holds until it has committed, and a reading listener as long as it reads.
create function unstale.bell() returns bigint
    language sql immutable
    return 7599390160;

-- What a change of one row says.
create function unstale.one_row(head text, one text) returns text
    language sql immutable
    return head || one || '}';

-- What an UPDATE says; `before` is null if no key changed.
create function unstale.two_rows(head text, after text, before text) returns text
    language sql immutable
    return head || after || coalesce(',"old":' || before, '') || '}';

-- Sends a change; false: it is too long. A payload may have 7,999 bytes, and NOTIFY would fail the write for a longer one.
create function unstale.announce(change text) returns boolean
    language sql
    return case when octet_length(change) < 8000 then pg_notify('unstale', change) is not null else false end;

-- Tells the listeners to read the log, unless one of them is reading all the time, or somebody else is ringing: NOTIFY takes
-- one lock per cluster until the commit is flushed. Whoever is missed is found by the next reading. A transaction that has
-- notified cannot be prepared, so where transactions may be, `set unstale.bell = on` is for those that are not.
create function unstale.ring() returns boolean
    language sql
    return case when case current_setting('unstale.bell', true) when 'on' then true when 'off' then false
                          else current_setting('max_prepared_transactions') = '0' end
                then case when pg_try_advisory_xact_lock(unstale.bell()) then pg_notify('unstale', '{"bell":true}') is not null else false end
                else false
           end;

-- The part of the log that is written now. A function, because plans that hold its value are made anew when it is replaced,
-- and because that needs no lock that a writer would hold.
create function unstale.part() returns integer
    language sql stable
    return 1;

-- Writes a change into the log, and rings unless it was announced.
create function unstale.log(watch_id integer, change text, announced boolean) returns boolean
    language plpgsql
as $$
begin
    if pg_catalog.int4eq(unstale.part(), 1) then
        insert into unstale.change_log_1 (watch, announced, change) values (watch_id, announced, change);
    elsif pg_catalog.int4eq(unstale.part(), 2) then
        insert into unstale.change_log_2 (watch, announced, change) values (watch_id, announced, change);
    else
        insert into unstale.change_log_3 (watch, announced, change) values (watch_id, announced, change);
    end if;
    if announced then
        return true;
    end if;
    return unstale.ring();
end
$$;

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

-- A condition: do two rows differ in one of the columns, by image? 1.0 and 1.00, or two cases of a citext, are equal but make
-- other keys. Where equal values have one image, as the type's B-tree tells, its operator is three times as quick.
create function unstale.differ(relation regclass, attnums smallint[], one text, other text) returns text
    language sql stable
    set search_path = pg_catalog, pg_temp
as $$
    select coalesce(string_agg(format(case when exists (
               select from pg_opclass c
                 join pg_amproc p on p.amprocfamily = c.opcfamily and (p.amproclefttype, p.amprocrighttype) = (c.opcintype, c.opcintype) and p.amprocnum = 4
                 left join pg_collation l on l.oid = a.attcollation
                where c.opcmethod = (select oid from pg_am where amname = 'btree') and c.opcdefault and c.opcnamespace = 'pg_catalog'::regnamespace
                  and c.opcintype = case a.atttypid when 'varchar'::regtype then 'text'::regtype else a.atttypid end
                  and (p.amproc = 'btequalimage'::regproc or p.amproc = 'btvarstrequalimage'::regproc and l.collisdeterministic))
               then '%1$s.%3$I is distinct from %2$s.%3$I' else 'record_image_ne(row(%1$s.%3$I), row(%2$s.%3$I))' end,
               one, other, a.attname), ' or ' order by a.attnum), 'false')
      from pg_attribute a where a.attrelid = relation and a.attnum = any(attnums)
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
    fresh text; -- SQL: will a sweep find the row `new`?
    definitions text[];
begin
    for i in 1 .. cardinality(w.columns) loop
        members := members || format(' || %L || %s',
            case when i > 1 then ',' else '' end || to_json(w.columns[i])::text || ':',
            unstale.json_expression(w.relation, w.attnums[i], 't'));
    end loop;

    -- The columns that the templates name, as a JSON object. Triggers and sweeps share it, so that both make equal keys.
    definitions := array[format(
        $f$create or replace function unstale.row_%s(t %s) returns text language sql begin atomic select %s || '}'; end$f$,
        w.id, watched, members)];

    -- Are the keys of both rows the same?
    definitions := definitions || format(
        $f$create or replace function unstale.same_%s(old_row %2$s, new_row %2$s) returns boolean language sql begin atomic select not (%3$s); end$f$,
        w.id, watched, unstale.differ(w.relation, w.attnums, '(old_row)', '(new_row)'));

    -- Will a sweep find this row by its stamp? A `timestamp` without a zone is read as UTC, here as in the sweep.
    if w.sweep_attnum is not null then
        fresh := format('unstale.fresh_%s(new)', w.id);
        definitions := definitions || format(
            $f$create or replace function unstale.fresh_%s(t %s) returns boolean language sql begin atomic select coalesce(%s >= clock_timestamp() - unstale.margin(), false); end$f$,
            w.id, watched, unstale.sweep_expression(w.relation, w.sweep_attnum, 't'));
    end if;

    definitions := definitions || array[
        unstale.trigger_function(w, 'insert', fresh,
            format('unstale.one_row(%L, unstale.row_%s(new))', head || '"new":', w.id)),
        unstale.trigger_function(w, 'update', 'same and ' || fresh,
            format('unstale.two_rows(%L, unstale.row_%2$s(new), case when same then null else unstale.row_%2$s(old) end)', head || '"new":', w.id)),
        unstale.trigger_function(w, 'delete', null,
            format('unstale.one_row(%L, unstale.row_%s(old))', head || '"old":', w.id)),
        unstale.trigger_function(w, 'truncate', null, quote_literal(head || '"all":true}'))];

    -- Never called. It is dropped when DROP COLUMN ... CASCADE drops what the triggers call.
    definitions := definitions || format(
        'create or replace function unstale.uses_%s() returns boolean language sql begin atomic select unstale.row_%1$s(null) is null%s; end',
        w.id, case when w.sweep_attnum is not null then format(' or unstale.fresh_%s(null)', w.id) else '' end);
    if unstale.has_statement_triggers(w) then
        fresh := case when w.sweep_attnum is not null then format('unstale.fresh_%s(r.*)', w.id) end;
        definitions := definitions || array[
            unstale.statement_function(w, 'inserts', 'new_rows', fresh, head),
            unstale.statement_function(w, 'updates', 'new_rows', fresh, head),
            unstale.statement_function(w, 'deletes', 'old_rows', null, head)];
    end if;
    return definitions;
end
$$;

-- Partitions have row triggers: a statement's trigger fires only on the table that it names.
create function unstale.has_statement_triggers(w unstale.watch) returns boolean
    language sql stable
    set search_path = pg_catalog, pg_temp
as $$
    select w.delivery <> 'row' and c.relkind = 'r' and not c.relispartition from pg_class c where c.oid = w.relation
$$;

-- A row's trigger function: announce the change, and log it too unless it was announced in full and a sweep would find it.
-- `change` and `sweepable` (null: never) are expressions. Assignments, not PERFORM or SELECT: plpgsql evaluates them by itself.
create function unstale.trigger_function(w unstale.watch, operation text, sweepable text, change text) returns text
    language sql immutable
    set search_path = pg_catalog, pg_temp
as $$
    select format($f$create or replace function unstale.%2$s_%1$s() returns trigger
    language plpgsql security definer
as $body$
declare
    %3$schange constant pg_catalog.text := %4$s;
    announced constant pg_catalog.bool := %5$s;
    rung pg_catalog.bool;
begin
    if announced and %6$s then
        return null;
    end if;
    rung := unstale.log(%1$s, change, announced);
    return null;
end
$body$
$f$, w.id, operation,
     case operation when 'update' then format(E'same constant pg_catalog.bool := unstale.same_%s(old, new);\n    ', w.id) end,
     change, case w.delivery when 'log' then 'false' else 'unstale.announce(change)' end, coalesce(sweepable, 'false'))
$$;

-- Cuts images, one a line, into chunks that NOTIFY could take. As bytes: of a text, PostgreSQL would count each character up to
-- where a chunk begins.
create function unstale.cut(images text) returns setof text
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    enough constant integer := 6500; -- bytes of a chunk, and then to the end of the line
    bytes constant bytea := convert_to(images, getdatabaseencoding());
    size constant integer := coalesce(octet_length(bytes), 0);
    start integer := 1;
    line_end integer;
    reach integer; -- where to look for the end of a line
begin
    while start <= size loop
        reach := 1000;
        loop
            line_end := position('\x0a'::bytea in substring(bytes from start + enough for reach));
            exit when line_end > 0 or start + enough + reach > size;
            reach := reach * 2;
        end loop;
        line_end := case when line_end > 0 then start + enough + line_end - 1 else size + 2 end;
        return next convert_from(substring(bytes from start for line_end - 1 - start), getdatabaseencoding()); -- without the last comma
        start := line_end + 1;
    end loop;
end
$$;

-- The rows of a transition table after the first ones, half a million at the most, as one text, if each is short: else it holds 0
-- rows. OFFSET keeps the planner from making each image twice.
create function unstale.joined(w unstale.watch, transition text, fresh text, first text) returns text
    language sql immutable
    set search_path = pg_catalog, pg_temp
as $$
    select format($f$select pg_catalog.string_agg(i.image, E',\n') filter (where pg_catalog.octet_length(i.image) operator(pg_catalog.<=) 256) as images,
               pg_catalog.bool_and(i.fresh) as fresh,
               case when pg_catalog.bool_and(pg_catalog.octet_length(i.image) operator(pg_catalog.<=) 256) then pg_catalog.count(*) else 0 end as rows
          into joined
          from (select unstale.row_%1$s(r.*) as image, %2$s as fresh from %3$s r offset %4$s limit 500000) i$f$, w.id, fresh, transition, first)
$$;

-- All rows of a transition table after the first ones, packed into chunks that NOTIFY could take: what was joined is cut, and the
-- others are packed by a running length, which takes longer, but holds no text of them all.
create function unstale.chunks(w unstale.watch, transition text, fresh text, first text) returns text
    language sql immutable
    set search_path = pg_catalog, pg_temp
as $$
    select format($f$select c.images, joined.fresh from unstale.cut(joined.images) c(images) where pg_catalog.int8gt(joined.rows, 0)
            union all
            select pg_catalog.string_agg(s.image, ','), pg_catalog.bool_and(s.fresh)
              from (select i.image, i.fresh, pg_catalog.sum(pg_catalog.octet_length(i.image) operator(pg_catalog.+) 1)
                               over (rows unbounded preceding) operator(pg_catalog./) 7000 as part
                      from (select unstale.row_%1$s(r.*) as image, %2$s as fresh
                              from (select * from %3$s offset %4$s operator(pg_catalog.+) joined.rows) r
                            offset 0) i) s
             group by s.part$f$, w.id, fresh, transition, first)
$$;

-- The body of a statement that is logged: the first rows one by one, which costs the least if there are no others; and with what
-- would be the defaults of the log's columns, because those would be added in a step of their own.
create function unstale.into_log(w unstale.watch, transition text, head text) returns text
    language sql immutable
    set search_path = pg_catalog, pg_temp
as $$
    select string_agg(format($f$    %1$s
        insert into unstale.change_log_%2$s (xid, id, watch, announced, change)
            select pg_catalog.pg_current_xact_id(), pg_catalog.nextval('unstale.change_log_id'), %3$s, false, unstale.one_row(%4$L, unstale.row_%3$s(r.*))
              from %5$s r limit 32;
        get diagnostics told = row_count;
        if pg_catalog.int8eq(told, 32) then
            %7$s;
            insert into unstale.change_log_%2$s (watch, announced, change)
            select %3$s, false, unstale.one_row(%6$L, pg_catalog.concat(c.images, ']')) from (%8$s) c;
        end if;
$f$, case part when 1 then 'if pg_catalog.int4eq(unstale.part(), 1) then' when 2 then 'elsif pg_catalog.int4eq(unstale.part(), 2) then' else 'else' end,
     part, w.id, head || case transition when 'old_rows' then '"old":' else '"new":' end, transition, head || '"rows":[',
     unstale.joined(w, transition, 'null::pg_catalog.bool', '32'), unstale.chunks(w, transition, 'null::pg_catalog.bool', '32')), '' order by part) || $f$    end if;
    if pg_catalog.int8gt(told, 0) then
        done := unstale.ring();
    end if;$f$
      from generate_series(1, 3) part
$$;

-- The body of a statement that is announced. Beyond 64 payloads the log is cheaper, for everybody. `r.*`: a bare r would be the
-- column of that name in a table that has one. Images are cut off where they would not fit anyway: 33 huge ones would not add up.
create function unstale.aloud(w unstale.watch, transition text, fresh text, head text) returns text
    language sql immutable
    set search_path = pg_catalog, pg_temp
as $$
    select format($f$    select pg_catalog.count(*) as rows, pg_catalog.string_agg(pg_catalog."left"(unstale.row_%1$s(r.*), 8000), ',') as images, pg_catalog.bool_and(%2$s) as fresh
      into few from (select * from %3$s limit 33) r;
    if pg_catalog.int8gt(few.rows, 32) or pg_catalog.int4ge(pg_catalog.octet_length(few.images), 7900) then
        %4$s;
        for chunk in
            %5$s
        loop
            done := unstale.tell(%1$s, unstale.one_row(%6$L, pg_catalog.concat(chunk.images, ']')), chunk.fresh, pg_catalog.int8lt(told, 64));
            told := pg_catalog.int8pl(told, 1);
        end loop;
    elsif pg_catalog.int8gt(few.rows, 0) then
        done := unstale.tell(%1$s, unstale.one_row(%6$L, pg_catalog.concat(few.images, ']')), few.fresh, true);
    end if;$f$, w.id, coalesce(fresh, 'false'), transition, unstale.joined(w, transition, coalesce(fresh, 'false'), '0'),
       unstale.chunks(w, transition, coalesce(fresh, 'false'), '0'), head || '"rows":[')
$$;

-- A statement's trigger function: the rows as they are now, or were. An UPDATE that changes keys has a row trigger beside it.
-- Most statements have few rows, and want few steps.
create function unstale.statement_function(w unstale.watch, operation text, transition text, fresh text, head text) returns text
    language sql immutable
    set search_path = pg_catalog, pg_temp
as $$
    select format($f$create or replace function unstale.%2$s_%1$s() returns trigger
    language plpgsql security definer
as $body$
declare
    few pg_catalog.record;
    joined pg_catalog.record;
    chunk pg_catalog.record;
    told pg_catalog.int8 default 0;
    done pg_catalog.bool;
begin
    if pg_catalog.to_regproc('unstale.uses_%1$s') is null then
        return null; -- a column was dropped with CASCADE
    end if;
%3$s
    return null;
end
$body$
$f$, w.id, operation,
     case w.delivery when 'log' then unstale.into_log(w, transition, head) else unstale.aloud(w, transition, fresh, head) end)
$$;

-- Announces a change if that is wanted and possible, and logs it unless a sweep would find what was announced.
create function unstale.tell(watch_id integer, change text, sweepable boolean, aloud boolean) returns boolean
    language plpgsql
as $$
begin
    if aloud and unstale.announce(change) then
        return sweepable or unstale.log(watch_id, change, true);
    end if;
    return unstale.log(watch_id, change, false);
end
$$;

-- The names of a watch's triggers, and when they fire: A always, O not in replica sessions, R only in those.
create function unstale.trigger_names(w unstale.watch) returns table (operation text, name text, enabled "char")
    language sql stable
    set search_path = pg_catalog, pg_temp
as $$
    select t.operation, format('unstale_%s_%s', w.id, t.operation), t.enabled::"char"
      from (select unstale.has_statement_triggers(w) as by_statement, w.only_columns is null as all_updates) s,
           lateral (values
               ('insert', case when by_statement then 'R' else 'A' end),
               ('update', case when by_statement and all_updates then 'R' else 'A' end),
               ('delete', case when by_statement then 'R' else 'A' end),
               ('truncate', 'A'),
               ('inserts', case when by_statement then 'O' end),
               ('updates', case when by_statement and all_updates then 'O' end),
               ('rekeys', case when by_statement and all_updates and cardinality(w.attnums) > 0 then 'O' end),
               ('deletes', case when by_statement then 'O' end)
           ) t(operation, enabled)
     where t.enabled is not null
$$;

-- The triggers of a watch: name, event, level with its WHEN, function, and when it fires.
create function unstale.trigger_definitions(w unstale.watch)
    returns table (name text, event text, condition text, function text, enabled "char")
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    uses constant text := format('unstale.uses_%s()', w.id); -- depends on every used column
    counts text; -- only_columns as a condition on an UPDATE
    keys constant text := unstale.differ(w.relation, w.attnums, 'old', 'new'); -- does an UPDATE change a key?
    image smallint[];
begin
    if w.only_columns is not null then
        select array_agg(n order by n) into image
          from (select unstale.column_number(w.relation, c, 'only_columns') from unnest(w.only_columns) c union select unnest(w.attnums)) used(n);
        counts := unstale.differ(w.relation, image, 'old', 'new');
        -- A stamp that is set back hides an earlier change of the row from the sweep: it counts, too.
        if w.sweep_attnum is not null then
            counts := counts || format(' or coalesce(new.%1$I < old.%1$I, true)', unstale.column_now(w.relation, w.sweep_attnum));
        end if;
    end if;

    return query
    select t.name, d.event, d.condition, format('unstale.%s_%s()', d.function, w.id), t.enabled
      from unstale.trigger_names(w) t
      join (values
        -- Its transition table is there so that ATTACH PARTITION is refused, with the trigger's name: it would silence the others.
        ('insert', 'after insert', case when unstale.has_statement_triggers(w) then 'referencing new table as new_rows ' else '' end
            || 'for each row when (true or ' || uses || ')', 'insert'),
        ('update', 'after update', 'for each row when (' || coalesce(counts || ' or false and ', 'true or ') || uses || ')', 'update'),
        ('delete', 'after delete', 'for each row when (true or ' || uses || ')', 'delete'),
        ('truncate', 'after truncate', 'for each statement', 'truncate'),
        ('inserts', 'after insert', 'referencing new table as new_rows for each statement', 'inserts'),
        ('updates', 'after update', 'referencing new table as new_rows for each statement', 'updates'),
        ('rekeys', 'after update', 'for each row when (' || keys || ')', 'update'),
        ('deletes', 'after delete', 'referencing old table as old_rows for each statement', 'deletes')
      ) as d(operation, event, condition, function) on d.operation = t.operation;
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

-- The triggers of the watch that are not there, or do not fire when they should; `fires` is null for one that is missing.
create function unstale.wrong_triggers(w unstale.watch) returns table (relation regclass, name text, fires "char")
    language sql stable
    set search_path = pg_catalog, pg_temp
as $$
    select r.relation, d.name, t.tgenabled
      from unstale.tree(w.relation) r(relation)
     cross join unstale.trigger_names(w) d
      left join pg_trigger t on t.tgrelid = r.relation and t.tgname = d.name
     where t.tgenabled is distinct from d.enabled
$$;

-- The generated functions of the watch that are not there.
create function unstale.missing_functions(w unstale.watch) returns setof text
    language sql stable
    set search_path = pg_catalog, pg_temp
as $$
    select format('%s_%s', f.name, w.id)
      from unnest(array['row', 'same', 'fresh', 'insert', 'update', 'delete', 'truncate', 'uses', 'inserts', 'updates', 'deletes']) f(name)
     where (f.name <> 'fresh' or w.sweep_attnum is not null)
       and (f.name not in ('inserts', 'updates', 'deletes') or unstale.has_statement_triggers(w))
       and not exists (select from pg_proc p where p.pronamespace = 'unstale'::regnamespace and p.proname = format('%s_%s', f.name, w.id))
$$;

-- Are all triggers of the watch there, everywhere, firing when they should, and all functions?
create function unstale.installed(w unstale.watch) returns boolean
    language sql stable
    set search_path = pg_catalog, pg_temp
as $$
    select not exists (select from unstale.wrong_triggers(w)) and not exists (select from unstale.missing_functions(w))
$$;

-- Triggers that another delivery had.
create function unstale.surplus(w unstale.watch) returns table (name name, relation regclass)
    language sql stable
    set search_path = pg_catalog, pg_temp
as $$
    select t.tgname, t.tgrelid::regclass from pg_trigger t join unstale.tree(w.relation) tree(relation) on tree.relation = t.tgrelid
     where t.tgname like format('unstale\_%s\_%%', w.id) and t.tgparentid = 0
       and t.tgname not in (select d.name from unstale.trigger_names(w) d)
$$;

-- Creates what is missing, and everything if `replace_all`; drops what another delivery had. The caller holds the locks.
create function unstale.install(w unstale.watch, replace_all boolean) returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
declare
    definition record;
    surplus record;
    r regclass;
begin
    for definition in select * from unstale.trigger_definitions(w) loop
        for r in select * from unstale.tree(w.relation) loop
            continue when r <> w.relation and definition.condition like '%for each row%'; -- cloned from the parent
            if replace_all or not exists (select from pg_trigger t where t.tgrelid = r and t.tgname = definition.name) then
                execute format('create or replace trigger %I %s on %s %s execute function %s',
                               definition.name, definition.event, r, definition.condition, definition.function);
            end if;
        end loop;
        -- ALWAYS: also under session_replication_role = replica, and for what logical replication applies.
        for r in select * from unstale.tree(w.relation) loop
            if exists (select from pg_trigger t where t.tgrelid = r and t.tgname = definition.name and t.tgenabled <> definition.enabled) then
                execute format('alter table only %s enable %s trigger %I', r,
                               case definition.enabled when 'A' then 'always' when 'R' then 'replica' else '' end, definition.name);
            end if;
        end loop;
    end loop;
    for surplus in select * from unstale.surplus(w)
    loop
        execute format('drop trigger %I on %s', surplus.name, surplus.relation);
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
