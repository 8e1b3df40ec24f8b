-- A role for the listener, which can do what it must and nothing else: unstale_listener.
--
-- First, as an administrator, because only one may make roles (and a password, or a line in pg_hba.conf):
--
--     create role unstale_listener login password '...';
--
-- Then this file, after `unstale migrate`, as the role that owns the schema unstale:
--
--     psql "$DATABASE_URL" --set ON_ERROR_STOP=1 --file config/roles.sql
--
-- It gets EXECUTE on the functions that a listener calls, and no table: not of the schema unstale, and none of the application's.
-- What a sweep reads, it reads by functions that run as the tables' owners. `unstale migrate` grants what a later release needs.
-- Writers need no grant at all: the triggers run as the schema's owner.

select unstale.grant_listener('unstale_listener');
