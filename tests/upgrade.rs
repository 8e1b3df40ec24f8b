//! From release 0.1.0: nothing is lost, no write fails, and the old release's code is gone. Its SQL
//! is in tests/upgrade/0.1.0.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Instant;

use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::postgres::PgListener;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

use unstale::scratch::redis::Reply;

use crate::support::daemon::command;
use crate::support::migrations::{files, psql};
use crate::support::wait::until;
use crate::support::world::World;
use crate::tidy::read;

/// The numbered files of 0.1.0.
const OLD: [&str; 5] = ["tables", "templates", "triggers", "watch", "check"];

/// Tables in every delivery, with rows of an hour ago.
const TABLES: &str = "
    create table by_row (id int primary key, email text, updated_at timestamptz not null default clock_timestamp());
    create table by_statement (like by_row including all);
    create table by_log (like by_row including all);
    create table no_stamp (id int primary key, email text);
    create table parts (id int, email text, updated_at timestamptz default clock_timestamp()) partition by range (id);
    create table parts_1 partition of parts for values from (0) to (50);
    create table parts_2 partition of parts for values from (50) to (100000);
    insert into by_row select n, n || '@old', clock_timestamp() - interval '1 hour' from generate_series(1, 99) n;
    insert into by_statement select * from by_row; insert into by_log select * from by_row;
    insert into no_stamp select id, email from by_row; insert into parts select * from by_row";

/// Their watches, by arguments that both releases take.
const WATCHES: &str = "
    select unstale.watch('by_row', array['by_row:{id}', 'email:{email}']);
    select unstale.watch('by_statement', array['by_statement:{id}'], delivery => 'statement');
    select unstale.watch('by_log', array['by_log:{id}'], delivery => 'log', only_columns => array['email']);
    select unstale.watch('no_stamp', array['no_stamp:{id}'], delivery => 'statement');
    select unstale.watch('parts', array['parts:{id}'], max_ttl => '1 hour')";

/// The tables that are watched.
const WATCHED: [&str; 5] = ["by_row", "by_statement", "by_log", "no_stamp", "parts"];

/// How the listener of 0.1.0 stored its progress.
const OLD_SAVE: &str = "
    insert into unstale.checkpoint (instance, watermark, log, replay_watermark, replay_log, redis, history, forget_after)
    select 'test', clock_timestamp(), pg_current_snapshot(), clock_timestamp(), pg_current_snapshot(), $1,
           system_identifier::text || '/' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8), interval '7 days' from pg_control_system()
    on conflict (instance) do update
       set watermark = excluded.watermark, log = excluded.log, replay_watermark = excluded.replay_watermark,
           replay_log = excluded.replay_log, redis = excluded.redis, history = excluded.history,
           forget_after = excluded.forget_after, saved_at = clock_timestamp()";

fn old_sql(number: usize) -> String {
    format!("tests/upgrade/0.1.0/{number:04}_{}.sql", OLD[number - 1])
}

/// A database as 0.1.0 left it, with a ledger as `unstale migrate` kept it, or none, as psql did.
async fn old_world(by_hand: bool, role: &str) -> World {
    let world = World::bare().await;
    if by_hand {
        psql(&world, &(1..=5).map(old_sql).collect::<Vec<_>>(), "select 1");
    } else {
        let mut connection =
            PgConnection::connect(&world.database_url()).await.expect("the cluster is up");
        sqlx::raw_sql("create schema if not exists unstale")
            .execute(&mut connection)
            .await
            .expect("a schema");
        let migration = |(n, name): (usize, &&'static str)| {
            let sql = sqlx::SqlSafeStr::into_sql_str(AssertSqlSafe(read(&old_sql(n + 1))));
            Migration::new(
                i64::try_from(n + 1).expect("small"),
                (*name).into(),
                MigrationType::Simple,
                sql,
                false,
            )
        };
        let mut migrator =
            Migrator::with_migrations(OLD.iter().enumerate().map(migration).collect());
        migrator.dangerous_set_table_name("unstale.migrations");
        migrator.set_locking(false);
        migrator.run_direct(None, &mut connection, false).await.expect("they apply");
    }
    world.execute(&format!("create role {role} login; {TABLES}; {WATCHES}")).await;
    let roles = read("tests/upgrade/0.1.0/roles.sql").replace("unstale_listener", role);
    // Its grant on the ledger fails where there is none.
    world.execute(&if by_hand { roles.replace(", unstale.migrations", "") } else { roles }).await;
    world
}

