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
    only_columns text[] default null,
    max_ttl      interval default null -- how long its cached values may live; only `unstale check --keys` asks
) returns text -- 'added', 'changed' or 'unchanged'
    language plpgsql
    set search_path = pg_catalog, pg_temp
    set quote_all_identifiers = off -- the digests must not depend on the caller's settings
    set standard_conforming_strings = on
as $$
#variable_conflict use_column
declare
    wanted unstale.watch;
    known unstale.watch;
    complete boolean := true; -- has every change been announced since `known.since`?
    caller_timeout constant text := current_setting('lock_timeout');
begin
    wanted := unstale.wanted(watch.relation, watch.keys, watch.delivery, watch.updated_at, watch.only_columns, watch.max_ttl);

    select * into known from unstale.watch w where w.relation = watch.relation and w.ended is null;
    if found and unstale.digests(wanted, known) = known and unstale.installed(known) then
        return 'unchanged';
    end if;

    perform unstale.refuse_caller();
    -- Two calls at once: one waits, which keeps nobody from writing, and then finds its work done.
    perform unstale.lock('unstale.watch', 'share row exclusive', caller_timeout, '10s');
    perform unstale.notice_ddl();
    select * into known from unstale.watch w where w.relation = watch.relation and w.ended is null;
    if not found then
        -- A table of this name had keys, too, and changed unwatched since then.
        complete := not exists (select from unstale.watch w where w.table_name = watch.relation::text);
        insert into unstale.watch (relation, table_name, keys, columns, attnums, delivery, functions, triggers)
            values (watch.relation, watch.relation::text, '{}', '{}', '{}', watch.delivery, '', '')
            returning * into known;
    elsif unstale.digests(wanted, known) = known and unstale.installed(known) then
        perform set_config('lock_timeout', caller_timeout, true);
        return 'unchanged';
    else
        -- What was left to a sweep by the column of before is found by no sweep from now on.
        complete := unstale.installed(known) and known.sweep_attnum is not distinct from wanted.sweep_attnum;
        if not known.keys <@ wanted.keys then
            perform unstale.retire_templates(known, wanted.keys);
        end if;
    end if;

    if (wanted.keys, wanted.columns, wanted.attnums) is distinct from (known.keys, known.columns, known.attnums) and known.functions <> '' then
        known.rev := known.rev + 1;
    end if;
    wanted := unstale.digests(wanted, known);
    if wanted.triggers <> known.triggers or not unstale.installed(wanted) then
        -- While this waits, everybody else who wants the table waits behind it. To drop a trigger takes the stronger lock; to take it
        -- later would be a deadlock with a writer that has read the table before.
        perform unstale.lock(watch.relation, case when exists (select from unstale.surplus(wanted)) then 'access exclusive' else 'share row exclusive' end,
                             caller_timeout, '1s');
        if known.functions = '' then
            wanted.since := clock_timestamp(); -- every writer that the triggers have missed has ended
        end if;
    end if;
    perform unstale.execute_all(unstale.function_definitions(wanted)); -- all: a DROP ... CASCADE may have taken some
    perform unstale.install(wanted, wanted.triggers <> known.triggers);
    perform set_config('lock_timeout', caller_timeout, true);

    update unstale.watch w
       set table_name = wanted.table_name, keys = wanted.keys, columns = wanted.columns, attnums = wanted.attnums, delivery = wanted.delivery,
           updated_at = wanted.updated_at, sweep_attnum = wanted.sweep_attnum, only_columns = wanted.only_columns, max_ttl = wanted.max_ttl, rev = wanted.rev,
           functions = wanted.functions, triggers = wanted.triggers, since = wanted.since, layout = unstale.layout(wanted)
     where w.id = known.id;
    perform pg_notify('unstale', '{"watches":true}');
    if wanted.sweep_attnum is null and watch.updated_at is not null then
        raise notice '% has no column % that a sweep could read: each of its changes is logged', watch.relation, quote_ident(watch.updated_at)
            using hint = 'Name another with updated_at => ''...'', or none with updated_at => null.';
    end if;
    if not complete then
        perform unstale.announce_all(wanted);
    end if;
    return case when known.functions = '' then 'added' else 'changed' end;
end
$$;

comment on function unstale.watch is 'Announces every change of a table, so that its keys in Redis are deleted';

