-- What code that release 0.1.0 has generated calls, until unstale.regenerate() has made it anew: a
-- writer may be in the middle of it. Remove this file with the release after the next.

set search_path = pg_catalog, pg_temp;
set check_function_bodies = off; -- files come in any order

create or replace function unstale.announce(change text) returns boolean
    language sql
as $$
    select case when pg_catalog.int4lt(pg_catalog.octet_length(change), 8000)
                     and unstale.may_announce()
                then pg_catalog.pg_notify(unstale.channel(), change) is not null else false end
$$;

create or replace function unstale.ring() returns boolean
    language sql
as $$
    select case when unstale.may_announce()
                then pg_catalog.pg_notify(unstale.channel(), '{"bell":true}') is not null
                else false end
$$;

create or replace function unstale.tell(watch_id integer, change text, sweepable boolean,
                                        aloud boolean) returns boolean
    language sql
as $$
    select unstale.notify_or_log(watch_id, change, sweepable, aloud)
$$;
