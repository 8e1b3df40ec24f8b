-- What a listener does in the database, as functions: it needs EXECUTE on these
-- (privileges.sql) and no table.
--
-- An instance belongs to the login role that registered it. Another one cannot move its progress,
-- which would make it lose changes. No row of these tables, whatever is in it, may keep a
-- listener from starting.

set search_path = pg_catalog, pg_temp;
set check_function_bodies = off; -- files come in any order

-- LISTEN, without the channel's name in a statement that others could see. A schema that was
-- restored without data has no name yet.
create or replace function unstale.listen() returns void
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
as $$
begin
    if pg_sequence_last_value('unstale.channel_id'::regclass) is null then
        lock table unstale.watch in share row exclusive mode;
        if pg_sequence_last_value('unstale.channel_id'::regclass) is null then
            perform setval('unstale.channel_id',
                ('x' || substr(md5(gen_random_uuid()::text || gen_random_uuid()::text), 1, 16))
                    ::bit(64)::bigint & 9223372036854775807 | 1);
        end if;
    end if;
    execute format('listen %I', unstale.channel());
end
$$;

-- Sends a heartbeat. Another instance's is not believed by a listener: it comes
-- from another backend.
create or replace function unstale.beat(n bigint) returns void
    language sql security definer
    set search_path = pg_catalog, pg_temp
as $$
    select pg_notify(unstale.channel(), format('{"heartbeat":%s}', n))
$$;

-- Asks the listener of an instance, in the way of every change, to delete the key that ends with
-- this probe (`unstale check`).
create or replace function unstale.probe(probe text) returns void
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
as $$
begin
    if octet_length(probe) > 1000 then
        perform unstale.refuse('a probe has up to 1,000 bytes', 'Let `unstale check` make it.');
    end if;
    perform pg_notify(unstale.channel(), format('{"probe":%s}', to_json(probe)));
end
$$;

-- Everything that is watched, and was until lately, in an order that does not change.
drop function if exists unstale.list_watches(); -- a column more is another type
create function unstale.list_watches()
    returns table (id integer, rev integer, table_name text, ended boolean, sweepable boolean,
                   keys text[], delivery text, updated_at text, only_columns text[],
                   max_ttl_microseconds bigint, guarantee text, reason text, version text,
                   version_path text, audited_microseconds bigint, audit_complete boolean,
                   audit_compared bigint, audit_stale bigint, audit_unreadable bigint)
    language sql stable security definer
    set search_path = pg_catalog, pg_temp
as $$
    select w.id, w.rev,
           case when w.ended is not null then w.table_name
                when c.oid is null then w.table_name || ' (dropped)'
                else format('%I.%I', n.nspname, c.relname) end,
           w.ended is not null, w.sweep_attnum is not null,
           array(select k from unnest(w.keys) k where k is not null), w.delivery, w.updated_at,
           case when w.only_columns is not null
                then array(select c from unnest(w.only_columns) c where c is not null) end,
           case when w.max_ttl between interval '1 microsecond' and interval '100 years'
                then (extract(epoch from w.max_ttl) * 1000000)::bigint end,
           w.guarantee, w.reason, w.version, w.version_path,
           unstale.microseconds(a.audited_at), a.complete, a.compared, a.stale, a.unreadable
      from unstale.watch w
      left join pg_class c on c.oid = w.relation
      left join pg_namespace n on n.oid = c.relnamespace
      left join unstale.audit a on a.watch = w.id
     order by 3, 1
$$;

-- May the session's role move this instance? The role that registered it, and whoever may do what
-- that one may. A role that was dropped has no claim.
create or replace function unstale.may_move(role name) returns boolean
    language sql stable
    set search_path = pg_catalog, pg_temp
as $$
    select role is null or role = session_user
        or not exists (select from pg_roles r where r.rolname = role)
        or pg_has_role(session_user, role, 'member')
$$;

create or replace function unstale.refuse_instance(instance text) returns void
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    owner name;
begin
    select i.role into owner from unstale.instance i
     where i.name = instance and not unstale.may_move(i.role);
    if found then
        raise exception 'instance % belongs to role %, and % may not move its progress',
            quote_literal(instance), owner, session_user
            using errcode = 'insufficient_privilege',
                  hint = format('Give this listener another name (UNSTALE_INSTANCE), or, as the '
                                'owner of the schema unstale: update unstale.instance '
                                'set role = %L where name = %L;',
                                session_user, instance);
    end if;
