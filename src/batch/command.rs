//! What a batch takes and gives: lanes, commands, points, bounds.

use crate::deletion::Deletions;

/// Bytes that a lane may hold for each of its `max_pending` deletions: ordinary keys are shorter,
/// so that their number decides.
const BYTES_PER_TARGET: usize = 256;

/// The same in a cluster, where only the bytes decide: short keys are then enough for a dozen in
/// each slot.
const IN_CLUSTER: usize = 384;

/// Bytes that a lane may hold at least, however few its deletions may be.
const LANE_BYTES: usize = 1 << 20;

/// Which of the two queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// Changes as they are announced.
    Live,
    /// What a sweep or the log brings.
    CatchUp,
}

/// Is a key that is deleted deleted once more, later? What waits in one lane for several reasons
/// has the greatest.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Again {
    /// Nobody could have put it back.
    #[default]
    Never,
    /// Its readers hold leases: only a replica that is behind lets them put it back.
    Replicas,
    /// Its readers may know nothing.
    Always,
}

/// One request to Redis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// Given back to [`Batch::acknowledge`](super::Batch::acknowledge).
    pub id: u64,
    /// What it does.
    pub deletions: Deletions,
}

/// All that was added to a lane until some moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Point {
    pub(super) lane: Lane,
    pub(super) generation: u64,
}

/// Bounds, from the configuration. Those in bytes follow from them.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Keys in one UNLINK.
    pub keys_per_command: usize,
    /// Commands on their way at the same time.
    pub in_flight: usize,
    /// Deletions waiting in one lane, unless it is a cluster.
    pub max_pending: usize,
    /// Where Redis is a cluster, the slot of a key: only keys of one slot share an UNLINK there.
    pub slot: Option<fn(&[u8]) -> u16>,
}

impl Limits {
    /// Bytes that may wait in one lane.
    #[must_use]
    pub fn max_bytes(&self) -> usize {
        let each = if self.slot.is_some() { IN_CLUSTER } else { BYTES_PER_TARGET };
        self.max_pending.saturating_mul(each).max(LANE_BYTES)
    }
}
