//! Rows of our own tables that the owner has spoiled: a listener starts and delivers, whatever they
//! hold.

use crate::support::world::World;

/// Each leaves a row behind that `unstale` would not have written.
const SPOILT: &[&str] = &[
    "alter table unstale.watch drop constraint watch_max_ttl_check; update unstale.watch set max_ttl = '300000 years' where table_name = 'public.spoilt'",
    "update unstale.watch set max_ttl = '-5 days'::interval where table_name = 'public.spoilt'",
    "update unstale.watch set since = 'infinity' where table_name = 'public.spoilt'",
    "update unstale.watch set since = '-infinity' where table_name = 'public.spoilt'",
    "update unstale.watch set since = '4713-11-24 BC' where table_name = 'public.spoilt'",
    "update unstale.watch set keys = array[null, 'spoilt:{id}'] where table_name = 'public.spoilt'",
    "update unstale.watch set keys = array[['a:{id}', 'b'], ['c', 'd']] where table_name = 'public.spoilt'",
    "update unstale.watch set keys = '{}' where table_name = 'public.spoilt'",
    "update unstale.watch set keys = array['spoilt:{id'] where table_name = 'public.spoilt'",
    "update unstale.watch set columns = array[[null]], attnums = array[null]::smallint[], only_columns = array[null] where table_name = 'public.spoilt'",
    "update unstale.watch set sweep_attnum = 99 where table_name = 'public.spoilt'",
    "update unstale.watch set ended = '18446744073709551615' where table_name = 'public.spoilt'",
    "update unstale.watch set relation = 0 where table_name = 'public.spoilt'",
    "update unstale.watch set table_name = E'\\n\\x1b[31m', rev = -2147483648, code = -1 where table_name = 'public.spoilt'",
    "insert into unstale.watch overriding system value select (w).* from (select jsonb_populate_record(w, '{\"id\": -7, \"relation\": 1}') w from unstale.watch w limit 1) w",
    "update unstale.instance set saved_at = 'infinity', forget_after = '178000000 years'",
    "update unstale.instance set saved_at = '-infinity', forget_after = '-178000000 years'",
    "update unstale.instance set watermark = 'infinity', replay_watermark = '-infinity'",
    "update unstale.instance set watermark = '4713-11-24 BC', timeline = E'\\n', redis = E'\\n'",
    "update unstale.instance set replay_log = null, replay_watermark = null",
    "insert into unstale.instance (name, timeline, forget_after, saved_at, role) values ('', '', '-1 day', '294276-12-31', 'no \"such'' role')",
    "insert into unstale.gap (instance, cause, opened_at) select 'test', '', t from unnest(array['infinity', '-infinity', '4713-11-24 BC']::timestamptz[]) t",
    "insert into unstale.gap (id, instance, cause) overriding system value values (-9223372036854775808, 'test', ''), (9223372036854775806, 'test', '')",
    "insert into unstale.change_log_1 (xid, id, watch, announced, change) values ('18446744073709551615', -1, -1, false, 'no json'), ('1', 0, 1, false, '{}')",
    "insert into unstale.repeatable values ('', ''), ('wire2', 'x'); update unstale.repeatable set applied_at = '-infinity'",
];

#[tokio::test]
async fn no_bad_row_keeps_a_listener_from_starting_and_delivering() {
    let mut world = World::new().await;
    world.users(10).await;
    world
        .execute(
            "create table spoilt (id int primary key, updated_at timestamptz); select unstale.watch('public.spoilt', array['spoilt:{id}'])",
        )
        .await;
    // The name as unstale.watch() keeps it.
    world.execute("update unstale.watch set table_name = 'public.spoilt' where relation = 'spoilt'::regclass").await;
    for (n, sql) in SPOILT.iter().enumerate() {
        world.execute(sql).await;
        let mut daemon = world.daemon().impatient().in_one_session().start();
        daemon.ready().await;
        let key = format!("user:{}", n % 10 + 1);
        world.fill([key.as_str()]);
        world
            .execute(&format!(
                "update users set name = 'bob', updated_at = clock_timestamp() where id = {}",
                n % 10 + 1
            ))
            .await;
        world.gone([key.as_str()]).await;
        if sql.contains("'spoilt:{id'") {
            daemon.says("spoilt:{id").await;
        }
        let findings = sqlx::query("select * from unstale.findings()").fetch_all(&world.sql).await;
        findings.unwrap_or_else(|error| panic!("{sql}: {error}"));
        assert_eq!(daemon.terminate().code(), Some(0), "{sql}");
    }
}
