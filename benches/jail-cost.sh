#!/usr/bin/env bash
# Measures what restricting both processes costs at start-up: benches/jail-cost.sh [COUNT]. The
# second binary is built with a feature that no release has. Raw data: benches/results/jail-cost.csv.
set -euo pipefail
cd "$(dirname "$0")/.."

count=${1:-50}
target=$(examples/target.sh)
flags=CARGO_TARGET_$(echo "$target" | tr a-z- A-Z_)_RUSTFLAGS

make build
env "$flags=-C target-feature=+crt-static" cargo build --release --locked -p podvisor \
    --features bench-unrestricted --target "$target" --target-dir target/unrestricted
cargo run --release --locked -p podvisor-tests --example jail_cost -- "$count" target/podvisor \
    "target/unrestricted/$target/release/podvisor" >benches/results/jail-cost.csv
