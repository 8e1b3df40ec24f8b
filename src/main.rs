//! unstale.
fn main() {}