-- Locks a table, or says who keeps us from it. The caller of watch() decides how long that may take, or else we do; it
-- gets its setting back at the end, and an error gives it back, too.
create function unstale.lock(relation regclass, mode text, caller_timeout text, patience text) returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
declare
    patience_used constant text := case when caller_timeout = '0' then patience else caller_timeout end;
    deadline constant timestamptz := clock_timestamp() + patience_used::interval;
begin
    perform set_config('lock_timeout', patience_used, true);
    loop
        begin
            -- A transaction that has locked something already must not wait in a queue: a writer that waits for it, and has what it
            -- waits for, would be the one that PostgreSQL ends.
            execute format('lock table %s in %s mode%s', relation, mode, case when unstale.has_locked(relation) then ' nowait' else '' end);
            return;
        exception when lock_not_available then
            if clock_timestamp() >= deadline then
                raise exception 'could not lock % within %: %', relation, patience_used, unstale.blockers(relation, mode)
                    using errcode = 'lock_not_available',
                          hint = 'Nothing was changed. Try again in a transaction of its own, or set a longer lock_timeout.';
            end if;
            perform pg_sleep(0.01);
        end;
    end loop;
end
$$;

-- Has this transaction locked a table, other than the given one and ours, so that a writer may wait for it?
create function unstale.has_locked(relation regclass) returns boolean
    language sql
    set search_path = pg_catalog, pg_temp
as $$
    select exists (
        select from pg_locks l join pg_class c on c.oid = l.relation
         where l.pid = pg_backend_pid() and l.granted and l.mode not in ('AccessShareLock', 'RowShareLock')
           and l.relation <> has_locked.relation and c.relnamespace not in ('unstale'::regnamespace, 'pg_catalog'::regnamespace))
$$;

-- Who holds a lock that keeps us from one on the table and its partitions.
create function unstale.blockers(relation regclass, mode text) returns text
    language sql
    set search_path = pg_catalog, pg_temp
as $$
    select coalesce('in use by ' || string_agg(distinct coalesce('pid ' || l.pid, 'a prepared transaction'), ', '), 'its users have just ended')
      from pg_locks l
     where l.relation in (select unstale.tree(blockers.relation)) and l.granted and l.pid is distinct from pg_backend_pid()
       and (mode = 'access exclusive' or l.mode not in ('AccessShareLock', 'RowShareLock'))
       and l.database = (select d.oid from pg_database d where d.datname = current_database())
$$;

-- The trigger functions run as their owner, so that writers need no grant; the owner needs these. What of it a role lacks.
create function unstale.lacking(role oid) returns table (needed text)
    language sql stable
    set search_path = pg_catalog, pg_temp
as $$
    select 'usage on schema unstale' where not has_schema_privilege(role, 'unstale', 'usage')
    union all
    select format('insert on unstale.change_log_%s', part) from generate_series(1, 3) part
     where not has_table_privilege(role, format('unstale.change_log_%s', part), 'insert')
    union all
    select 'usage on sequence unstale.change_log_id' where not has_sequence_privilege(role, 'unstale.change_log_id', 'usage')
    union all
    select format('execute on function %s', p.oid::regprocedure) from pg_proc p
     where p.pronamespace = 'unstale'::regnamespace and p.proname in ('announce', 'one_row', 'two_rows', 'margin', 'part', 'log', 'tell', 'ring', 'bell')
       and not has_function_privilege(role, p.oid, 'execute')
$$;

create function unstale.refuse_caller() returns void
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    missing text;
begin
    select string_agg(l.needed, ', ') into missing
      from pg_roles r cross join lateral unstale.lacking(r.oid) l where r.rolname = current_user;
    if missing is not null then
        raise exception 'the triggers that % would make could not run: it has no %', current_user, missing
            using errcode = 'insufficient_privilege', hint = 'Grant it, or call unstale.watch() as the owner of the schema unstale.';
    end if;
end
$$;

-- Every key of the watch may be stale.
create function unstale.announce_all(w unstale.watch) returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
declare
    change constant text := format('{"watch":%s,"rev":%s,"all":true}', w.id, w.rev);
begin
    perform unstale.log(w.id, change, unstale.announce(change));
end
$$;

