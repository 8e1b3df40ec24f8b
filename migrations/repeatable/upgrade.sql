-- What this release of the schema is, and how a database gets there from an older one.

set search_path = pg_catalog, pg_temp;
set check_function_bodies = off; -- files come in any order

-- The release of these functions, and of the code that they generate. It grows with every release
-- that changes either, or a table.
create or replace function unstale.release() returns integer
    language sql immutable
    return 8;

-- The version of the schema: that of the functions, or of a table that a newer release has made.
create or replace function unstale.version() returns integer
    language plpgsql stable security definer
    set search_path = pg_catalog, pg_temp
as $$
begin
    if to_regclass('unstale.migrations') is null then
        return unstale.release(); -- applied by hand
    end if;
    return greatest(unstale.release(),
                    (select max(m.version) from unstale.migrations m where m.success));
end
$$;

-- Functions of earlier releases that are no more; what generated code of before may
-- still call is in legacy.sql.
create or replace function unstale.drop_retired() returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
declare
    signature text;
begin
    foreach signature in array array[
        'wanted(regclass,text[],text,text,text[],interval)', 'lacking(oid)', 'execute_all(text[])',
        'revoke_all(regprocedure)', 'into_log(unstale.watch,text,text)',
        'aloud(unstale.watch,text,text,text)', 'has_statement_triggers(unstale.watch)',
        'tell_patiently(integer,text)', 'joined(unstale.watch,text,text,text)',
        'chunks(unstale.watch,text,text,text)', 'chunks(unstale.watch,text,text)',
        'statement_function(unstale.watch,text,text,text,text)',
        'statement_function(unstale.watch,text,text)',
        'trigger_function(unstale.watch,text,text,text)', 'digests(unstale.watch,unstale.watch)',
        'create_functions(unstale.watch)', 'read_log(xid8[],xid8,bigint,xid8,bigint,bigint)']
    loop
        if to_regprocedure('unstale.' || signature) is not null then
            execute 'drop function unstale.' || signature;
        end if;
    end loop;
end
$$;

-- Makes the code of every watch anew that an older release has generated, and sets who may call
-- what. A table is locked only where its triggers differ, and for 100 ms at the most: what cannot
-- be had is left as it was, which works, and is named by unstale.findings(). `unstale migrate`
-- calls it for one watch at a time, so that no lock is held for longer than one takes.
create or replace function unstale.regenerate(only_watch integer default null)
    returns integer -- how many were made anew
    language plpgsql
    set search_path = pg_catalog, pg_temp
    set quote_all_identifiers = off
    set standard_conforming_strings = on
    set jit = off
    -- what each watch's new code invalidates is planned anew without a look at its arguments
    set plan_cache_mode = force_generic_plan
as $$
declare
    known unstale.watch;
    made integer := 0;
begin
    if only_watch is null then
        perform unstale.secure();
    end if;
    -- By their numbers, and so by the index: `unstale migrate` calls this for each of many watches.
    for known in
        select * from unstale.watch w
         where w.id = any (case when only_watch is null
                                then array(select a.id from unstale.watch a)
                                else array[only_watch] end)
           and w.ended is null and w.code <> unstale.release()
           and exists (select from pg_class c where c.oid = w.relation)
         order by w.id
    loop
        begin
            perform unstale.regenerate_one(known);
            made := made + 1;
        exception when others then
            raise warning
                '%: its functions and triggers are those of an older release: %',
                known.relation, sqlerrm
                using hint = format('select unstale.regenerate(%s);', known.id);
        end;
    end loop;
    if only_watch is null then
        -- last: writers wait for its locks on the log until the end of the transaction
        perform unstale.guard_bookkeeping();
    end if;
    return made;
end
$$;

comment on function unstale.regenerate is
    'Makes the generated code of every watch anew, '
    'after the schema was brought up to date by hand';

create or replace function unstale.regenerate_one(known unstale.watch) returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
declare
    generated constant record := unstale.generated(known, known);
    made constant unstale.watch := generated.w;
    has_surplus constant boolean := exists (select from unstale.surplus(known));
    triggers_differ constant boolean := made.triggers <> known.triggers or has_surplus;
begin
    if triggers_differ then
        perform unstale.lock(known.relation,
                             case when has_surplus then 'access exclusive'
                                  else 'share row exclusive' end,
                             '100ms', '100ms');
    end if;
    perform unstale.create_functions(made, generated.definitions);
    if triggers_differ then
        perform unstale.install(made, made.triggers <> known.triggers);
    end if;
    update unstale.watch w
       set functions = made.functions, triggers = made.triggers, code = made.code
     where w.id = known.id;
end
$$;

-- Nobody calls a function here but those that it was granted to.
create or replace function unstale.secure() returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
    -- to compile what looks at all functions of many watches takes longer than all the rest
    set jit = off
as $$
declare
    role regrole;
    strangers text;
    public_functions text;
begin
    -- A schema that somebody else has made before us: its owner could replace what runs in
    -- everybody's transactions.
    if (select m.rolsuper and not o.rolsuper from pg_roles m, pg_roles o
         where m.rolname = current_user and o.oid = unstale.owner()) then
        raise exception 'the schema unstale belongs to %, who is no superuser, as % is',
            unstale.owner(), current_user
            using errcode = 'insufficient_privilege',
                  hint = format('Apply this as that role (set role %1$s;), or, if it should not '
                                'have made the schema: drop schema unstale cascade;',
                                unstale.owner());
    end if;
    -- Not a page, which runs as the table's owner of before, and which a sweep does without.
    select string_agg(m.object, ', ') into strangers
      from unstale.misowned() m where m.object !~ '^function unstale\.(page|audit)_[0-9]+\(';
    if strangers is not null then
        raise exception 'in the schema unstale there is %, which belongs to another role', strangers
            using errcode = 'insufficient_privilege',
                  hint = format('Drop it if nobody knows it, or give it to %s.', unstale.owner());
    end if;
    perform unstale.drop_retired();
    select string_agg(p.oid::regprocedure::text, ', ') into public_functions
      from pg_proc p
     where p.pronamespace = 'unstale'::regnamespace
       and has_function_privilege('public', p.oid, 'execute');
    if public_functions is not null then -- one statement: of 300 watches they are thousands
        execute format('revoke all on function %s from public', public_functions);
    end if;
    perform unstale.convert_listeners();
    perform unstale.revoke_defaults();
    for role in select * from unstale.listeners() loop
        perform unstale.grant_listener(role);
    end loop;
end
$$;
