//! The guest side of devices, for tests and benches.
