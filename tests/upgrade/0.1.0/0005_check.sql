-- unstale.findings(): what in this database would make a promise untrue, with the SQL that mends it.
--
-- `unstale check` prints it; so does any psql. It runs as its owner, because a listener's role does not see everything, and it
-- waits for nobody. What depends on the role that asks is in src/pg/check.rs.
-- Safe while an older listener runs: nothing existed before.

-- The call that makes a watch what it is, for another table if need be.
create function unstale.watch_call(w unstale.watch, relation regclass) returns text
    language sql stable
    set search_path = pg_catalog, pg_temp
as $$
    select format('select unstale.watch(%L, keys => array[%s]%s%s%s%s);', relation::text,
                  (select string_agg(quote_literal(k), ', ' order by n) from unnest(w.keys) with ordinality u(k, n)),
                  case when w.delivery <> 'row' then format(', delivery => %L', w.delivery) end,
                  case when w.updated_at is distinct from 'updated_at' then format(', updated_at => %L', w.updated_at) end,
                  case when w.only_columns is not null
                       then (select format(', only_columns => array[%s]', string_agg(quote_literal(c), ', ')) from unnest(w.only_columns) c) end,
                  case when w.max_ttl is not null then format(', max_ttl => %L', w.max_ttl) end)
$$;

-- Watches whose table is there, and whether its generated functions are.
create function unstale.watches_in_force() returns table (w unstale.watch, whole boolean)
    language sql stable
    set search_path = pg_catalog, pg_temp
as $$
    select w, to_regproc(format('unstale.row_%s', w.id)) is not null
      from unstale.watch w join pg_class c on c.oid = w.relation
     where w.ended is null
$$;

create type unstale.finding as (
    severity text, -- 'error': a promise is broken, or will be; 'warning'
    about    text, -- a table, an instance, a transaction ...
    finding  text,
    remedy   text  -- SQL
);

create function unstale.trigger_findings() returns setof unstale.finding
    language sql stable
    set search_path = pg_catalog, pg_temp
as $$
    select 'error', t.relation::text,
           format('trigger %I %s: changes go unannounced', t.name,
                  case when t.fires is null then 'is missing' when t.fires = 'D' then 'is disabled' else 'does not fire in the sessions that it should' end),
           unstale.watch_call(f.w, (f.w).relation)
      from unstale.watches_in_force() f
     cross join lateral unstale.wrong_triggers(f.w) t
     where f.whole
    union all
    select 'error', (f.w).relation::text, format('function unstale.%s is missing: writes fail, or changes go unannounced', missing),
           unstale.watch_call(f.w, (f.w).relation)
      from unstale.watches_in_force() f
     cross join lateral unstale.missing_functions(f.w) missing
     where f.whole
    union all
    select 'error', (f.w).relation::text,
           'a column that its keys are made of was dropped with CASCADE, and the triggers with it: changes go unannounced',
           case when exists (select from unnest((f.w).columns) c
                              where not exists (select from pg_attribute a where a.attrelid = (f.w).relation and a.attname = c and not a.attisdropped))
                then format('select unstale.unwatch(%L);', (f.w).relation::text)
                else unstale.watch_call(f.w, (f.w).relation) end
      from unstale.watches_in_force() f
     where not f.whole
    union all
    -- The triggers run as their owner, and a write fails if that one may not do what they do.
    select distinct 'error', (f.w).relation::text, format('writes fail: the triggers run as %I, who lacks %s', owner.rolname, n.needed),
           format('grant %s to %I;', n.needed, owner.rolname)
      from unstale.watches_in_force() f
      join pg_proc p on p.pronamespace = 'unstale'::regnamespace and p.proname = format('update_%s', (f.w).id)
      join pg_roles owner on owner.oid = p.proowner
     cross join lateral unstale.lacking(owner.oid) n
$$;

create function unstale.table_findings() returns setof unstale.finding
    language sql stable
    set search_path = pg_catalog, pg_temp
