#!/usr/bin/env bash
# Fuzzes with libFuzzer: run.sh SECONDS [TARGET…] runs one target after the other, each for SECONDS,
# at the lowest priority. It begins with the kept corpus; what it finds goes to target/fuzz.
# run.sh keep [TARGET…] keeps an input for each piece of code that was reached.
set -euo pipefail
cd "$(dirname "$0")"
work=$(cd ../.. && pwd)/target/fuzz
targets=(queue block image net stream rng balloon console pci legacy state snapshot vmi quantity dhcp control opener kernel pod bootdisk qcow2 agent files watchdog vfio)
# Most that is kept of a target, KiB.
keep_kib=40
# libFuzzer's instrumentation is a nightly feature, which this makes the stable compiler accept.
export RUSTC_BOOTSTRAP=1 CARGO_TARGET_DIR=$work/build

what=${1:?usage: run.sh SECONDS|keep [TARGET…]}
shift
[ $# -gt 0 ] && targets=("$@")
cargo fuzz build --fuzz-dir libfuzzer
built=$work/build/$(rustc -vV | sed -n 's/^host: //p')/release

# pack DIRECTORY ARCHIVE: the same bytes for the same inputs.
pack() {
    tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --mode=644 -C "$1" -cf - $(ls "$1") |
        gzip -n9 >"$2"
}

for target in "${targets[@]}"; do
    found=$work/corpus/$target kept=$work/kept/$target
    rm -rf "$kept"
    mkdir -p "$found" "$work/artifacts/$target" "$kept"
    [ ! -f "corpus/$target.tar.gz" ] || tar -xzf "corpus/$target.tar.gz" -C "$kept"
    [ ! -d "corpus/$target" ] || cp "corpus/$target"/* "$kept"
    if [ "$what" = keep ]; then
        rm -rf "$found.min" && mkdir "$found.min"
        "$built/$target" -merge=1 -use_counters=0 "$found.min" "$kept" "$found"
        # The smallest first, as far as there is room.
        (cd "$found.min" && ls -Sr) | while read -r name; do
            used=$(cat "$kept"/* | wc -c)
            [ $((used + $(stat -c %s "$found.min/$name"))) -le $((keep_kib * 1024)) ] || break
            cp -n "$found.min/$name" "$kept"
        done
        pack "$kept" "corpus/$target.tar.gz"
        rm -rf "corpus/$target"
        continue
    fi
    options=(-max_total_time="$what" -timeout=20 -rss_limit_mb=2048 -print_final_stats=1)
    [ ! -f "dict/$target" ] || options+=(-dict="dict/$target")
    nice -n 19 chrt -i 0 "$built/$target" "$found" "$kept" "${options[@]}" \
        -artifact_prefix="$work/artifacts/$target/"
done
