//! The listener: a pure machine that decides, a driver that does, and a board that shows how it is.

pub mod board;
pub mod driver;
pub mod machine;
pub mod sampler;
