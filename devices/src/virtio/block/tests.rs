//! Tests of the block device.
