-- unstale.watch() and unstale.unwatch(): the interface for an application's own migrations.
--
-- The same call again touches no trigger and takes no lock; another call changes only what differs, and waits for the
-- table's lock for a second at the most, because everybody else would wait behind it.
-- Safe while an older listener runs: nothing existed before.

create function unstale.watch(
    relation     regclass,
    keys         text[],
    delivery     text   default 'row',
    updated_at   text   default 'updated_at',
    only_columns text[] default null
) returns text -- 'added', 'changed' or 'unchanged'
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    wanted unstale.watch;
    known unstale.watch;
    new_triggers boolean;
    caller_timeout constant text := current_setting('lock_timeout');
begin
    wanted := unstale.wanted(watch.relation, watch.keys, watch.delivery, watch.updated_at, watch.only_columns);

    select * into known from unstale.watch w where w.relation = watch.relation;
    if found and unstale.digests(wanted, known) = known and unstale.installed(known) then
        return 'unchanged';
    end if;

    if caller_timeout = '0' then
        perform set_config('lock_timeout', '1s', true);
    end if;
    begin
        lock table unstale.watch in share row exclusive mode; -- two calls at once: one waits, then finds its work done
        perform unstale.forget_dropped();
        select * into known from unstale.watch w where w.relation = watch.relation;
        if not found then
            insert into unstale.watch (relation, table_name, keys, columns, attnums, delivery, functions, triggers)
                values (watch.relation, watch.relation::text, '{}', '{}', '{}', watch.delivery, '', '')
                returning * into known;
        elsif unstale.digests(wanted, known) = known and unstale.installed(known) then
            perform set_config('lock_timeout', caller_timeout, true);
            return 'unchanged';
        end if;

        wanted := unstale.digests(wanted, known);
        if (wanted.keys, wanted.columns, wanted.attnums) is distinct from (known.keys, known.columns, known.attnums) and known.functions <> '' then
            known.rev := known.rev + 1;
            wanted := unstale.digests(wanted, known);
        end if;
        new_triggers := wanted.triggers <> known.triggers;
        if new_triggers or not unstale.installed(wanted) then
            execute format('lock table %s in share row exclusive mode', watch.relation);
        end if;
        if wanted.functions <> known.functions then
            perform unstale.execute_all(unstale.function_definitions(wanted));
        end if;
        perform unstale.install(wanted, new_triggers);
    exception when lock_not_available then
        raise exception 'could not lock % within %: other sessions are writing to it (%)', watch.relation, current_setting('lock_timeout'),
            (select string_agg(distinct 'pid ' || l.pid, ', ') from pg_locks l
              where l.relation in (watch.relation, 'unstale.watch'::regclass) and l.granted and l.pid <> pg_backend_pid()
                and l.mode not in ('AccessShareLock', 'RowShareLock')
                and l.database = (select d.oid from pg_database d where d.datname = current_database()))
            using errcode = 'lock_not_available', hint = 'Nothing was changed. Try again, or set a longer lock_timeout.';
    end;
    perform set_config('lock_timeout', caller_timeout, true);

    update unstale.watch w
       set table_name = wanted.table_name, keys = wanted.keys, columns = wanted.columns, attnums = wanted.attnums, delivery = wanted.delivery,
           updated_at = wanted.updated_at, sweep_attnum = wanted.sweep_attnum, only_columns = wanted.only_columns, rev = wanted.rev,
           functions = wanted.functions, triggers = wanted.triggers
     where w.id = known.id;
    perform pg_notify('unstale', '{"watches":true}');
    return case when known.functions = '' then 'added' else 'changed' end;
end
$$;

comment on function unstale.watch is 'Announces every change of a table, so that its keys in Redis are deleted';

-- The row of unstale.watch that the arguments ask for, or a sentence that says why they cannot be had.
create function unstale.wanted(relation regclass, keys text[], delivery text, updated_at text, only_columns text[]) returns unstale.watch
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
    if delivery in ('statement', 'log') then
        raise exception 'delivery %: not yet in this version', quote_literal(delivery)
            using errcode = 'feature_not_supported', hint = 'Use delivery => ''row''.';
    elsif delivery is distinct from 'row' then
        perform unstale.refuse(format('delivery %s is unknown', coalesce(quote_literal(delivery), 'null')), 'Use ''row'', ''statement'' or ''log''.');
    end if;
    if coalesce(cardinality(keys), 0) = 0 or array_position(keys, null) is not null then
        perform unstale.refuse(format('%s: a watch needs at least one key template, and none that is null', relation), 'For example keys => array[''user:{id}''].');
    end if;

    result.relation := relation;
    result.table_name := relation::text;
    result.keys := keys;
    result.delivery := delivery;
    result.updated_at := updated_at;
    result.only_columns := only_columns;
    result.columns := '{}';
    result.attnums := '{}';
    foreach template in array keys loop
        foreach column_name in array unstale.template_columns(template) loop
            continue when column_name = any (result.columns);
            result.columns := result.columns || column_name;
            result.attnums := result.attnums || unstale.column_number(relation, column_name, 'key template ' || quote_literal(template));
        end loop;
    end loop;
    foreach column_name in array coalesce(only_columns, '{}') loop
        perform unstale.column_number(relation, column_name, 'only_columns');
    end loop;

    -- The default name may be missing; another one that is missing was misspelt.
    if updated_at is not null and updated_at not in ('', 'updated_at') then
        perform unstale.column_number(relation, updated_at, 'updated_at');
    end if;
    select a.attnum, a.atttypid into sweep from pg_attribute a
     where a.attrelid = wanted.relation and a.attname = wanted.updated_at and a.attnum > 0 and not a.attisdropped;
    -- Other types have no time of day, or no agreed meaning; row-level security would hide rows from the sweep.
    if found and sweep.atttypid in ('timestamptz'::regtype, 'timestamp'::regtype)
       and not (select c.relrowsecurity from pg_class c where c.oid = wanted.relation) then
        result.sweep_attnum := sweep.attnum;
    end if;
    return result;
