-- The trigger functions of statements, which are generated for each watch (triggers.sql): the rows
-- that a statement left, or took away, as few payloads. An UPDATE compares its rows as they were
-- with the rows as they are: PostgreSQL keeps both in the same order.
--
-- Most statements have one row, and want few steps: a query without an aggregate takes the first
-- one, makes its payload, and tells whether there are more. Of more it looks at 33. What looks at
-- all rows is planned each time (EXECUTE): a plan kept from a bulk load would be compiled (JIT) for
-- every small statement after it.
--
-- `r.*`: a bare r would be the column of that name in a table that has one. Each column's image has
-- a bound, so that 33 rows are no burden.

set search_path = pg_catalog, pg_temp;
set check_function_bodies = off; -- files come in any order

-- Cuts images, one a line, into chunks that NOTIFY could take. As bytes: of a text, PostgreSQL
-- would count each character up to where a chunk begins.
create or replace function unstale.cut(images text) returns setof text
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    enough constant integer := 6500; -- bytes of a chunk, and then to the end of the line
    bytes constant bytea := convert_to(images, getdatabaseencoding());
    size constant integer := coalesce(octet_length(bytes), 0);
    start integer := 1;
    line_end integer;
    reach integer; -- where to look for the end of a line
begin
    while start <= size loop
        reach := 1000;
        loop
            line_end := position('\x0a'::bytea in substring(bytes from start + enough for reach));
            exit when line_end > 0 or start + enough + reach > size;
            reach := reach * 2;
        end loop;
        line_end := case when line_end > 0 then start + enough + line_end - 1 else size + 2 end;
        -- without the last comma
        return next convert_from(substring(bytes from start for line_end - 1 - start),
                                 getdatabaseencoding());
        start := line_end + 1;
    end loop;
end
$$;

-- SQL: does a sweep find all rows? Where it finds none, no aggregate need look at each.
create or replace function unstale.all_fresh(fresh text, of_each text) returns text
    language sql immutable
    set search_path = pg_catalog, pg_temp
as $$
    select case fresh when 'false' then 'false'
                      else format('pg_catalog.bool_and(%s)', of_each) end
$$;

-- SQL: the images of the first 33 rows of a transition table, how many, and
-- whether a sweep finds them all.
create or replace function unstale.first_rows(w unstale.watch, transition text, fresh text)
    returns text
    language plpgsql immutable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return format($f$(select pg_catalog.count(*) as rows,
                       pg_catalog.string_agg(unstale.row_%1$s(r.*), ',') as images,
                       %2$s as fresh
                  from (select * from %3$s limit 33) r)$f$,
                  w.id, unstale.all_fresh(fresh, fresh), transition);
end
$$;

-- SQL: the rows of a transition table, half a million at the most, as one text, if each is short:
-- else 0 rows. OFFSET keeps the planner from making each image twice.
create or replace function unstale.joined(w unstale.watch, transition text, fresh text) returns text
    language plpgsql immutable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return format($f$select case when pg_catalog.bool_and(i.short)
                            then pg_catalog.string_agg(i.image, E',\n') filter (where i.short)
                       end as images,
                       %4$s as fresh,
                       case when pg_catalog.bool_and(i.short) then pg_catalog.count(*)
                            else 0 end as rows
                  from (select s.image, s.fresh,
                               pg_catalog.int4le(pg_catalog.octet_length(s.image), 256) as short
                          from (select unstale.row_%1$s(r.*) as image, %2$s as fresh
                                  from %3$s r offset 0 limit 500000) s) i$f$,
                  w.id, fresh, transition, unstale.all_fresh(fresh, 'i.fresh'));
end
$$;

-- SQL: the rows of a transition table beyond the first (an expression), packed by a running length
-- into chunks that NOTIFY could take: slower than to cut a text, but no text holds them all.
create or replace function unstale.packed(w unstale.watch, transition text, fresh text, beyond text)
    returns text
    language plpgsql immutable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return format($f$(select s.part, pg_catalog.string_agg(s.image, ',') as images,
                               pg_catalog.bool_and(s.fresh) as fresh
                          from (select i.image, i.fresh,
                                       pg_catalog.sum(pg_catalog.octet_length(i.image)
                                                      operator(pg_catalog.+) 1)
                                           over (rows unbounded preceding)
                                           operator(pg_catalog./) 7000 as part
                                  from (select unstale.row_%1$s(r.*) as image,
                                               %2$s as fresh
                                          from (select * from %3$s offset %4$s) r
                                        offset 0) i) s
                         group by s.part)$f$, w.id, fresh, transition, beyond);
end
$$;

-- plpgsql: the `change` of a statement of one row, whether a sweep finds it, and `is_single`, which
-- is null if there is no row. LIMIT, or a plan kept from a bulk load would look expensive, and be
-- compiled.
create or replace function unstale.single_row(w unstale.watch, operation text, fresh text)
    returns text
    language plpgsql immutable
    set search_path = pg_catalog, pg_temp
as $$
declare
    head constant text := format('{"watch":%s,"rev":%s,', w.id, w.rev);
begin
    if operation <> 'updates' then
        return format($f$    select unstale.one_row(%2$L, unstale.row_%1$s(r.*)), %3$s,
           not exists (select from %4$s offset 1)
      into change, sweepable, is_single
      from %4$s r limit 1;
$f$, w.id, head || case operation when 'deletes' then '"old":' else '"new":' end, fresh,
     case operation when 'deletes' then 'old_rows' else 'new_rows' end);
    end if;
    return format($f$    select unstale.two_rows(
               %2$L, unstale.row_%1$s(r.*),
               case when not unstale.same_%1$s(o.*, r.*) then unstale.row_%1$s(o.*) end),
           unstale.same_%1$s(o.*, r.*) and %3$s,
           not exists (select from new_rows offset 1)
      into change, sweepable, is_single
      from new_rows r, old_rows o limit 1;
$f$, w.id, head || '"new":', fresh);
end
$$;

