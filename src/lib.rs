//! Keeps Redis in step with PostgreSQL: every committed change of a watched table deletes its cache
//! keys, and whatever fails in between, nothing is forgotten.
//!
//! ```text
//! table --trigger--> NOTIFY, if nobody else announces --> pg::session --> change --> rule --> batch --> sink --UNLINK--> Redis
//!   |                                                     ^ every 2 to 40 ms                   ^            |
//!   +--otherwise, and if a sweep could not find it--> unstale.change_log --after a gap---------+       acknowledged
//!   +--rows stamped since the watermark--------------> pg::sweep ---------after a gap----------+            |
//!        heartbeat: time, snapshot, NOTIFY --> comes back in order --> watermark moves on <-----------------+
//! ```
//!
//! # What it promises, and which tests hold it
//!
//! | | promise | tests |
//! |---|---|---|
//! | P1 | After things go quiet, no value cached before its row's last commit survives, whatever failed in between | `simulation::nothing_is_forgotten_in_any_history`, `crash`, `daemon`, `session`, `sink` |
//! | P2 | LISTEN is active before catch-up reads; never ready while a gap is open | `simulation`, which also breaks the order and must notice |
//! | P3 | The watermark never passes a change that Redis has not acknowledged | [`watermark`], [`batch`], `sink`, `simulation` |
//! | P4 | Every queue, set and retry is bounded; what overflows is replaced by what covers it: a table's pattern, a sweep | [`batch`], `simulation`, `sink` |
//! | P5 | A watched table's writer never fails because of us, and never waits for the listener or for Redis | `trigger`, `hostile` |
//! | P6 | Applying twice equals applying once | UNLINK; `sink` |
//! | P7 | Ready means: a heartbeat went through PostgreSQL and back, and Redis answered, within two intervals | `session`, `sink`, `daemon` |
//! | P8 | Whoever may only connect, or only write a table, can make the listener do nothing, hear nothing, and become nothing; the listener's role can read no table | `attack` |
//!
//! # The map
//!
//! | | |
//! |---|---|
//! | [`listener::machine`] | decides everything: states, timers, what is collected, when a gap is closed. Pure. Begin here |
//! | [`listener::driver`] | does it: the only reader of the clock, and where PostgreSQL and Redis meet |
//! | [`listener::board`] | what the status page is made of, noted by the driver |
//! | [`watched`], [`change`], [`rule`] | what is watched; what a payload says; which keys that makes stale. Pure, as all down to `spelling` |
//! | [`deletion`], [`batch`], [`delivered`], [`mark`] | what is to be deleted; what of it waits for Redis; who has done what of it; what Redis has kept |
//! | [`messages`], [`watermark`] | what machine, session and sweep say to each other; how far we have come, and the proof |
//! | [`audit`], [`glob`] | which row a key is of, and which version a value; which keys a pattern matches |
//! | [`status`], [`finding`], [`exposure`] | how a listener is, as a document, a page and lines; what is not as it should be; what others on the network could read |
//! | [`backoff`], [`few`], [`visible`], [`spelling`] | how long to wait; a short list; how to show what others wrote; what URLs have in common |
//! | [`pg`] | every line of SQL that is not in `migrations/`: session, sweep, log, watches, migrations |
//! | [`sink`] | Redis |
//! | [`observe`] | everything the program says, once; as log lines and as metrics |
//! | [`command`], [`cli`], [`config`] | one file a subcommand; `command::run` wires the listener |
//! | [`http`], [`systemd`], [`shutdown`], [`logs`], [`error`] | the rim |
//! | [`scratch`] | private throw-away servers, for the demo, the tests and the benches |
//!
//! Imports point down: `main -> command -> listener::driver, http -> machine, pg, sink, observe ->
//! the pure modules`. [`pg`] and [`sink`] never meet, and the pure modules know neither a runtime,
//! nor a clock, nor SQL. `tests/tidy.rs` holds it.

pub mod audit;
pub mod backoff;
pub mod batch;
pub mod change;
pub mod cli;
pub mod command;
pub mod config;
pub mod deletion;
pub mod delivered;
pub mod error;
pub mod exposure;
pub mod few;
pub mod finding;
pub mod glob;
pub mod http;
pub mod listener;
pub mod logs;
pub mod mark;
pub mod messages;
pub mod observe;
pub mod pg;
pub mod rule;
pub mod scratch;
pub mod shutdown;
pub mod sink;
pub mod spelling;
pub mod status;
pub mod systemd;
pub mod visible;
pub mod watched;
pub mod watermark;
