CREATE SCHEMA unstale;

COMMENT ON SCHEMA unstale IS 'Keeps Redis in step with the tables in unstale.watches';

CREATE TYPE unstale.finding AS (
	severity text,
	about text,
	finding text,
	remedy text
);

CREATE TABLE unstale.watch (
    id integer NOT NULL,
    relation regclass NOT NULL,
    table_name text NOT NULL,
    keys text[] NOT NULL,
    columns text[] NOT NULL,
    attnums smallint[] NOT NULL,
    delivery text NOT NULL,
    updated_at text,
    sweep_attnum smallint,
    only_columns text[],
    max_ttl interval,
    rev integer DEFAULT 1 NOT NULL,
    functions text NOT NULL,
    triggers text NOT NULL,
    since timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    layout text DEFAULT ''::text NOT NULL,
    ended xid8,
    code integer DEFAULT 0 NOT NULL,
    guarantee text,
    reason text,
    version text,
    version_path text,
    version_attnum smallint,
    CONSTRAINT watch_delivery_check CHECK ((delivery = ANY (ARRAY['row'::text, 'statement'::text, 'log'::text]))),
    CONSTRAINT watch_guarantee_check CHECK ((guarantee = ANY (ARRAY['lease'::text, 'bounded'::text, 'eventual'::text])))
);

CREATE SEQUENCE unstale.channel_id
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;

CREATE TABLE unstale.audit (
    watch integer NOT NULL,
    audited_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    complete boolean NOT NULL,
    compared bigint NOT NULL,
    stale bigint NOT NULL,
    unreadable bigint NOT NULL
);

CREATE TABLE unstale.change_log (
    xid xid8 DEFAULT pg_current_xact_id() NOT NULL,
    id bigint NOT NULL,
    watch integer NOT NULL,
    announced boolean NOT NULL,
    change text NOT NULL
);

CREATE TABLE unstale.change_log_1 (
)
INHERITS (unstale.change_log)
WITH (toast_tuple_target='8160', autovacuum_enabled=off);

CREATE TABLE unstale.change_log_2 (
)
INHERITS (unstale.change_log)
WITH (toast_tuple_target='8160', autovacuum_enabled=off);

CREATE TABLE unstale.change_log_3 (
)
INHERITS (unstale.change_log)
WITH (toast_tuple_target='8160', autovacuum_enabled=off);

CREATE SEQUENCE unstale.change_log_id
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 32;

ALTER SEQUENCE unstale.change_log_id OWNED BY unstale.change_log.id;

CREATE TABLE unstale.gap (
    id bigint NOT NULL,
    instance text NOT NULL,
    cause text NOT NULL,
    opened_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    closed_at timestamp with time zone,
    swept bigint DEFAULT 0 NOT NULL,
    logged bigint DEFAULT 0 NOT NULL,
    keys bigint DEFAULT 0 NOT NULL,
    complete boolean DEFAULT false NOT NULL
);

ALTER TABLE unstale.gap ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME unstale.gap_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE unstale.instance (
    name text NOT NULL,
    watermark timestamp with time zone,
    log pg_snapshot,
    replay_watermark timestamp with time zone,
    replay_log pg_snapshot,
    redis text,
    timeline text NOT NULL,
    forget_after interval NOT NULL,
    saved_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    forgotten boolean DEFAULT false NOT NULL,
    role name
);

CREATE TABLE unstale.migrations (
    version bigint NOT NULL,
    description text NOT NULL,
    installed_on timestamp with time zone DEFAULT now() NOT NULL,
    success boolean NOT NULL,
    checksum bytea NOT NULL,
    execution_time bigint NOT NULL
);

CREATE TABLE unstale.repeatable (
    name text NOT NULL,
    digest text NOT NULL,
    applied_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL
);

ALTER TABLE unstale.watch ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME unstale.watch_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE VIEW unstale.watches AS
 SELECT
        CASE
            WHEN (c.oid IS NULL) THEN (w.table_name || ' (dropped)'::text)
            ELSE format('%I.%I'::text, n.nspname, c.relname)
        END AS table_name,
    w.keys,
    w.delivery,
    w.updated_at,
    w.only_columns,
    w.max_ttl,
    (w.sweep_attnum IS NULL) AS logs_everything,
    w.since,
    w.id,
    w.rev,
    w.guarantee,
    w.reason,
    w.version,
    w.version_path
   FROM ((unstale.watch w
     LEFT JOIN pg_class c ON ((c.oid = (w.relation)::oid)))
     LEFT JOIN pg_namespace n ON ((n.oid = c.relnamespace)))
  WHERE (w.ended IS NULL)
  ORDER BY
        CASE
            WHEN (c.oid IS NULL) THEN (w.table_name || ' (dropped)'::text)
            ELSE format('%I.%I'::text, n.nspname, c.relname)
        END;

COMMENT ON VIEW unstale.watches IS 'What is watched, and how. Change it with unstale.watch() and unstale.unwatch().';

