//! The machine, scenario by scenario, with virtual time and nothing at random: to look up what
//! happens when. The simulation (`simulation.rs`) finds what nobody thought of.

mod history;
mod redis;
mod session;
mod stage;
mod watches;