-- The row of unstale.watch that the arguments ask for, or a sentence that says why they cannot be had.
create function unstale.wanted(relation regclass, keys text[], delivery text, updated_at text, only_columns text[], max_ttl interval) returns unstale.watch
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
        perform unstale.refuse(format('delivery %s is unknown', coalesce(quote_literal(delivery), 'null')), 'Use ''row'', ''statement'' or ''log''.');
    elsif delivery = 'statement' and (select c.relkind = 'p' or c.relispartition from pg_class c where c.oid = relation) then
        perform unstale.refuse(format('%s is partitioned, or a partition: a statement''s trigger does not fire on partitions that it does not name', relation),
                               'Use delivery => ''row'' or ''log''.');
    end if;
    if coalesce(cardinality(keys), 0) = 0 or array_position(keys, null) is not null then
        perform unstale.refuse(format('%s: a watch needs at least one key template, and none that is null', relation), 'For example keys => array[''user:{id}''].');
    end if;

    if max_ttl <= interval '0' then
        perform unstale.refuse(format('%s: max_ttl %s is no time to live', relation, max_ttl), 'For example max_ttl => ''1 hour''; leave it out if any will do.');
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
     where a.attrelid = wanted.relation and a.attname = wanted.updated_at and a.attnum > 0 and not a.attisdropped
       and a.attgenerated <> 'v'; -- a trigger cannot read it
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
    wanted.layout := known.layout;
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
                   case class.relkind when 'v' then 'view' when 'm' then 'materialized view' when 'f' then 'foreign table' else 'relation of kind ' || class.relkind::text end),
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
    set quote_all_identifiers = off
    set standard_conforming_strings = on
as $$
#variable_conflict use_column
declare
    known unstale.watch;
    installed record;
    caller_timeout constant text := current_setting('lock_timeout');
begin
    perform unstale.lock('unstale.watch', 'share row exclusive', caller_timeout, '10s');
    perform unstale.notice_ddl();
    select * into known from unstale.watch w where w.relation = unwatch.relation and w.ended is null;
    if not found then
        perform set_config('lock_timeout', caller_timeout, true);
        return false;
    end if;
    perform unstale.lock(known.relation, 'access exclusive', caller_timeout, '1s');
    for installed in -- on partitions, too, also on those that were detached
        select t.tgname, t.tgrelid::regclass as relation from pg_trigger t
         where t.tgname ~ format('^unstale_%s_[a-z]+$', known.id) and t.tgparentid = 0
    loop
        execute format('drop trigger %I on %s', installed.tgname, installed.relation);
    end loop;
    perform unstale.retire(known);
    perform set_config('lock_timeout', caller_timeout, true);
    return true;
end
$$;

comment on function unstale.unwatch is 'Undoes unstale.watch(). All keys of the table are deleted, because nobody will delete them when it changes';

-- Takes a watch out of force. Its keys will be deleted by nobody from now on, and the changes that an absent listener would
-- have swept are found by no sweep any more: so all of them are deleted.
create function unstale.retire(w unstale.watch) returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
begin
    perform unstale.drop_functions(w.id);
    update unstale.watch set ended = pg_current_xact_id() where id = w.id;
    -- First, so that a listener that is asked for all keys of a watch knows it.
    perform pg_notify('unstale', '{"watches":true}');
    perform unstale.announce_all(w);
end
$$;

-- The same for the templates of a watch that are not among `kept`, as a watch of their own.
create function unstale.retire_templates(w unstale.watch, kept text[]) returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
begin
    insert into unstale.watch (relation, table_name, keys, columns, attnums, delivery, functions, triggers, ended)
        select w.relation, w.table_name, array_agg(k), '{}', '{}', w.delivery, '', '', pg_current_xact_id() from unnest(w.keys) k where k <> all (kept)
        returning * into w;
    perform pg_notify('unstale', '{"watches":true}');
    perform unstale.announce_all(w);
end
$$;

create function unstale.drop_functions(watch_id integer) returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
declare
    f regprocedure;
begin
    for f in select p.oid from pg_proc p
              where p.pronamespace = 'unstale'::regnamespace
                and p.proname ~ format('^(row|same|fresh|uses|insert|update|delete|truncate|inserts|updates|deletes)_%s$', watch_id)
              order by p.proname !~ '^uses' loop -- it calls row_N() and fresh_N()
        begin
            execute format('drop function %s', f);
        exception when insufficient_privilege then
            null; -- another role's watch of a table that was dropped: they are of no use, and do no harm
        end;
    end loop;
end
$$;

-- What a partitioned table's triggers do not tell: partitions that come and go, and the TRUNCATE of one that came after the
-- watch, which gets a new file. Not pg_partition_tree(), which waits for whoever locks a partition.
create function unstale.layout(w unstale.watch) returns text
    language sql stable
    set search_path = pg_catalog, pg_temp
