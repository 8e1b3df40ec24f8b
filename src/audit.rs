//! What an audit knows without asking anybody: where a cached value carries its version, and which
//! row a key is of. Pure.

pub mod invert;
pub mod version;
