-- The audit: rows of a watched table with their version, to be compared with
-- what is cached of them.
--
-- As a page of the sweep, unstale.audit_N() runs as the table's owner (sweep.sql), and what that
-- leaves in its transaction never commits. It is generated for a watch with a `version`, and stored
-- by column number, so that RENAME COLUMN keeps working.

set search_path = pg_catalog, pg_temp;
set check_function_bodies = off; -- files come in any order

-- A condition: has a column the value that a key's text says? By its type's own equality, so that
-- an index serves, where the reader can see whether the text is one of the type
-- (src/audit/invert.rs); for other types by image. It may find too much, never too little: the
-- reader makes the key of each row again.
create or replace function unstale.lookup_condition(relation regclass, attnum smallint, value text)
    returns text
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    base constant regtype := unstale.base_type(relation, attnum);
    column_name constant text := quote_ident(unstale.column_now(relation, attnum));
begin
    return case
        when base in ('int2'::regtype, 'int4'::regtype, 'int8'::regtype, 'oid'::regtype,
                      'uuid'::regtype, 'text'::regtype, 'varchar'::regtype, 'bpchar'::regtype)
            then format('t.%s = (%s)::pg_catalog.%s', column_name, value,
                        (select quote_ident(y.typname) from pg_type y where y.oid = base))
        else format('%s = coalesce(to_json(%s)::text, ''null'')',
                    unstale.json_expression(relation, attnum, 't'), value)
    end;
end
$$;

-- The type of a column; of a domain, what it is a domain of.
create or replace function unstale.base_type(relation regclass, attnum smallint) returns regtype
    language sql stable
    set search_path = pg_catalog, pg_temp
as $$
    with recursive unwrapped(oid, typtype, typbasetype) as (
        select y.oid, y.typtype, y.typbasetype
          from pg_attribute a join pg_type y on y.oid = a.atttypid
         where a.attrelid = base_type.relation and a.attnum = base_type.attnum
        union all
        select y.oid, y.typtype, y.typbasetype
          from unwrapped u join pg_type y on y.oid = u.typbasetype
         where u.typtype = 'd'
    )
    select u.oid::regtype from unwrapped u where u.typtype <> 'd'
$$;

-- What reads the rows of a watch's audit. `how`:
--   0    the rows in the blocks `place` to `place + size - 1`, of each partition
--   -1   the `size` rows that were stamped last
--   n    those with the columns of the nth template as in one of `wanted`, JSON objects as row_N()
--        makes them; up to `size` rows
-- By their numbers: a name would be that of the table's column, if it has one.
create or replace function unstale.audit_definition(w unstale.watch) returns text
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    columns constant text := format('unstale.row_%s(t.*), %s', w.id,
                                    unstale.json_expression(w.relation, w.version_attnum, 't'));
    branches text := '';
    condition text;
begin
    if w.sweep_attnum is not null then
        branches := format(
            E'\n    union all\n    (select %s from %s t where $1 = -1 and t.%3$I is not null '
            'order by t.%3$I desc fetch first ($3) rows only)',
            columns, w.relation, unstale.column_now(w.relation, w.sweep_attnum));
    end if;
    for i in 1 .. cardinality(w.keys) loop
        select string_agg(
                   unstale.lookup_condition(w.relation, w.attnums[array_position(w.columns, c)],
                                            format('k.wanted ->> %L', c)),
                   ' and ' order by n)
          into condition
          from unnest(unstale.template_columns(w.keys[i])) with ordinality u(c, n);
        continue when condition is null; -- a constant key
        branches := branches || format(
            E'\n    union all\n    (select %s from unnest($4) k(wanted) join %s t on %s '
            'where $1 = %s fetch first ($3) rows only)',
            columns, w.relation, condition, i);
    end loop;
    return unstale.reader_definition(
        w, 'audit', 'how integer, place bigint, size bigint, wanted json[]',
        'image text, version text',
        E'    set row_security = off\n    set enable_seqscan = off',
        format('    select %s from %s t where $1 = 0 and t.ctid >= format(''(%%s,0)'', $2)::tid '
               'and t.ctid < format(''(%%s,0)'', $2 + $3)::tid%s',
               columns, w.relation, branches));
