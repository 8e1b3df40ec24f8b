//! How far an instance has come, provably.
//!
//! A heartbeat reads `t = statement_timestamp()` and a snapshot, in this order, and then sends
//! itself a NOTIFY. A transaction queues its NOTIFYs before it ends, and the queue keeps their
//! order. So when heartbeat `n` has arrived, the log has been read after it was sent, and all that
//! arrived until then is acknowledged by Redis, every transaction that the snapshot sees is done.
//!
//! What is still to come has an xid of `xmin(n)` or more. Let `j` be the latest heartbeat with
//! `xmax(j) <= xmin(n)`: an xid of `xmax(j)` or more was given out after `t(j)`, so that such a
//! transaction's triggers ran after `t(j)`. They leave a change to the sweep only if its stamp is
//! not older than their clock less a margin, and log it otherwise. Hence
//!
//! - rows to be swept after a gap carry a stamp of at least `t(j) - margin`; the clock may have
//!   stepped back by another margin, so the watermark is `t(j) - 2 margins`;
//! - logged changes to be read after a gap are those that snapshot `n` does not see.
//!
//! This holds for transactions open for hours, prepared ones included, and needs no privilege.
//!
//! Redis may undo what it has acknowledged: a fail-over loses what was not replicated, a restart
//! what was not on disk. So the checkpoint of `replay.window` ago is kept, too. Pure.

use std::collections::VecDeque;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

/// How much older than the clock a stamp may be without being logged. `unstale.margin()` in the
/// migrations is the same.
pub const MARGIN: Duration = Duration::from_secs(5);

/// Heartbeats remembered at the most: a transaction of a day must not make the ledger grow. Beyond
/// it only every second, fourth, ... heartbeat is kept, at the price of a somewhat earlier
/// watermark.
const LEDGER: usize = 1024;

/// PostgreSQL's clock, in microseconds since 1970 UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PgTime(pub i64);

impl PgTime {
    /// The time `duration` earlier.
    #[must_use]
    pub fn earlier(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)))
    }
}

/// A `pg_snapshot`: which transactions had ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Every transaction with a smaller xid had ended.
    pub xmin: u64,
    /// No transaction had this xid or a larger one.
    pub xmax: u64,
    /// Those in between that had not ended.
    pub open: Arc<[u64]>,
}

impl Snapshot {
    /// Sees nothing.
    #[must_use]
    pub fn nothing() -> Self {
        Self { xmin: 3, xmax: 3, open: Arc::new([]) } // 3: the first xid that is ever given out
    }

    /// Had this transaction ended?
    #[must_use]
    pub fn sees(&self, xid: u64) -> bool {
        xid < self.xmin || xid < self.xmax && !self.open.contains(&xid)
    }
}

/// A place in the log: a transaction, and an id in it.
pub type LogPlace = (u64, i64);

/// How far the log has been read: each row that `seen` sees, up to a place in the order of
/// transactions and ids. Whatever ends later is seen by no older snapshot, so that it is read
/// however small its xid is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogRead {
    /// Of before the first reading, and before the watches were read that its rows were understood
    /// by.
    pub seen: Snapshot,
    /// The last row.
    pub through: LogPlace,
}

/// As PostgreSQL writes it, `xmin:xmax:xid,xid`.
impl fmt::Display for Snapshot {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}:", self.xmin, self.xmax)?;
        self.open
            .iter()
            .enumerate()
            .try_for_each(|(n, xid)| write!(formatter, "{}{xid}", if n > 0 { "," } else { "" }))
    }
}

/// A text that is no `pg_snapshot`.
#[derive(Debug, thiserror::Error)]
#[error("not a pg_snapshot")]
pub struct NoSnapshot;

impl FromStr for Snapshot {
    type Err = NoSnapshot;

    fn from_str(text: &str) -> Result<Self, NoSnapshot> {
        let number = |text: &str| text.parse().map_err(|_| NoSnapshot);
        let (xmin, rest) = text.split_once(':').ok_or(NoSnapshot)?;
        let (xmax, open) = rest.split_once(':').ok_or(NoSnapshot)?;
        let open =
            open.split(',').filter(|xid| !xid.is_empty()).map(number).collect::<Result<_, _>>()?;
        Ok(Self { xmin: number(xmin)?, xmax: number(xmax)?, open })
    }
}

