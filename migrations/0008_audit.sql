-- `unstale audit`: the version's column by its number, which it keeps when it is renamed, and what the last audit of a watch found.
--
-- Safe while an older listener runs, which reads neither.

alter table unstale.watch add column version_attnum smallint; -- of `version`

update unstale.watch w
   set version_attnum = (select a.attnum from pg_catalog.pg_attribute a
                          where a.attrelid = w.relation and a.attname = w.version and a.attnum > 0 and not a.attisdropped)
 where w.version is not null and w.ended is null;

-- The last audit of each watch. For people: `unstale policy`.
create table unstale.audit (
    watch      integer     constraint audit_pkey primary key, -- unstale.watch.id
    audited_at timestamptz not null default clock_timestamp(),
    complete   boolean     not null, -- all keys, not a sample
    compared   bigint      not null, -- cached values that were compared with their rows
    stale      bigint      not null, -- of these
    unreadable bigint      not null  -- cached values without a version to compare
);
