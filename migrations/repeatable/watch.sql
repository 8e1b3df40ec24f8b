-- unstale.watch() and unstale.unwatch(): the interface for an application's own migrations.
--
-- The same call again touches no trigger and takes no lock; another call changes only
-- what differs, and waits for the table's lock for a second at the most, because
-- everybody else would wait behind it.

set search_path = pg_catalog, pg_temp;
set check_function_bodies = off; -- files come in any order

-- Of release 0.1.0: two of one name could not be told apart by a call that
-- leaves the last arguments out.
drop function if exists unstale.watch(regclass, text[], text, text, text[], interval);
drop function if exists unstale.watch(regclass, text[], text, text, text[], interval, boolean);

create or replace function unstale.watch(
    relation     regclass,
    keys         text[],
    delivery     text   default 'row',
    updated_at   text   default 'updated_at',
    only_columns text[] default null,
    -- how long its cached values may live; only `unstale check --keys` asks
    max_ttl      interval default null,
    -- templates may begin with a column: the pattern of all their keys may be everybody's
    any_prefix   boolean default false,
    -- what readers were promised: 'lease', 'bounded' (by max_ttl) or 'eventual';
    -- `unstale policy` asks
    guarantee    text default null,
    reason       text default null, -- why it is cached, and for so long
    -- the column whose value each cached copy carries; `unstale audit` compares it
    version      text default null,
    -- and where: a JSONPath in a string, or the name of a field of a hash
    version_path text default null
) returns text -- 'added', 'changed' or 'unchanged'
    language plpgsql
    set search_path = pg_catalog, pg_temp
    set quote_all_identifiers = off -- the digests must not depend on the caller's settings
    set standard_conforming_strings = on
    set jit = off -- to compile the catalogue's queries takes seconds, to run them milliseconds
    -- look-ups by key, which a plan for each table's own makes no quicker
    set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
    wanted unstale.watch;
    known unstale.watch;
    generated record;
    complete boolean := true; -- has every change been announced since `known.since`?
    has_surplus boolean; -- triggers that another delivery had
    caller_timeout constant text := current_setting('lock_timeout');
begin
    perform unstale.refuse_caller();
    wanted := unstale.wanted(watch.relation, watch.keys, watch.delivery, watch.updated_at,
                             watch.only_columns, watch.max_ttl, watch.any_prefix);
    wanted := unstale.with_policy(wanted, watch.guarantee, watch.reason, watch.version,
                                  watch.version_path);

    select * into known from unstale.watch w where w.relation = watch.relation and w.ended is null;
    if found and (unstale.generated(wanted, known)).w = known and unstale.installed(known)
       and unstale.partitions_can_be_made(known) then
        return 'unchanged';
    end if;

    -- Two calls at once: one waits, which keeps nobody from writing, and then finds its work done.
    perform unstale.lock('unstale.watch', 'share row exclusive', caller_timeout, '10s');
    perform unstale.notice_ddl_of(watch.relation::text);
    select * into known from unstale.watch w where w.relation = watch.relation and w.ended is null;
    if not found then
        -- A table of this name had keys, too, and changed unwatched since then.
        complete := not exists (select from unstale.watch w
                                 where w.table_name = watch.relation::text);
        insert into unstale.watch
            (id, relation, table_name, keys, columns, attnums, delivery, functions, triggers)
            overriding system value
            values (unstale.free_number(), watch.relation, watch.relation::text, '{}', '{}', '{}',
                    watch.delivery, '', '')
            returning * into known;
    elsif (unstale.generated(wanted, known)).w = known and unstale.installed(known)
          and unstale.partitions_can_be_made(known) then
        perform set_config('lock_timeout', caller_timeout, true);
        return 'unchanged';
    else
        -- What was left to a sweep by the column of before is found by no sweep from now on.
        complete := not exists (select from unstale.silent_triggers(known))
                    and not exists (select from unstale.missing_functions(known) missing
                                     where missing !~ '^(page|audit|table)_')
                    and known.sweep_attnum is not distinct from wanted.sweep_attnum;
        if not known.keys <@ wanted.keys then
            perform unstale.retire_templates(known, wanted.keys);
        end if;
    end if;

    if (wanted.keys, wanted.columns, wanted.attnums)
           is distinct from (known.keys, known.columns, known.attnums)
       and known.functions <> '' then
        known.rev := known.rev + 1;
    end if;
    generated := unstale.generated(wanted, known);
    wanted := generated.w;
    has_surplus := exists (select from unstale.surplus(wanted));
    if wanted.triggers <> known.triggers or has_surplus
       or exists (select from unstale.wrong_triggers(wanted)) then
        -- While this waits, everybody else who wants the table waits behind it. To drop a trigger
        -- takes the stronger lock; to take it later would be a deadlock with a writer that has read
        -- the table before.
        perform unstale.lock(watch.relation,
                             case when has_surplus then 'access exclusive'
                                  else 'share row exclusive' end,
                             caller_timeout, '1s');
        if known.functions = '' then
            -- every writer that the triggers have missed has ended
            wanted.since := clock_timestamp();
        end if;
    end if;
    -- all: a DROP ... CASCADE may have taken some
    perform unstale.create_functions(wanted, generated.definitions);
    perform unstale.install(wanted, wanted.triggers <> known.triggers);
    perform set_config('lock_timeout', caller_timeout, true);

    update unstale.watch w
       set table_name = wanted.table_name, keys = wanted.keys, columns = wanted.columns,
           attnums = wanted.attnums, delivery = wanted.delivery, updated_at = wanted.updated_at,
           sweep_attnum = wanted.sweep_attnum, only_columns = wanted.only_columns,
           max_ttl = wanted.max_ttl, rev = wanted.rev, functions = wanted.functions,
           triggers = wanted.triggers, code = wanted.code, since = wanted.since,
           layout = unstale.layout(wanted), guarantee = wanted.guarantee, reason = wanted.reason,
           version = wanted.version, version_path = wanted.version_path,
           version_attnum = wanted.version_attnum
     where w.id = known.id;
    perform unstale.say_watches();
    if wanted.sweep_attnum is null and watch.updated_at is not null then
        raise notice
            '% has no column % that a sweep could read: each of its changes is logged',
            watch.relation, quote_ident(watch.updated_at)
            using hint = 'Name another with updated_at => ''...'', or none with '
                         'updated_at => null.';
    end if;
    if wanted.version is not null
       and exists (select from unnest(wanted.keys) k where unstale.is_ambiguous(k)) then
        raise notice
            '%: `unstale audit` finds no keys of % in Redis, whose columns stand side by side: it reads those of rows alone',
            watch.relation,
            (select string_agg(quote_literal(k), ', ')
               from unnest(wanted.keys) k where unstale.is_ambiguous(k))
            using hint = 'Put a literal between the columns, as in ''seat:{row}-{place}''.';
    end if;
    if not complete then
        perform unstale.announce_all(wanted);
    end if;
    return case when known.functions = '' then 'added' else 'changed' end;