/// A heartbeat as it was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beat {
    /// Counts from 1 in each session.
    pub n: u64,
    /// `statement_timestamp()`, not later than the snapshot.
    pub at: PgTime,
    /// `pg_current_snapshot()`.
    pub snapshot: Snapshot,
}

/// Where catching up begins: `unstale.checkpoint`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// Rows with an older stamp are done; `None` before the first transactions are known to have
    /// ended.
    pub watermark: Option<PgTime>,
    /// Logged changes of the transactions that it sees are done.
    pub log: Snapshot,
}

/// What is proven, and what was a while ago.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Proven {
    /// Where catching up begins.
    pub checkpoint: Option<Checkpoint>,
    /// Where it begins if Redis may have undone the last `replay.window`.
    pub replay: Option<Checkpoint>,
}

/// Who a server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// System identifier and timeline: another after a fail-over or a restore.
    pub timeline: String,
    /// When its postmaster started.
    pub started: PgTime,
}

/// A row of `unstale.checkpoint`, read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// How far it had come.
    pub proven: Proven,
    /// The mark of the last delete that Redis acknowledged (`mark.rs`).
    pub redis: Option<String>,
    /// [`Server::timeline`] of the PostgreSQL that it is about.
    pub timeline: String,
    /// It was away for longer than its `forget_after`.
    pub forgotten: bool,
    /// When this row was last written, with or without progress, by the server's clock; `None`: not
    /// known.
    pub saved_at: Option<PgTime>,
}

/// What is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// How far it has come.
    pub checkpoint: Checkpoint,
    /// How far it had come a while ago, as in [`Proven`].
    pub replay: Option<Checkpoint>,
    /// The mark of the last delete that Redis acknowledged (`mark.rs`).
    pub redis: Option<String>,
}

/// Checkpoints remembered within a window.
const REPLAY_STEPS: u32 = 16;

/// The ledger of one session's heartbeats.
#[derive(Debug)]
pub struct Watermark {
    last: Option<PgTime>, // when the last heartbeat was sent
    sent: VecDeque<Beat>, // still to be acknowledged, by n
    past: VecDeque<Past>, // acknowledged or not, by xmax: where t(j) is looked up
    doublings: u32,       // `past` keeps the heartbeats whose n is a multiple of 2^doublings
    proven: Proven,
    window: Duration,
    recent: VecDeque<(PgTime, Checkpoint)>, // within the window, some steps apart, with the time at which they were proven
}

/// What of a heartbeat is remembered for long.
#[derive(Debug, Clone, Copy)]
struct Past {
    n: u64,
    at: PgTime,
    xmax: u64,
}

impl Watermark {
    /// Goes on from what is stored; `window` is `replay.window`.
    #[must_use]
    pub fn new(proven: Proven, window: Duration) -> Self {
        Self {
            last: None,
            sent: VecDeque::new(),
            past: VecDeque::new(),
            doublings: 0,
            proven,
            window,
            recent: VecDeque::new(),
        }
    }

    /// Another `replay.window`, from now on.
    pub fn set_window(&mut self, window: Duration) {
        self.window = window;
    }

    /// A new session: its heartbeats prove nothing about the transactions of the old one.
    pub fn forget_session(&mut self) {
        self.sent.clear();
        self.past.clear();
        self.doublings = 0;
    }

    /// When the last heartbeat was sent, in this session or the one before.
    #[must_use]
    pub fn last_beat(&self) -> Option<PgTime> {
        self.last
    }

    /// A heartbeat was sent.
    pub fn sent(&mut self, beat: Beat) {
        self.last = Some(beat.at);
        if beat.n.trailing_zeros() >= self.doublings || self.past.is_empty() {
            self.past.push_back(Past { n: beat.n, at: beat.at, xmax: beat.snapshot.xmax });
        }
        if self.sent.len() < LEDGER {
            self.sent.push_back(beat); // one that is left out proves nothing, and a later one will
        }
        if self.past.len() > LEDGER {
            self.doublings += 1;
            let first = self.past.front().map(|first| first.n); // may be the one in use
            self.past
                .retain(|beat| Some(beat.n) == first || beat.n.trailing_zeros() >= self.doublings);
        }
    }

