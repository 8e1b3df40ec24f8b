-- The sweep: the rows of a watched table by their stamp, page by page.
--
-- Whoever owns a table gets code run by whoever reads it: an expression index that the planner
-- evaluates, a statistics object, a policy. So a table is read as its own owner, by
-- unstale.page_N(), and the listener's role can read none. What that code leaves behind in its
-- transaction (deferred triggers, cursors WITH HOLD) would run as the session's role when it
-- commits: so it never commits (src/pg/sweep.rs).

set search_path = pg_catalog, pg_temp;
set check_function_bodies = off; -- files come in any order

-- The CREATE FUNCTION statements of page_N() or audit_N(), which read a table as its owner. That
-- owner owns them, and may alter them to run as their caller at any time after they were found to
-- be right; planning the query is then enough for code of theirs to run. So they hold no query, and
-- nobody who may not create here can give them another text. First they call row_N() without
-- arguments: it tries to reset the role, which PostgreSQL refuses to a function that runs as its
-- owner, and to whatever that calls. Then they call row_N() with their own arguments, three of a
-- page, four of an audit: it has the query, and settings, without which it would be inlined and
-- planned too early. Both belong to the schema's owner.
create or replace function unstale.reader_definition(w unstale.watch, name text, arguments text,
                                                     result text, settings text, query text)
    returns text
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return format($f$create or replace function unstale.row_%1$s() returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $b$
begin
    perform set_config('role', 'none', true);
    raise exception 'what reads the table of watch %1$s does not run as its owner'
        using errcode = 'object_not_in_prerequisite_state', hint = 'Call unstale.watch() again.';
exception when insufficient_privilege then
    return;
end
$b$;
create or replace function unstale.row_%1$s(%3$s)
    returns table (%4$s)
    language sql stable
    set search_path = pg_catalog, pg_temp
%5$s
begin atomic
%6$s;
end;
create or replace function unstale.%2$s_%1$s(%3$s)
    returns table (%4$s)
    language sql stable security definer
    set search_path = pg_catalog, pg_temp
    set row_security = off
begin atomic
    select unstale.row_%1$s();
    select r.* from unstale.row_%1$s(%7$s) r;
end$f$, w.id, name, arguments, result, settings, query,
        (select string_agg('$' || n, ', ' order by n)
           from generate_series(1, cardinality(string_to_array(arguments, ','))) n));
end
$$;

-- What reads a watch's pages: the rows stamped since `from_stamp`, and after `after_stamp`, in the
-- order of their stamps; `page_rows` of them and all that have the last one's stamp. The settings:
-- a plan that begins at the stamp and ends with the page, whatever the arguments; and 42501 instead
-- of a policy, if row-level security is forced upon the owner. The arguments go by their numbers: a
-- name would be a column of the table, if it has one of that name.
create or replace function unstale.page_definition(w unstale.watch) returns text
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return (select unstale.reader_definition(w, 'page',
        'from_stamp timestamptz, after_stamp timestamptz, page_rows bigint',
        'image text, stamp timestamptz', '    set row_security = off
    set enable_seqscan = off
    set enable_bitmapscan = off', format(
        $f$    select unstale.row_%1$s(t.*), %2$s from %3$s t
     where t.%4$I >= %5$s and t.%4$I > %6$s
     order by t.%4$I fetch first ($3) rows with ties$f$,
        -- Not `(t).`, which would be the column of that name in a table that has one.
        w.id, format(case when is_local then 'timezone(''UTC'', t.%I)' else 't.%I' end, column_now),
        w.relation, column_now,
        case when is_local then 'timezone(''UTC'', $1)' else '$1' end,
        case when is_local then 'timezone(''UTC'', $2)' else '$2' end))
      from (select a.attname as column_now, a.atttypid = 'timestamp'::regtype as is_local
              from pg_attribute a where a.attrelid = w.relation and a.attnum = w.sweep_attnum) a);
end
$$;

-- The number of the column that a sweep may trust, null for none. Not unstale.watch.sweep_attnum:
-- pg_restore numbers the columns anew where some were dropped, but what unstale.fresh_N() reads is
-- always what the triggers decided by. As a set, because PostgreSQL inlines that.
create or replace function unstale.swept_by(watch_id integer, relation regclass)
    returns setof smallint
    language sql stable
begin atomic
    select (select d.refobjsubid::smallint
              from pg_proc p join pg_depend d on d.classid = 'pg_proc'::regclass and d.objid = p.oid
             where p.pronamespace = 'unstale'::regnamespace
               and p.proname = format('fresh_%s', watch_id)::name
               and d.refclassid = 'pg_class'::regclass and d.refobjid = relation
               and d.refobjsubid > 0 limit 1);
