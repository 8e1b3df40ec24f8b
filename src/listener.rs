//! The listener: a pure machine that decides, and a driver that does.

pub mod driver;
pub mod machine;
pub mod sampler;