    /// Heartbeat `n` came back, the log was read after it was sent, and Redis has acknowledged
    /// everything that came until then. Returns the new checkpoint.
    ///
    /// Only to be called while no gap is open: what happened in a gap did not come before it.
    pub fn acknowledged(&mut self, n: u64) -> Option<Checkpoint> {
        let mut latest = None;
        while let Some(beat) = self.sent.pop_front_if(|beat| beat.n <= n) {
            latest = Some(beat);
        }
        let Beat { at, snapshot, .. } = latest?;
        let xmin = snapshot.xmin;
        // xmax never falls from one heartbeat to the next.
        while self.past.get(1).is_some_and(|next| next.xmax <= xmin) {
            self.past.pop_front();
        }
        if self.past.len() < LEDGER / 4 {
            self.doublings = 0;
        }
        let proven = self.through(xmin);
        // Not the maximum with what was known: where the clock was set back, new rows are stamped
        // by the new clock.
        let known = self.proven.checkpoint.as_ref().and_then(|known| known.watermark);
        let checkpoint = Checkpoint { watermark: proven.or(known), log: snapshot };
        self.proven.checkpoint = Some(checkpoint.clone());
        self.remember(at, checkpoint.clone());
        Some(checkpoint)
    }

    /// What heartbeat `n` would prove if no gap were open before it: rows with an older stamp were
    /// received, or committed before this session.
    #[must_use]
    pub fn would_prove(&self, n: u64) -> Option<PgTime> {
        self.sent.iter().rfind(|beat| beat.n <= n).and_then(|beat| self.through(beat.snapshot.xmin))
    }

    /// t(j) less two margins, j being the latest heartbeat with `xmax(j) <= xmin`.
    fn through(&self, xmin: u64) -> Option<PgTime> {
        self.past
            .iter()
            .take_while(|beat| beat.xmax <= xmin)
            .last()
            .map(|beat| beat.at.earlier(2 * MARGIN))
    }

    /// Redis is as it was up to a window ago. Checkpoints since then do not describe it, nor any
    /// moment of it until the gap is closed, to which it may be set back once more: the checkpoint
    /// before that stays the one to replay from for a whole window.
    pub fn undone(&mut self) {
        self.recent.clear();
    }

    fn remember(&mut self, at: PgTime, checkpoint: Checkpoint) {
        // Where the clock was set back, the later entries are as old as they were.
        if self
            .recent
            .back()
            .is_none_or(|(last, _)| *last < at.earlier(self.window / REPLAY_STEPS) || at < *last)
        {
            self.recent.push_back((at, checkpoint));
        }
        let horizon = at.earlier(self.window);
        while let Some((_, old)) = self.recent.pop_front_if(|(then, _)| *then <= horizon) {
            self.proven.replay = Some(old);
        }
    }

    /// How far the clock was ahead of the watermark at the last heartbeat.
    #[must_use]
    pub fn age(&self) -> Option<Duration> {
        let micros = self.last?.0.saturating_sub(self.proven.checkpoint.as_ref()?.watermark?.0);
        Some(Duration::from_micros(u64::try_from(micros).unwrap_or(0)))
    }

