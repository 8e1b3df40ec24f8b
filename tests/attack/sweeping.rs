//! The code of a table's owner against the sweep: it may fail its own table, and nothing else.

use std::collections::HashMap;
use std::time::Duration;

use secrecy::SecretString;
use tokio::sync::mpsc;
use unstale::messages::Swept;
use unstale::pg::Postgres;
use unstale::pg::sweep;

use super::owners::trapped_table;
use super::{listener, role, url};
use crate::support::world::World;

/// Sweeps beside such code, as the listener's role. The sweep must end, with the rows of `b` and
/// the log, and with the rows of `a` or why not; whether they were read.
async fn sweep_beside(code: &str) -> bool {
    let world = World::new().await;
    let (owner, listener) = (role(&world, "owner").await, listener(&world).await);
    trapped_table(&world, &owner, code).await;
    world.execute("insert into b values (2, '2001-01-01')").await; // logged
    let number = async |table: &str| {
        world
            .number(&format!(
                "select id::bigint from unstale.watch where relation = '{table}'::regclass"
            ))
            .await
    };
    let (a, b) = (number("evil.a").await, number("b").await);
    let postgres = Postgres::new(SecretString::from(url(&world, &listener))).expect("a URL");
    let (out, mut swept) = mpsc::channel(1);
    let from = sweep::From {
        checkpoint: None,
        done: HashMap::new(),
        log: None,
        by_hand: None,
        page_timeout: Duration::from_secs(1),
    };
    let sweeper = tokio::spawn(sweep::run(postgres, from, 10, out));
    let (mut rows_of_a, mut widened_a, mut rows_of_b, mut logged, mut ended) =
        (0, false, 0, 0, false);
    while let Some(swept) = swept.recv().await {
        match swept {
            Swept::Rows(watch, rows) if i64::from(watch) == a => rows_of_a += rows.len(),
            Swept::Rows(watch, rows) if i64::from(watch) == b => rows_of_b += rows.len(),
            Swept::Unreadable { watch, reason, .. } if i64::from(watch) == a => {
                assert!(reason.contains("cannot be read"), "{reason}");
                widened_a = true;
            }
            Swept::Log(changes) => logged += changes.len(),
            Swept::Ended => ended = true,
            Swept::Failed(reason) => panic!("{code}: {reason}"),
            _ => {}
        }
    }
    sweeper.await.expect("it does not panic");
    assert!(
        ended && rows_of_b >= 1 && logged >= 1,
        "{code}: ended {ended}, rows of b {rows_of_b}, logged {logged}"
    );
    assert!(widened_a || rows_of_a == 1, "{code}: the rows of a are lost");
    !widened_a
}

#[tokio::test]
async fn whatever_error_it_raises_fails_its_table_alone() {
    for state in
        ["08006", "40001", "40P01", "53200", "55P03", "57P01", "58000", "XX000", "P0001", "22012"]
    {
        let widened =
            !sweep_beside(&format!("raise exception 'no' using errcode = '{state}';")).await;
        assert!(widened, "{state}");
    }
}

#[tokio::test]
async fn a_setting_that_ends_the_session_or_garbles_its_answers_fails_its_table_alone() {
    for setting in [
        "set_config('idle_in_transaction_session_timeout', '1', false)",
        "set_config('idle_session_timeout', '1', false)",
        "set_config('client_encoding', 'LATIN1', false)",
        "set_config('search_path', 'evil', false)",
        "set_config('statement_timeout', '1', false)",
        "set_config('DateStyle', 'SQL, DMY', false)",
        "set_config('client_min_messages', 'debug5', false)",
        "pg_advisory_lock(7599390160)",
        "pg_terminate_backend(pg_backend_pid())",
    ] {
        sweep_beside(&format!("perform {setting};")).await;
    }
}

#[tokio::test]
async fn a_statement_that_it_prepares_under_a_name_of_ours_is_in_nobodys_way() {
    sweep_beside(
        "for n in 1 .. 50 loop begin execute format('prepare sqlx_s_%s as select 1', n); exception when others then null; end; end loop;",
    )
    .await;
    sweep_beside("execute 'deallocate all';").await;
}

#[tokio::test]
async fn code_that_does_not_let_itself_be_cancelled_is_ended() {
    let code = "loop begin perform pg_sleep(1000); exception when query_canceled then null; end; end loop;";
    assert!(!sweep_beside(code).await);
}
