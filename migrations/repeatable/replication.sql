-- A subscriber that has the schema unstale, too, and a publication for all tables: what the
-- publisher keeps about its own listeners is nothing to this database. Its rows are discarded, and
-- where it empties a part of its log, and so ours, all keys are deleted.
--
-- The triggers fire in replica sessions alone, so that nobody else pays for them. Rows of the
-- publisher's log do come: they delete keys that need not be deleted, which is harmless, and a
-- trigger on each of our own log's rows would cost.

set search_path = pg_catalog, pg_temp;
set check_function_bodies = off; -- files come in any order

-- Is this session a subscription's worker? Other replica sessions (a restore, somebody's
-- script) are as good as any.
create or replace function unstale.is_applying() returns boolean
    language sql stable
    set search_path = pg_catalog, pg_temp
as $$
    select exists (select from pg_stat_subscription s where s.pid = pg_backend_pid())
$$;

-- A trigger before a row of the bookkeeping.
create or replace function unstale.discard_replicated() returns trigger
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
as $$
begin
    if unstale.is_applying() then
        return null;
    end if;
    return case tg_op when 'DELETE' then old else new end;
end
$$;

-- A trigger after a part of the log was emptied: what it held is not known any more.
create or replace function unstale.widen_replicated() returns trigger
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    known unstale.watch;
begin
    if unstale.is_applying() then
        for known in select * from unstale.watch w where w.ended is null loop
            perform unstale.announce_all(known);
        end loop;
    end if;
    return null;
end
$$;

-- Creates the triggers that are not there. A table that is in use gets its own with the next
-- `unstale migrate`: nobody waits.
create or replace function unstale.guard_bookkeeping() returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
declare
    kept regclass;
    caller_timeout constant text := current_setting('lock_timeout');
begin
    for kept in
        select c.oid from pg_class c
         where c.relnamespace = 'unstale'::regnamespace and c.relkind = 'r'
           and c.relname <> 'change_log'
           and not exists (select from pg_trigger t where t.tgrelid = c.oid and t.tgname = 'guard')
    loop
        begin
            perform set_config('lock_timeout', '100ms', true);
            execute format(
                case when kept::text ~ '^unstale\.change_log'
                     then 'create trigger guard after truncate on %s for each statement '
                          'execute function unstale.widen_replicated()'
                     else 'create trigger guard before insert or update or delete on %s '
                          'for each row execute function unstale.discard_replicated()' end, kept);
            execute format('alter table %s enable replica trigger guard', kept);
        exception when lock_not_available then
            null;
        end;
        perform set_config('lock_timeout', caller_timeout, true);
    end loop;
end
$$;