end
$$;

comment on function unstale.watch is
    'Announces every change of a table, so that its keys in Redis are deleted';

-- A number that no watch has, nor any function or trigger that a dump has brought from another
-- database: nothing that exists is adopted. Sequences are not carried by logical replication, so
-- that this one may be behind.
create or replace function unstale.free_number() returns integer
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
declare
    number integer;
begin
    loop
        number := nextval(pg_get_serial_sequence('unstale.watch', 'id'));
        if not exists (select from unstale.watch w where w.id = number)
           and not exists (select from pg_proc p
                            where p.pronamespace = 'unstale'::regnamespace
                              and p.proname = any (select format('%s_%s', kind, number)::name
                                                     from unnest(unstale.function_kinds()) kind))
        then
            return number;
        end if;
    end loop;
end
$$;

-- Listeners are to read the watches anew.
create or replace function unstale.say_watches() returns void
    language sql
    set search_path = pg_catalog, pg_temp
as $$
    select pg_notify(unstale.channel(), '{"watches":true}')
$$;

-- The functions of a watch, as they should be. They run as the schema's owner, and what reads the
-- table as its owner (sweep.sql, audit.sql). Whatever of these names belongs to somebody else was
-- not made here, and is not adopted. A function that is there keeps its owner and its grants.
create or replace function unstale.create_functions(w unstale.watch, definitions text[])
    returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
    -- to try to compile each costs as much as all the rest; they are always made of the same text
    set check_function_bodies = off
as $$
declare
    schema_owner constant regrole := unstale.owner();
    names constant name[] := array(select format('%s_%s', kind, w.id)::name
                                     from unnest(unstale.function_kinds()) kind);
    readers constant name[] := array[format('page_%s', w.id), format('audit_%s', w.id)];
    row_name constant name := format('row_%s', w.id);
    known oid[] := '{}'; -- those that are there, and stay
    watched record;
    rightful regrole;
    f record;
    statement text;
