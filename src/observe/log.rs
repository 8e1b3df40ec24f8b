use super::Observation;
pub fn write(_: &Observation) {}