ALTER TABLE ONLY unstale.change_log ALTER COLUMN id SET DEFAULT nextval('unstale.change_log_id'::regclass);

ALTER TABLE ONLY unstale.change_log_1 ALTER COLUMN xid SET DEFAULT pg_current_xact_id();

ALTER TABLE ONLY unstale.change_log_1 ALTER COLUMN id SET DEFAULT nextval('unstale.change_log_id'::regclass);

ALTER TABLE ONLY unstale.change_log_2 ALTER COLUMN xid SET DEFAULT pg_current_xact_id();

ALTER TABLE ONLY unstale.change_log_2 ALTER COLUMN id SET DEFAULT nextval('unstale.change_log_id'::regclass);

ALTER TABLE ONLY unstale.change_log_3 ALTER COLUMN xid SET DEFAULT pg_current_xact_id();

ALTER TABLE ONLY unstale.change_log_3 ALTER COLUMN id SET DEFAULT nextval('unstale.change_log_id'::regclass);

ALTER TABLE ONLY unstale.audit
    ADD CONSTRAINT audit_pkey PRIMARY KEY (watch);

ALTER TABLE ONLY unstale.gap
    ADD CONSTRAINT gap_pkey PRIMARY KEY (id);

ALTER TABLE ONLY unstale.instance
    ADD CONSTRAINT instance_pkey PRIMARY KEY (name);

ALTER TABLE ONLY unstale.migrations
    ADD CONSTRAINT migrations_pkey PRIMARY KEY (version);

ALTER TABLE ONLY unstale.repeatable
    ADD CONSTRAINT repeatable_pkey PRIMARY KEY (name);

ALTER TABLE unstale.watch
    ADD CONSTRAINT watch_max_ttl_check CHECK ((max_ttl <= '100 years'::interval)) NOT VALID;

ALTER TABLE ONLY unstale.watch
    ADD CONSTRAINT watch_pkey PRIMARY KEY (id);

CREATE INDEX change_log_1_xid_id_idx ON unstale.change_log_1 USING btree (xid, id);

CREATE INDEX change_log_2_xid_id_idx ON unstale.change_log_2 USING btree (xid, id);

CREATE INDEX change_log_3_xid_id_idx ON unstale.change_log_3 USING btree (xid, id);

CREATE INDEX gap_instance_opened_at_idx ON unstale.gap USING btree (instance, opened_at);

CREATE UNIQUE INDEX watch_relation_key ON unstale.watch USING btree (relation) WHERE (ended IS NULL);

CREATE TRIGGER guard BEFORE INSERT OR DELETE OR UPDATE ON unstale.audit FOR EACH ROW EXECUTE FUNCTION unstale.discard_replicated();

ALTER TABLE unstale.audit ENABLE REPLICA TRIGGER guard;

CREATE TRIGGER guard AFTER TRUNCATE ON unstale.change_log_1 FOR EACH STATEMENT EXECUTE FUNCTION unstale.widen_replicated();

ALTER TABLE unstale.change_log_1 ENABLE REPLICA TRIGGER guard;

CREATE TRIGGER guard AFTER TRUNCATE ON unstale.change_log_2 FOR EACH STATEMENT EXECUTE FUNCTION unstale.widen_replicated();

ALTER TABLE unstale.change_log_2 ENABLE REPLICA TRIGGER guard;

CREATE TRIGGER guard AFTER TRUNCATE ON unstale.change_log_3 FOR EACH STATEMENT EXECUTE FUNCTION unstale.widen_replicated();

ALTER TABLE unstale.change_log_3 ENABLE REPLICA TRIGGER guard;

CREATE TRIGGER guard BEFORE INSERT OR DELETE OR UPDATE ON unstale.gap FOR EACH ROW EXECUTE FUNCTION unstale.discard_replicated();

ALTER TABLE unstale.gap ENABLE REPLICA TRIGGER guard;

CREATE TRIGGER guard BEFORE INSERT OR DELETE OR UPDATE ON unstale.instance FOR EACH ROW EXECUTE FUNCTION unstale.discard_replicated();

ALTER TABLE unstale.instance ENABLE REPLICA TRIGGER guard;

CREATE TRIGGER guard BEFORE INSERT OR DELETE OR UPDATE ON unstale.migrations FOR EACH ROW EXECUTE FUNCTION unstale.discard_replicated();

ALTER TABLE unstale.migrations ENABLE REPLICA TRIGGER guard;

CREATE TRIGGER guard BEFORE INSERT OR DELETE OR UPDATE ON unstale.repeatable FOR EACH ROW EXECUTE FUNCTION unstale.discard_replicated();

ALTER TABLE unstale.repeatable ENABLE REPLICA TRIGGER guard;

CREATE TRIGGER guard BEFORE INSERT OR DELETE OR UPDATE ON unstale.watch FOR EACH ROW EXECUTE FUNCTION unstale.discard_replicated();

ALTER TABLE unstale.watch ENABLE REPLICA TRIGGER guard;
