-- unstale.findings(): what in this database would make a promise untrue, with
-- the SQL that mends it.
--
-- `unstale check` prints it; so does any psql. It runs as its owner, because a listener's
-- role does not see everything, and it waits for nobody. What depends on the role that asks
-- is in src/pg/check.rs.

set search_path = pg_catalog, pg_temp;
set check_function_bodies = off; -- files come in any order

-- The call that makes a watch what it is, for another table if need be.
create or replace function unstale.watch_call(w unstale.watch, relation regclass) returns text
    language sql stable
    set search_path = pg_catalog, pg_temp
as $$
    select format('select unstale.watch(%L, keys => array[%s]%s%s%s%s%s%s%s%s);', relation::text,
                  (select string_agg(quote_literal(k), ', ' order by n)
                     from unnest(w.keys) with ordinality u(k, n)),
                  case when w.delivery <> 'row' then format(', delivery => %L', w.delivery) end,
                  case when w.updated_at is distinct from 'updated_at'
                       then format(', updated_at => %L', w.updated_at) end,
                  case when w.only_columns is not null
                       then (select format(', only_columns => array[%s]',
                                           string_agg(quote_literal(c), ', '))
                               from unnest(w.only_columns) c) end,
                  case when w.max_ttl is not null then format(', max_ttl => %L', w.max_ttl) end,
                  case when exists (select from unnest(w.keys) k where unstale.has_short_prefix(k))
                       then ', any_prefix => true' end,
                  case when w.guarantee is not null
                       then format(', guarantee => %L', w.guarantee) end,
                  case when w.reason is not null then format(', reason => %L', w.reason) end,
                  case when w.version is not null
                       then format(', version => %L, version_path => %L', w.version, w.version_path)
                  end)
$$;

-- Watches whose table is there, and whether its generated functions are.
create or replace function unstale.watches_in_force() returns table (w unstale.watch, whole boolean)
    language sql stable
    set search_path = pg_catalog, pg_temp
as $$
    select w, exists (select from pg_proc p
                       where p.pronamespace = 'unstale'::regnamespace
                         and p.proname = format('row_%s', w.id)::name and p.pronargs = 1)
      from unstale.watch w join pg_class c on c.oid = w.relation
     where w.ended is null
$$;

create or replace function unstale.trigger_findings() returns setof unstale.finding
    language sql stable
    set search_path = pg_catalog, pg_temp
as $$
    select 'error', t.relation::text,
           format('trigger %I %s: changes go unannounced', t.name,
                  case when t.fires is null then 'is missing'
                       when t.fires = 'D' then 'is disabled'
                       else 'does not fire in the sessions that it should' end),
           unstale.watch_call(f.w, (f.w).relation)
      from unstale.watches_in_force() f
     cross join lateral unstale.silent_triggers(f.w) t
     where f.whole
    union all
    select 'error', (f.w).relation::text,
           format('function unstale.%s is missing: writes fail, or changes go unannounced',
                  missing),
           unstale.watch_call(f.w, (f.w).relation)
      from unstale.watches_in_force() f
     cross join lateral unstale.missing_functions(f.w) missing
     where f.whole and missing !~ '^audit_'
    union all
    select 'error', (f.w).relation::text,
           'a column that its keys are made of was dropped with CASCADE, and the triggers with it: '
           'changes go unannounced',
           case when exists (select from unnest((f.w).columns) c
                              where not exists (
                                  select from pg_attribute a
                                   where a.attrelid = (f.w).relation and a.attname = c
                                     and not a.attisdropped))
                then format('select unstale.unwatch(%L);', (f.w).relation::text)
                else unstale.watch_call(f.w, (f.w).relation) end
      from unstale.watches_in_force() f
     where not f.whole
    union all
    -- A copy of a table's definition brings its triggers along. They do nothing there.
    select distinct 'warning', t.tgrelid::regclass::text,
           format('trigger %I was made for another table%s: it does nothing, and changes of this '
                  'one go unannounced unless it is watched itself',
                  t.tgname, coalesce(' (' || w.table_name || ')', '')),
           format('drop trigger %I on %s;', t.tgname, t.tgrelid::regclass)
      from pg_proc p
      join pg_trigger t on t.tgfoid = p.oid and t.tgparentid = 0
      join pg_class c on c.oid = t.tgrelid and c.relnamespace <> 'unstale'::regnamespace
      left join unstale.watch w on w.ended is null and p.proname ~ '_[0-9]{1,9}$'
       and w.id = substring(p.proname from '_([0-9]{1,9})$')::integer
     where p.pronamespace = 'unstale'::regnamespace and p.prorettype = 'trigger'::regtype
       and (w.id is null
            or t.tgrelid <> w.relation and t.tgrelid not in (select unstale.tree(w.relation)))
    union all
    select 'warning', w.relation::regclass::text,
           'its functions and triggers are those of an older release',
           format('select unstale.regenerate(%s);', w.id)
      from unstale.watch w join pg_class c on c.oid = w.relation
     where w.ended is null and w.code <> unstale.release()
