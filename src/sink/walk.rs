//! A walk through a server: all keys that match a pattern, in bounded steps.

use std::sync::atomic::Ordering::Relaxed;

use fred::interfaces::KeysInterface;
use fred::types::Key;

use super::connection::Connection;
use super::error::Error;
use super::groups::Groups;
use super::server::{Manner, Outcome, Server};
use super::slots;
use crate::glob::Globs;

/// Keys that Redis looks at in one step of SCAN: well under a millisecond, so that others are not
/// held up.
pub(super) const SCAN_COUNT: u32 = 1_000;

/// Bytes of keys in one UNLINK of a walk, unless a single key is longer.
const STEP_BYTES: usize = 1 << 20;

/// Steps of a walk, of a thousand keys or ten thousand empty places each: more than any Redis has.
const MAX_STEPS: u64 = 10_000_000;

impl Server {
    /// One walk for all patterns; a key that is there from the beginning to the end is found
    /// (<https://redis.io/commands/scan>). Then the mark.
    pub(super) async fn walk(&self, patterns: &[String], manner: Manner) -> Result<Outcome, Error> {
        let connection = self.connection().await?;
        let result = self.steps(&connection, patterns, manner).await;
        self.concluded(&connection, result).await
    }

    async fn steps(
        &self,
        connection: &Connection,
        patterns: &[String],
        manner: Manner,
    ) -> Result<Outcome, Error> {
        let globs = Globs::parse(patterns).map_err(|error| Error::Refused(error.to_string()))?;
        let sent = if let [pattern] = patterns { Some(pattern.clone()) } else { globs.common() }
            .unwrap_or_else(|| "*".into());
        let mut existed = 0;
        let mut cursor = "0".to_owned();
        let mut turtle = cursor.clone(); // Brent's: a cursor that comes again is met
        for step in 1..=MAX_STEPS {
            let page = connection.client.scan_page(
                cursor,
                sent.as_str(),
                Some(self.scan_count.load(Relaxed)),
                None,
            );
            let (next, mut keys): (String, Vec<Key>) = connection.ask(page).await?;
            keys.retain(|key| globs.matches(key.as_bytes()));
            while !keys.is_empty() {
                let mut bytes = 0;
                let fits = keys.iter().take_while(|key| {
                    bytes += key.as_bytes().len();
                    bytes <= STEP_BYTES
                });
                let rest = keys.split_off(fits.count().max(1));
                // A key that has moved since is another server's business.
                let groups = match manner {
                    Manner::Alone => Groups::together(keys),
                    _ => Groups::by_slot(keys.into_iter().map(slots::beside).collect()),
                };
                let mut outcome = self.delete_over(connection, &groups, manner).await?;
                if let Some((_, words)) = outcome.refused.pop() {
                    return Err(Error::Refused(words));
                }
                existed += outcome.existed;
                keys = rest;
            }
            if next == "0" {
                return Ok(Outcome {
                    existed,
                    ..self.delete_and_mark(connection, &Groups::default(), manner).await?
                });
            }
            if next == turtle {
                return Err(Error::Broken("its SCAN goes round in circles".into()));
            }
            if step.is_power_of_two() {
                turtle.clone_from(&next);
            }
            cursor = next;
        }
        Err(Error::Broken(format!("its SCAN has not ended after {MAX_STEPS} steps")))
    }
}