end
$$;

-- Has it been away for longer than it asked to be remembered?
create or replace function unstale.is_away(saved_at timestamptz, forget_after interval,
                                           grace interval default '0') returns boolean
    language sql stable
    set search_path = pg_catalog, pg_temp
as $$
    select isfinite(saved_at)
       and extract(epoch from clock_timestamp() - saved_at)
           > extract(epoch from forget_after) + extract(epoch from grace)
$$;

-- From here on the log, and what it means, is kept for this instance. One that was away for too
-- long is marked until it has deleted everything.
create or replace function unstale.register(instance text, remember interval) returns void
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
as $$
begin
    perform unstale.refuse_instance(instance);
    insert into unstale.instance as known (name, timeline, forget_after, role)
        values (instance, '', remember, session_user)
        on conflict (name) do update
           set forgotten = known.forgotten or unstale.is_away(known.saved_at, known.forget_after),
               replay_log = case when not unstale.is_away(known.saved_at, known.forget_after)
                                 then known.replay_log end,
               forget_after = excluded.forget_after, role = excluded.role,
               saved_at = clock_timestamp();
end
$$;

-- Nothing is proven, because a gap is open or Redis has never answered; but the log is
-- kept for who is there.
create or replace function unstale.touch(instance text) returns void
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
as $$
begin
    perform unstale.refuse_instance(instance);
    update unstale.instance i set saved_at = clock_timestamp() where i.name = instance;
end
$$;

-- Stores how far an instance has come.
create or replace function unstale.save(instance text, watermark bigint, log pg_snapshot,
                                        replay_watermark bigint, replay_log pg_snapshot,
                                        redis text, timeline text, remember interval) returns void
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    perform unstale.refuse_instance(save.instance);
    insert into unstale.instance as known
        (name, watermark, log, replay_watermark, replay_log, redis, timeline, forget_after, role)
        values (save.instance,
                'epoch'::timestamptz + save.watermark * interval '1 microsecond', save.log,
                'epoch'::timestamptz + save.replay_watermark * interval '1 microsecond',
                save.replay_log, save.redis, save.timeline, save.remember, session_user)
        on conflict (name) do update
           set watermark = excluded.watermark, log = excluded.log,
               replay_watermark = excluded.replay_watermark, replay_log = excluded.replay_log,
               redis = excluded.redis, timeline = excluded.timeline, forgotten = false,
               forget_after = excluded.forget_after, role = excluded.role,
               saved_at = clock_timestamp();
end
$$;

-- How far an instance had come; no row: it has never caught up.
create or replace function unstale.stored(instance text)
    returns table (log text, watermark bigint, replay_log text, replay_watermark bigint,
                   redis text, timeline text, forgotten boolean)
    language sql stable security definer
    set search_path = pg_catalog, pg_temp
as $$
    select i.log::text, unstale.microseconds(i.watermark), i.replay_log::text,
           unstale.microseconds(i.replay_watermark), i.redis, i.timeline,
           i.forgotten or unstale.is_away(i.saved_at, i.forget_after)
      from unstale.instance i where i.name = instance and i.log is not null
$$;

-- Other instances that are away for longer than they asked to be remembered.
create or replace function unstale.forgotten(instance text) returns setof text
    language sql stable security definer
    set search_path = pg_catalog, pg_temp
as $$
    select i.name from unstale.instance i
     where i.name <> instance and unstale.is_away(i.saved_at, i.forget_after)
     order by i.name
$$;

-- Seconds since an instance last stored anything; null: it was never here.
create or replace function unstale.seen(instance text) returns double precision
    language sql stable security definer
    set search_path = pg_catalog, pg_temp
as $$
    select case when isfinite(i.saved_at)
                then extract(epoch from clock_timestamp() - i.saved_at)::double precision
                else 0 end
      from unstale.instance i where i.name = instance
$$;

-- The ledger's number of an open gap. What an earlier session, or process, did not catch up with is
-- still the same gap: the newest, and there may be many old ones after a dump, so that one number
-- is taken for all of them.
create or replace function unstale.open_gap(instance text, cause text, ago interval) returns bigint
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    known bigint;
begin
    perform unstale.refuse_instance(instance);
    select g.id into known from unstale.gap g
     where g.instance = open_gap.instance and not g.complete
     order by g.opened_at desc limit 1;
    while known is null loop
        -- Sequences are not carried by logical replication: the next numbers may be taken.
        insert into unstale.gap (id, instance, cause, opened_at) overriding system value
            values (nextval(pg_get_serial_sequence('unstale.gap', 'id')),
                    open_gap.instance, open_gap.cause, clock_timestamp() - ago)
            on conflict do nothing returning id into known;
        if known is null then
            perform setval(pg_get_serial_sequence('unstale.gap', 'id'),
                           (select max(g.id) from unstale.gap g));
        end if;
    end loop;
    return known;