end
$$;

-- `wanted` under the identity of `known`, with the digests of what would be generated.
create function unstale.digests(wanted unstale.watch, known unstale.watch) returns unstale.watch
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    wanted.id := known.id;
    wanted.rev := known.rev;
    wanted.since := known.since;
    wanted.functions := md5(array_to_string(unstale.function_definitions(wanted), E'\n'));
    wanted.triggers := md5((select string_agg(t::text, E'\n' order by t.name) from unstale.trigger_definitions(wanted) t));
    return wanted;
end
$$;

create function unstale.execute_all(statements text[]) returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
declare
    statement text;
begin
    foreach statement in array statements loop
        execute statement;
    end loop;
end
$$;

-- Which relations cannot be watched, and what to do instead.
create function unstale.refuse_relation(relation regclass) returns void
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    class record;
    children text;
begin
    select c.relkind, c.relpersistence, n.nspname into class
      from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = refuse_relation.relation;
    if not found then
        perform unstale.refuse('there is no such table', 'Name the table with its schema, as in ''public.users''.');
    elsif class.nspname in ('unstale', 'pg_catalog', 'information_schema') then
        perform unstale.refuse(format('%s belongs to %s itself', relation, class.nspname), 'Watch the application''s own tables.');
    elsif class.relkind not in ('r', 'p') then
        perform unstale.refuse(
            format('%s is a %s, which has no row triggers', relation,
                   case class.relkind when 'v' then 'view' when 'm' then 'materialized view' when 'f' then 'foreign table' else 'relation of kind ' || class.relkind end),
            'Watch the tables that it is made of.');
    elsif class.relpersistence = 't' then
        perform unstale.refuse(format('%s is a temporary table', relation), 'Watch a permanent table.');
    elsif class.relpersistence = 'u' then
        perform unstale.refuse(format('%s is unlogged: after a crash it is empty, and no trigger says so', relation),
                               format('alter table %s set logged;', relation));
    elsif (select d.encoding = 0 from pg_database d where d.datname = current_database()) then
        perform unstale.refuse('this database is SQL_ASCII: a value that is not UTF-8 would end the listener''s session',
                               'Move to a database in UTF8.');
    end if;

    select string_agg(i.inhrelid::regclass::text, ', ') into children
      from pg_inherits i join pg_class c on c.oid = i.inhrelid
     where i.inhparent = refuse_relation.relation and not c.relispartition;
    if children is not null then
        perform unstale.refuse(format('%s has inheritance children (%s), whose rows its triggers do not see', relation, children),
                               'Watch the children, or use declarative partitioning.');
    end if;
    select string_agg(t.relid::text, ', ') into children
      from pg_partition_tree(refuse_relation.relation) t join pg_class c on c.oid = t.relid where c.relkind = 'f';
    if children is not null then
        perform unstale.refuse(format('%s has foreign tables as partitions (%s), which change without a trigger here', relation, children),
                               'Watch the local partitions.');
    end if;
end
$$;

create function unstale.unwatch(relation regclass) returns boolean -- false: it was not watched
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    known unstale.watch;
    r regclass;
    operation text;
    caller_timeout constant text := current_setting('lock_timeout');
begin
    if caller_timeout = '0' then
        perform set_config('lock_timeout', '1s', true);
    end if;
    lock table unstale.watch in share row exclusive mode;
    perform unstale.forget_dropped();
    delete from unstale.watch w where w.relation = unwatch.relation returning * into known;
    if not found then
        perform set_config('lock_timeout', caller_timeout, true);
        return false;
    end if;
    foreach operation in array array['insert', 'update', 'delete', 'truncate'] loop
        execute format('drop trigger if exists unstale_%s_%s on %s', known.id, operation, known.relation);
    end loop;
    for r in select t.tgrelid::regclass from pg_trigger t where t.tgname = format('unstale_%s_truncate', known.id) loop
        execute format('drop trigger unstale_%s_truncate on %s', known.id, r); -- on partitions
    end loop;
    perform unstale.drop_functions(known.id);
    perform set_config('lock_timeout', caller_timeout, true);
    perform pg_notify('unstale', '{"watches":true}');
    return true;
end
$$;

comment on function unstale.unwatch is 'Undoes unstale.watch()';

create function unstale.drop_functions(watch_id integer) returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
declare
    f regprocedure;
begin
    for f in select p.oid from pg_proc p
              where p.pronamespace = 'unstale'::regnamespace
                and p.proname ~ format('^(row|same|fresh|insert|update|delete|truncate)_%s$', watch_id) loop
        execute format('drop function %s', f);
    end loop;
end
$$;

-- DROP TABLE ... CASCADE takes the triggers along; this takes the rest.
create function unstale.forget_dropped() returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
declare
    gone integer;
begin
    for gone in delete from unstale.watch w where not exists (select from pg_class c where c.oid = w.relation) returning w.id loop
        perform unstale.drop_functions(gone);
    end loop;
end
$$;

-- The sentences of watch() are for its caller alone; the trigger functions need no grant.
revoke all on all functions in schema unstale from public;
