-- Watches every table at the moment it is made: event triggers, for a throw-away database that `unstale migrate` has been run on.
--
-- DDL that unstale refuses by design (to drop a watched table, a column of a key or of a stamp, to change its type, to make it a partition
-- or an inheritance child of another) is done as its messages say: unwatch before it, watch after it. What a statement is about is
-- known only at its end, so before it whatever its text names is unwatched: too many, at times, and watched again at its end.
--
-- What became of each table goes to the server's log, as a line that begins with `wild:`: no rollback takes it back, and no client sees it.

create schema unstale_wild;

create function unstale_wild.delivery() returns text language sql immutable return :'delivery';

-- Can the column be part of a key?
create function unstale_wild.is_usable(relation regclass, attnum smallint) returns boolean
    language plpgsql
    set search_path = pg_catalog, pg_temp
    set jit = off
as $$
begin
    perform unstale.column_number(relation, (select a.attname from pg_attribute a where a.attrelid = relation and a.attnum = is_usable.attnum), 'key');
    perform unstale.json_expression(relation, attnum, 't');
    return true;
exception when invalid_parameter_value then
    return false;
end
$$;

-- The columns of the primary key if all can be used, else the first column that can, else none: a key without a column.
create function unstale_wild.key_columns(relation regclass) returns text[]
    language plpgsql
    set search_path = pg_catalog, pg_temp
    set jit = off
as $$
declare
    columns smallint[] := (select array_agg(k order by ordinality) from pg_index i, unnest(i.indkey) with ordinality u(k, ordinality)
                            where i.indrelid = relation and i.indisprimary);
    one smallint;
begin
    if columns is null or not (select bool_and(unstale_wild.is_usable(relation, c)) from unnest(columns) c) then
        columns := '{}';
        for one in select a.attnum from pg_attribute a where a.attrelid = relation and a.attnum > 0 and not a.attisdropped order by a.attnum limit 20 loop
            if unstale_wild.is_usable(relation, one) then
                columns := array[one];
                exit;
            end if;
        end loop;
    end if;
    return array(select a.attname::text from unnest(columns) with ordinality c(n, o) join pg_attribute a on a.attrelid = relation and a.attnum = c.n order by c.o);
end
$$;

-- The first timestamp is the stamp, so that both ways are gone: a change that a sweep finds, and one that is logged.
create function unstale_wild.stamp(relation regclass) returns text
    language sql
    set search_path = pg_catalog, pg_temp
    set jit = off
as $$
    select a.attname from pg_attribute a
     where a.attrelid = relation and a.attnum > 0 and not a.attisdropped and a.atttypid in ('timestamptz'::regtype, 'timestamp'::regtype)
       and not exists (select from pg_attribute u where u.attrelid = relation and u.attname = 'updated_at')
     order by a.attnum limit 1
$$;

-- Is this the test of event triggers? It writes down everything that is made and dropped, and its triggers would see ours.
create function unstale_wild.looks_on() returns boolean
    language sql
    return current_setting('application_name') = 'pg_regress/event_trigger';

create function unstale_wild.watch(relation regclass) returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
    set jit = off
as $$
declare
    class pg_class := (select c from pg_class c where c.oid = relation);
    root regclass := pg_partition_root(relation);
    template text;
    delivery text := unstale_wild.delivery();
begin
    if class.relkind not in ('r', 'p') or class.relpersistence = 't' or class.relnamespace::regnamespace::text in ('unstale', 'unstale_wild')
       or exists (select from unstale.watch w where w.relation = watch.relation and w.ended is null) then
        return;
    elsif unstale_wild.looks_on() then
        raise log 'wild: left out: %: made by a test of event triggers', relation;
        return;
    elsif class.relname in ('rules_fooview', 'rules_fooview_child', 'tt27', 'tt28') or relation::text = 'regress_rls_schema.t' then
        -- By a rule _RETURN, which PostgreSQL refuses for what has, or had, triggers.
        raise log 'wild: left out: %: is to become a view', relation;
        return;
    elsif class.relispartition and exists (select from pg_partition_ancestors(relation) a join unstale.watch w on w.relation = a.relid and w.ended is null) then
        raise log 'wild: partition of a watched table: %', relation;
        return;
    end if;
    -- Partitions and inheritance children have row triggers, in the delivery that they can have.
    if delivery = 'statement' and (class.relkind = 'p' or class.relispartition or exists (select from pg_inherits i where i.inhrelid = relation)) then
        delivery := 'row';
    end if;
    template := 't' || relation::oid || (select coalesce(string_agg(':{' || c || '}', ''), '') from unnest(unstale_wild.key_columns(relation)) c);
    perform unstale.watch(relation, array[template], delivery, updated_at => coalesce(unstale_wild.stamp(relation), 'updated_at'));
    raise log 'wild: watched by %: %', delivery, relation;
