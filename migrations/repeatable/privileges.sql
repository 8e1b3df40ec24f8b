-- Who may do what with the schema unstale, and who owns what is in it.
--
-- One owner for everything: what is here runs in the transactions of every writer. The exceptions
-- are a watch's page_N() and audit_N(), which belong to the owner of its table (sweep.sql,
-- audit.sql). Functions have EXECUTE for those who need it, by name.

set search_path = pg_catalog, pg_temp;
set check_function_bodies = off; -- files come in any order

create or replace function unstale.owner() returns regrole
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return (select n.nspowner::regrole from pg_namespace n where n.nspname = 'unstale');
end
$$;

-- Roles other than the owner that may create something here: they could put code of their
-- own into the triggers.
create or replace function unstale.may_create() returns table (role text)
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return query
    select case a.grantee when 0 then 'public' else a.grantee::regrole::text end
      from pg_namespace n cross join lateral aclexplode(n.nspacl) a
     where n.nspname = 'unstale' and a.privilege_type = 'CREATE' and a.grantee <> n.nspowner;
end
$$;

-- What of the schema belongs to another role than it should, with its rightful owner and the SQL
-- that gives it back. What reads a table as its owner needs more than another owner:
-- unstale.watch() makes it anew.
create or replace function unstale.misowned()
    returns table (object text, owner regrole, remedy text)
    language sql stable
    set search_path = pg_catalog, pg_temp
as $$
    select format('%s %s',
                  case c.relkind when 'S' then 'sequence' when 'v' then 'view' when 'c' then 'type'
                       else 'table' end,
                  c.oid::regclass),
           c.relowner::regrole,
           format('alter %s %s owner to %s;',
                  case c.relkind when 'S' then 'sequence' when 'v' then 'view' when 'c' then 'type'
                       else 'table' end,
                  c.oid::regclass, unstale.owner())
      from pg_class c
     where c.relnamespace = 'unstale'::regnamespace
       and c.relkind in ('r', 'p', 'v', 'm', 'S', 'f', 'c')
       and c.relowner <> (select unstale.owner())
       and not exists (select from pg_depend d
                        where d.classid = 'pg_class'::regclass and d.objid = c.oid
                          and c.relkind = 'S' and d.deptype in ('a', 'i')) -- goes with its table
    union all
    select format('function %s', f.oid::regprocedure), f.proowner::regrole,
           coalesce((select unstale.watch_call(w, w.relation)
                       from unstale.watch w where w.id = f.watch),
                    format('alter function %s owner to %s;',
                           f.oid::regprocedure, unstale.owner()))
      -- OFFSET: looked up for each by the number, or the planner lets each function meet each
      -- watch.
      from (select n.oid, n.proowner,
                   (select w.id from unstale.watch w join pg_class t on t.oid = w.relation
                     where w.ended is null and w.id = n.number) as watch
              from (select p.oid, p.proowner,
                           substring(p.proname from '^(?:page|audit)_([1-9][0-9]{0,9})$')::bigint
                               as number
                      from pg_proc p
                     where p.pronamespace = 'unstale'::regnamespace offset 0) n offset 0) f
     where f.proowner <> coalesce((select t.relowner
                                     from unstale.watch w join pg_class t on t.oid = w.relation
                                    where w.id = f.watch),
                                  (select unstale.owner()))
    union all
    select format('type %s', t.oid::regtype), t.typowner::regrole,
           format('alter type %s owner to %s;', t.oid::regtype, unstale.owner())
      from pg_type t
     where t.typnamespace = 'unstale'::regnamespace and t.typrelid = 0 and t.typcategory <> 'A'
       and t.typowner <> unstale.owner()
$$;

-- What the owner of the schema has lost, as the triggers, which run as that role, would notice it:
-- PostgreSQL lets an owner revoke rights from itself.
create or replace function unstale.owner_lacks() returns setof text
    language sql stable
    set search_path = pg_catalog, pg_temp
as $$
    select 'usage on schema unstale'
     where not has_schema_privilege(unstale.owner()::oid, 'unstale', 'usage')
    union all
    select format('%s on %s%s', wanted, case c.relkind when 'S' then 'sequence ' end,
                  c.oid::regclass)
      from pg_class c
     cross join unnest(case when c.relkind = 'S' then array['usage']
                            when c.relname like 'change\_log%'
                            then array['select', 'insert', 'truncate']
                            else array['select', 'insert', 'update', 'delete'] end) wanted
     where c.relnamespace = 'unstale'::regnamespace and c.relkind in ('r', 'S')
       and not case when c.relkind = 'S'
                    then has_sequence_privilege((select unstale.owner())::oid, c.oid, wanted)
                    else has_table_privilege((select unstale.owner())::oid, c.oid, wanted) end
    union all
    select format('execute on function %s', p.oid::regprocedure)
      from pg_proc p
     where p.pronamespace = 'unstale'::regnamespace and p.proowner = (select unstale.owner())
       and not has_function_privilege((select unstale.owner())::oid, p.oid, 'execute')