$$;

create or replace function unstale.table_findings() returns setof unstale.finding
    language sql stable
    set search_path = pg_catalog, pg_temp
as $$
    select 'error', w.table_name, 'the table was dropped, and its keys are still cached',
           'select unstale.notice_ddl();'
      from unstale.watch w
     where w.ended is null and not exists (select from pg_class c where c.oid = w.relation)
    union all
    select 'error', c.oid::regclass::text,
           'the table is unlogged: after a crash it is empty, and no trigger says so',
           format('alter table %s set logged;', c.oid::regclass)
      from unstale.watches_in_force() f join pg_class c on c.oid = (f.w).relation
     where c.relpersistence = 'u'
    union all
    select 'error', i.inhrelid::regclass::text,
           format('it inherits from %s, whose triggers do not see its rows', i.inhparent::regclass),
           unstale.watch_call(
               case (f.w).delivery
                    when 'statement' then jsonb_populate_record(f.w, '{"delivery": "row"}')
                    else f.w end,
               i.inhrelid)
      from unstale.watches_in_force() f
      join pg_inherits i on i.inhparent = (f.w).relation
      join pg_class c on c.oid = i.inhrelid and not c.relispartition
     where not exists (select from unstale.watch child
                        where child.relation = i.inhrelid and child.ended is null)
    union all
    select 'error', c.oid::regclass::text,
           format('it is a foreign partition of %s, and changes without a trigger here',
                  i.inhparent::regclass),
           format('alter table %s detach partition %s;', i.inhparent::regclass, c.oid::regclass)
      from unstale.watches_in_force() f
     cross join lateral unstale.tree((f.w).relation) t(relation)
      join pg_class c on c.oid = t.relation and c.relkind = 'f' and c.relispartition
      join pg_inherits i on i.inhrelid = c.oid
    union all
    select 'error', w.table_name,
           format('the table that was watched under this name is called %s now, and this one is '
                  'another table: its changes go unannounced', c.oid::regclass),
           unstale.watch_call(w, new.oid)
               || format(' select unstale.unwatch(%L);', c.oid::regclass::text)
      from unstale.watch w
      join pg_class c on c.oid = w.relation
      join pg_class new on new.oid = to_regclass(w.table_name) and new.oid <> c.oid
       and new.relkind in ('r', 'p')
     where w.ended is null
       and not exists (select from unstale.watch other
                        where other.relation = new.oid and other.ended is null)
    union all
    select 'warning', w.relation::text,
           unstale.unsweepable(w) || ': after a gap all its keys are deleted',
           coalesce((select string_agg(
                                format('alter table %s owner to %s;', t.relid, c.relowner::regrole),
                                ' ')
                       from pg_partition_tree(w.relation) t
                       join pg_class child on child.oid = t.relid
                      where child.relowner <> c.relowner and unstale.page_is_right(w)),
                    unstale.watch_call(w, w.relation))
      from unstale.watch w join pg_class c on c.oid = w.relation
     where w.ended is null and w.sweep_attnum is not null and unstale.unsweepable(w) is not null
    union all
    select 'warning', w.relation::text, unstale.unauditable(w) || ': `unstale audit` skips it',
           unstale.watch_call(w, w.relation)
      from unstale.watch w
     where w.ended is null and w.version is not null and unstale.unauditable(w) is not null
       and (w.sweep_attnum is null or unstale.unsweepable(w) is null)
