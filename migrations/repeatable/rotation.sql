-- The change log empties itself: three parts, of which one is written.

set search_path = pg_catalog, pg_temp;
set check_function_bodies = off; -- files come in any order

-- Empties the parts of the log that every instance was done with a replay window ago, and lets the
-- next one be written once the current one has grown. Every listener calls it now and then. It
-- waits for nobody. A writer that took the part of before for the current one waits at most for the
-- TRUNCATE, which takes milliseconds, and writes to the empty part.
create or replace function unstale.rotate_log(threshold bigint default 8388608) returns void
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    current_part constant integer := unstale.part();
    free_part integer;
begin
    -- What was committed before the lock must be seen after it. The lock is one that nobody else
    -- can take, and that neither writers nor readers of the log meet.
    if current_setting('transaction_isolation') <> 'read committed' then
        return;
    end if;
    begin
        lock table only unstale.change_log in share update exclusive mode nowait;
    exception when lock_not_available then
        return;
    end;
    for part in 1 .. 3 loop
        continue when part = current_part;
        if pg_relation_size(format('unstale.change_log_%s', part)) > 0
           and unstale.is_done_with(part) then
            begin
                execute format('lock table unstale.change_log_%s in access exclusive mode nowait',
                               part);
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
    if free_part is not null
       and pg_relation_size(format('unstale.change_log_%s', current_part)) > threshold then
        begin
            execute format('create or replace function unstale.part() returns integer '
                           'language sql stable return %s', free_part);
        exception when others then
            null; -- an event trigger forbids it for now: the part grows
        end;
    end if;
end
$$;

-- Has every instance that is not forgotten done all that is in this part, a replay window ago? Not
-- done is what its snapshot does not see: transactions after it, and those that were open in it.
-- Xids that are still to come are of a dump from elsewhere. The minute is for an instance that
-- comes back at this moment.
create or replace function unstale.is_done_with(part integer) returns boolean
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
declare
    done boolean;
begin
    execute format($q$
        select coalesce(bool_and(
                   c.replay_log is not null
                   and not exists (
                       select from unstale.change_log_%1$s l
                        where l.xid >= pg_snapshot_xmax(c.replay_log)
                          and l.xid < pg_snapshot_xmax(pg_current_snapshot()))
                   and not exists (
                       select from pg_snapshot_xip(c.replay_log) x
                         join unstale.change_log_%1$s l on l.xid = x)), false)
          from unstale.instance c
         where not unstale.is_away(c.saved_at, c.forget_after, interval '1 minute')$q$,
        part) into done;
    return done;
end
$$;
