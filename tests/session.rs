//! What can happen to the connections with PostgreSQL, and that nothing is missed and nobody has to
//! help.

use std::time::{Duration, Instant};

use crate::support::daemon::Daemon;
use crate::support::link::Link;
use crate::support::migrations::files;
use crate::support::servers::own_postgres;
use crate::support::wait::{until, until_within};
use crate::support::world::World;
use crate::tidy::read;

/// A world, a link before its PostgreSQL, and a daemon behind that link, ready, with everything
/// cached.
async fn linked() -> (World, Link, Daemon) {
    let mut world = World::new().await;
    world.users(10).await;
    let link = Link::to_port(world.postgres().port()).await;
    let url = world.database_url_at(link.port());
    let mut daemon = Daemon::settings(&url, &world.redis_url()).impatient().start();
    daemon.ready().await;
    until("the first gap is closed in the ledger", async || world.complete_gaps().await == 1).await;
    world.fill_users();
    (world, link, daemon)
}

/// Ready again without help, everything stale gone, and the gap in the ledger.
async fn recovers(world: &mut World, daemon: &mut Daemon) {
    daemon.ready().await;
    world.users_are_fresh(daemon).await;
    until("the gap is closed in the ledger", async || world.complete_gaps().await >= 2).await;
}

#[tokio::test]
async fn backends_may_be_terminated_again_and_again() {
    let mut world = World::new().await;
    world.users(10).await;
    let mut daemon = world.daemon().impatient().start();
    daemon.ready().await;
    // The first and the last that was started: the one that sends the heartbeats and the one that
    // listens.
    for round in 1..=6 {
        world.execute("truncate users; insert into users select n, n || '@old' from generate_series(1, 10) n").await;
        daemon.ready().await;
        daemon.settles().await;
        world.fill_users();
        let order = if round % 2 == 0 { "asc" } else { "desc" };
        // Those of the sweep, and of a look at the findings, end by themselves.
        let backends = "select count(*) from pg_stat_activity where datname = current_database() and application_name = 'unstale'";
        until("only the session's two are there", async || world.number(backends).await == 2).await;
        let gaps = daemon.gaps();
        let terminate = format!(
            "select count(pg_terminate_backend(pid)) from (
                 select pid from pg_stat_activity where datname = current_database() and application_name = 'unstale'
                  order by backend_start {order} limit 1) one"
        );
        assert_eq!(world.number(&terminate).await, 1);
        world.change_users().await;
        daemon.opens_gap(gaps).await;
        daemon.ready().await;
        // Some rows are as new as the gap, so that their keys may go, too: this is about what must
        // not stay.
        until("all stale keys are gone", async || world.left(World::STALE).is_empty()).await;
    }
}

#[tokio::test]
async fn a_link_that_is_cut_is_waited_for() {
    let (mut world, link, mut daemon) = linked().await;
    link.cut().await;
    world.change_users().await;
    until("the reason names PostgreSQL", async || {
        daemon.not_ready().await.contains("no session with PostgreSQL")
    })
    .await;
    // It tries again, and again.
    until("it has tried a few times", async || {
        daemon.metric("unstale_reconnects_total", &[("side", "postgres")]) >= 4.0
    })
    .await;
    link.heal().await;
    recovers(&mut world, &mut daemon).await;
}

#[tokio::test]
async fn a_link_that_is_reset_is_opened_again() {
    let (mut world, link, mut daemon) = linked().await;
    for round in 1..=5 {
        link.reset().await;
        until("the loss is counted", async || {
            daemon.metric("unstale_reconnects_total", &[("side", "postgres")]) >= f64::from(round)
        })
        .await;
        daemon.ready().await;
    }
    world.fill_users();
    link.reset().await;
    world.change_users().await;
    recovers(&mut world, &mut daemon).await;
}

