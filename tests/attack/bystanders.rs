//! Whoever may only connect, or only write a watched table.

use std::time::{Duration, Instant};

use sqlx::postgres::{PgListener, PgPoolOptions};

use super::{attempt, daemon_as, listener, role, run, session, unstale};
use crate::support::world::World;

#[tokio::test]
async fn a_writer_who_asks_to_see_notifications_does_not_learn_the_channel() {
    let world = World::new().await;
    world.users(1).await;
    let clerk = role(&world, "clerk").await;
    world.execute(&format!("grant insert on users to {clerk}")).await;
    // What psql would print comes as notices, which the log of the server can be made to hold, too:
    // of this session alone.
    let output = std::process::Command::new("psql")
        .args([
            &super::url(&world, &clerk),
            "-c",
            "set trace_notify = on",
            "-c",
            "set client_min_messages = debug1",
        ])
        .args(["-c", "insert into users (id, email) values (2, 'x')"])
        .output()
        .expect("psql is installed with PostgreSQL");
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success() && !said.contains("unstale_"), "{said}");
    assert_eq!(
        world.number("select count(*) from unstale.change_log where not announced").await,
        1,
        "it must be in the log instead"
    );
}

#[tokio::test]
async fn whoever_may_only_connect_finds_no_channel_and_is_heard_on_none() {
    let mut world = World::new().await;
    world.users(10).await;
    let (listener, nobody) = (listener(&world).await, role(&world, "nobody").await);
    let mut daemon = daemon_as(&world, &listener).start();
    daemon.ready().await;
    let secret: String = sqlx::query_scalar("select unstale.channel()")
        .fetch_one(&world.sql)
        .await
        .expect("the owner may");
    let mut stranger = session(&world, &nobody).await;
    for sql in [
        "select * from unstale.channel_id",
        "select pg_sequence_last_value('unstale.channel_id')",
        "select unstale.channel()",
    ] {
        attempt(&mut stranger, sql).await.expect_err(sql);
    }
    let seen: String = sqlx::query_scalar(
        "select concat((select string_agg(a::text, ' ') from pg_stat_activity a), (select string_agg(s::text, ' ') from pg_sequences s),
                       (select string_agg(s::text, ' ') from pg_sequence s), (select string_agg(p.prosrc, ' ') from pg_proc p),
                       (select string_agg(d.description, ' ') from pg_description d), (select string_agg(l::text, ' ') from pg_locks l),
                       (select string_agg(c, ' ') from pg_listening_channels() c), (select string_agg(s.setting, ' ') from pg_settings s))",
    )
    .fetch_one(&mut stranger)
    .await
    .expect("everybody may read the catalogue");
    let number = secret.trim_start_matches("unstale_");
    assert!(!seen.contains(number) && number.len() > 10, "the channel's name is public");

    world.fill_users();
    let guesses = ["unstale", "unstale_", "unstale_1", "unstale_0", &format!("{secret}0")];
    for channel in guesses {
        for payload in
            [r#"{"watch":1,"rev":1,"all":true}"#, r#"{"watches":true}"#, r#"{"bell":true}"#]
        {
            sqlx::query("select pg_notify($1, $2)")
                .bind(channel)
                .bind(payload)
                .execute(&mut stranger)
                .await
                .expect("anybody may");
        }
    }
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .connect_lazy(&super::url(&world, &nobody))
        .expect("a URL");
    let mut eavesdropper = PgListener::connect_with(&pool).await.expect("it may connect");
    eavesdropper.listen_all(["unstale", "unstale_"]).await.expect("anybody may");
    daemon.settles().await;
    assert_eq!(world.left(World::STALE), World::STALE);
    world.change_users().await;
    world.users_are_fresh(&daemon).await;
    run(&mut stranger, "notify unstale, 'end'").await;
    assert_eq!(
        eavesdropper.recv().await.expect("it listens").payload(),
        "end",
        "it heard a change"
    );
}