begin
    select c.relowner::regrole as owner, c.relkind into watched
      from pg_class c where c.oid = w.relation;
    for f in
        select p.oid::regprocedure as signature, p.proname, p.proowner::regrole as owner,
               case when p.proname = any (readers)
                    -- its columns or its owner may be others now; and what has its query
                    then p.proowner <> watched.owner
                         or case when p.proname = readers[1] then w.sweep_attnum
                                 else w.version_attnum end is null
                    else p.proname = row_name
                         and case p.pronargs when 3 then w.sweep_attnum is null
                                             when 4 then w.version_attnum is null
                                             else false end
               end as is_obsolete
          from pg_proc p
         where p.pronamespace = 'unstale'::regnamespace and p.proname = any (names)
         order by p.proname = any (readers) desc -- those call row_N()
    loop
        if f.owner <> schema_owner and f.proname <> all (readers) then
            perform unstale.refuse(
                format('function %s belongs to %s, and would run in the writers'' transactions '
                       'of %s', f.signature, f.owner, w.relation),
                format('drop function %s; if nobody knows it.', f.signature));
        elsif f.is_obsolete then
            execute format('drop function %s', f.signature);
        else
            known := known || f.signature::oid;
        end if;
    end loop;
    foreach statement in array definitions loop
        execute statement;
    end loop;
    -- No longer needed, and it would keep its column from being dropped; not dropped, because code
    -- that runs now may still call it.
    if w.sweep_attnum is null
       and format('fresh_%s', w.id)::name
           in (select p.proname from pg_proc p where p.oid = any (known)) then
        execute format('create or replace function unstale.fresh_%s(t %s) returns boolean '
                       'language sql begin atomic select false; end', w.id, w.relation);
    end if;
    perform unstale.revoke_all(array(
        select p.oid from pg_proc p -- new ones, of PUBLIC, and of whoever has them by default
         where p.pronamespace = 'unstale'::regnamespace and p.proname = any (names)
           and (p.oid <> all (known) or p.proacl is null)));
    for f in
        select p.oid::regprocedure as signature, p.proname, p.proowner from pg_proc p
         where p.pronamespace = 'unstale'::regnamespace and p.proname = any (names)
    loop
        rightful := case when f.proname = any (readers) then watched.owner else schema_owner end;
        if f.proowner <> rightful then
            perform unstale.hand_over(f.signature, rightful);
        end if;
        if f.proname = row_name and watched.owner <> schema_owner then
            -- those call it
            execute format('grant execute on function %s to %s', f.signature, watched.owner);
        elsif f.proname = any (readers) then
            perform unstale.grant_to_listeners(f.signature);
        end if;
    end loop;
    if watched.relkind = 'p' then
        for statement in
            select format('grant execute on function %s to %s', c.function, c.maker)
              from unstale.cloned(w) c
        loop
            execute statement;
        end loop;
    end if;
end
$$;

-- Who makes or attaches a partition gives it the row triggers of the partitioned table, and
-- PostgreSQL asks whether he may execute their functions: it would refuse with `permission denied
-- for function`, and not even say which. So the owners of the partitioned tables may. On a table of
-- theirs, a function does nothing unless the table is below the watched one.
create or replace function unstale.cloned(w unstale.watch)
    returns table (function regprocedure, maker regrole)
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    if (select c.relkind <> 'p' from pg_class c where c.oid = w.relation) then
        return;
    end if;
    return query
    select p.oid::regprocedure, m.maker
      from (select distinct c.relowner::regrole
              from unstale.tree(w.relation) t(relation)
              join pg_class c on c.oid = t.relation
             where c.relkind = 'p' and c.relowner <> unstale.owner()) m(maker)
      join pg_proc p on p.pronamespace = 'unstale'::regnamespace and p.pronargs = 0
       and p.proname in (format('insert_%s', w.id)::name, format('update_%s', w.id)::name,
                         format('delete_%s', w.id)::name);
end
$$;

-- False after a partitioned table was given to another role, which can make no partition before the
-- table is watched again.
create or replace function unstale.partitions_can_be_made(w unstale.watch) returns boolean
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return (select not exists (
        select from unstale.cloned(w) c
         where not has_function_privilege(c.maker::oid, c.function::oid, 'execute')));
end
$$;

-- Every key of the watch may be stale.
create or replace function unstale.announce_all(w unstale.watch) returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
declare
    change constant text := format('{"watch":%s,"rev":%s,"all":true}', w.id, w.rev);
begin
    perform pg_notify(unstale.channel(), change); -- whoever changes a watch notifies anyway
    perform unstale.log(w.id, change, true);
end
$$;

-- The row of unstale.watch that the arguments ask for, or a sentence that
-- says why they cannot be had.
create or replace function unstale.wanted(relation regclass, keys text[], delivery text,
                                          updated_at text, only_columns text[],
                                          max_ttl interval, any_prefix boolean)
    returns unstale.watch
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    result unstale.watch;
    template text;
    column_name text;
    sweep record;
