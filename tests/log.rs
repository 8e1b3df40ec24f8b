//! Reading `unstale.change_log` on a real server.

use unstale::pg::log::page;

use crate::support::world::World;

#[tokio::test]
async fn pages_of_the_log_follow_each_other_also_where_xids_get_one_more_digit() {
    let world = World::new().await;
    world
        .execute("insert into unstale.change_log (xid, watch, change) select (995 + n)::text::xid8, 1, n from generate_series(1, 9) n")
        .await;
    let mut sql = world.sql.acquire().await.expect("the cluster is up");
    let (mut read, mut after) = (Vec::new(), None);
    loop {
        let (changes, last) = page(&mut sql, 997, after, 2).await.expect("the table is there");
        if last.is_none() {
            break;
        }
        read.extend(changes);
        after = last;
    }
    assert_eq!(read, ["2", "3", "4", "5", "6", "7", "8", "9"]);
}
