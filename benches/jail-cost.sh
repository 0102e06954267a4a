#!/usr/bin/env bash
# Measures what restricting both processes costs at the start: benches/jail-cost.sh [ROUNDS]. The base
# is built with a feature that no release has. Exits with 1 if the difference matters.
set -euo pipefail
cd "$(dirname "$0")/.."

rounds=${1:-50}
target=$(examples/target.sh)

make bench-build bench-unrestricted
"target/$target/release/bench" compare --base "target/unrestricted/$target/release/podvisor" \
    --head target/podvisor --cases start --rounds "$rounds"
