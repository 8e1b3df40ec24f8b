-- unstale.preview(): the SQL that a call of unstale.watch() would run, for whoever reviews it
-- before. `unstale apply --dry-run --sql` prints it.

set search_path = pg_catalog, pg_temp;
set check_function_bodies = off; -- files come in any order

drop function if exists
    unstale.preview(regclass, text[], text, text, text[], interval, boolean, integer);

-- The statements that unstale.watch() would execute with the same arguments, in their order; none
-- if nothing would change. Changes nothing, and locks nothing that anybody would wait for. A new
-- watch is shown under the number that is next, or as the `nth` of several new ones: if another
-- watch is made first, it gets a later one.
create or replace function unstale.preview(
    relation     regclass,
    keys         text[],
    delivery     text   default 'row',
    updated_at   text   default 'updated_at',
    only_columns text[] default null,
    max_ttl      interval default null,
    any_prefix   boolean default false,
    guarantee    text default null,
    reason       text default null,
    version      text default null,
    version_path text default null,
    nth          integer default 1
) returns setof text
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
    set quote_all_identifiers = off
    set standard_conforming_strings = on
    set jit = off
as $$
#variable_conflict use_column
declare
    wanted unstale.watch := unstale.with_policy(
        unstale.wanted(preview.relation, preview.keys, preview.delivery, preview.updated_at,
                       preview.only_columns, preview.max_ttl, preview.any_prefix),
        preview.guarantee, preview.reason, preview.version, preview.version_path);
    known unstale.watch;
    generated record;
    statement text;
begin
    select * into known from unstale.watch w
     where w.relation = preview.relation and w.ended is null;
    if not found then
        known.id := coalesce(
            pg_sequence_last_value(pg_get_serial_sequence('unstale.watch', 'id')::regclass), 0)
            + nth;
        known.rev := 1;
    elsif (unstale.generated(wanted, known)).w = known and unstale.installed(known) then
        return;
    elsif (wanted.keys, wanted.columns, wanted.attnums)
          is distinct from (known.keys, known.columns, known.attnums) then
        known.rev := known.rev + 1;
    end if;
    generated := unstale.generated(wanted, known);
    wanted := generated.w;
    foreach statement in array generated.definitions || array(
            select t from unstale.trigger_statements(
                wanted, wanted.triggers is distinct from known.triggers) t) loop
        return next rtrim(statement, E' \n') || ';';
    end loop;
end
$$;

comment on function unstale.preview is
    'The SQL that unstale.watch() would run with these arguments; changes nothing';