$$;

-- Refuses a caller whose functions would not belong to the schema's owner, and a schema in
-- which others may create.
create or replace function unstale.refuse_caller() returns void
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    strangers text;
begin
    if not pg_has_role(current_user, unstale.owner()::oid, 'usage') then
        raise exception 'the schema unstale belongs to %, and % is no member of it',
            unstale.owner(), current_user
            using errcode = 'insufficient_privilege',
                  hint = format('Call this as that role (set role %s;), or as a member of it.',
                                unstale.owner());
    end if;
    select string_agg(m.role, ', ') into strangers from unstale.may_create() m;
    if strangers is not null then
        raise exception
            'others may create in the schema unstale, and so put code of theirs into everybody''s triggers: %',
            strangers
            using errcode = 'insufficient_privilege',
                  hint = format('revoke create on schema unstale from %s;', strangers);
    end if;
end
$$;

-- Gives a function to another owner, who must have CREATE here for as long as that takes.
create or replace function unstale.hand_over(f regprocedure, new_owner regrole) returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
declare
    lacks_create constant boolean := not has_schema_privilege(new_owner, 'unstale', 'create');
begin
    if lacks_create then
        execute format('grant create on schema unstale to %s', new_owner);
    end if;
    execute format('alter function %s owner to %s', f, new_owner);
    if lacks_create then
        execute format('revoke create on schema unstale from %s', new_owner);
    end if;
exception when insufficient_privilege then
    raise exception
        'what reads a table must run as its owner %, and % may not give a function to that role: %',
        new_owner, current_user, sqlerrm
        using errcode = 'insufficient_privilege',
              hint = format('Call this as a member of both roles: grant %s to %s; or let one role '
                            'own the tables and the schema unstale.', new_owner, current_user);
end
$$;

-- Does `alter default privileges` give the role something on each new object of this kind
-- (pg_default_acl: r, S, f, T, n)?
create or replace function unstale.has_by_default(role oid, kind "char") returns boolean
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return (select exists (
        select from pg_default_acl d cross join lateral aclexplode(d.defaclacl) a
         where d.defaclrole = (select n.nspowner from pg_namespace n where n.nspname = 'unstale')
           and d.defaclobjtype = kind and d.defaclnamespace in (0, 'unstale'::regnamespace)
           and a.grantee = role));
end
$$;

-- Takes back from everybody but their owners what functions were given when they were created.
create or replace function unstale.revoke_all(functions oid[]) returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
declare
    granted record;
begin
    for granted in
        select string_agg(distinct p.oid::regprocedure::text, ', ') as functions,
               case a.grantee when 0 then 'public' else a.grantee::regrole::text end as grantee
          from pg_proc p
         cross join lateral aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
         where p.oid = any (functions) and a.grantee <> p.proowner
         group by a.grantee
    loop
        execute format('revoke all on function %s from %s', granted.functions, granted.grantee);
    end loop;
end
$$;

-- Takes back what `alter default privileges` has given to others here. TRIGGER on a table of ours
-- is the schema's owner, and its last value is what keeps the channel private. To read what is
-- watched does no harm.
create or replace function unstale.revoke_defaults() returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
declare
    granted record;
begin
    for granted in select m.role from unstale.may_create() m loop
        execute format('revoke create on schema unstale from %s', granted.role);
    end loop;
    for granted in
        select distinct c.oid::regclass as relation, a.privilege_type as privilege,
               c.relkind = 'S' as is_sequence,
               case a.grantee when 0 then 'public' else a.grantee::regrole::text end as grantee
          from pg_class c cross join lateral aclexplode(c.relacl) a
         where c.relnamespace = 'unstale'::regnamespace and a.grantee <> c.relowner
           and (a.privilege_type <> 'SELECT' or c.relkind = 'S' or c.relname like 'change\_log%')
    loop
        execute format('revoke %s on %s %s from %s', granted.privilege,
                       case when granted.is_sequence then 'sequence' else 'table' end,
                       granted.relation, granted.grantee);
    end loop;
    for granted in
        select p.oid::regprocedure as f, a.grantee::regrole as grantee
          from pg_proc p cross join lateral aclexplode(p.proacl) a
         where p.pronamespace = 'unstale'::regnamespace and a.grantee not in (0, p.proowner)
           and unstale.has_by_default(a.grantee, 'f')
           and a.grantee not in (select l::oid from unstale.listeners() l)
           and not exists (select from unstale.watch w join pg_class t on t.oid = w.relation
                            where p.proname = format('row_%s', w.id) and t.relowner = a.grantee
                               or (p.oid, a.grantee) in (
                                   select c.function::oid, c.maker::oid from unstale.cloned(w) c))
    loop
        execute format('revoke all on function %s from %s', granted.f, granted.grantee);
    end loop;
