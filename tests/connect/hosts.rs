//! Several hosts, or one name for several servers: the primary is found, and found again.

use std::io::Write as _;

use super::*;

/// A standby of `primary`, on a port of its own.
pub(crate) fn standby_of(primary: &World) -> unstale::scratch::Postgres {
    let standby = own_postgres();
    let data = standby.directory().join("data");
    let mut standby = standby;
    standby.stop_immediately();
    let owner = std::fs::metadata(&data).expect("it is there");
    std::fs::remove_dir_all(&data).expect("it is ours");
    let mut copy = std::process::Command::new(primary.postgres().programs().join("pg_basebackup"));
    copy.args([
        "-h",
        "127.0.0.1",
        "-U",
        "postgres",
        "-c",
        "fast",
        "-X",
        "stream",
        "-p",
        &primary.postgres().port().to_string(),
        "-D",
    ])
    .arg(&data);
    as_owner(&mut copy, &owner);
    let copied = copy.output().expect("pg_basebackup");
    assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
    // Not by -R: a pg_basebackup that is newer than the server writes settings that it has not.
    let from = format!(
        "primary_conninfo = 'host=127.0.0.1 port={} user=postgres'\n",
        primary.postgres().port()
    );
    let settings = std::fs::OpenOptions::new().append(true).open(data.join("postgresql.auto.conf"));
    settings.expect("it has settings").write_all(from.as_bytes()).expect("room");
    std::fs::write(data.join("standby.signal"), "").expect("room");
    standby.start_again().expect("a standby starts");
    standby
}

fn as_owner(command: &mut std::process::Command, owner: &std::fs::Metadata) {
    use std::os::unix::fs::MetadataExt as _;
    use std::os::unix::process::CommandExt as _;
    command.uid(owner.uid()).gid(owner.gid()).current_dir("/");
}

#[tokio::test]
async fn of_several_hosts_the_primary_is_found_and_found_again_after_a_fail_over() {
    let mut world = World::on(own_postgres()).await;
    world.users(10).await;
    let standby = standby_of(&world);
    let hosts =
        format!("127.0.0.1:1,127.0.0.1:{},127.0.0.1:{}", standby.port(), world.postgres().port());
    let url = format!("postgres://postgres@{hosts}/app");
    let mut daemon = Daemon::settings(&url, &world.redis_url()).impatient().start();
    works(&mut world, &mut daemon).await;
    daemon.settles().await;

    world.own_postgres().stop_immediately();
    let reason = until("the reason names every host", async || {
        Some(daemon.not_ready().await).filter(|reason| reason.contains("is a standby"))
    })
    .await;
    assert!(
        reason.contains("127.0.0.1:1: ")
            && reason.contains(&format!("127.0.0.1:{}: it is a standby", standby.port())),
        "{reason}"
    );
    let promoted = sqlx::PgPool::connect_lazy(&standby.url("app")).expect("a URL");
    until("it is promoted", async || {
        sqlx::query("select pg_promote()").execute(&promoted).await.is_ok()
    })
    .await;
    daemon.ready().await;
    world.fill(["user:7"]);
    sqlx::query("update users set name = 'bob', updated_at = clock_timestamp() where id = 7")
        .execute(&promoted)
        .await
        .expect("it is a primary");
    world.gone(["user:7"]).await;
}

/// A primary, its standby, and a port at which 127.0.0.2 leads to the first and 127.0.0.3 to the
/// second. Neither is the address that a connection would come from, which resolvers put first.
async fn two_servers() -> (World, Postgres, u16, [Link; 2]) {
    let world = World::on(own_postgres()).await;
    let standby = standby_of(&world);
    let port = free_port().expect("a free port");
    let link = async |last: u8, to: u16| {
        Link::between(([127, 0, 0, last], port).into(), ([127, 0, 0, 1], to).into()).await
    };
    let links = [link(2, world.postgres().port()).await, link(3, standby.port()).await];
    (world, standby, port, links)
}

#[tokio::test]
async fn of_two_servers_of_one_name_the_primary_is_found() {
    let (world, standby, port, _links) = two_servers().await;
    let _third =
        Link::between(([127, 0, 0, 4], port).into(), ([127, 0, 0, 1], standby.port()).into()).await;
    let hosts = standby.directory().join("hosts");
    for (addresses, refusal) in [
        (["127.0.0.2", "127.0.0.3"], None),
        (["127.0.0.3", "127.0.0.2"], None),
        (
            ["127.0.0.3", "127.0.0.4"],
            Some(
                "none of the addresses of db.test is that of a primary: 127.0.0.3: it is a standby; 127.0.0.4: ",
            ),
        ),
    ] {
        world.execute("drop schema if exists unstale cascade").await;
        let Some(words) = with_hosts(&hosts, &addresses) else { return };
        let mut migrate = std::process::Command::new(&words[0]);
        migrate
            .args(&words[1..])
            .args([BINARY, "migrate"])
            .env("DATABASE_URL", format!("postgres://postgres@db.test:{port}/app"));
        let output = migrate.output().expect("util-linux has unshare");
        assert_eq!(output.status.success(), refusal.is_none(), "{addresses:?}: {output:?}");
        assert!(
            String::from_utf8_lossy(&output.stderr).contains(refusal.unwrap_or_default()),
            "{addresses:?}: {output:?}"
        );
        let made =
            world.number("select count(*) from pg_namespace where nspname = 'unstale'").await;
        assert_eq!(made, i64::from(refusal.is_none()));
    }
}

/// Where readers read, any server of the name will do.
#[tokio::test]
async fn a_replica_may_be_one_of_several_standbys_of_one_name() {
    let (mut world, standby, port, _links) = two_servers().await;
    let _third =
        Link::between(([127, 0, 0, 4], port).into(), ([127, 0, 0, 1], standby.port()).into()).await;
    world.users(10).await;
    let Some(words) = with_hosts(&standby.directory().join("hosts"), &["127.0.0.3", "127.0.0.4"])
    else {
        return;
    };
    let replica = format!("postgres://postgres@db.test:{port}/app");
    let settings = world
        .daemon()
        .under(words)
        .with("UNSTALE_REPLICAS__URLS", &replica)
        .with("UNSTALE_REPLICAS__MAX_WAIT", "1h");
    let mut daemon = settings.start();
    works(&mut world, &mut daemon).await;
    until("the replica has answered", async || {
        daemon.metric("unstale_repeated_keys_total", &[("cause", "replicas")]) > 0.0
    })
    .await;
}

#[tokio::test]
async fn a_host_that_does_not_even_refuse_keeps_nobody_from_the_next() {
    let mut world = World::new().await;
    world.users(10).await;
    let link = Link::to_port(world.postgres().port()).await;
    link.black_hole();
    let hosts = format!("127.0.0.1:{},127.0.0.1:{}", link.port(), world.postgres().port());
    let url =
        world.database_url().replace(&format!("127.0.0.1:{}", world.postgres().port()), &hosts);
    // By patience with each host, and by beginning with the next one if the session's own patience
    // ends before.
    assert!(
        command("migrate", &[("DATABASE_URL", &format!("{url}?connect_timeout=1"))])
            .status
            .success()
    );
    let mut daemon = Daemon::settings(&url, &world.redis_url()).impatient().start();
    works(&mut world, &mut daemon).await;
}
