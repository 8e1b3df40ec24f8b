-- Key templates, and how a column's value is written into a key.
--
-- Used while a watch is made, never by a writer: what runs in a writer's transaction is generated
-- from this (triggers.sql). src/rule.rs reads the same templates; a test holds the two equal.

set search_path = pg_catalog, pg_temp;
set check_function_bodies = off; -- files come in any order

-- The columns of a template, in order, once each. `{column}` stands for a value, `{{` and `}}` for
-- a brace. Raises a sentence for a template that cannot be used.
create or replace function unstale.template_columns(template text) returns text[]
    language plpgsql immutable
    set search_path = pg_catalog, pg_temp
as $$
declare
    found_columns text[] := '{}';
    has_literal boolean := false;
    rest text := template;
    column_name text;
begin
    while rest <> '' loop
        if starts_with(rest, '{{') or starts_with(rest, '}}') then
            has_literal := true;
            rest := substr(rest, 3);
        elsif starts_with(rest, '}') then
            raise exception 'key template %: a } closes nothing', quote_literal(template)
                using errcode = 'invalid_parameter_value', hint = 'Write }} for a literal brace.';
        elsif starts_with(rest, '{') then
            column_name := substring(rest from '^[{]([^{}]*)[}]');
            if column_name is null or column_name = '' then
                raise exception 'key template %: a { opens no column', quote_literal(template)
                    using errcode = 'invalid_parameter_value',
                          hint = 'Write {column}, or {{ for a literal brace.';
            end if;
            if not column_name = any (found_columns) then
                found_columns := found_columns || column_name;
            end if;
            rest := substr(rest, length(column_name) + 3);
        else
            has_literal := true;
            rest := substring(rest from '^[^{}]+(.*)$');
        end if;
    end loop;
    if not has_literal then
        raise exception
            'key template % has no literal part, so that it would match every key in Redis',
            quote_literal(template)
            using errcode = 'invalid_parameter_value',
                  hint = 'Put a prefix before the column, as in ''user:{id}''.';
    end if;
    return found_columns;
end
$$;

-- Does a template begin with a column, or has it fewer than two literal characters? Then the
-- pattern of all its keys, which TRUNCATE deletes, may match the keys of others.
create or replace function unstale.has_short_prefix(template text) returns boolean
    language plpgsql immutable
    set search_path = pg_catalog, pg_temp
as $$
declare
    literal constant text := regexp_replace(template, '([{][{]|[}][}])|[{][^{}]+[}]', E'\\1', 'g');
begin
    return coalesce(template ~ '^[{][^{]'
                    or length(replace(replace(literal, '{{', '{'), '}}', '}')) < 2
                       and literal <> template, false);
end
$$;

-- The SQL expression that renders column `attnum` of the composite `variable` as a JSON string
-- or null, whatever the writer's settings are (TimeZone, DateStyle, bytea_output,
-- extra_float_digits ...).
-- Raises a sentence for a type whose text would depend on them.
create or replace function unstale.json_expression(relation regclass, attnum smallint,
                                                   variable text) returns text
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    attribute record;
    base pg_type;
    value text;
    is_immutable boolean; -- is its output function?