as $$
    select 'error', w.table_name, 'the table was dropped, and its keys are still cached', 'select unstale.notice_ddl();'
      from unstale.watch w
     where w.ended is null and not exists (select from pg_class c where c.oid = w.relation)
    union all
    select 'error', c.oid::regclass::text, 'the table is unlogged: after a crash it is empty, and no trigger says so',
           format('alter table %s set logged;', c.oid::regclass)
      from unstale.watches_in_force() f join pg_class c on c.oid = (f.w).relation
     where c.relpersistence = 'u'
    union all
    select 'error', i.inhrelid::regclass::text, format('it inherits from %s, whose triggers do not see its rows', i.inhparent::regclass),
           unstale.watch_call(f.w, i.inhrelid)
      from unstale.watches_in_force() f
      join pg_inherits i on i.inhparent = (f.w).relation
      join pg_class c on c.oid = i.inhrelid and not c.relispartition
     where not exists (select from unstale.watch child where child.relation = i.inhrelid and child.ended is null)
    union all
    select 'error', t.relid::text, format('it is a foreign partition of %s, and changes without a trigger here', t.parentrelid),
           format('alter table %s detach partition %s;', t.parentrelid, t.relid)
      from unstale.watches_in_force() f
     cross join lateral pg_partition_tree((f.w).relation) t
      join pg_class c on c.oid = t.relid and c.relkind = 'f'
    union all
    select 'warning', (f.w).relation::text,
           'transactions may be prepared here, and PostgreSQL refuses PREPARE TRANSACTION after a NOTIFY: those that write this table fail',
           unstale.watch_call(jsonb_populate_record(f.w, '{"delivery": "log"}'), (f.w).relation)
      from unstale.watches_in_force() f
     where (f.w).delivery <> 'log' and current_setting('max_prepared_transactions') <> '0'
$$;

-- Transactions that are open for longer than `old` count as old.
create function unstale.server_findings(old interval) returns setof unstale.finding
    language sql stable
    set search_path = pg_catalog, pg_temp
as $$
    select 'warning', format('prepared transaction %L', x.gid),
           format('it is open since %s, and no watermark passes it: after a gap everything since then is swept', date_trunc('second', x.prepared)),
           format('commit prepared %L; -- or: rollback prepared %1$L;', x.gid)
      from pg_prepared_xacts x
     where x.database = current_database() and x.prepared < clock_timestamp() - old
    union all
    select 'warning', format('transaction of pid %s', a.pid),
           format('%s writes since %s, and no watermark passes it: after a gap everything since then is swept', coalesce(a.usename, 'somebody'), date_trunc('second', a.xact_start)),
           format('select pg_terminate_backend(%s);', a.pid)
      from pg_stat_activity a
     where a.datname = current_database() and a.backend_xid is not null and a.xact_start < clock_timestamp() - old
    union all
    select case when used > 0.5 then 'error' else 'warning' end, 'notification queue',
           format('%s %% full; when it is full, writes of tables that notify fail. A session that listens and stays in a transaction holds it', round(used::numeric * 100)),
           'select pg_terminate_backend(pid), query from pg_stat_activity where xact_start < now() - interval ''10 minutes'' and backend_xid is null;'
      from pg_notification_queue_usage() used
     where used > 0.1
$$;

create function unstale.instance_findings() returns setof unstale.finding
    language sql stable
    set search_path = pg_catalog, pg_temp
as $$
    select 'warning', format('instance %L', c.instance),
           format('it was last here at %s%s', date_trunc('second', c.saved_at),
                  case when c.saved_at < clock_timestamp() - c.forget_after then '; its next start deletes all keys, because the log is no longer kept for it'
                       else ', and the log is kept for it until ' || date_trunc('second', c.saved_at + c.forget_after) end),
           format('delete from unstale.checkpoint where instance = %L; -- if it is gone for good; or else start it', c.instance)
      from unstale.checkpoint c
     where c.saved_at < clock_timestamp() - interval '1 minute'
    union all
    select 'warning', format('instance %L', g.instance),
           format('it catches up since %s (%s): keys may be stale until it is done', date_trunc('second', g.opened_at), g.cause),
           null
      from unstale.gap g join unstale.checkpoint c on c.instance = g.instance
     where not g.complete and g.opened_at < clock_timestamp() - interval '1 minute' and c.saved_at >= clock_timestamp() - interval '1 minute'
       and not exists (select from unstale.gap later where later.instance = g.instance and later.complete and later.id > g.id)
    union all
    select 'warning', 'unstale.change_log', format('it has %s; nothing is deleted from it before every instance has done it', pg_size_pretty(size)), null
      from (select sum(pg_total_relation_size(i.inhrelid)) as size from pg_inherits i where i.inhparent = 'unstale.change_log'::regclass) l
     where size > 1073741824
$$;

create function unstale.findings(old interval default interval '10 minutes') returns setof unstale.finding
    language sql stable security definer
    set search_path = pg_catalog, pg_temp
    set jit = off -- to compile this takes seconds, to run it milliseconds
as $$
    select * from unstale.trigger_findings()
    union all select * from unstale.table_findings()
    union all select * from unstale.server_findings(old)
    union all select * from unstale.instance_findings()
$$;

comment on function unstale.findings is 'What in this database would make a promise untrue, with the SQL that mends it. `unstale check` looks further';

revoke all on all functions in schema unstale from public;
