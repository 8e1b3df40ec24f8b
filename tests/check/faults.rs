//! Faults, each with what the finding says of it.

/// A fault: SQL that plants it, and what the finding is about and says.
pub(super) type Fault = (&'static str, &'static str, &'static str);

/// In a database with the tables `users` and `events`, the second partitioned.
pub(super) const FAULTS: &[Fault] = &[
    ("alter table users disable trigger unstale_1_update", "public.users", "unstale_1_update is disabled"),
    ("drop trigger unstale_1_delete on users", "public.users", "unstale_1_delete is missing"),
    ("alter table users enable trigger unstale_1_insert", "public.users", "unstale_1_insert does not fire"),
    ("drop function unstale.update_1() cascade", "public.users", "unstale_1_update is missing"),
    ("drop function unstale.same_1", "public.users", "unstale.same_1 is missing"),
    ("drop function unstale.row_1(users) cascade", "public.users", "dropped with CASCADE"),
    ("drop trigger unstale_2_truncate on events", "public.events", "unstale_2_truncate is missing"),
    ("create table child () inherits (users)", "public.child", "inherits from public.users"),
    ("alter table users set unlogged", "public.users", "unlogged"),
    ("drop table gone cascade", "public.gone", "was dropped"),
    (
        "create foreign data wrapper nothing; create server elsewhere foreign data wrapper nothing;
         create foreign table events_3 partition of events for values from (200) to (300) server elsewhere",
        "public.events_3",
        "foreign partition of public.events",
    ),
    ("update pg_class set reltuples = 200000 where oid = 'users'::regclass", "public.users", "without an index on updated_at"),
    (
        "insert into unstale.instance (name, timeline, forget_after, saved_at) values ('old', '', '7 days', now() - interval '1 hour')",
        "instance 'old'",
        "the log is kept for it for 7 days",
    ),
    (
        "insert into unstale.instance (name, timeline, forget_after, saved_at) values ('older', '', '1 minute', now() - interval '1 hour')",
        "instance 'older'",
        "its next start deletes all keys",
    ),
    (
        "create table copy (like users); create trigger unstale_1_delete after delete on copy for each row execute function unstale.delete_1()",
        "public.copy",
        "unstale_1_delete was made for another table (public.users)",
    ),
    (
        "create table orders (id int primary key); select unstale.watch('orders', array['order:{id}']);
         create table orders_new (like orders); alter table orders rename to orders_old; alter table orders_new rename to orders",
        "public.orders",
        "is called public.orders_old now, and this one is another table",
    ),
    ("update unstale.watch set code = 5 where id = 1", "public.users", "those of an older release"),
    ("alter function unstale.page_1 security invoker", "public.users", "page_1 does not run as the table's owner"),
    ("create publication everything for all tables", "publication everything", "it is for all tables"),
    ("grant create on schema unstale to public", "schema unstale", "public may create here"),
    ("alter function unstale.cut owner to pg_monitor", "schema unstale", "function unstale.cut(text) belongs to pg_monitor"),
    ("alter table unstale.gap owner to pg_monitor", "schema unstale", "unstale.gap belongs to pg_monitor"),
    ("alter view unstale.watches owner to pg_monitor", "schema unstale", "view unstale.watches belongs to pg_monitor"),
    ("alter type unstale.finding owner to pg_monitor", "schema unstale", "type unstale.finding belongs to pg_monitor"),
    ("grant execute on function unstale.tell to public", "schema unstale", "everybody may call unstale.tell("),
    ("grant select on unstale.change_log_1 to public", "schema unstale", "public may read or write unstale.change_log_1"),
    ("grant update on unstale.instance to pg_monitor", "schema unstale", "pg_monitor may read or write unstale.instance"),
    ("grant usage on sequence unstale.channel_id to public", "schema unstale", "public may read or write unstale.channel_id"),
    (
        "select unstale.unwatch('child'); drop table child; alter table users drop column email cascade", // the last: it unwatches users
        "public.users",
        "dropped with CASCADE",
    ),
];

/// Faults of a listener's role, which has no right beyond those that it needs. `ROLE` is its name.
pub(super) const OF_A_LISTENER: &[Fault] = &[
    ("revoke usage on schema unstale from ROLE", "role ROLE", "usage on schema unstale"),
    (
        "revoke execute on function unstale.rotate_log from ROLE",
        "role ROLE",
        "execute on function unstale.rotate_log",
    ),
    (
        "revoke execute on function unstale.page_1 from ROLE",
        "role ROLE",
        "execute on function unstale.page_1",
    ),
    (
        "grant select on users to ROLE",
        "role ROLE",
        "may read public.users, which it has no need of",
    ),
    (
        r#"create schema "Odd one"; create table "Odd one".t (id int); select unstale.watch('"Odd one".t', array['odd:{id}']);
           grant select on "Odd one".t to ROLE; alter default privileges in schema "Odd one" grant select on tables to ROLE"#,
        "role ROLE",
        r#"may read "Odd one".t"#,
    ),
];

/// Faults of tables that belong to another role than the schema, `ROLE`, which is no superuser.
pub(super) const OF_AN_OWNER: &[Fault] = &[
    ("alter table users owner to ROLE", "public.users", "page_1 does not run as the table's owner"),
    ("alter table users owner to postgres", "schema unstale", "function unstale.page_1"),
    ("alter table events_1 owner to ROLE", "public.events", "a partition belongs to another role"),
    (
        "alter table users owner to ROLE; select unstale.watch('users', array['user:{id}', 'by:{email}']);
         alter table users force row level security",
        "public.users",
        "hides rows from the sweep",
    ),
];

/// What the owner of the schema, a role like any other, may revoke from itself.
pub(super) const REVOKED_FROM_THE_OWNER: &[Fault] = &[
    (
        "revoke insert on unstale.change_log_2 from ROLE",
        "schema unstale",
        "writes fail: the triggers run as ROLE, which lacks insert on unstale.change_log_2",
    ),
    (
        "revoke usage on sequence unstale.change_log_id from ROLE",
        "schema unstale",
        "which lacks usage on sequence unstale.change_log_id",
    ),
    (
        "revoke execute on function unstale.tell from ROLE",
        "schema unstale",
        "lacks execute on function unstale.tell(",
    ),
];
