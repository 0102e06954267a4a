#!/usr/bin/env bash
# Measures what restricting both processes costs at the start: benches/jail-cost.sh [ROUNDS]. The base
# is built with a feature that no release has. Exits with 1 if the difference matters.
set -euo pipefail
cd "$(dirname "$0")/.."

rounds=${1:-50}
target=$(examples/target.sh)
flags=CARGO_TARGET_$(echo "$target" | tr a-z- A-Z_)_RUSTFLAGS

make bench-build
env "$flags=-C target-feature=+crt-static -C relocation-model=pie" cargo build --release --locked -p podvisor \
    --features bench-unrestricted --target "$target" --target-dir target/unrestricted
"target/$target/release/bench" compare --base "target/unrestricted/$target/release/podvisor" \
    --head target/podvisor --cases start --rounds "$rounds"
