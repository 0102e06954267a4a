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
host=pvd$$

cleanup() {
    ip netns delete "$pod" 2>/dev/null || true
    ip netns delete "$pod-gw" 2>/dev/null || true
    rm -rf "$work"
}
trap cleanup EXIT

# The pod: eth0 with an address and a route, its gateway in a namespace of its own.
ip netns add "$pod"
ip netns add "$pod-gw"
ip -n "$pod" link add eth0 type veth peer name "$host" netns "$pod-gw"
ip -n "$pod-gw" address add 10.244.1.1/24 dev "$host"
ip -n "$pod-gw" link set "$host" up
ip -n "$pod" address add 10.244.1.7/24 dev eth0
ip -n "$pod" link set lo up
ip -n "$pod" link set eth0 up
ip -n "$pod" route add default via 10.244.1.1

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
