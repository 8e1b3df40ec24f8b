//! The sweep on a real server, while the table does not stand still.

use std::collections::{BTreeSet, HashMap};

use secrecy::SecretString;
use tokio::sync::mpsc;
use unstale::pg::Postgres;
use unstale::pg::sweep::{self, Swept};

use crate::support::world::World;

/// Sweeps a table of 100 rows, 101 to 200, that one transaction has stamped, in pages of 10. `meanwhile` runs between two
/// pages. Returns the ids that were not read.
async fn sweep_with(meanwhile: &str) -> BTreeSet<u32> {
    let world = World::new().await;
    world
        .execute(
            "create table t (id int primary key, note int default 0, updated_at timestamptz);
             insert into t select n, 0, now() from generate_series(1, 100) n;
             select unstale.watch('t', array['t:{id}'], only_columns => array['id']);",
        )
        .await;
    world.execute("insert into t select n, 0, now() from generate_series(101, 200) n").await;
    world.execute("delete from t where id <= 100").await;
    world.execute("vacuum t").await;

    let postgres = Postgres::new(&SecretString::from(world.database_url())).expect("a URL");
    let (out, mut swept) = mpsc::channel(1);
    let from = sweep::From { checkpoint: None, done: HashMap::new() };
    let sweeper = tokio::spawn(sweep::run(postgres, from, 10, out));
    let mut missing: BTreeSet<u32> = (101..=200).collect();
    let mut pages = 0;
    while let Some(swept) = swept.recv().await {
        match swept {
            Swept::Rows(_, rows) => {
                for row in rows {
                    let id: String = row.chars().filter(char::is_ascii_digit).collect();
                    missing.remove(&id.parse().expect("an id"));
                }
                pages += 1;
                if pages == 2 {
                    world.execute(meanwhile).await;
                }
            }
            Swept::Failed(reason) => panic!("{reason}"),
            _ => {}
        }
    }
    sweeper.await.expect("it does not panic");
    missing
}

#[tokio::test]
async fn a_sweep_reads_every_row_of_a_table_that_is_rewritten_meanwhile() {
    assert_eq!(sweep_with("vacuum full t").await, BTreeSet::new());
}

#[tokio::test]
async fn a_sweep_reads_a_row_that_an_update_moves_without_counting() {
    assert_eq!(sweep_with("update t set note = 1 where id = 150").await, BTreeSet::new());
}