end
$$;

-- The functions that a listener calls.
create or replace function unstale.listener_functions() returns setof regprocedure
    language sql stable
    set search_path = pg_catalog, pg_temp
as $$
    select p.oid::regprocedure from pg_proc p
     where p.pronamespace = 'unstale'::regnamespace
       and p.proname = any (array[
           'version', 'listen', 'beat', 'probe', 'barrier', 'before_barrier', 'list_watches',
           'register', 'touch', 'save', 'stored', 'forgotten', 'seen', 'open_gap', 'close_gap',
           'last_gaps', 'read_log', 'log_since', 'sweep_tables', 'notice_ddl', 'rotate_log',
           'findings', 'microseconds', 'from_microseconds', 'audit_tables', 'same_versions',
           'same_time', 'save_audit'])
    union all
    select p.oid::regprocedure
      from unstale.watch w
      join pg_proc p on p.pronamespace = 'unstale'::regnamespace
       and p.proname in (format('page_%s', w.id)::name, format('audit_%s', w.id)::name)
     where w.ended is null
$$;

-- Lets a role call these functions, and nothing else.
create or replace function unstale.grant_execute(role regrole, functions regprocedure[])
    returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
begin
    execute format('grant usage on schema unstale to %s', role);
    if cardinality(functions) > 0 then
        execute format('grant execute on function %s to %s',
                       (select string_agg(f::text, ', ') from unnest(functions) f), role);
    end if;
end
$$;

-- Lets a role listen: EXECUTE on what a listener calls. Call it as the owner of the schema.
create or replace function unstale.grant_listener(role regrole) returns void
    language sql
    set search_path = pg_catalog, pg_temp
as $$
    select unstale.grant_execute(role, array(select f from unstale.listener_functions() f))
$$;

comment on function unstale.grant_listener is
    'Lets a role listen: EXECUTE on functions of the schema unstale, and no table';

-- The roles that may listen, beside the owner: those that unstale.grant_listener() was called for,
-- not those that may call each new function of this owner by default.
create or replace function unstale.listeners() returns setof regrole
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return query
    select distinct a.grantee::regrole
      from pg_proc p cross join lateral aclexplode(p.proacl) a
     where p.pronamespace = 'unstale'::regnamespace and p.proname = 'listen'
       and a.grantee not in (0, p.proowner)
       and (not unstale.has_by_default(a.grantee, 'f')
            or not unstale.has_by_default(a.grantee, 'n')
               and exists (select from pg_namespace n cross join lateral aclexplode(n.nspacl) u
                            where n.oid = p.pronamespace and u.grantee = a.grantee
                              and u.privilege_type = 'USAGE'));
end
$$;

-- A new function of a watch, for the owner and those that listen.
create or replace function unstale.grant_to_listeners(f regprocedure) returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
begin
    execute format('grant execute on function %s to %s', f,
                   (select string_agg(r.role::text, ', ')
                      from (select unstale.owner() as role
                            union select * from unstale.listeners()) r));
end
$$;

-- A listener's role of the release before had rights on our tables instead of EXECUTE on
-- functions. It may listen, and all else is taken back. Not a role that has such rights on each
-- new table by default.
create or replace function unstale.convert_listeners() returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
declare
    role regrole;
    t regclass;
    functions text;
begin
    for role in
        select distinct a.grantee::regrole from pg_class c cross join lateral aclexplode(c.relacl) a
         where c.oid = 'unstale.instance'::regclass and a.privilege_type = 'UPDATE'
           and a.grantee not in (0, c.relowner)
           and not unstale.has_by_default(a.grantee, 'r')
           and has_schema_privilege(a.grantee, 'unstale', 'usage')
    loop
        perform unstale.grant_listener(role);
        for t in
            select c.oid from pg_class c
             where c.relnamespace = 'unstale'::regnamespace and c.relkind in ('r', 'v')
        loop
            execute format('revoke all on %s from %s', t, role);
        end loop;
        select string_agg(p.oid::regprocedure::text, ', ') into functions from pg_proc p
         where p.pronamespace = 'unstale'::regnamespace
           and p.oid not in (select f from unstale.listener_functions() f)
           and exists (select from aclexplode(p.proacl) a where a.grantee = role);
        if functions is not null then
            execute format('revoke all on function %s from %s', functions, role);
        end if;
    end loop;
end
$$;