begin
    perform unstale.refuse_relation(relation);
    if delivery is null or delivery not in ('row', 'statement', 'log') then
        perform unstale.refuse(
            format('delivery %s is unknown', coalesce(quote_literal(delivery), 'null')),
            'Use ''row'', ''statement'' or ''log''.');
    elsif delivery = 'statement'
          and (select c.relkind = 'p' or c.relispartition
                 from pg_class c where c.oid = relation) then
        perform unstale.refuse(
            format('%s is partitioned, or a partition: a statement''s trigger does not fire on '
                   'partitions that it does not name', relation),
            'Use delivery => ''row'' or ''log''.');
    elsif delivery = 'statement'
          and exists (select from pg_inherits i where i.inhrelid = relation) then
        perform unstale.refuse(
            format('%s is an inheritance child: PostgreSQL allows it no triggers with '
                   'transition tables', relation),
            'Use delivery => ''row'' or ''log''.');
    end if;
    if coalesce(cardinality(keys), 0) = 0 or array_position(keys, null) is not null then
        perform unstale.refuse(
            format('%s: a watch needs at least one key template, and none that is null', relation),
            'For example keys => array[''user:{id}''].');
    end if;

    if max_ttl <= interval '0' or max_ttl > interval '100 years' then
        perform unstale.refuse(
            format('%s: max_ttl %s is no time to live', relation, max_ttl),
            'For example max_ttl => ''1 hour''; leave it out if any will do.');
    end if;

    result.relation := relation;
    result.table_name := relation::text;
    result.keys := keys;
    result.delivery := delivery;
    result.updated_at := updated_at;
    result.only_columns := only_columns;
    result.max_ttl := max_ttl;
    result.columns := '{}';
    result.attnums := '{}';
    foreach template in array keys loop
        foreach column_name in array unstale.template_columns(template) loop
            continue when column_name = any (result.columns);
            result.columns := result.columns || column_name;
            result.attnums := result.attnums || unstale.column_number(
                relation, column_name, 'key template ' || quote_literal(template));
        end loop;
        if not any_prefix and unstale.has_short_prefix(template) then
            perform unstale.refuse(
                format('key template %s begins with a column, or has fewer than 2 literal '
                       'characters: a TRUNCATE would delete the keys of others, too',
                       quote_literal(template)),
                'Put a prefix before the column, as in ''user:{id}'', or pass any_prefix => true.');
        end if;
    end loop;
    foreach column_name in array coalesce(only_columns, '{}') loop
        perform unstale.column_number(relation, column_name, 'only_columns');
    end loop;

    -- The default name may be missing; another one that is missing was misspelt.
    if updated_at is not null and updated_at not in ('', 'updated_at') then
        perform unstale.column_number(relation, updated_at, 'updated_at');
    end if;
    select a.attnum, a.atttypid into sweep from pg_attribute a
     where a.attrelid = wanted.relation and a.attname = wanted.updated_at
       and a.attnum > 0 and not a.attisdropped
       and a.attgenerated <> 'v'; -- a trigger cannot read it
    -- Other types have no time of day, or no agreed meaning. The sweep reads as the table's owner,
    -- from whom row-level security hides rows only if it is forced.
    if found and sweep.atttypid in ('timestamptz'::regtype, 'timestamp'::regtype)
       and not (select c.relforcerowsecurity from pg_class c where c.oid = wanted.relation) then
        result.sweep_attnum := sweep.attnum;
    end if;
    return result;
end
$$;

-- Which relations cannot be watched, and what to do instead.
create or replace function unstale.refuse_relation(relation regclass) returns void
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    class record;
    children text;