begin
    -- Look-ups by key, not a query that unwraps domains: this is asked for each column of each
    -- watch, and hardly any has a domain.
    select a.attname, a.atttypid, a.atttypmod into strict attribute
      from pg_attribute a
     where a.attrelid = json_expression.relation and a.attnum = json_expression.attnum;
    select t.* into strict base from pg_type t where t.oid = attribute.atttypid;
    while base.typtype = 'd' loop
        select t.* into strict base from pg_type t where t.oid = base.typbasetype;
    end loop;

    -- A domain's value is read as its base type, named by its catalogue name (`character`
    -- would mean character(1)).
    value := format('(%s).%I', variable, attribute.attname);
    if base.oid <> attribute.atttypid then
        value := format('%s::%I.%I', value,
                        (select n.nspname from pg_namespace n where n.oid = base.typnamespace),
                        base.typname);
    end if;

    if base.oid >= 16384 then
        is_immutable := (select o.provolatile = 'i' from pg_proc o where o.oid = base.typoutput);
    end if;

    -- A value of more than 8 kB is said to be there, and no more (`true`): no reader has such a
    -- key, and neither a payload, the log nor the listener is to grow with it. The keys that it is
    -- part of are then deleted by their template's pattern.
    return case
        -- Their text holds nothing that JSON would escape.
        when base.oid in ('int2'::regtype, 'int4'::regtype, 'int8'::regtype, 'oid'::regtype,
                          'uuid'::regtype, 'bool'::regtype)
            or base.oid = 'numeric'::regtype and attribute.atttypmod >= 0
               and base.oid = attribute.atttypid -- of 1,000 digits at most
            then format('coalesce(''"'' || %s::text || ''"'', ''null'')', value)
        when base.oid = 'numeric'::regtype
            then format('case when octet_length(%1$s::text) > 8192 then ''true'' '
                        'else coalesce(''"'' || %1$s::text || ''"'', ''null'') end', value)
        when base.oid = 'bytea'::regtype
            then format('case when octet_length(%1$s) > 4096 then ''true'' '
                        'else coalesce(''"'' || encode(%1$s, ''hex'') || ''"'', ''null'') end',
                        value)
        -- to_json writes dates as ISO 8601 under every DateStyle, and through the type's
        -- own output otherwise.
        when base.oid = 'timestamptz'::regtype
            then format('coalesce(''"'' || (to_json(timezone(''UTC'', %1$s)) #>> ''{}'') '
                        '|| case when isfinite(%1$s) then ''Z"'' else ''"'' end, ''null'')', value)
        when base.oid in ('text'::regtype, 'varchar'::regtype, 'bpchar'::regtype)
            then format('case when octet_length(%1$s) > 8192 then ''true'' '
                        'else coalesce(to_json(%1$s)::text, ''null'') end', value)
        when base.oid in ('bit'::regtype, 'varbit'::regtype)
            then format('case when bit_length(%1$s) > 8192 then ''true'' '
                        'else coalesce(to_json(%1$s)::text, ''null'') end', value)
        when base.oid in ('name'::regtype, '"char"'::regtype, 'date'::regtype, 'timestamp'::regtype,
                          'time'::regtype, 'timetz'::regtype, 'inet'::regtype, 'cidr'::regtype,
                          'macaddr'::regtype, 'macaddr8'::regtype, 'pg_lsn'::regtype)
            then format('coalesce(to_json(%s)::text, ''null'')', value)
        -- The size in storage first: to write a huge one as text could fail.
        when base.typcategory = 'A'
            and base.typelem in ('int2'::regtype, 'int4'::regtype, 'int8'::regtype, 'oid'::regtype,
                                 'numeric'::regtype, 'uuid'::regtype, 'text'::regtype,
                                 'varchar'::regtype, 'name'::regtype)
            then format('case when pg_column_size(%1$s) > 8192 or octet_length(%1$s::text) > 8192 '
                        'then ''true'' else coalesce(to_json(%1$s::text)::text, ''null'') end',
                        value)
        -- An enum, or a type of an extension or of the user, such as citext, that is by its own
        -- word independent of settings: through its output function, because a cast to text or
        -- json may be anybody's.
        when base.typtype = 'e'
            then format('coalesce(to_json(textin(%s(%s)))::text, ''null'')', base.typoutput, value)
        when base.oid >= 16384 and base.typtype = 'b' and base.typcategory <> 'A' and is_immutable
            then format('case when pg_column_size(%2$s) > 8192 '
                        'or octet_length(textin(%1$s(%2$s))) > 8192 then ''true'' '
                        'else coalesce(to_json(textin(%1$s(%2$s)))::text, ''null'') end',
                        base.typoutput, value)
        else unstale.refuse(
            format('column %I of %s has type %s, whose text is not the same under all settings',
                   attribute.attname, relation,
                   format_type(attribute.atttypid, attribute.atttypmod)),
            format('Use another column in the key, or add a generated column: '
                   'alter table %s add column %I text generated always as (...) stored.',
                   relation, attribute.attname || '_key'))
    end;
end
$$;

-- Raises; returns text only so that an expression can call it.
create or replace function unstale.refuse(message text, remedy text) returns text
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
begin
    raise exception '%', message using errcode = 'invalid_parameter_value', hint = remedy;
end
$$;

-- The number of a column, or a sentence that lists the columns there are.
create or replace function unstale.column_number(relation regclass, column_name text, used_by text)
    returns smallint
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    attribute record;
begin
    select a.attnum, to_jsonb(a) ->> 'attgenerated' as generated into attribute
      from pg_attribute a
     where a.attrelid = relation and a.attname = column_name
       and a.attnum > 0 and not a.attisdropped;
    if not found then
        perform unstale.refuse(
            format('%s: table %s has no column %s', used_by, relation, quote_literal(column_name)),
            format('Its columns are %s.', (
                select string_agg(a.attname, ', ' order by a.attnum) from pg_attribute a
                 where a.attrelid = relation and a.attnum > 0 and not a.attisdropped)));
    elsif attribute.generated = 'v' then
        perform unstale.refuse(
            format('%s: column %I of %s is a virtual generated column, which a trigger cannot read',
                   used_by, column_name, relation),
            'Make it a stored generated column, or use the columns that it is made of.');
    end if;
    return attribute.attnum;
end
$$;