#[tokio::test]
async fn a_black_hole_is_found_by_the_heartbeat_in_time() {
    let (mut world, link, mut daemon) = linked().await;
    let gaps = daemon.gaps();
    let since = Instant::now();
    link.black_hole();
    world.change_users().await;
    daemon.opens_gap(gaps).await;
    // heartbeat.timeout is 1 s. TCP alone would need a quarter of an hour.
    assert!(since.elapsed() < Duration::from_secs(20), "found after {:?}", since.elapsed());
    let reason = daemon.not_ready().await;
    assert!(reason.contains("heartbeat.timeout") || reason.contains("PostgreSQL"), "{reason}");
    link.heal().await;
    recovers(&mut world, &mut daemon).await;
}

#[tokio::test]
async fn replies_that_do_not_come_are_found_in_time_too() {
    let (mut world, link, mut daemon) = linked().await;
    let gaps = daemon.gaps();
    link.hold_replies();
    world.change_users().await;
    daemon.opens_gap(gaps).await;
    link.heal().await;
    recovers(&mut world, &mut daemon).await;
}

#[tokio::test]
async fn a_slow_link_is_slow_and_loses_nothing() {
    let (mut world, link, mut daemon) = linked().await;
    link.slow(Duration::from_millis(70));
    world.change_users().await;
    until("all stale keys are gone", async || world.left(World::STALE).is_empty()).await;
    link.heal().await;
    daemon.ready().await;
    world.users_are_fresh(&daemon).await;
}

#[tokio::test]
async fn one_backend_that_hangs_is_found_whichever_it_is() {
    // Of its own: whoever drops a database waits for its backends.
    let mut world = World::on(own_postgres()).await;
    world.users(10).await;
    let mut daemon = world.daemon().impatient().start();
    daemon.ready().await;
    for order in ["asc", "desc"] {
        world.execute("truncate users; insert into users select n, n || '@old' from generate_series(1, 10) n").await;
        daemon.ready().await;
        daemon.settles().await;
        world.fill_users();
        let pid = world
            .number(&format!(
                "select pid::bigint from pg_stat_activity where datname = current_database() and application_name = 'unstale'
                  order by backend_start {order} limit 1"
            ))
            .await;
        let pid = rustix::process::Pid::from_raw(i32::try_from(pid).expect("a process number"))
            .expect("not 0");
        let gaps = daemon.gaps();
        rustix::process::kill_process(pid, rustix::process::Signal::STOP).expect("it runs");
        world.change_users().await;
        daemon.opens_gap(gaps).await;
        daemon.ready().await;
        rustix::process::kill_process(pid, rustix::process::Signal::CONT).expect("it is there");
        until("all stale keys are gone", async || world.left(World::STALE).is_empty()).await;
    }
}

#[tokio::test]
async fn a_role_without_connections_left_is_told_so() {
    let mut world = World::new().await;
    world.users(10).await;
    let role = format!("narrow_{}", world.database());
    // One is enough for the heartbeats, and not for the listening.
    world
        .execute(&format!(
            "create role {role} login connection limit 1; select unstale.grant_listener('{role}')"
        ))
        .await;
    let url = world.database_url().replace("postgres@", &format!("{role}@"));
    let mut daemon = Daemon::settings(&url, &world.redis_url()).impatient().start();
    until("the reason names the limit", async || {
        daemon.not_ready().await.contains("too many connections")
    })
    .await;
    world.fill_users();
    world.change_users().await;
    world.execute(&format!("alter role {role} connection limit 10")).await;
    daemon.ready().await;
    world.users_are_fresh(&daemon).await;
    daemon.terminate();
    world.execute(&format!("drop owned by {role}; drop role {role}")).await;
}