async fn drop_role(world: &World, role: &str) {
    world.execute(&format!("drop owned by {role}; drop role {role}")).await;
}

/// Everything that a role has been granted, and all code, in the schema unstale: names, texts,
/// owners, rights, triggers.
async fn code(world: &World) -> Vec<String> {
    let sql = "
        select pg_get_functiondef(p.oid) || p.proowner::regrole::text || coalesce(p.proargnames::text, '') || coalesce((
                   select string_agg(format('%s %s', a.grantee::regrole, a.privilege_type), ', ' order by a.grantee::regrole::text, a.privilege_type)
                     from aclexplode(p.proacl) a), 'DEFAULT')
          from pg_proc p where p.pronamespace = 'unstale'::regnamespace
        union all select format('%s %s %s', t.tgrelid::regclass, t.tgenabled, pg_get_triggerdef(t.oid)) from pg_trigger t
         where not t.tgisinternal and t.tgrelid is distinct from to_regclass('unstale.migrations') -- psql makes none
        union all
        select format('%s %s %s %s %s', c.oid::regclass, a.attnum, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull)
          from pg_class c join pg_attribute a on a.attrelid = c.oid
         where c.relnamespace = 'unstale'::regnamespace and a.attnum > 0 and c.relname <> 'migrations' and c.relname <> 'migrations_pkey'
        union all
        select format('%s %s', c.oid::regclass, a) from pg_class c cross join unnest(c.relacl) a
         where c.relnamespace = 'unstale'::regnamespace and c.relkind in ('r', 'v', 'S') and a::text !~ '^postgres='
        union all
        select format('%s %s', w.relation, w.code) from unstale.watch w
        order by 1";
    sqlx::query_scalar(sql).fetch_all(&world.sql).await.expect("the catalogue")
}

/// As the old listener knew the Redis that had acknowledged its progress.
fn run_id(world: &mut World) -> String {
    let Ok(Reply::Value(Some(info))) = world.cache.ask(&["info", "server"]) else {
        panic!("no answer to INFO")
    };
    let info = String::from_utf8(info).expect("UTF-8");
    info.lines()
        .find_map(|line| line.strip_prefix("run_id:"))
        .expect("every Redis has one")
        .to_owned()
}

/// Migrates until no watch is left as it was.
fn migrate(world: &World) {
    let left = |_: &u32| {
        let output = command("migrate", &[("DATABASE_URL", &world.database_url())]);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).contains("left as they are")
    };
    assert!((1..100).any(|round| !left(&round)), "the tables were never free");
}

/// Changes one row after the other of a table until it is stopped; how many. Each statement must
/// succeed.
async fn write(world: &World, table: &'static str, stop: Arc<AtomicBool>, written: Arc<AtomicU32>) {
    let url = world.database_url();
    let mut sql = PgConnection::connect(&url).await.expect("the cluster is up");
    for id in 1..90 {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let stamp = if table == "no_stamp" { "" } else { ", updated_at = clock_timestamp()" };
        let statement = match id % 3 {
            0 => format!("delete from {table} where id = {id}"),
            1 => format!("update {table} set email = 'new'{stamp} where id = {id}"),
            _ => format!("update {table} set email = 'new' where id = {id}"),
        };
        sqlx::raw_sql(AssertSqlSafe(statement.clone()))
            .execute(&mut sql)
            .await
            .unwrap_or_else(|error| panic!("{statement}: {error}"));
        written.store(id, Ordering::Relaxed);
    }
}

