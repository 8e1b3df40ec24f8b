-- What a watch says of its cached values beside their keys: what readers were promised, and where a
-- value carries its row's version.

set search_path = pg_catalog, pg_temp;
set check_function_bodies = off; -- files come in any order

-- A column may be the version of a row if PostgreSQL compares its values exactly and
-- without code of anybody's: the built-in types that applications number or stamp rows
-- with, and domains of them.
create or replace function unstale.version_type(relation regclass, version text)
    returns regtype -- null: of another type
    language sql stable
    set search_path = pg_catalog, pg_temp
as $$
    with recursive unwrapped(oid) as (
        select a.atttypid from pg_attribute a
         where a.attrelid = version_type.relation and a.attname = version_type.version
           and a.attnum > 0 and not a.attisdropped
        union all
        select t.typbasetype from unwrapped u join pg_type t on t.oid = u.oid where t.typtype = 'd'
    )
    select u.oid::regtype from unwrapped u
     where u.oid in ('int2'::regtype, 'int4'::regtype, 'int8'::regtype, 'numeric'::regtype,
                     'oid'::regtype, 'text'::regtype, 'varchar'::regtype, 'bpchar'::regtype,
                     'uuid'::regtype, 'timestamptz'::regtype, 'timestamp'::regtype, 'date'::regtype)
$$;

-- Is it the place of one value in a JSON document, $.name, $['any name'] or $[0],
-- one behind the other?
create or replace function unstale.is_json_place(path text) returns boolean
    language sql immutable
    set search_path = pg_catalog, pg_temp
as $$
    select path ~ '^[$]([.][^][''".\\*?@(),:\x01-\x20\x7f]+|\[(0|[1-9][0-9]{0,8})\]'
                  '|\[''[^''\\]*''\]|\["[^"\\]*"\])+$'
$$;

-- `w` with what the arguments say, or a sentence that says why they cannot be had.
create or replace function unstale.with_policy(w unstale.watch, guarantee text, reason text,
                                               version text, version_path text)
    returns unstale.watch
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    if guarantee not in ('lease', 'bounded', 'eventual') then
        perform unstale.refuse(
            format('%s: guarantee %L is unknown', w.relation, guarantee),
            'Use ''lease'', ''bounded'' or ''eventual''.');
    elsif btrim(reason, E' \t\r\n') = '' or length(reason) > 1000 then
        perform unstale.refuse(
            format('%s: reason is empty, or longer than 1,000 characters', w.relation),
            'Say in a sentence why it is cached, and for so long.');
    elsif (version is null) <> (version_path is null) then
        perform unstale.refuse(
            format('%s: version and version_path belong together', w.relation),
            'Name the column, and where a cached value carries it: '
            'version => ''updated_at'', version_path => ''$.updated_at''.');
    elsif version is not null then
        w.version_attnum := unstale.column_number(w.relation::regclass, version, 'version');
        if unstale.version_type(w.relation, version) is null then
            perform unstale.refuse(
                format('version: column %I of %s is neither a number, a text, a uuid, a date '
                       'nor a timestamp', version, w.relation),
                'Name a column that changes with each change of the row, as its updated_at does.');
        elsif starts_with(version_path, '$') and not unstale.is_json_place(version_path) then
            perform unstale.refuse(
                format('version_path %L is not the place of one value in a JSON document',
                       version_path),
                'Write it as in ''$.updated_at'', ''$.data[0].version'' or ''$[''''any name'''']'';'
                ' without a $ it is the name of a hash''s field.');
        elsif version_path = '' or octet_length(version_path) > 500 then
            perform unstale.refuse(
                'version_path is empty, or longer than 500 bytes',
                'A JSONPath as in ''$.updated_at'', or the name of a hash''s field.');
        end if;
    end if;
    w.guarantee := guarantee;
    w.reason := reason;
    w.version := version;
    w.version_path := version_path;
    return w;
end
$$;
