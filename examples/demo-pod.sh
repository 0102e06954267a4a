#!/usr/bin/env bash
# The demo with podvisor as the entrypoint of a real container: podman, its own network namespace,
# read-only root, the disk on a volume. Needs root and /dev/kvm.
set -euo pipefail
cd "$(dirname "$0")/.."

guest=$(realpath "${GUEST_OUT:-target/guest}")
podvisor=$(realpath "${PODVISOR:-target/podvisor}")
. examples/host.sh
require_host
work=$(mktemp -d)
name=pv-demo-pod-$$

cleanup() {
    podman rm --force "$name" >/dev/null 2>&1 || true
    podman network rm --force "$name" >/dev/null 2>&1 || true
    rm -rf "$work"
}
trap cleanup EXIT

cat >"$work/containers.conf" <<CONF
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
[network]
network_backend = "netavark"
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
CONF
export CONTAINERS_CONF=$work/containers.conf

# The image: the binary is all there is.
root=$work/root
mkdir -p "$root"/{dev,proc,sys,run,tmp,etc,boot,var}
ln -s ../run "$root/var/run"
cp "$podvisor" "$root/podvisor"
cp "$guest/vmlinux" "$guest/initrd.cpio" examples/demo.yaml "$root/boot/"

mkdir -p "$work/volume"
truncate -s 64M "$work/volume/disk.img"
mkfs.ext4 -q -L root "$work/volume/disk.img"

podman network create "$name" >/dev/null
echo "== podvisor as the entrypoint of container $name"
podman run --name "$name" --rm --network "$name" --read-only --tmpfs /run \
    --cap-drop ALL --cap-add NET_ADMIN --security-opt no-new-privileges \
    --device /dev/kvm --device /dev/net/tun \
    --volume "$work/volume:/run/kubevirt-private/vmi-disks/root" \
    --rootfs "$root" /podvisor run /boot/demo.yaml \
    --kernel /boot/vmlinux --initrd /boot/initrd.cpio \
    --cmdline "$(cat tests/guest/cmdline) test=demo" ||
    run_failed $?

echo "== what the guest left on its disk:"
debugfs -R 'cat /visits' "$work/volume/disk.img" 2>/dev/null