as $$
    with recursive tree(oid) as (
        select i.inhrelid from pg_inherits i where i.inhparent = w.relation and not i.inhdetachpending
        union all
        select i.inhrelid from tree join pg_inherits i on i.inhparent = tree.oid and not i.inhdetachpending
    )
    select coalesce(md5(string_agg(format('%s %s', c.oid, case when t.oid is null then c.relfilenode end), ' ' order by c.oid)), '')
      from tree
      join pg_class c on c.oid = tree.oid
      left join pg_trigger t on t.tgrelid = c.oid and t.tgname = format('unstale_%s_truncate', w.id)
$$;

-- Announces what no trigger tells: DROP TABLE ... CASCADE, which takes the triggers along, and partitions. Every listener
-- calls it now and then, and before it catches up. It waits for nobody: another call will do.
-- Also forgets ended watches whose keys every instance has deleted.
create function unstale.notice_ddl() returns void
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
        if known.ended is not null then
            delete from unstale.watch w where w.id = known.id;
        elsif not exists (select from pg_class c where c.oid = known.relation) then
            perform unstale.retire(known);
        else
            update unstale.watch w set layout = unstale.layout(known) where w.id = known.id;
            perform unstale.announce_all(known);
        end if;
    end loop;
end
$$;

create function unstale.to_notice() returns setof unstale.watch
    language sql stable
    set search_path = pg_catalog, pg_temp
as $$
    select w.* from unstale.watch w
     where w.ended is null and (w.layout <> unstale.layout(w) or not exists (select from pg_class c where c.oid = w.relation))
        -- Of instances that are forgotten, too: they are to delete all keys when they come back.
        or exists (select from unstale.checkpoint)
           and not exists (select from unstale.checkpoint c where pg_visible_in_snapshot(w.ended, c.replay_log) is not true)
$$;

-- Empties the parts of the log that every instance was done with a replay window ago, and lets the next one be written once
-- the current one has grown. Every listener calls it now and then. It waits for nobody. A writer that took the part of before for
-- the current one waits at most for the TRUNCATE, which takes milliseconds, and writes to the empty part.
create function unstale.rotate_log(threshold bigint default 8388608) returns void
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    current_part constant integer := unstale.part();
    free_part integer;
begin
    -- What was committed before the lock must be seen after it.
    if current_setting('transaction_isolation') <> 'read committed' or not pg_try_advisory_xact_lock(unstale.bell() + 1) then
        return;
    end if;
    for part in 1 .. 3 loop
        continue when part = current_part;
        if pg_relation_size(format('unstale.change_log_%s', part)) > 0 and unstale.is_done_with(part) then
            begin
                execute format('lock table unstale.change_log_%s in access exclusive mode nowait', part);
                if unstale.is_done_with(part) then
                    execute format('truncate unstale.change_log_%s', part);
                    free_part := part;
                end if;
            exception when lock_not_available then
                null; -- next time
            end;
        elsif pg_relation_size(format('unstale.change_log_%s', part)) = 0 then
            free_part := part;
        end if;
    end loop;
    if free_part is not null and pg_relation_size(format('unstale.change_log_%s', current_part)) > threshold then
        begin
            execute format('create or replace function unstale.part() returns integer language sql stable return %s', free_part);
        exception when others then
            null; -- an event trigger forbids it for now: the part grows
        end;
    end if;
end
$$;

-- Has every instance that is not forgotten done all that is in this part, a replay window ago? Not done is what its snapshot
-- does not see: transactions after it, and those that were open in it. Xids that are still to come are of a dump from elsewhere.
-- The minute is for an instance that comes back at this moment.
create function unstale.is_done_with(part integer) returns boolean
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
declare
    done boolean;
begin
    execute format($q$
        select coalesce(bool_and(
                   c.replay_log is not null
                   and not exists (select from unstale.change_log_%1$s l
                                    where l.xid >= pg_snapshot_xmax(c.replay_log) and l.xid < pg_snapshot_xmax(pg_current_snapshot()))
                   and not exists (select from pg_snapshot_xip(c.replay_log) x join unstale.change_log_%1$s l on l.xid = x)), false)
          from unstale.checkpoint c
         where c.saved_at >= clock_timestamp() - c.forget_after - interval '1 minute'$q$, part) into done;
    return done;
end
$$;

-- The sentences of watch() are for its caller alone; the trigger functions need no grant.
revoke all on all functions in schema unstale from public;
