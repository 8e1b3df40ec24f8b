//! What the tests stand on: real servers, a link that fails on demand, the real binary, and
//! patience.
//!
//! A test that cannot have its servers fails and says what to install; it never passes by not
//! running. Except for [`machine`], which wants root: without it the test says loudly that it did
//! not run, and fails in the CI.

pub(crate) mod certificates;
pub(crate) mod daemon;
pub(crate) mod liar;
pub(crate) mod link;
pub(crate) mod machine;
pub(crate) mod migrations;
pub(crate) mod pgbouncer;
pub(crate) mod servers;
pub(crate) mod stage;
pub(crate) mod wait;
pub(crate) mod world;