exception when others then
    raise log 'wild: left out: %: %', relation, sqlerrm;
end
$$;

-- Watched tables that a statement's text names: themselves, by their schema, owner or a type that they use, or what they inherit from
-- or are partitions of.
create function unstale_wild.named(statement text) returns setof regclass
    language sql
    set search_path = pg_catalog, pg_temp
    set jit = off
as $$
    with recursive words(word) as (
        select distinct lower(m[1])
          from regexp_matches(statement, case when statement ~* '^\s*alter\s+table' then '\m(?:table|partition|inherit|of)(?:\s+if|\s+exists|\s+only)*\s+"?(?:\w+"?\."?)?(\w+)' else '(\w+)' end, 'gi') m
    ), named(oid) as (
        select c.oid
          from pg_class c
         where c.relkind in ('r', 'p', 'f') and c.relnamespace <> 'unstale'::regnamespace
           and (lower(c.relname) in (select word from words) or c.relname ~ '\W' and position(c.relname in statement) > 0
                or c.relnamespace <> 'public'::regnamespace and lower(c.relnamespace::regnamespace::text) in (select word from words) and statement ~* '\mschema\M'
                or lower(c.relowner::regrole::text) in (select word from words) and statement ~* '\mowned\M'
                or statement ~* '^\s*(alter|drop)\s+(type|domain)\M'
                   and exists (select from pg_type t where lower(t.typname) in (select word from words)
                                and (t.oid = c.reloftype or exists (select from pg_attribute a where a.attrelid = c.oid and a.atttypid = t.oid))))
        union
        select i.inhrelid from named n join pg_inherits i on i.inhparent = n.oid
    )
    select w.relation from named n join unstale.watch w on w.relation = n.oid and w.ended is null
$$;

-- To watch a table is DDL, too.
create function unstale_wild.is_busy() returns boolean
    language sql
    return coalesce(current_setting('unstale_wild.busy', true) = 'on', false);

create function unstale_wild.before() returns event_trigger
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
    set jit = off
    set client_min_messages = error
as $$
declare
    relation regclass;
    relations oid[] := '{}';
begin
    if unstale_wild.is_busy() or unstale_wild.looks_on() or tg_tag = 'ALTER TABLE' and current_query() !~* '\m(drop|type|attach|inherit|of)\M' then
        return;
    end if;
    perform set_config('unstale_wild.busy', 'on', true);
    for relation in select n from unstale_wild.named(current_query()) n loop
        relations := relations || relation::oid;
        perform unstale.unwatch(relation);
    end loop;
    if tg_tag in ('ALTER TABLE', 'ALTER TYPE') and relations <> '{}' then
        perform set_config('unstale_wild.again', relations::text, true);
    end if;
    perform set_config('unstale_wild.busy', 'off', true);
end
$$;

create function unstale_wild.after() returns event_trigger
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
    set jit = off
    set client_min_messages = error
as $$
declare
    again oid[] := coalesce(nullif(current_setting('unstale_wild.again', true), ''), '{}');
    relation regclass;
begin
    if unstale_wild.is_busy() or tg_tag like 'ALTER %' and again = '{}' then
        return;
    end if;
    perform set_config('unstale_wild.busy', 'on', true);
    if again <> '{}' then
        perform set_config('unstale_wild.again', '', true);
    end if;
    -- A partitioned table before its partitions, an inheritance child before its parents.
    for relation in select c.oid from pg_class c
                     where c.oid = any (again) or c.oid in (select d.objid from pg_event_trigger_ddl_commands() d where d.classid = 'pg_class'::regclass)
                     order by case when c.relkind = 'p' or c.relispartition then c.oid end, c.oid desc loop
        perform unstale_wild.watch(relation);
    end loop;
    perform set_config('unstale_wild.busy', 'off', true);
end
$$;

create event trigger unstale_wild_before on ddl_command_start
    when tag in ('ALTER TABLE', 'DROP TABLE', 'DROP SCHEMA', 'DROP OWNED', 'DROP TYPE', 'DROP DOMAIN', 'ALTER TYPE')
    execute function unstale_wild.before();
create event trigger unstale_wild_after on ddl_command_end
    when tag in ('CREATE TABLE', 'CREATE TABLE AS', 'SELECT INTO', 'CREATE SCHEMA', 'ALTER TABLE', 'ALTER TYPE')
    execute function unstale_wild.after();
alter event trigger unstale_wild_before enable always;
alter event trigger unstale_wild_after enable always;
