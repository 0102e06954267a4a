#!/usr/bin/env bash
# Boots a Linux VM from examples/demo.yaml as a pod would: in a network namespace with its own
# eth0, with its disk on a volume, its console on this terminal. Needs root and /dev/kvm.
set -euo pipefail
cd "$(dirname "$0")/.."

guest=${GUEST_OUT:-target/guest}
podvisor=${PODVISOR:-target/podvisor}
. examples/host.sh
require_host
work=$(mktemp -d)
pod=pv-demo-$$

cleanup() {
    delete_pod
    rm -rf "$work"
}
trap cleanup EXIT

make_pod

# The volume: a raw image with an ext4 file system.
truncate -s 64M "$work/disk.img"
mkfs.ext4 -q -L root "$work/disk.img"

echo "== podvisor run examples/demo.yaml, in network namespace $pod"
ip netns exec "$pod" "$podvisor" run examples/demo.yaml \
    --kernel "$guest/vmlinux" \
    --initrd "$guest/initrd.cpio" \
    --cmdline "$(cat tests/guest/cmdline) test=demo" \
    --volume root="$work/disk.img" ||
    run_failed $?

echo "== what the guest left on its disk:"
debugfs -R 'cat /visits' "$work/disk.img" 2>/dev/null
echo "== the pod's network after the run:"
ip -n "$pod" -brief address
