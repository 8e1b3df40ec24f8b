-- With the functions that are generated for each watch (triggers.sql), this is all that ever runs
-- in a writer's transaction.
--
-- Nothing here may make a write fail or wait. A change is announced with NOTIFY if nobody else is
-- announcing, and otherwise written to the log, which the listener reads all the time: PostgreSQL
-- holds one lock per cluster from the moment in which a notifying transaction begins to commit
-- until that commit is flushed, so writers that all notify commit one after the other, and one with
-- a lock_timeout fails because another commits.
--
-- The functions without a SET search_path have none because it cost a sixth: they hold nothing that
-- a writer's search_path could turn. The others are written in the form that PostgreSQL resolves
-- when it creates them, and inlines.

set search_path = pg_catalog, pg_temp;
set check_function_bodies = off; -- files come in any order

-- A change that is not found again by `updated_at >= clock - margin` goes to the log. Sweeps
-- read back twice as far, so that the clock may step back by one margin. src/watermark.rs
-- holds the same number.
create or replace function unstale.margin() returns interval
    language sql immutable
    return interval '5 seconds';

-- Key of the advisory lock that an announcing writer holds until it has committed. Anybody may take
-- it: then nobody announces, and the listener finds each change in the log some milliseconds later.
create or replace function unstale.bell() returns bigint
    language sql immutable
    return 7599390160;

-- The name of the channel, which nobody can guess. A schema that was restored without data has no
-- value yet: no listener either, because unstale.listen() makes one.
create or replace function unstale.channel() returns text
    language sql volatile
    return concat('unstale_', pg_sequence_last_value('unstale.channel_id'::regclass));

-- The share of the notification queue in use. Whoever listens to anything and stays in a
-- transaction lets it grow.
create or replace function unstale.queue_usage() returns double precision
    language sql volatile
    return pg_notification_queue_usage();

-- May transactions be prepared here? Only a restart changes that, so a session asks once:
-- immutable, as far as it can tell.
create or replace function unstale.can_prepare() returns boolean
    language sql immutable
    return current_setting('max_prepared_transactions') <> '0';

-- May this transaction notify? Not if it has a lock_timeout (null, so that whoever asks need not
-- look again), which counts for the lock that a notifying commit takes; nor where transactions may
-- be prepared, because PostgreSQL refuses to prepare one that has notified (`set unstale.bell = on`
-- is for those that are not, and `off` for whoever wants to be left alone); nor while another one
-- is announcing; nor if the writer wants to see what is notified, because `trace_notify` would tell
-- the channel's name; nor if somebody has half filled the queue, which would fail the commit when
-- it is full. In the order of what is asked most: each setting costs as much as the lock.
create or replace function unstale.may_announce() returns boolean
    language sql volatile
    return case when current_setting('lock_timeout') <> '0' then null
                when not case current_setting('unstale.bell', true)
                              when 'on' then true
                              when 'off' then false
                              else not unstale.can_prepare() end then false
                when not pg_try_advisory_xact_lock(unstale.bell()) then false
                else current_setting('trace_notify') = 'off' and unstale.queue_usage() <= 0.5
           end;

-- Announces a change, if this transaction may: true; false: it did not, or not whole, because a
-- payload may have 7,999 bytes, and NOTIFY would fail the write for a longer one, but has rung for
-- what it logs if it may; null: a lock_timeout counts for what it logs.
create or replace function unstale.notified(change text) returns boolean
    language sql volatile
    return case unstale.may_announce()
                when true then
                     case when octet_length(change) < 8000
                          then pg_notify(unstale.channel(), change) is not null
                          else pg_notify(unstale.channel(), '{"bell":true}') is null end
                when false then false
           end;

-- Rings for what this transaction logs, if it may. Like unstale.notified(), but never true.
create or replace function unstale.rung() returns boolean
    language sql volatile
    return case unstale.may_announce()
                when true then pg_notify(unstale.channel(), '{"bell":true}') is null
                when false then false
           end;