-- plpgsql: the `change` of a statement of few rows, and whether a sweep finds them; `change` is
-- null if they are too many or too long for one payload.
create or replace function unstale.few_rows(w unstale.watch, operation text, fresh text)
    returns text
    language plpgsql immutable
    set search_path = pg_catalog, pg_temp
as $$
declare
    head constant text := format('{"watch":%s,"rev":%s,"rows":[', w.id, w.rev);
begin
    if operation <> 'updates' then
        return format($f$        select n.fresh,
               case when pg_catalog.int8le(n.rows, 32)
                         and pg_catalog.int4lt(pg_catalog.octet_length(n.images), 7900)
                    then unstale.one_row(
                        %1$L, pg_catalog.concat(n.images, ']')) end
          into sweepable, change
          from %2$s n;
$f$, head, unstale.first_rows(
         w, case operation when 'deletes' then 'old_rows' else 'new_rows' end, fresh));
    end if;
    return format($f$        select n.fresh and pg_catalog.texteq(n.images, o.images),
               case when pg_catalog.int8le(n.rows, 32)
                         and pg_catalog.int4lt(pg_catalog.int4pl(pg_catalog.octet_length(n.images),
                                                                 pg_catalog.octet_length(o.images)),
                                               7900)
                    then unstale.one_row(%1$L, pg_catalog.concat(
                        n.images,
                        case when pg_catalog.texteq(n.images, o.images) then null else ',' end,
                        case when pg_catalog.texteq(n.images, o.images) then null
                             else o.images end,
                        ']')) end
          into sweepable, change
          from %2$s n,
               %3$s o;
$f$, head, unstale.first_rows(w, 'new_rows', fresh), unstale.first_rows(w, 'old_rows', 'false'));
end
$$;

-- plpgsql: all rows of a statement, in chunks. Beyond 64 payloads the log
-- is cheaper, for everybody.
create or replace function unstale.many_rows(w unstale.watch, operation text, fresh text)
    returns text
    language plpgsql immutable
    set search_path = pg_catalog, pg_temp
as $$
declare
    transition constant text :=
        case operation when 'deletes' then 'old_rows' else 'new_rows' end;
    loops constant text := format($f$            loop
                announced := unstale.notify_or_log(
                    %s,
                    unstale.one_row(
                        %L, pg_catalog.concat(chunk.images, ']')),
                    chunk.fresh, %s);
                chunks := pg_catalog.int8pl(chunks, 1);
            end loop;
$f$, w.id, format('{"watch":%s,"rev":%s,"rows":[', w.id, w.rev),
     case when w.delivery = 'log' then 'false' else 'pg_catalog.int8lt(chunks, 64)' end);
begin
    if operation <> 'updates' then
        return format($f$            execute $joined$
                %1$s$joined$ into now;
            for chunk in execute $chunks$
                select c.images, $3 as fresh from unstale.cut($1) c(images)
                union all
                select p.images, p.fresh
                  from %2$s p$chunks$
                using now.images, now.rows, now.fresh
$f$, unstale.joined(w, transition, fresh),
     unstale.packed(w, transition, fresh, '$2')) || loops;
    end if;
    -- The rows as they were are said where they differ: all that were joined, or the chunk.
    return format($f$            execute $joined$
                %1$s$joined$ into now;
            execute $joined$
                %2$s$joined$ into was;
            for chunk in execute $chunks$
                select c.images, $3 as fresh from unstale.cut($1) c(images)
                union all
                select c.images, false
                  from unstale.cut(
                      case when pg_catalog.texteq($1, $4) then null else $4 end) c(images)
                union all
                select e.images, e.fresh
                  from %3$s n
                  full join
                       %4$s o on o.part operator(pg_catalog.=) n.part
                 cross join lateral (
                     values (n.images, n.fresh),
                            (case when pg_catalog.texteq(n.images, o.images) then null
                                  else o.images end, false)) e(images, fresh)
                 where e.images is not null$chunks$
                using now.images, now.rows, now.fresh, was.images, was.rows
$f$, unstale.joined(w, 'new_rows', fresh), unstale.joined(w, 'old_rows', 'false'),
     unstale.packed(w, 'new_rows', fresh, '$2'),
     unstale.packed(w, 'old_rows', 'false', '$5')) || loops;
end
$$;

-- A statement's trigger function. `presence_check` is what it begins with. `fresh` is an expression
-- over a row r (null: never): does a sweep find it?
create or replace function unstale.statement_function(w unstale.watch, operation text,
                                                      presence_check text, fresh text) returns text
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return format($f$create or replace function unstale.%2$s_%1$s() returns trigger
    language plpgsql security definer
as $body$
declare
    is_single pg_catalog.bool;
    sweepable pg_catalog.bool;
    now pg_catalog.record;
%3$s    chunk pg_catalog.record;
    chunks pg_catalog.int8 default 0;
    change pg_catalog.text;
    announced pg_catalog.bool;
begin
%4$s%5$s    if is_single then
        null; -- as most are
    elsif is_single is null then
        return null;
    else
%6$s        if change is null then
%7$s            return null;
        end if;
    end if;
%8$s    return null;
end
$body$
$f$, w.id, operation,
     case operation when 'updates' then E'    was pg_catalog.record;\n' else '' end,
     presence_check,
     unstale.single_row(w, operation, coalesce(fresh, 'false')),
     unstale.few_rows(w, operation, coalesce(fresh, 'false')),
     unstale.many_rows(w, operation, coalesce(fresh, 'false')),
     unstale.delivered(w, case when fresh is not null then 'sweepable' end));
end
$$;