end
$$;

create or replace function unstale.close_gap(gap bigint, swept bigint, logged bigint, keys bigint)
    returns void
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
as $$
begin
    perform unstale.refuse_instance((select g.instance from unstale.gap g where g.id = gap));
    update unstale.gap g
       set closed_at = clock_timestamp(), swept = close_gap.swept, logged = close_gap.logged,
           keys = close_gap.keys, complete = true
     where g.id = gap;
end
$$;

-- The last gaps of an instance, the latest first, for the status page.
create or replace function unstale.last_gaps(instance text, most integer)
    returns table (cause text, opened_at bigint, lasted_seconds double precision,
                   swept bigint, logged bigint, keys bigint)
    language sql stable security definer
    set search_path = pg_catalog, pg_temp
as $$
    select g.cause, unstale.microseconds(g.opened_at),
           extract(epoch from g.closed_at - g.opened_at)::double precision,
           g.swept, g.logged, g.keys
      from unstale.gap g
     where g.instance = last_gaps.instance
     order by g.opened_at desc, g.id desc limit last_gaps.most
$$;

-- A page of the changes that are said nowhere else (src/pg/log.rs), and all that have the last
-- one's place, with a row for its snapshot first. PostgreSQL would plan each reading anew, which
-- takes ten times as long as to read; and a part that was empty when the one plan was made, after a
-- VACUUM, would be read from its beginning for ever. Of each kind it brings so many rows at the
-- most, and those before which there are fewer bytes: on a busy machine a page waits for the
-- processors several times, and should bring much, but a change may have 7 kB.
create or replace function unstale.read_log(open xid8[], open_xid xid8, open_id bigint,
                                            after_xid xid8, after_id bigint, page_rows bigint,
                                            page_bytes bigint)
    returns table (change text, xid text, id bigint, was_open boolean)
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
    set plan_cache_mode = force_generic_plan
    set enable_seqscan = off
    set enable_bitmapscan = off
as $$
#variable_conflict use_column
begin
    return query
    select pg_current_snapshot()::text, null::text, 0::bigint, false
    union all
    (select p.change, p.xid::text, p.id, p.was_open
      from (select r.change, r.xid, r.id, r.was_open,
                   -- GROUPS: equal places come together.
                   sum(octet_length(r.change)) over (
                       partition by r.was_open order by r.xid, r.id
                       groups between unbounded preceding and 1 preceding) as bytes_before
              from ((select l.change, l.xid, l.id, true as was_open from unstale.change_log l
                      where l.xid = any (read_log.open)
                        and (l.xid, l.id) > (read_log.open_xid, read_log.open_id)
                        and not l.announced
                      order by l.xid, l.id fetch first (page_rows) rows with ties)
                    union all
                    (select l.change, l.xid, l.id, false from unstale.change_log l
                      where (l.xid, l.id) > (read_log.after_xid, read_log.after_id)
                        and l.xid < pg_snapshot_xmax(pg_current_snapshot()) and not l.announced
                      order by l.xid, l.id fetch first (page_rows) rows with ties)) r) p
     where p.bytes_before is null or p.bytes_before < page_bytes
     order by p.was_open desc, p.xid, p.id);
end
$$;

-- A page of the logged changes that `done` does not see, announced or not, after the place (xid,
-- id); and all that have the last one's. ORDER BY of a bare name would be by the text in the select
-- list, where 1000 comes before 999.
create or replace function unstale.log_since(done pg_snapshot, after_xid xid8, after_id bigint,
                                             page_rows bigint)
    returns table (change text, xid text, id bigint)
    language sql security definer
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
    set enable_bitmapscan = off
as $$
    select l.change, l.xid::text, l.id from unstale.change_log l
     where (l.xid, l.id) > (after_xid, after_id) and not pg_visible_in_snapshot(l.xid, done)
     order by l.xid, l.id fetch first (page_rows) rows with ties
$$;