async fn a_database_of_0_1_0_is_upgraded_under_writers_without_a_loss(by_hand: bool) {
    let role = format!("upgraded_{}", if by_hand { "by_hand" } else { "by_ledger" });
    let mut world = old_world(by_hand, &role).await;
    let keys = || WATCHED.iter().flat_map(|table| (1..=99).map(move |id| format!("{table}:{id}")));
    world.fill(keys());
    world.fill(["other:1"]);

    // The old listener has done everything up to here, and stays.
    let mut old_listener =
        PgListener::connect(&world.database_url()).await.expect("the cluster is up");
    old_listener.listen("unstale").await.expect("it listens");
    let run_id = run_id(&mut world);
    sqlx::query(AssertSqlSafe(OLD_SAVE))
        .bind(&run_id)
        .execute(&world.sql)
        .await
        .expect("it stores its progress");
    world
        .execute(
            "delete from by_row where id = 95; update by_log set email = 'logged' where id = 96",
        )
        .await; // rows in the log

    let (stop, written) =
        (Arc::new(AtomicBool::new(false)), WATCHED.map(|_| Arc::new(AtomicU32::new(0))));
    let writing = async {
        tokio::join!(
            write(&world, WATCHED[0], stop.clone(), written[0].clone()),
            write(&world, WATCHED[1], stop.clone(), written[1].clone()),
            write(&world, WATCHED[2], stop.clone(), written[2].clone()),
            write(&world, WATCHED[3], stop.clone(), written[3].clone()),
            write(&world, WATCHED[4], stop.clone(), written[4].clone()),
        );
    };
    let url = world.database_url();
    let upgrading = async {
        until("the writers write", async || {
            written.iter().all(|written| written.load(Ordering::Relaxed) > 3)
        })
        .await;
        let migrating =
            tokio::task::spawn_blocking(move || command("migrate", &[("DATABASE_URL", &url)]))
                .await
                .expect("it ends");
        assert!(migrating.status.success(), "{migrating:?}");
        stop.store(true, Ordering::Relaxed);
    };
    tokio::join!(writing, upgrading);
    migrate(&world);
    world.execute("update by_row set email = 'late' where id = 97; update by_statement set email = 'late' where id = 97").await;

    // It hears nothing any more, and cannot say that it has.
    let moved = sqlx::query(AssertSqlSafe(OLD_SAVE)).bind(&run_id).execute(&world.sql).await;
    assert!(moved.is_err_and(|error| error.to_string().contains("unstale.checkpoint")));
    drop(old_listener);

    let listener = world.database_url().replace("postgres@", &format!("{role}@"));
    let mut daemon = world.daemon().with("DATABASE_URL", &listener).in_one_session().start();
    daemon.ready().await;
    let mut changed = vec![
        "by_row:95".to_owned(),
        "by_log:96".to_owned(),
        "by_row:97".to_owned(),
        "by_statement:97".to_owned(),
    ];
    for (table, written) in WATCHED.iter().zip(&written) {
        changed.extend((1..=written.load(Ordering::Relaxed)).map(|id| format!("{table}:{id}")));
    }
    world.gone(changed).await;
    daemon.settles().await;
    let kept = ["by_row:98", "by_statement:98", "by_log:97", "parts:99", "other:1"];
    assert_eq!(
        world.left(kept),
        kept,
        "they did not change, and the checkpoint of the old listener was believed"
    );
    drop(daemon);

    let roles_tables = "select count(*) from pg_class c, aclexplode(c.relacl) a where c.relnamespace = 'unstale'::regnamespace and a.grantee = ";
    assert_eq!(world.number(&format!("{roles_tables}'{role}'::regrole")).await, 0);
    let fresh = World::new().await;
    fresh.execute(&format!("{TABLES}; {WATCHES}; select unstale.grant_listener('{role}')")).await;
    let (upgraded, expected) = (code(&world).await, code(&fresh).await);
    assert_eq!(only(&upgraded, &expected), [""; 0], "of the upgraded one alone");
    assert_eq!(only(&expected, &upgraded), [""; 0], "of the fresh one alone");
    fresh.execute(&format!("drop owned by {role}")).await;
    drop_role(&world, &role).await;
}

#[tokio::test]
async fn a_database_of_0_1_0_that_the_program_migrated_is_upgraded_under_writers_without_a_loss() {
    Box::pin(a_database_of_0_1_0_is_upgraded_under_writers_without_a_loss(false)).await;
}

