#!/usr/bin/env bash
# Installs the Debian packages that building the test guest, the demos and the tests need.
# Does nothing, and needs no root, when all are there.
set -euo pipefail

packages=(
    linux-source-6.1 flex bison bc libelf-dev libssl-dev xz-utils busybox-static gcc libc6-dev # guest
    e2fsprogs iproute2 nftables passt strace tshark util-linux linux-libc-dev-arm64-cross          # demo, tests
    dosfstools mtools gdisk xfsprogs btrfs-progs grub2-common mmdebstrap                           # boot disks
    qemu-system-x86 kmod cpio                                                                      # emulated hardware
    qemu-utils                                                                                     # tests of qcow2
    openssh-client dropbear-bin                                                                    # podvisor ssh, demo-cloud; a server for a guest
    podman runc netavark aardvark-dns fuse-overlayfs iptables catatonit                            # demo-pod
)
command -v gdb > /dev/null || packages+=(gdb-minimal) # dumps
missing=()
for package in "${packages[@]}"; do
    dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null | grep -q '^ii' || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0

if [ "$(id -u)" != 0 ]; then
    echo "These packages are missing; run as root: apt-get install ${missing[*]}" >&2
    exit 1
fi
apt-get update -q
DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "${missing[@]}"
