-- The tables of unstale: what is watched, how far each listener has come, and what a sweep could not find.
--
-- Apply with `unstale migrate`, or by hand in the order of the numbers (psql, sqlx-cli, any migration tool).
-- Safe while an older listener runs: nothing existed before.

create schema if not exists unstale;

comment on schema unstale is 'Keeps Redis in step with the tables in unstale.watches';

-- One row a watched table. Written by unstale.watch(), unstale.unwatch() and unstale.notice_ddl() alone.
-- A watch that has ended stays until every instance has deleted its keys: it says what its logged changes mean.
create table unstale.watch (
    id           integer     generated always as identity constraint watch_pkey primary key,
    relation     regclass    not null,
    table_name   text        not null, -- as it was called when it was watched, to name it after it was dropped
    keys         text[]      not null, -- the templates
    columns      text[]      not null, -- the columns that the templates name, in the order in which they first appear
    attnums      smallint[]  not null, -- the same columns by number: they keep their number when they are renamed
    delivery     text        not null constraint watch_delivery_check check (delivery in ('row', 'statement', 'log')),
    updated_at   text,                 -- as asked for; null: the caller said that there is none
    sweep_attnum smallint,             -- the column that a sweep can trust; null: every change goes to the log
    only_columns text[],
    max_ttl      interval,             -- how long a cached value of it may live; null: as the application likes
    rev          integer     not null default 1, -- counts what changes the meaning of an announcement
    functions    text        not null, -- digest of the generated functions
    triggers     text        not null, -- digest of the triggers, so that an unchanged one is never touched
    since        timestamptz not null default clock_timestamp(), -- every later change is announced, and found or logged
    layout       text        not null default '', -- digest of the partitions, as far as no trigger tells of them
    ended        xid8                             -- the transaction that ended it; null: in force
);

create unique index watch_relation_key on unstale.watch (relation) where ended is null;

-- The changes that a sweep by updated_at could not find, and those that are delivered without NOTIFY, written in the
-- writer's own transaction. Read by snapshot, because ids and commit order differ.
--
-- Its rows are in three parts, of which one is written: a part that every listener is done with is emptied by TRUNCATE, which
-- leaves nothing to vacuum even while an old transaction holds back vacuum. unstale.rotate_log() does it.
create table unstale.change_log (
    xid       xid8    not null default pg_current_xact_id(),
    id        bigint  not null,
    watch     integer not null, -- no foreign key: a writer must never wait for, nor fail because of, unstale.watch
    announced boolean not null, -- NOTIFY has said it, too
    change    text    not null  -- what NOTIFY says or would have said, of any length
);

create sequence unstale.change_log_id as bigint cache 32 owned by unstale.change_log.id;
alter table unstale.change_log alter id set default nextval('unstale.change_log_id');

create table unstale.change_log_1 () inherits (unstale.change_log) with (toast_tuple_target = 8160, autovacuum_enabled = off);
create table unstale.change_log_2 () inherits (unstale.change_log) with (toast_tuple_target = 8160, autovacuum_enabled = off);
create table unstale.change_log_3 () inherits (unstale.change_log) with (toast_tuple_target = 8160, autovacuum_enabled = off);
create index change_log_1_xid_id_idx on unstale.change_log_1 (xid, id);
create index change_log_2_xid_id_idx on unstale.change_log_2 (xid, id);
create index change_log_3_xid_id_idx on unstale.change_log_3 (xid, id);

-- How far each listener has come. Everything before it was deleted from that listener's Redis.
create table unstale.checkpoint (
    instance         text        constraint checkpoint_pkey primary key,
    watermark        timestamptz,          -- rows stamped before it are done; null until the first heartbeats have passed
    log              pg_snapshot,          -- logged transactions that are visible in it are done; null until it has caught up once
    replay_watermark timestamptz,          -- the same as of replay.window ago: where a sweep begins
    replay_log       pg_snapshot,          -- when Redis may have undone what it had acknowledged
    redis            text,                 -- run id of the Redis that acknowledged it
    history          text        not null, -- system identifier and timeline of the PostgreSQL that it is about, or 'forgotten'
    forget_after     interval    not null, -- without a sign of life for so long, the log is no longer kept for it
    saved_at         timestamptz not null default clock_timestamp()
);

-- The ledger of the times in which an instance heard nothing, and of what catching up took.
create table unstale.gap (
    id        bigint      generated always as identity constraint gap_pkey primary key,
    instance  text        not null,
    cause     text        not null,
    opened_at timestamptz not null default clock_timestamp(),
    closed_at timestamptz, -- null: open, or the instance ended in it
    swept     bigint      not null default 0, -- rows read from the tables
    logged    bigint      not null default 0, -- rows read from the log
    keys      bigint      not null default 0, -- keys deleted
    complete  boolean     not null default false
);

create index gap_instance_opened_at_idx on unstale.gap (instance, opened_at);

create view unstale.watches as
    -- Not coalesce(format(...), ...): %I refuses the nulls of a table that was dropped.
    select case when c.oid is null then w.table_name || ' (dropped)' else format('%I.%I', n.nspname, c.relname) end as table_name,
           w.keys, w.delivery, w.updated_at, w.only_columns, w.max_ttl, w.sweep_attnum is null as logs_everything, w.since, w.id, w.rev
      from unstale.watch w
      left join pg_class c on c.oid = w.relation -- none: it was dropped
      left join pg_namespace n on n.oid = c.relnamespace
     where w.ended is null
     order by table_name;

comment on view unstale.watches is 'What is watched, and how. Change it with unstale.watch() and unstale.unwatch().';
