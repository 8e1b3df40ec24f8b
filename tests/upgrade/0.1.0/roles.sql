-- A role for the listener, which can do what it must and nothing else: unstale_listener.
--
-- First, as an administrator, because only one may make roles (and a password, or a line in pg_hba.conf):
--
--     create role unstale_listener login password '...';
--
-- Then this file, after `unstale migrate`, as the role that owns the application's tables and the schema unstale:
--
--     psql "$DATABASE_URL" --set ON_ERROR_STOP=1 --file config/roles.sql
--
-- That role runs `unstale migrate` (for which it needs `create` on the database) and calls unstale.watch() in its migrations. Writers
-- need no grant at all: the triggers run as their owner. `unstale check`, with the listener's URL, names whatever is missing, with
-- its GRANT.

grant usage on schema unstale to unstale_listener;
grant select on unstale.watch, unstale.watches, unstale.change_log, unstale.migrations to unstale_listener;
grant select, insert, update on unstale.checkpoint, unstale.gap to unstale_listener;
grant execute on function unstale.notice_ddl, unstale.rotate_log, unstale.bell, unstale.sweep_column, unstale.findings to unstale_listener;

-- After a gap the listener reads the watched tables, of which it needs the columns of the keys and the updated_at column; a table
-- that it may not read loses all its keys instead. Here: everything in the schema public, also what this role creates later.
grant usage on schema public to unstale_listener;
grant select on all tables in schema public to unstale_listener;
alter default privileges in schema public grant select on tables to unstale_listener;
