-- What was promised to the readers of a watch's keys and why, and where a cached value carries the version of its row. For people,
-- `unstale policy`: no trigger and no function of a watch is made of it.
--
-- Safe while an older listener runs, which does not read it.

alter table unstale.watch
    add column guarantee text constraint watch_guarantee_check check (guarantee in ('lease', 'bounded', 'eventual')), -- null: nobody has said
    add column reason text,       -- why it is cached, and for so long
    add column version text,      -- the column whose value each cached copy carries
    add column version_path text; -- and where: a JSONPath in a string, or the name of a field of a hash

create or replace view unstale.watches as
    select case when c.oid is null then w.table_name || ' (dropped)' else format('%I.%I', n.nspname, c.relname) end as table_name,
           w.keys, w.delivery, w.updated_at, w.only_columns, w.max_ttl, w.sweep_attnum is null as logs_everything, w.since, w.id, w.rev,
           w.guarantee, w.reason, w.version, w.version_path
      from unstale.watch w
      left join pg_class c on c.oid = w.relation -- none: it was dropped
      left join pg_namespace n on n.oid = c.relnamespace
     where w.ended is null
     order by table_name;