-- What a change of one row says.
create or replace function unstale.one_row(head text, one text) returns text
    language sql immutable
    return head || one || '}';

-- What an UPDATE says that changes a key; `before` is null if none changed, in code that release
-- 0.1.0 has generated.
create or replace function unstale.two_rows(head text, after text, before text) returns text
    language sql immutable
    return head || after || coalesce(',"old":' || before, '') || '}';

-- The part of the log that is written now. A function, because plans that hold its value are made
-- anew when it is replaced, and because that needs no lock that a writer would hold.
-- unstale.rotate_log() replaces it.
do $$
begin
    if pg_catalog.to_regprocedure('unstale.part()') is null then
        create function unstale.part() returns integer language sql stable return 1;
    end if;
end
$$;

-- A change's place among those of its transaction. Not from a sequence: nextval() would become
-- what the writer's lastval() says, by which some drivers ask for the row that was inserted.
-- The clock may step back, and two places be equal: whoever reads the log reads equal ones
-- together (instances.sql).
create or replace function unstale.log_place() returns bigint
    language sql volatile
    return (date_part('epoch', clock_timestamp()) * 1000000)::bigint;

-- Writes a change to the log.
create or replace function unstale.log_change(watch_id integer, change text, announced boolean)
    returns boolean
    language plpgsql
as $$
begin
    if pg_catalog.int4eq(unstale.part(), 1) then
        insert into unstale.change_log_1 (id, watch, announced, change)
            values (unstale.log_place(), watch_id, announced, change);
    elsif pg_catalog.int4eq(unstale.part(), 2) then
        insert into unstale.change_log_2 (id, watch, announced, change)
            values (unstale.log_place(), watch_id, announced, change);
    else
        insert into unstale.change_log_3 (id, watch, announced, change)
            values (unstale.log_place(), watch_id, announced, change);
    end if;
    return announced;
end
$$;

-- The same for a writer with a lock_timeout, which counts also for the lock by which the log grows
-- while others write to it.
create or replace function unstale.log_patiently(watch_id integer, change text) returns boolean
    language plpgsql
    set lock_timeout = 0
as $$
begin
    return unstale.log_change(watch_id, change, false);
end
$$;

-- Announces a change if that is wanted (`notify_body`) and possible, and writes it to the log
-- unless it was announced and a sweep would find it. What is only in the log is rung for. The
-- triggers have the same in line (triggers.sql), because a call costs a fifth of them.
create or replace function unstale.notify_or_log(watch_id integer, change text, sweepable boolean,
                                                 notify_body boolean) returns boolean
    language plpgsql
as $$
declare
    announced pg_catalog.bool
        default case when notify_body then unstale.notified(change) else unstale.rung() end;
begin
    if announced and sweepable then
        return true;
    elsif announced is null then
        return unstale.log_patiently(watch_id, change);
    end if;
    return unstale.log_change(watch_id, change, announced);
end
$$;

-- Writes a change to the log that was announced, and one that was not as unstale.notify_or_log()
-- would. For what is rare: the change of a watch, and code that release 0.1.0 has generated.
create or replace function unstale.log(watch_id integer, change text, announced boolean)
    returns boolean
    language plpgsql
as $$
begin
    if not announced then
        return unstale.notify_or_log(watch_id, change, false, false);
    end if;
    execute pg_catalog.format('insert into unstale.change_log_%s (id, watch, announced, change) '
                              'values (unstale.log_place(), $1, true, $2)', unstale.part())
        using watch_id, change;
    return true;
end
$$;

-- The table that a trigger stands on is not the one that it was made for: a dump or a clone of a
-- table's definition brings its triggers along, and their functions' number may mean another table
-- here. Partitions have the triggers of their parents.
create or replace function unstale.is_foreign(relation oid, watched regclass) returns boolean
    language sql stable
    set search_path = pg_catalog, pg_temp
as $$
    select relation <> watched::oid
       and not exists (select from pg_partition_ancestors(relation) a where a.relid = watched)
$$;
