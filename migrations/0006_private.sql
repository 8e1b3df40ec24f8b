-- The channel becomes private, the bookkeeping of a listener belongs to the role that it connects as, and a watch remembers by
-- which version of the generator its code was made.
--
-- Functions are not here any more: they are in repeatable/, which `unstale migrate` applies after the numbered files whenever
-- one of them differs. By hand: psql -1 -f 0001_tables.sql -f 0006_private.sql, each file of repeatable/ in any order, and then
-- `select unstale.regenerate();`. Numbers 2 to 5 were functions, too.
--
-- An older listener: unstale.checkpoint has another name from here on, so that its next heartbeat cannot store its progress and
-- its session ends. Otherwise it would stay on the old channel, hear its own heartbeats, and move its checkpoint past changes
-- that it did not hear. Nothing is lost: the new program begins at the checkpoint that is stored.

-- The name of the NOTIFY channel is made of this sequence's value, which only its owner can read: not of its start, its name or
-- a function's text, which everybody can. So nobody else can send a change, or hear one.
create sequence unstale.channel_id as bigint;
do $$
begin -- not a SELECT, which psql would print
    perform pg_catalog.setval('unstale.channel_id',
        ('x' || pg_catalog.substr(pg_catalog.md5(pg_catalog.gen_random_uuid()::text || pg_catalog.gen_random_uuid()::text), 1, 16))::bit(64)::bigint
            & 9223372036854775807::bigint | 1); -- 62 bits by chance; never 0, which is below the sequence's minimum
end
$$;

alter table unstale.checkpoint rename to instance;
alter table unstale.instance rename constraint checkpoint_pkey to instance_pkey;
alter table unstale.instance rename column instance to name;
alter table unstale.instance rename column history to timeline;
alter table unstale.instance
    add column forgotten boolean not null default false, -- it was away for longer than forget_after, and has not deleted everything since
    add column role name; -- the login role that it registered with: no other may move it. Null: of an older release, the next one
update unstale.instance set forgotten = true, timeline = '' where timeline = 'forgotten';

-- By which version of unstale.version() the watch's functions and triggers were made.
alter table unstale.watch add column code integer not null default 0;
-- Beyond a century no arithmetic with timestamps is safe.
alter table unstale.watch add constraint watch_max_ttl_check check (max_ttl <= interval '100 years') not valid;

-- What unstale.findings() returns.
do $$
begin
    if pg_catalog.to_regtype('unstale.finding') is null then
        create type unstale.finding as (
            severity text, -- 'error': a promise is broken, or will be; 'warning'
            about    text, -- a table, an instance, a transaction ...
            finding  text,
            remedy   text  -- SQL
        );
    end if;
end
$$;

-- The files of repeatable/ as they were applied last.
create table unstale.repeatable (
    name       text        constraint repeatable_pkey primary key,
    digest     text        not null, -- md5
    applied_at timestamptz not null default clock_timestamp()
);
