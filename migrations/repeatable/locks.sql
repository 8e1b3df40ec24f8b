-- Locks on tables: with a timeout, and with the name of whoever holds them.

set search_path = pg_catalog, pg_temp;
set check_function_bodies = off; -- files come in any order

-- Locks a table, or says who keeps us from it. The caller of watch() decides how long that may
-- take, or else we do; it gets its setting back at the end, and an error gives it back, too.
create or replace function unstale.lock(relation regclass, mode text, caller_timeout text,
                                        patience text) returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
declare
    patience_used constant text :=
        case when caller_timeout = '0' then patience else caller_timeout end;
    deadline constant timestamptz := clock_timestamp() + patience_used::interval;
begin
    perform set_config('lock_timeout', patience_used, true);
    loop
        begin
            -- A transaction that has locked something already must not wait in a queue: a writer
            -- that waits for it, and has what it waits for, would be the one that PostgreSQL ends.
            execute format('lock table %s in %s mode%s', relation, mode,
                           case when unstale.has_locked(relation) then ' nowait' else '' end);
            return;
        exception when lock_not_available then
            if clock_timestamp() >= deadline then
                raise exception 'could not lock % within %: %',
                    relation, patience_used, unstale.blockers(relation, mode)
                    using errcode = 'lock_not_available',
                          hint = 'Nothing was changed. Try again in a transaction of its own, '
                                 'or set a longer lock_timeout.';
            end if;
            perform pg_sleep(0.01);
        end;
    end loop;
end
$$;

-- Has this transaction locked a table, other than the given one and ours, so that a
-- writer may wait for it?
create or replace function unstale.has_locked(relation regclass) returns boolean
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
begin
    return (select exists (
        select from pg_locks l join pg_class c on c.oid = l.relation
         where l.pid = pg_backend_pid() and l.granted
           and l.mode not in ('AccessShareLock', 'RowShareLock')
           and l.relation <> has_locked.relation
           and c.relnamespace not in ('unstale'::regnamespace, 'pg_catalog'::regnamespace)));
end
$$;

-- Who holds a lock that keeps us from one on the table and its partitions.
create or replace function unstale.blockers(relation regclass, mode text) returns text
    language sql
    set search_path = pg_catalog, pg_temp
as $$
    select coalesce('in use by ' || string_agg(
                        distinct coalesce('pid ' || l.pid, 'a prepared transaction'), ', '),
                    'its users have just ended')
      from pg_locks l
     where l.relation in (select unstale.tree(blockers.relation)) and l.granted
       and l.pid is distinct from pg_backend_pid()
       and (mode = 'access exclusive' or l.mode not in ('AccessShareLock', 'RowShareLock'))
       and l.database = (select d.oid from pg_database d where d.datname = current_database())
$$;