#[tokio::test]
async fn advisory_locks_of_others_stop_neither_writers_nor_rotation_nor_migrate() {
    let mut world = World::new().await;
    world.users(200).await;
    let (listener, nobody) = (listener(&world).await, role(&world, "nobody").await);
    let mut daemon = daemon_as(&world, &listener).start();
    daemon.ready().await;
    let mut locker = session(&world, &nobody).await;
    run(&mut locker, "select pg_advisory_lock(n) from unnest(array[7599390160, 7599390161, 33053040438895717]) n").await;
    run(&mut locker, &format!("select pg_advisory_lock({})", 0x0075_6e73_7461_6c65_u64)).await;
    let mut slowest = Duration::ZERO;
    for id in 101..=120 {
        world.fill([format!("user:{id}")]);
        let since = Instant::now();
        world
            .execute(&format!(
                "update users set name = 'bob', updated_at = clock_timestamp() where id = {id}"
            ))
            .await;
        world.gone([format!("user:{id}")]).await;
        slowest = slowest.max(since.elapsed());
    }
    assert!(slowest < Duration::from_secs(2), "a change took {slowest:?}"); // tens of milliseconds, on a machine that is not busy
    let (done, said) = unstale(&world, "postgres", "migrate");
    assert!(done, "{said}");
    let before = world.number("select unstale.part()::bigint").await;
    world.execute("delete from users where id < 100; select unstale.rotate_log(0)").await;
    assert_ne!(
        world.number("select unstale.part()::bigint").await,
        before,
        "the log was not rotated"
    );
}

#[tokio::test]
async fn a_half_full_notification_queue_sends_changes_to_the_log_instead_of_failing_a_commit() {
    let world = World::new().await;
    world.users(5).await;
    world.execute("create or replace function unstale.queue_usage() returns double precision language sql volatile return 0.6").await;
    world
        .execute("update users set name = 'bob', updated_at = clock_timestamp() where id = 1")
        .await;
    assert_eq!(
        world.number("select count(*) from unstale.change_log where not announced").await,
        1
    );
}

#[tokio::test]
async fn a_writers_settings_and_objects_neither_fail_the_write_nor_run_in_the_trigger() {
    let world = World::new().await;
    world.users(5).await;
    let clerk = role(&world, "clerk").await;
    world.execute(&format!("grant select, insert, update, delete on users to {clerk}; create schema evil authorization {clerk}")).await;
    let mut session = session(&world, &clerk).await;
    run(
        &mut session,
        "create function evil.trap() returns boolean language plpgsql as $$ begin raise exception 'as %', current_user; end $$;
         create function evil.trap(text, text) returns boolean language sql as 'select evil.trap()';
         create function evil.trap(int, int) returns boolean language sql as 'select evil.trap()';
         create function evil.trap(oid, oid) returns boolean language sql as 'select evil.trap()';
         create operator evil.= (leftarg = text, rightarg = text, function = evil.trap);
         create operator evil.|| (leftarg = text, rightarg = text, function = evil.trap);
         create operator evil.< (leftarg = int, rightarg = int, function = evil.trap);
         create operator evil.<> (leftarg = oid, rightarg = oid, function = evil.trap);
         create function evil.concat(text, text) returns boolean language sql as 'select evil.trap()';
         create function evil.octet_length(text) returns boolean language sql as 'select evil.trap()';
         create domain evil.bool as boolean; create domain evil.text as pg_catalog.text; create table evil.change_log_1 (); create table evil.new_rows ()",
    )
    .await;
    let parallel =
        match world.number("select current_setting('server_version_num')::bigint / 10000").await {
            ..16 => "force_parallel_mode = on",
            _ => "debug_parallel_query = on",
        };
    for setting in [
        parallel,
        "search_path = evil, pg_catalog, pg_temp, public",
        "plpgsql.extra_errors = 'all'",
        "standard_conforming_strings = off",
        "transform_null_equals = on",
        "quote_all_identifiers = on",
        "default_transaction_isolation = serializable",
        "DateStyle = 'German'",
        "lock_timeout = 1",
        "debug_print_plan = on",
    ] {
        for delivery in ["row", "statement", "log"] {
            world
                .execute(&format!("select unstale.watch('users', array['user:{{id}}', 'email:{{email}}'], delivery => '{delivery}')"))
                .await;
            let sql = format!(
                "begin; set local {setting}; insert into public.users (id, email) values (9, 'x');
                 update public.users set email = 'y', updated_at = clock_timestamp() where id in (1, 9); delete from public.users where id = 9; rollback"
            );
            attempt(
                &mut session,
                &sql.replace(
                    "default_transaction_isolation = serializable",
                    "transaction_isolation = serializable",
                ),
            )
            .await
            .unwrap_or_else(|error| panic!("{setting}, {delivery}: {error}"));
        }
    }
}