end
$$;

-- Does the audit run as the table's owner? unstale.watch() makes one that does.
create or replace function unstale.audit_is_right(w unstale.watch) returns boolean
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return (select w.version_attnum is null
        or exists (select from pg_proc p join pg_class c on c.oid = w.relation
                    where p.pronamespace = 'unstale'::regnamespace
                      and p.proname = format('audit_%s', w.id)
                      and unstale.runs_as(p, c.relowner)));
end
$$;

-- Why a table is not audited; null: it can be.
create or replace function unstale.unauditable(w unstale.watch) returns text
    language sql stable
    set search_path = pg_catalog, pg_temp
as $$
    select case when w.version is null
                then 'it has no version; pass version and version_path to unstale.watch()'
                when p.oid is null
                then 'the column of its version is gone; call unstale.watch() again'
                when not unstale.runs_as(p, c.relowner)
                then format('function unstale.audit_%s does not run as the table''s owner; '
                            'call unstale.watch() again', w.id)
                when c.relforcerowsecurity and not (o.rolsuper or o.rolbypassrls)
                then 'row-level security is forced upon its owner, and hides rows; '
                     'alter table ... no force row level security'
                when exists (
                    select from unnest(w.attnums || w.version_attnum) a(attnum)
                     where not exists (
                         select from pg_depend d
                          where d.classid = 'pg_proc'::regclass
                            and d.refclassid = 'pg_class'::regclass
                            and d.objid = any (array(
                                select q.oid from pg_proc q
                                 where q.pronamespace = p.pronamespace
                                   and q.proname = format('row_%s', w.id)::name
                                   and 'wanted' = any (q.proargnames)))
                            and d.refobjid = w.relation and d.refobjsubid = a.attnum))
                then 'its columns have other numbers, as after a restore; '
                     'call unstale.watch() again'
                when c.relkind = 'p' and exists (
                    select from unstale.tree(w.relation) t(relation)
                      join pg_class child on child.oid = t.relation
                     where child.relowner <> c.relowner)
                then 'a partition belongs to another role than the table'
           end
      from pg_class c
      join pg_roles o on o.oid = c.relowner
      left join pg_proc p on p.pronamespace = 'unstale'::regnamespace
       and p.proname = format('audit_%s', w.id)::name
     where c.oid = w.relation
$$;

-- The watches in force, and what an audit must know of each: the types of the columns that
-- its templates name, that of its version, the blocks of its largest partition, and why it
-- cannot be audited, if so.
create or replace function unstale.audit_tables()
    returns table (watch integer, column_types text[], version_type text, has_stamp boolean,
                   blocks bigint, unauditable text)
    language sql stable security definer
    set search_path = pg_catalog, pg_temp
as $$
    select w.id,
           array(select y.typname::text
                   from unnest(w.attnums) with ordinality u(attnum, n)
                   join pg_type y on y.oid = unstale.base_type(w.relation, u.attnum)
                  order by u.n),
           (select y.typname::text from pg_type y
             where y.oid = unstale.base_type(w.relation, w.version_attnum)),
           w.sweep_attnum is not null,
           coalesce((select max(pg_relation_size(leaf.oid)) / current_setting('block_size')::bigint
                       from unstale.tree(w.relation) t(relation)
                       join pg_class leaf on leaf.oid = t.relation and leaf.relkind = 'r'), 0),
           unstale.unauditable(w)
      from unstale.watch w join pg_class c on c.oid = w.relation
     where w.ended is null
     order by w.id
$$;

