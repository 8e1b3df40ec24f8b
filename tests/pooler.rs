//! PgBouncer between us and PostgreSQL: a pool in session mode is as good as PostgreSQL itself, one
//! in transaction mode is refused by every command, before anything of ours stays in it.

use sqlx::{Connection as _, PgConnection, Row as _};

use crate::support::daemon::{Daemon, command};
use crate::support::pgbouncer::PgBouncer;
use crate::support::wait::until;
use crate::support::world::World;

/// PgBouncer as it comes, and as the driver's documentation and many guides want it: it then
/// swallows what it does not pass on.
const CONFIGURATIONS: [&str; 2] = ["", "ignore_startup_parameters = extra_float_digits,options"];

#[tokio::test]
async fn a_pool_in_session_mode_is_as_good_as_postgresql_itself() {
    for more in CONFIGURATIONS {
        let mut world = World::new().await;
        world.users(10).await;
        // As if the application had settings of its own.
        world
            .execute(&format!(
                "alter database {} set idle_session_timeout = '500ms'",
                world.database()
            ))
            .await;
        let pooler = PgBouncer::before(world.postgres(), "session", more).await;
        let url = world.database_url_at(pooler.port());
        assert!(command("migrate", &[("DATABASE_URL", &url)]).status.success(), "{more}");
        let mut daemon = Daemon::settings(&url, &world.redis_url())
            .with("UNSTALE_INSTANCE", "default")
            .in_one_session()
            .start();
        daemon.ready().await;
        let gaps = daemon.gaps();
        daemon.settles().await;
        world.fill_users();
        world.change_users().await;
        world.users_are_fresh(&daemon).await;
        assert_eq!(daemon.gaps(), gaps, "{more}: nothing has ended the session");
        let output = command("check", &[("DATABASE_URL", &url), ("REDIS_URL", &world.redis_url())]);
        assert!(output.status.success(), "{more}: {}", String::from_utf8_lossy(&output.stdout));
        assert!(daemon.terminate().success());
    }
}

#[tokio::test]
async fn a_pool_in_transaction_mode_is_refused_by_every_command_and_keeps_nothing_of_ours() {
    for more in CONFIGURATIONS {
        let world = World::new().await;
        let pooler = PgBouncer::before(world.postgres(), "transaction", more).await;
        let url = world.database_url_at(pooler.port());
        let mut daemon = Daemon::settings(&url, &world.redis_url()).impatient().start();
        until("the reason names the mode", async || {
            daemon.not_ready().await.contains("a pooler in transaction mode")
        })
        .await;
        assert_eq!(daemon.terminate().code(), Some(0));
        for arguments in ["migrate", "explain public.users id=1", "sweep --all"] {
            let output =
                command(arguments, &[("DATABASE_URL", &url), ("REDIS_URL", &world.redis_url())]);
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(
                output.status.code() == Some(1) && said.contains("a pooler in transaction mode"),
                "{arguments}: {said}"
            );
        }
        let output = command("check", &[("DATABASE_URL", &url), ("REDIS_URL", &world.redis_url())]);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            said.contains("a pooler in transaction mode")
                && said.contains("a pool in session mode\n"),
            "{said}"
        );
        assert!(!said.contains("start the server"), "{said}");

        // Whoever gets one of its servers next finds it as PostgreSQL made it.
        assert_eq!(
            world.number("select count(*) from pg_locks where locktype = 'advisory'").await,
            0
        );
        let mut client = PgConnection::connect(&url.replace("postgres://", "postgresql://")).await;
        if more.is_empty() {
            assert!(client.is_err(), "the driver itself sends what this pool refuses");
            continue;
        }
        let client = client.as_mut().expect("a connection");
        let asked = "select current_setting('search_path'), current_setting('synchronous_commit'), coalesce(current_setting('unstale.direct', true), '')";
        let row = sqlx::raw_sql(asked).fetch_one(client).await.expect("settings");
        assert_eq!(
            (row.get::<&str, _>(0), row.get::<&str, _>(1), row.get::<&str, _>(2)),
            (r#""$user", public"#, "on", "")
        );
    }
}

#[tokio::test]
async fn a_pool_that_takes_no_options_says_so_to_a_url_that_has_some() {
    for more in CONFIGURATIONS {
        let world = World::new().await;
        let pooler = PgBouncer::before(world.postgres(), "session", more).await;
        let url = format!("{}?options=-c%20work_mem%3D1MB", world.database_url_at(pooler.port()));
        let output = command("migrate", &[("DATABASE_URL", &url)]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            output.status.code() == Some(1) && said.contains("a pooler takes no `options`"),
            "{said}"
        );
    }
}