$$;

-- Transactions that are open for longer than `old` count as old.
create or replace function unstale.server_findings(old interval) returns setof unstale.finding
    language sql stable
    set search_path = pg_catalog, pg_temp
as $$
    select 'warning', format('prepared transaction %L', x.gid),
           format('it is open since %s, and no watermark passes it: after a gap everything since '
                  'then is swept', date_trunc('second', x.prepared)),
           format('commit prepared %L; -- or: rollback prepared %1$L;', x.gid)
      from pg_prepared_xacts x
     where x.database = current_database() and x.prepared < clock_timestamp() - old
    union all
    select 'warning', format('transaction of pid %s', a.pid),
           format('%s writes since %s, and no watermark passes it: after a gap everything since '
                  'then is swept',
                  coalesce(a.usename, 'somebody'), date_trunc('second', a.xact_start)),
           format('select pg_terminate_backend(%s);', a.pid)
      from pg_stat_activity a
     where a.datname = current_database() and a.backend_xid is not null
       and a.xact_start < clock_timestamp() - old
    union all
    select case when used > 0.5 then 'error' else 'warning' end, 'notification queue',
           format('%s %% full; when it is full, writes of tables that notify fail. A session that '
                  'listens and stays in a transaction holds it', round(used::numeric * 100)),
           'select pg_terminate_backend(pid), query from pg_stat_activity '
           'where xact_start < now() - interval ''10 minutes'' and backend_xid is null;'
      from pg_notification_queue_usage() used
     where used > 0.1
$$;

-- What replicates more than it should.
create or replace function unstale.publication_findings() returns setof unstale.finding
    language sql stable
    set search_path = pg_catalog, pg_temp
as $$
    select 'warning', format('publication %I', p.pubname),
           'it is for all tables, and so for those of unstale: a subscriber without the schema '
           'unstale stops, and one with it is sent this database''s bookkeeping',
           format('begin; drop publication %I; create publication %1$I%s with (publish = %L, '
                  'publish_via_partition_root = %s); commit;', p.pubname,
                  (select ' for table ' || string_agg(c.oid::regclass::text, ', ' order by c.oid)
                     from pg_class c join pg_namespace n on n.oid = c.relnamespace
                    where c.relkind in ('r', 'p') and not c.relispartition
                      and c.relpersistence = 'p' and c.oid >= 16384
                      and n.nspname not in ('unstale', 'pg_catalog', 'information_schema')),
                  concat_ws(', ', case when p.pubinsert then 'insert' end,
                            case when p.pubupdate then 'update' end,
                            case when p.pubdelete then 'delete' end,
                            case when p.pubtruncate then 'truncate' end),
                  p.pubviaroot::text)
      from pg_publication p
     where p.puballtables
$$;

create or replace function unstale.instance_findings() returns setof unstale.finding
    language sql stable
    set search_path = pg_catalog, pg_temp
as $$
    select 'warning', format('instance %L', c.name),
           format('it was last here at %s%s', date_trunc('second', c.saved_at),
                  case when unstale.is_away(c.saved_at, c.forget_after)
                       then '; its next start deletes all keys, '
                            'because the log is no longer kept for it'
                       else format(', and the log is kept for it for %s after that',
                                   c.forget_after) end),
           format('delete from unstale.instance where name = %L; -- if it is gone for good; '
                  'or else start it', c.name)
      from unstale.instance c
     where c.saved_at < clock_timestamp() - interval '1 minute'
    union all
    select 'warning', format('instance %L', g.instance),
           format('it catches up since %s (%s): keys may be stale until it is done',
                  date_trunc('second', g.opened_at), g.cause),
           null
      from unstale.gap g join unstale.instance c on c.name = g.instance
     where not g.complete and g.opened_at < clock_timestamp() - interval '1 minute'
       and c.saved_at >= clock_timestamp() - interval '1 minute'
       and not exists (select from unstale.gap later
                        where later.instance = g.instance and later.complete and later.id > g.id)
    union all
    select 'warning', 'unstale.change_log',
           format('it has %s; nothing is deleted from it before every instance has done it',
                  pg_size_pretty(size)),
           null
      from (select sum(pg_total_relation_size(i.inhrelid)) as size from pg_inherits i
             where i.inhparent = 'unstale.change_log'::regclass) l
     where size > 1073741824