end;

create or replace function unstale.sweep_column(w unstale.watch) returns smallint
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return (select s from unstale.swept_by(w.id, w.relation) s);
end
$$;

-- Does a page run as this role?
create or replace function unstale.runs_as(page pg_proc, owner oid) returns boolean
    language sql immutable
    return (page).proowner = owner and (page).prosecdef
       and 'row_security=off' = any ((page).proconfig);

-- Does the page run as the table's owner, and does what it was made to do? unstale.watch()
-- makes one that does.
create or replace function unstale.page_is_right(w unstale.watch) returns boolean
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return (select w.sweep_attnum is null
        or exists (select from pg_proc p join pg_class c on c.oid = w.relation
                    where p.pronamespace = 'unstale'::regnamespace
                      and p.proname = format('page_%s', w.id)
                      and unstale.runs_as(p, c.relowner)));
end
$$;

-- Why a table is not swept, and all of its keys are deleted instead; null: it is. A page must run
-- as the table's owner, and all that it reads must be that owner's.
create or replace function unstale.unsweepable(w unstale.watch) returns text
    language sql stable
    set search_path = pg_catalog, pg_temp
as $$
    select case when s.attnum is null or p.oid is null
                then 'the column that it was swept by is gone; call unstale.watch() again'
                when not unstale.runs_as(p, c.relowner)
                then format('function unstale.page_%s does not run as the table''s owner; '
                            'call unstale.watch() again', w.id)
                when c.relforcerowsecurity and not (o.rolsuper or o.rolbypassrls)
                then 'row-level security is forced upon its owner, and hides rows from the sweep; '
                     'call unstale.watch() again'
                when c.relkind = 'p' and exists (
                    select from unstale.tree(w.relation) t(relation)
                      join pg_class child on child.oid = t.relation
                     where child.relowner <> c.relowner)
                then 'a partition belongs to another role than the table'
           end
      from pg_class c
      join pg_roles o on o.oid = c.relowner
     cross join unstale.swept_by(w.id, w.relation) s(attnum)
      left join pg_proc p on p.pronamespace = 'unstale'::regnamespace
       and p.proname = format('page_%s', w.id)::name
     where c.oid = w.relation
$$;

-- The tables to be swept, of the watches `only`, or of all. `since`: no earlier change concerns us,
-- in microseconds. A `timestamp` without a zone is read as UTC: what a person says of the time
-- (`is_local`) may be half a day off.
create or replace function unstale.sweep_tables(only_watches integer[] default null)
    returns table (watch integer, table_name text, column_name text, since bigint,
                   unsweepable text, needs_index boolean, is_local boolean)
    language sql stable security definer
    set search_path = pg_catalog, pg_temp
as $$
    select w.id, format('%I.%I', n.nspname, c.relname), coalesce(quote_ident(a.attname), ''),
           unstale.microseconds(w.since), unstale.unsweepable(w),
           a.attnum is not null and c.reltuples > 100000 and not exists (
               select from pg_index i
                where i.indrelid = c.oid and i.indisvalid and i.indpred is null
                  and i.indkey[0] = a.attnum),
           coalesce(a.atttypid = 'timestamp'::regtype, false)
      from unstale.watch w
      join pg_class c on c.oid = w.relation
      join pg_namespace n on n.oid = c.relnamespace
     cross join lateral unstale.swept_by(w.id, w.relation) s(attnum)
      left join pg_attribute a on a.attrelid = c.oid and a.attnum = s.attnum
     where w.sweep_attnum is not null and w.ended is null
       and (only_watches is null or w.id = any (only_watches))
     order by w.id
$$;

-- A time as microseconds since 1970; null if it is none that a bigint could hold.
create or replace function unstale.microseconds(t timestamptz) returns bigint
    language sql immutable
    set search_path = pg_catalog, pg_temp
as $$
    select case when t between '0001-01-01 00:00:00+00' and '9999-12-31 00:00:00+00'
                then (extract(epoch from t) * 1000000)::bigint end
$$;

-- The other way round; from before all time for what no timestamp could hold.
create or replace function unstale.from_microseconds(t bigint) returns timestamptz
    language sql immutable
    set search_path = pg_catalog, pg_temp
as $$
    select case when t between -62135596800000000 and 253402214400000000 -- years 1 to 9999
                then 'epoch'::timestamptz + t * interval '1 microsecond'
                when t < 0 then '-infinity'::timestamptz else 'infinity'::timestamptz end
$$;