#[tokio::test]
#[ignore = "takes as long as the sweep's patience, more than a minute"]
async fn a_sweep_whose_backend_hangs_is_repeated() {
    // Of its own: whoever drops a database waits for its backends.
    let mut world = World::on(own_postgres()).await;
    world.users(10).await;
    let mut daemon = world.daemon().impatient().start();
    daemon.ready().await;
    daemon.settles().await;
    daemon.kill9();
    world.fill_users();
    world.change_users().await;
    let mut lock = world.sql.begin().await.expect("a transaction");
    sqlx::raw_sql("lock table users in access exclusive mode")
        .execute(&mut *lock)
        .await
        .expect("it is free");
    let daemon = world.daemon().impatient().start();
    let waits = "select coalesce(max(pid), 0)::bigint from pg_stat_activity
                  where datname = current_database() and application_name = 'unstale' and wait_event_type = 'Lock'";
    let pid = until("the sweep waits for the lock", async || {
        Some(world.number(waits).await).filter(|&pid| pid > 0)
    })
    .await;
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).expect("a process number"))
        .expect("not 0");
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).expect("it runs");
    lock.rollback().await.expect("the lock is free");
    until_within("the sweep is repeated", Duration::from_secs(120), async || daemon.is_ready())
        .await;
    rustix::process::kill_process(pid, rustix::process::Signal::CONT).expect("it is there");
    world.users_are_fresh(&daemon).await;
}

#[tokio::test]
async fn it_starts_into_a_black_hole_and_comes_out_of_it() {
    let mut world = World::new().await;
    world.users(10).await;
    let link = Link::to_port(world.postgres().port()).await;
    link.black_hole();
    let url = world.database_url_at(link.port());
    let mut daemon = Daemon::settings(&url, &world.redis_url()).impatient().start();
    until("the reason names PostgreSQL", async || {
        daemon.get("/ready").is_some_and(|(_, reason)| reason.contains("PostgreSQL"))
    })
    .await;
    world.fill_users();
    world.change_users().await;
    link.heal().await;
    daemon.ready().await;
    world.users_are_fresh(&daemon).await;
}

#[tokio::test]
async fn sigterm_ends_it_while_postgres_is_a_black_hole_from_the_start() {
    let world = World::new().await;
    let link = Link::to_port(world.postgres().port()).await;
    link.black_hole();
    // The defaults: nothing that would end a wait soon.
    let mut daemon =
        Daemon::settings(&world.database_url_at(link.port()), &world.redis_url()).start();
    until("it lives", async || daemon.get("/live").is_some()).await;
    until("it connects", async || link.connections() > 0).await;
    assert_eq!(daemon.terminate().code(), Some(0));
}

#[tokio::test]
async fn postgres_may_stop_at_once_be_killed_and_come_back() {
    let mut world = World::on(own_postgres()).await;
    world.users(10).await;
    let mut daemon = world.daemon().impatient().start();
    daemon.ready().await;
    for kill in [false, true] {
        world.execute("truncate users; insert into users select n, n || '@old' from generate_series(1, 10) n").await;
        daemon.ready().await;
        daemon.settles().await;
        world.fill_users();
        // Committed, and possibly not heard any more.
        world.change_users().await;
        if kill {
            world.own_postgres().kill9();
        } else {
            world.own_postgres().stop_immediately();
        }
        until("the reason names PostgreSQL", async || {
            daemon.not_ready().await.contains("no session with PostgreSQL")
        })
        .await;
        world.own_postgres().start_again().expect("it recovers");
        daemon.ready().await;
        until("all stale keys are gone", async || world.left(World::STALE).is_empty()).await;
        // The pool's connections are dead; each is found out once.
        until("the test's own connections work", async || {
            sqlx::query("select 1").execute(&world.sql).await.is_ok()
        })
        .await;
    }
}