    /// What is proven.
    #[must_use]
    pub fn proven(&self) -> Proven {
        self.proven.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(60);

    fn beat(n: u64, seconds: i64, xmin: u64, xmax: u64) -> Beat {
        Beat {
            n,
            at: PgTime(seconds * 1_000_000),
            snapshot: Snapshot { xmin, xmax, open: Arc::new([]) },
        }
    }

    fn seconds(checkpoint: Option<Checkpoint>) -> Option<i64> {
        checkpoint.and_then(|checkpoint| checkpoint.watermark).map(|time| time.0 / 1_000_000)
    }

    #[test]
    fn a_snapshot_is_read_as_postgresql_writes_it() {
        for text in ["3:3:", "10:20:10", "10:20:10,14,19"] {
            assert_eq!(text.parse::<Snapshot>().expect("one").to_string(), text);
        }
        let snapshot: Snapshot = "10:20:10,14".parse().expect("one");
        assert_eq!(
            [9, 10, 11, 14, 19, 20].map(|xid| snapshot.sees(xid)),
            [true, false, true, false, true, false]
        );
        for text in ["", "1", "1:2", "a:b:", "1:2:x"] {
            assert!(text.parse::<Snapshot>().is_err(), "{text}");
        }
    }

    #[test]
    fn nothing_is_proven_before_the_first_transactions_have_ended() {
        let mut watermark = Watermark::new(Proven::default(), WINDOW);
        watermark.sent(beat(1, 100, 5, 9));
        let log = Snapshot { xmin: 5, xmax: 9, open: Arc::new([]) };
        assert_eq!(watermark.acknowledged(1), Some(Checkpoint { watermark: None, log }));
    }

    #[test]
    fn in_a_quiet_database_it_follows_by_two_margins() {
        let mut watermark = Watermark::new(Proven::default(), WINDOW);
        watermark.sent(beat(1, 100, 5, 5));
        assert_eq!(seconds(watermark.acknowledged(1)), Some(90));
        watermark.sent(beat(2, 101, 6, 6));
        assert_eq!(seconds(watermark.acknowledged(2)), Some(91));
    }

    #[test]
    fn a_transaction_that_stays_open_holds_it_back_to_before_its_xid() {
        let mut watermark = Watermark::new(Proven::default(), WINDOW);
        for n in 1..=3 {
            watermark.sent(beat(n, 100 + n as i64, 5 + n, 5 + n));
        }
        // Transaction 8 began before heartbeat 4 and stays open for an hour.
        for n in 4..=3600 {
            watermark.sent(beat(n, 100 + n as i64, 8, 100 + n));
            assert!(seconds(watermark.acknowledged(n)) <= Some(93), "at heartbeat {n}");
        }
        watermark.sent(beat(3601, 3701, 5000, 5000));
        let at = seconds(watermark.acknowledged(3601)).expect("proven");
        assert!((3684..=3691).contains(&at), "of the ledger every eighth heartbeat is left: {at}");
    }

    #[test]
    fn the_ledger_is_bounded_and_forgetting_is_on_the_safe_side() {
        let mut watermark = Watermark::new(Proven::default(), WINDOW);
        for n in 1..=100_000 {
            watermark.sent(beat(n, n as i64, 8, 100 + n));
            watermark.acknowledged(n);
            assert!(watermark.past.len() <= LEDGER);
        }
        watermark.sent(beat(100_001, 100_001, 50_100, 200_000));
        let at = seconds(watermark.acknowledged(100_001)).expect("some heartbeat is early enough");
        assert!((40_000..=50_000 - 10).contains(&at), "{at}");
    }

    #[test]
    fn it_follows_a_clock_that_is_set_back() {
        let checkpoint =
            Some(Checkpoint { watermark: Some(PgTime(500_000_000)), log: Snapshot::nothing() });
        let stored = Proven { checkpoint, replay: None };
        let mut watermark = Watermark::new(stored, WINDOW);
        watermark.sent(beat(1, 100, 5, 9));
        assert_eq!(seconds(watermark.acknowledged(1)), Some(500), "nothing newer is proven yet");
        watermark.sent(beat(2, 101, 9, 9));
        assert_eq!(seconds(watermark.acknowledged(2)), Some(91));
    }

    #[test]
    fn what_was_proven_a_window_ago_is_kept_for_a_redis_that_forgets() {
        let mut watermark = Watermark::new(Proven::default(), WINDOW);
        for n in 1..=1000 {
            watermark.sent(beat(n, 100 + n as i64, n, n));
            watermark.acknowledged(n);
            let replay = seconds(watermark.proven().replay);
            assert!(
                replay.is_none_or(|at| (n as i64 + 90 - 70..=n as i64 + 90 - 60).contains(&at)),
                "{replay:?} at {n}"
            );
            assert!(watermark.recent.len() <= 17);
        }
        assert!(watermark.proven().replay.is_some());
    }

    #[test]
    fn a_redis_that_forgets_twice_is_replayed_from_before_the_first_time() {
        let mut watermark = Watermark::new(Proven::default(), WINDOW);
        let beats = |watermark: &mut Watermark, seconds: std::ops::Range<u64>| {
            for n in seconds {
                watermark.sent(beat(n, n as i64, n, n));
                watermark.acknowledged(n);
            }
        };
        beats(&mut watermark, 1..200);
        let before = seconds(watermark.proven().replay);
        watermark.undone();
        beats(&mut watermark, 200..259);
        assert_eq!(
            seconds(watermark.proven().replay),
            before,
            "until a window ago it was as it had been a window before"
        );
        beats(&mut watermark, 259..280);
        assert!(seconds(watermark.proven().replay) >= Some(190));
    }
}
