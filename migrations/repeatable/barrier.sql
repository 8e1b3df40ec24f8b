-- The barrier: is everything that was committed before a call gone from the Redis of an instance?
-- (`unstale wait`)
--
-- The caller's transaction says on the channel that somebody waits, and takes a number (xid) for
-- it. Listeners then send a heartbeat at once. An instance is past the barrier when the snapshot
-- that it has stored sees this number: that is the snapshot of a heartbeat that began after the
-- barrier had committed, and everything that it sees is deleted, and acknowledged by Redis
-- (src/watermark.rs). It is stored only while no gap is open. So this asks nothing that a listener
-- does not prove anyway, only sooner.
--
-- Whoever may call it can make each listener send a heartbeat, and store it, some 200 times a
-- second at the most, and learn when an instance was here. It is granted by name.

set search_path = pg_catalog, pg_temp;
set check_function_bodies = off; -- files come in any order

-- Call it in a transaction of its own: what it is compared with is when that commits.
create or replace function unstale.barrier() returns xid8
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
as $$
begin
    if current_setting('synchronous_commit') = 'off' then
        -- after a crash its number would be given out again
        perform set_config('synchronous_commit', 'local', true);
    end if;
    perform pg_notify(unstale.channel(), '{"wait":true}');
    return pg_current_xact_id();
end
$$;

-- Why an instance is not past a barrier; null: it is.
create or replace function unstale.before_barrier(instance text, barrier xid8) returns text
    language sql stable security definer
    set search_path = pg_catalog, pg_temp
as $$
    select case when i.name is null
                then format('no listener of the name %L was ever here; start `unstale run` with '
                            'this database and this instance', instance)
                -- A snapshot from the future came with a dump or a restore, and is about
                -- another history.
                when i.timeline <> '' and not i.forgotten
                     and pg_snapshot_xmax(i.log) <= pg_snapshot_xmax(pg_current_snapshot())
                     and pg_visible_in_snapshot(barrier, i.log) then null
                when i.saved_at < clock_timestamp() - interval '10 seconds'
                then format('the listener %L was last here at %s; start it again',
                            instance, date_trunc('seconds', i.saved_at))
                when g.opened_at is not null
                then format('the listener %L catches up, after a gap (%s) that opened at %s',
                            instance, g.cause, date_trunc('seconds', g.opened_at))
                else format('Redis, or the way there, has not acknowledged everything to '
                            'the listener %L', instance) end
      from (select) caller
      left join unstale.instance i on i.name = instance
      left join lateral (select g.opened_at, g.cause from unstale.gap g
                          where g.instance = i.name and g.closed_at is null
                          order by g.id desc limit 1) g on true
$$;

-- Lets a role run `unstale wait`, and nothing else. Call it as the owner of the schema.
create or replace function unstale.grant_wait(role regrole) returns void
    language sql
    set search_path = pg_catalog, pg_temp
as $$
    select unstale.grant_execute(role, array[
        'unstale.version()', 'unstale.barrier()', 'unstale.before_barrier(text, xid8)'
    ]::regprocedure[])
$$;

comment on function unstale.grant_wait is
    'Lets a role run `unstale wait`: EXECUTE on three functions of the schema unstale, '
    'and no table';
