#!/bin/sh
# Builds payload.elf into ${GUEST_OUT:-<repository>/target/guest}. Cargo does the caching.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
repo=$(cd "$here/../.." && pwd)
out=${GUEST_OUT:-$repo/target/guest}
mkdir -p "$out"
out=$(cd "$out" && pwd)
cd "$here" # so that .cargo/config.toml applies
unset RUSTFLAGS CARGO_ENCODED_RUSTFLAGS CARGO_BUILD_TARGET
cargo build --release --quiet --offline --locked --target-dir "$out/payload-build"
built=$out/payload-build/release/payload
if ! cmp -s "$built" "$out/payload.elf"; then
    cp "$built" "$out/payload.elf.tmp"
    mv "$out/payload.elf.tmp" "$out/payload.elf"
fi
echo "$out/payload.elf"
