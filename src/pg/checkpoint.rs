//! How far an instance has come, kept in the database: its checkpoint, and that it is there.

use std::time::Duration;

use sqlx::Row;
use sqlx::postgres::PgConnection;

use super::{Error, log};
use crate::watermark::{Checkpoint, PgTime, Progress, Proven, Stored};

/// Under what name progress is kept, and for how long.
#[derive(Debug, Clone)]
pub struct Instance {
    /// `instance`.
    pub name: String,
    /// `checkpoint.forget_after`.
    pub forget_after: Duration,
}

impl Instance {
    /// How long ago it last stored anything; `None`: it is not known to the database.
    pub(super) async fn seen(
        &self,
        connection: &mut PgConnection,
    ) -> Result<Option<Duration>, Error> {
        let query = sqlx::query("select unstale.seen($1)").bind(&self.name);
        let row =
            query.fetch_one(connection).await.map_err(Error::of("looking for this instance"))?;
        let seconds: Option<f64> = row.get(0);
        Ok(seconds.map(|seconds| Duration::try_from_secs_f64(seconds).unwrap_or_default())) // less than 0: the clock was set back
    }

    /// From here on the log, and what it means, is kept for this instance. One that was away for
    /// too long is marked until it has deleted everything.
    pub(super) async fn register(&self, connection: &mut PgConnection) -> Result<(), Error> {
        sqlx::query("select unstale.register($1, $2 * interval '1 second')")
            .bind(&self.name)
            .bind(self.forget_after.as_secs_f64())
            .execute(connection)
            .await
            .map_err(Error::of("noting that this instance is here"))?;
        Ok(())
    }

    /// Nothing may be stored, because nothing is proven yet or a server may have undone something;
    /// but the log is kept for who is there.
    pub(super) async fn touch(&self, connection: &mut PgConnection) -> Result<(), Error> {
        let query = sqlx::query("select unstale.touch($1)").bind(&self.name);
        query.execute(connection).await.map_err(Error::of("noting that this instance is here"))?;
        Ok(())
    }

    /// How far it had come.
    pub(super) async fn stored(
        &self,
        connection: &mut PgConnection,
    ) -> Result<Option<Stored>, Error> {
        let row = sqlx::query("select log, watermark, replay_log, replay_watermark, redis, timeline, forgotten from unstale.stored($1)")
            .bind(&self.name)
            .fetch_optional(connection)
            .await
            .map_err(Error::of("reading the checkpoint"))?;
        let Some(row) = row else { return Ok(None) };
        let checkpoint = |at: usize| match row.get(at) {
            None => Ok(None),
            Some(log) => Ok(Some(Checkpoint {
                watermark: row.get::<Option<i64>, _>(at + 1).map(PgTime),
                log: log::parse_snapshot(log)?,
            })),
        };
        let proven = Proven { checkpoint: checkpoint(0)?, replay: checkpoint(2)? };
        Ok(Some(Stored {
            proven,
            redis: row.get(4),
            timeline: row.get(5),
            forgotten: row.get(6),
            saved_at: None,
        }))
    }

    /// Other instances that are away for longer than their `forget_after`.
    pub(super) async fn forgotten(
        &self,
        connection: &mut PgConnection,
    ) -> Result<Vec<String>, Error> {
        let rows = sqlx::query("select unstale.forgotten($1)")
            .bind(&self.name)
            .fetch_all(connection)
            .await;
        Ok(rows
            .map_err(Error::of("looking for forgotten instances"))?
            .iter()
            .map(|row| row.get(0))
            .collect())
    }

    /// Stores what is proven, of a server of this timeline.
    pub(super) async fn save(
        &self,
        connection: &mut PgConnection,
        progress: &Progress,
        timeline: &str,
    ) -> Result<(), Error> {
        let Progress { checkpoint, replay, redis } = progress;
        sqlx::query(
            "select unstale.save($1, $2::bigint, $3::text::pg_snapshot, $4::bigint, $5::text::pg_snapshot, $6, $7, $8 * interval '1 second')",
        )
        .bind(&self.name)
        .bind(checkpoint.watermark.map(|time| time.0))
        .bind(checkpoint.log.to_string())
        .bind(replay.as_ref().and_then(|replay| replay.watermark).map(|time| time.0))
        .bind(replay.as_ref().map(|replay| replay.log.to_string()))
        .bind(redis)
        .bind(timeline)
        .bind(self.forget_after.as_secs_f64())
        .execute(connection)
        .await
        .map_err(Error::of("storing the checkpoint"))?;
        Ok(())
    }
}
