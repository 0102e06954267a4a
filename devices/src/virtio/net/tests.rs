//! Tests of the NIC.