#[tokio::test]
async fn a_database_of_0_1_0_that_psql_made_is_upgraded_under_writers_without_a_loss() {
    Box::pin(a_database_of_0_1_0_is_upgraded_under_writers_without_a_loss(true)).await;
}

fn only(of: &[String], not_in: &[String]) -> Vec<String> {
    of.iter().filter(|line| !not_in.contains(line)).cloned().collect()
}

/// As the header of migrations/0006_private.sql says, with the repeatable files backwards.
#[tokio::test]
async fn files_that_psql_applies_in_any_order_mean_the_same_as_migrate() {
    for old in [false, true] {
        let world =
            if old { old_world(true, &format!("psql_{old}")).await } else { World::bare().await };
        let (numbered, mut repeatable): (Vec<String>, Vec<String>) =
            files().into_iter().partition(|file| !file.contains("/repeatable/"));
        repeatable.reverse();
        let applied: Vec<String> =
            numbered.into_iter().skip(usize::from(old)).chain(repeatable).collect();
        assert_eq!(
            psql(&world, &applied, "select unstale.regenerate()"),
            if old { "5\n" } else { "0\n" }
        );
        if !old {
            world.execute(&format!("create role psql_{old}; {TABLES}; {WATCHES}; select unstale.grant_listener('psql_{old}')")).await;
        }
        let by_hand = code(&world).await;
        assert!(command("migrate", &[("DATABASE_URL", &world.database_url())]).status.success());
        let migrated = code(&world).await;
        assert_eq!(
            (only(&migrated, &by_hand), only(&by_hand, &migrated)),
            (vec![], vec![]),
            "by migrate alone, by hand alone"
        );
        let fresh = World::new().await;
        fresh
            .execute(&format!("{TABLES}; {WATCHES}; select unstale.grant_listener('psql_{old}')"))
            .await;
        let fresh_code = code(&fresh).await;
        assert_eq!(
            (only(&fresh_code, &by_hand), only(&by_hand, &fresh_code)),
            (vec![], vec![]),
            "of a fresh one alone, by hand alone"
        );
        fresh.execute(&format!("drop owned by psql_{old}")).await;
        drop_role(&world, &format!("psql_{old}")).await;
    }
}

#[tokio::test]
#[ignore = "a measurement: 300 watches under writers"]
async fn three_hundred_watches_are_upgraded_in_ten_seconds_under_writers() {
    let world = old_world(false, "measured").await;
    for delivery in ["row", "statement", "log"] {
        for n in 1..=100 {
            world
                .execute(&format!(
                    "create table {delivery}_{n} (like by_row including all);
                     select unstale.watch('{delivery}_{n}', array['{delivery}:{{id}}'], delivery => '{delivery}')"
                ))
                .await;
        }
    }
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (1..=4)
        .map(|writer: u32| {
            let (url, stop) = (world.database_url(), stop.clone());
            tokio::spawn(async move {
                let mut sql = PgConnection::connect(&url).await.expect("the cluster is up");
                let (mut written, mut slowest) = (0_u32, 0.0_f64);
                while !stop.load(Ordering::Relaxed) {
                    let table = format!("{}_{}", ["row", "statement", "log"][written as usize % 3], 1 + (written / 3 * 4 + writer) % 100);
                    let began = Instant::now();
                    let statement = format!("insert into {table} values ({written}, 'new') on conflict (id) do update set email = 'newer'");
                    sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut sql).await.expect("no write fails");
                    (written, slowest) = (written + 1, slowest.max(began.elapsed().as_secs_f64()));
                }
                (written, slowest)
            })
        })
        .collect();
    let began = Instant::now();
    let rounds = {
        let url = world.database_url();
        let output =
            tokio::task::spawn_blocking(move || command("migrate", &[("DATABASE_URL", &url)]))
                .await
                .expect("it ends");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).matches("left as they are").count()
    };
    let took = began.elapsed();
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        let (written, slowest) = writer.await.expect("no write fails");
        eprintln!("a writer: {written} statements meanwhile, the slowest {slowest:.3} s");
    }
    eprintln!("305 watches upgraded in {took:.1?}, {rounds} left for another run");
    assert!(took.as_secs() < 10, "{took:?}");
    drop_role(&world, "measured").await;
}
