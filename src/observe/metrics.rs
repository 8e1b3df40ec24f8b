use super::Observation;
pub fn record(_: &Observation) {}
