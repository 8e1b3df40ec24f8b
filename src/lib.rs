//! The map of unstale.
#![allow(missing_docs)]
pub mod backoff;
pub mod batch;
pub mod change;
pub mod listener;
pub mod observe;
pub mod pg;
pub mod rule;
pub mod watermark;