begin
    select c.relkind, c.relpersistence, n.nspname into class
      from pg_class c join pg_namespace n on n.oid = c.relnamespace
     where c.oid = refuse_relation.relation;
    if not found then
        perform unstale.refuse('there is no such table',
                               'Name the table with its schema, as in ''public.users''.');
    elsif class.nspname in ('unstale', 'pg_catalog', 'information_schema') then
        perform unstale.refuse(format('%s belongs to %s itself', relation, class.nspname),
                               'Watch the application''s own tables.');
    elsif class.relkind not in ('r', 'p') then
        perform unstale.refuse(
            format('%s is a %s, which has no row triggers', relation,
                   case class.relkind when 'v' then 'view' when 'm' then 'materialized view'
                                      when 'f' then 'foreign table'
                                      else 'relation of kind ' || class.relkind::text end),
            'Watch the tables that it is made of.');
    elsif class.relpersistence = 't' then
        perform unstale.refuse(format('%s is a temporary table', relation),
                               'Watch a permanent table.');
    elsif class.relpersistence = 'u' then
        perform unstale.refuse(
            format('%s is unlogged: after a crash it is empty, and no trigger says so', relation),
            format('alter table %s set logged;', relation));
    elsif (select d.encoding = 0 from pg_database d where d.datname = current_database()) then
        perform unstale.refuse('this database is SQL_ASCII: a value that is not UTF-8 would end '
                               'the listener''s session',
                               'Move to a database in UTF8.');
    end if;

    select string_agg(i.inhrelid::regclass::text, ', ') into children
      from pg_inherits i join pg_class c on c.oid = i.inhrelid
     where i.inhparent = refuse_relation.relation and not c.relispartition
       and not exists (select from unstale.watch w
                        where w.relation = i.inhrelid and w.ended is null);
    if children is not null then
        perform unstale.refuse(
            format('%s has inheritance children (%s), whose rows its triggers do not see',
                   relation, children),
            'Watch the children, or use declarative partitioning.');
    end if;
    select string_agg(t.relid::text, ', ') into children
      from pg_partition_tree(refuse_relation.relation) t
      join pg_class c on c.oid = t.relid where c.relkind = 'f';
    if children is not null then
        perform unstale.refuse(
            format('%s has foreign tables as partitions (%s), which change without a trigger here',
                   relation, children),
            'Watch the local partitions.');
    end if;
end
$$;

create or replace function unstale.unwatch(relation regclass)
    returns boolean -- false: it was not watched
    language plpgsql
    set search_path = pg_catalog, pg_temp
    set quote_all_identifiers = off
    set standard_conforming_strings = on
    set jit = off -- to compile the catalogue's queries takes seconds, to run them milliseconds
as $$
#variable_conflict use_column
declare
    known unstale.watch;
    installed record;
    caller_timeout constant text := current_setting('lock_timeout');
begin
    perform unstale.refuse_caller();
    perform unstale.lock('unstale.watch', 'share row exclusive', caller_timeout, '10s');
    perform unstale.notice_ddl_of((
        select w.table_name from unstale.watch w
         where w.relation = unwatch.relation and w.ended is null));
    select * into known from unstale.watch w
     where w.relation = unwatch.relation and w.ended is null;
    if not found then
        perform set_config('lock_timeout', caller_timeout, true);
        return false;
    end if;
    perform unstale.lock(known.relation, 'access exclusive', caller_timeout, '1s');
    -- on partitions, too, also on those that were detached, and on copies of the table
    for installed in
        select t.tgname, t.tgrelid::regclass as relation from pg_trigger t
         where t.tgparentid = 0 and t.tgfoid in (
             select p.oid from pg_proc p
              where p.pronamespace = 'unstale'::regnamespace
                and p.proname = any (select format('%s_%s', kind, known.id)::name
                                       from unnest(unstale.function_kinds()) kind))
         order by t.tgrelid <> known.relation
    loop
        begin
            execute format('drop trigger %I on %s', installed.tgname, installed.relation);
        exception when insufficient_privilege or lock_not_available then
            if installed.relation = known.relation then
                raise;
            end if; -- on somebody's copy of the table, where it does nothing
        end;
    end loop;
    perform unstale.retire(known);
    perform set_config('lock_timeout', caller_timeout, true);
    return true;
end
$$;

comment on function unstale.unwatch is
    'Undoes unstale.watch(). All keys of the table are deleted, '
    'because nobody will delete them when it changes';

-- Takes a watch out of force. Its keys will be deleted by nobody from now on, and the changes that
-- an absent listener would have swept are found by no sweep any more: so all of them are deleted.
create or replace function unstale.retire(w unstale.watch) returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
begin
    perform unstale.drop_functions(w.id);
    update unstale.watch set ended = pg_current_xact_id() where id = w.id;
    -- First, so that a listener that is asked for all keys of a watch knows it.
    perform unstale.say_watches();
    perform unstale.announce_all(w);
end
$$;

-- The same for the templates of a watch that are not among `kept`, as a watch of their own.
create or replace function unstale.retire_templates(w unstale.watch, kept text[]) returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
begin
    insert into unstale.watch
        (id, relation, table_name, keys, columns, attnums, delivery, functions, triggers, ended)
        overriding system value
        select unstale.free_number(), w.relation, w.table_name, array_agg(k), '{}', '{}',
               w.delivery, '', '', pg_current_xact_id()
          from unnest(w.keys) k where k <> all (kept)
        returning * into w;
    perform unstale.say_watches();
    perform unstale.announce_all(w);
end
$$;
