//! The map of unstale.