#[tokio::test]
async fn a_database_in_sql_ascii_is_refused_with_a_sentence() {
    let world = World::bare().await;
    let name = format!("{}_ascii", world.database());
    world.execute(&format!("create database {name} encoding 'SQL_ASCII' lc_collate 'C' lc_ctype 'C' template template0")).await;
    let url = world.postgres().url(&name);
    let migrated = crate::support::daemon::command("migrate", &[("DATABASE_URL", &url)]);
    let said = String::from_utf8_lossy(&migrated.stderr).into_owned();
    assert!(!migrated.status.success() && said.contains("SQL_ASCII"), "{said}");

    // As if somebody had put the schema in by hand.
    let pool = sqlx::PgPool::connect(&url).await.expect("it is up");
    for file in files() {
        sqlx::raw_sql(sqlx::AssertSqlSafe(read(&file))).execute(&pool).await.expect("it applies");
    }
    pool.close().await;
    let mut daemon = Daemon::settings(&url, &world.redis_url()).impatient().start();
    until("the reason says SQL_ASCII", async || daemon.not_ready().await.contains("SQL_ASCII"))
        .await;
    assert_eq!(daemon.terminate().code(), Some(0));
    world.execute(&format!("drop database {name} with (force)")).await;
}

#[tokio::test]
async fn a_standby_is_refused_with_a_sentence_until_it_is_promoted() {
    let mut world = World::on(own_postgres()).await;
    world.users(10).await;
    let mut daemon = world.daemon().impatient().start();
    daemon.ready().await;
    daemon.settles().await; // with a checkpoint that the following commits bring to disk
    world.fill_users();
    world.change_users().await;
    world.own_postgres().stop_immediately();
    std::fs::write(world.postgres().directory().join("data/standby.signal"), "")
        .expect("it is ours");
    world.own_postgres().start_again().expect("it starts as a standby");
    until("the reason says standby", async || daemon.not_ready().await.contains("standby")).await;
    until("it is promoted", async || {
        sqlx::query("select pg_promote()").execute(&world.sql).await.is_ok()
    })
    .await;
    daemon.ready().await;
    world.users_are_fresh(&daemon).await;
}

#[tokio::test]
async fn a_burst_of_100_000_notifications_is_taken_without_losing_one_or_the_session() {
    const BURST: u32 = 100_000;
    let mut world = World::new().await;
    world.users(BURST).await;
    let mut daemon = world.daemon().in_one_session().start();
    daemon.ready().await;
    let gaps = daemon.gaps();
    let keys = || (1..=BURST).map(|n| format!("user:{n}"));
    world.fill(keys());
    world.fill(["neighbour"]);
    // A transaction for each would take the test's time: a few hundred a commit.
    for from in (1..=BURST).step_by(500) {
        world.change_each_user(from..=from + 499).await;
    }
    until_within("all keys are gone", Duration::from_secs(100), async || world.cached() <= 1).await;
    daemon.settles().await;
    assert_eq!(world.left(["neighbour"]), ["neighbour"]);
    assert_eq!(daemon.metric("unstale_changes_total", &[]), f64::from(BURST));
    assert_eq!(daemon.gaps(), gaps);
}

#[tokio::test]
async fn a_gap_is_one_row_of_the_ledger_over_however_many_sessions() {
    let mut world = World::new().await;
    world.users(10).await;
    let mut daemon = world.daemon().impatient().start();
    daemon.ready().await;
    until("the first gap is closed", async || world.complete_gaps().await == 1).await;
    world.fill_users();
    // It cannot catch up, because Redis does not answer, and loses one session after the other.
    world.redis.pause();
    world.change_users().await;
    let terminate = "select count(pg_terminate_backend(pid)) from pg_stat_activity where datname = current_database() and application_name = 'unstale'";
    for _ in 0..3 {
        let reconnects = daemon.metric("unstale_reconnects_total", &[("side", "postgres")]);
        until("sessions are there to be ended", async || world.number(terminate).await > 0).await;
        until("the loss is seen", async || {
            daemon.metric("unstale_reconnects_total", &[("side", "postgres")]) > reconnects
        })
        .await;
        until("it catches up", async || daemon.not_ready().await.contains("catching up")).await;
    }
    world.redis.resume();
    daemon.ready().await;
    world.users_are_fresh(&daemon).await;
    until("the gap is closed", async || {
        world.number("select count(*) from unstale.gap where not complete").await == 0
    })
    .await;
    assert_eq!(world.complete_gaps().await, 2);
}