-- Are a cached version and a row's the same, as the version's type (pg_type.typname) compares, in
-- any usual spelling? Null: the cached one is not of the type. A time that is cached in whole
-- seconds or milliseconds is compared as far as it says; a number stands for seconds, milliseconds
-- or microseconds since 1970. What is cached stays out of errors, and so of the server's log.
create or replace function unstale.same_versions(version_type text, cached text[], stored text[])
    returns boolean[]
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
    set datestyle = 'ISO, YMD'
    set timezone = 'UTC'
as $$
declare
    result boolean[] := '{}';
    same boolean;
begin
    for i in 1 .. coalesce(cardinality(cached), 0) loop
        begin
            same := case
                when octet_length(cached[i]) > 100
                     and version_type not in ('text', 'varchar', 'bpchar') then null
                when version_type in ('int2', 'int4', 'int8', 'oid', 'numeric')
                    then cached[i]::numeric = stored[i]::numeric
                when version_type = 'uuid' then cached[i]::uuid = stored[i]::uuid
                when version_type = 'date' then cached[i]::date = stored[i]::date
                when version_type = 'bpchar' then cached[i]::bpchar = stored[i]::bpchar
                when version_type in ('timestamp', 'timestamptz')
                    then unstale.same_time(cached[i], stored[i]::timestamptz)
                else cached[i] = stored[i] end;
        exception when data_exception then
            same := null;
        end;
        result := result || same;
    end loop;
    return result;
end
$$;

create or replace function unstale.same_time(cached text, stored timestamptz) returns boolean
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    is_number constant boolean := cached ~ '^-?[0-9]{9,}([.][0-9]+)?$';
    fraction constant integer := coalesce(length(substring(cached from '[0-9][.,]([0-9]+)')), 0);
    unit constant numeric := case
        when not is_number or abs(cached::numeric) < 1e11 then 1000000
        when abs(cached::numeric) < 1e14 then 1000
        else 1 end;
    step constant numeric := greatest(1, case
        when fraction = 0 then unit
        when fraction <= 3 then least(unit, 1000)
        else 1 end); -- microseconds
    moment timestamptz;
begin
    if not is_number then
        moment := cached::timestamptz;
        if not isfinite(moment) or not isfinite(stored) then
            return moment = stored;
        end if;
        return abs(extract(epoch from stored) - extract(epoch from moment)) * 1000000 < step;
    end if;
    return isfinite(stored)
       and abs(extract(epoch from stored) * 1000000 - round(cached::numeric * unit)) < step;
end
$$;

-- What an audit has found, for unstale.list_watches().
create or replace function unstale.save_audit(watch integer, complete boolean, compared bigint,
                                              stale bigint, unreadable bigint) returns void
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
as $$
begin
    delete from unstale.audit a
     where not exists (select from unstale.watch w where w.id = a.watch and w.ended is null);
    insert into unstale.audit (watch, complete, compared, stale, unreadable)
        select w.id, save_audit.complete, save_audit.compared, save_audit.stale,
               save_audit.unreadable
          from unstale.watch w
         where w.id = save_audit.watch and w.ended is null
        on conflict on constraint audit_pkey do update
           set audited_at = clock_timestamp(), complete = excluded.complete,
               compared = excluded.compared, stale = excluded.stale,
               unreadable = excluded.unreadable;
end
$$;

-- Do two columns of a template stand side by side, so that its keys do not tell where one ends?
-- src/audit/invert.rs refuses the same.
create or replace function unstale.is_ambiguous(template text) returns boolean
    language sql immutable
    set search_path = pg_catalog, pg_temp
as $$
    select coalesce(bool_or(p.is_column and p.was_column), false)
      from (select m[1] ~ '^[{][^{]' as is_column,
                   lag(m[1] ~ '^[{][^{]') over (order by n) as was_column
              from regexp_matches(template, '[{][{]|[}][}]|[{][^{}]+[}]|[^{}]+', 'g')
                   with ordinality r(m, n)) p
$$;