$$;

-- Who could do here what only the owner should.
create or replace function unstale.privilege_findings() returns setof unstale.finding
    language sql stable
    set search_path = pg_catalog, pg_temp
as $$
    select 'error', 'schema unstale',
           format('%s may create here, and so put code of their own into everybody''s triggers',
                  m.role),
           format('revoke create on schema unstale from %s;', m.role)
      from unstale.may_create() m
    union all
    select 'error', 'schema unstale',
           format('%s belongs to %s, and runs as that role', m.object, m.owner),
           m.remedy
      from unstale.misowned() m
    union all
    select 'error', 'schema unstale',
           format('writes fail: the triggers run as %s, which lacks %s', unstale.owner(), lacks),
           format('grant %s to %s;', lacks, unstale.owner())
      from unstale.owner_lacks() lacks
    union all
    select 'error', 'schema unstale', format('everybody may call %s', p.oid::regprocedure),
           format('revoke all on function %s from public;', p.oid::regprocedure)
      from pg_proc p
     where p.pronamespace = 'unstale'::regnamespace
       and has_function_privilege('public', p.oid, 'execute')
    union all
    select 'error', 'schema unstale', format('%s may read or write %s', grantee, c.oid::regclass),
           format('revoke all on %s from %s;', c.oid::regclass, grantee)
      from pg_class c
     cross join lateral (
         select distinct
                case a.grantee when 0 then 'public' else a.grantee::regrole::text end as grantee,
                a.privilege_type
           from aclexplode(c.relacl) a where a.grantee <> c.relowner) a
     where c.relnamespace = 'unstale'::regnamespace
       and (c.relkind = 'S' or a.privilege_type <> 'SELECT' or c.relname like 'change\_log%')
     group by c.oid, grantee
    union all
    -- It had to, until it swept as the tables' owners.
    select 'warning', format('role %s', l),
           format('it listens, and may read %s, which it has no need of',
                  min(w.relation::text)
                  || case when count(*) > 1
                          then format(' and %s other watched tables', count(*) - 1) else '' end),
           format('revoke select on all tables in schema %s from %s; alter default privileges '
                  'in schema %1$s revoke select on tables from %2$s;', n.oid::regnamespace, l)
      from unstale.listeners() l
     cross join unstale.watch w
      join pg_class c on c.oid = w.relation
      join pg_namespace n on n.oid = c.relnamespace
     where w.ended is null and has_table_privilege(l::oid, c.oid, 'select')
       and not (select r.rolsuper or pg_has_role(r.oid, c.relowner, 'usage')
                       or pg_has_role(r.oid, 'pg_read_all_data', 'usage')
                  from pg_roles r where r.oid = l::oid)
     group by l, n.oid
$$;

create or replace function unstale.findings(old interval default interval '10 minutes')
    returns setof unstale.finding
    language sql stable security definer
    set search_path = pg_catalog, pg_temp
    set jit = off -- to compile this takes seconds, to run it milliseconds
as $$
    select * from unstale.trigger_findings()
    union all select * from unstale.table_findings()
    union all select * from unstale.server_findings(old)
    union all select * from unstale.instance_findings()
    union all select * from unstale.privilege_findings()
    union all select * from unstale.publication_findings()
$$;

comment on function unstale.findings is
    'What in this database would make a promise untrue, with the SQL that mends it. '
    '`unstale check` looks further';
