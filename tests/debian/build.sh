#!/bin/sh
# build.sh SUITE: makes a disk with a whole Debian, as its packages are: ${DEBIAN_OUT:-target/debian}/SUITE.img.
# Needs root, but no loop device. Cached; see README.md.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
suite=$1
out=${DEBIAN_OUT:-$here/../../target/debian}
mkdir -p "$out"
out=$(cd "$out" && pwd)
image=$out/$suite.img

key=$(cd "$here" && sha256sum ./*.sh grub-* | sha256sum)
[ -e "$image" ] && [ "$(cat "$image.key" 2> /dev/null)" = "$key" ] && exit 0
rm -f "$image" "$image.key"

packages=linux-image-cloud-amd64,systemd-sysv,udev,dbus,libpam-systemd,grub2-common,grub-pc-bin
packages=$packages,cloud-init,netplan.io,iproute2,openssh-server,sudo,qemu-guest-agent
tree=$out/$suite.tree
clean() { rm -rf --one-file-system "$tree" "$image.new"; }
clean
trap clean EXIT
# What it mounts and starts goes with it.
unshare --mount --pid --fork --kill-child --mount-proc \
	mmdebstrap --quiet --mode=root --variant=minbase --include=$packages "$suite" "$tree"

# What an installer does.
uuid=$("$here/grub-probe" --target=fs_uuid)
echo "UUID=$uuid / ext4 errors=remount-ro 0 1" > "$tree/etc/fstab"
sed 's/^GRUB_CMDLINE_LINUX=.*/GRUB_CMDLINE_LINUX="console=tty0 console=ttyS0,115200"/' \
	"$tree/usr/share/grub/default/grub" > "$tree/etc/default/grub"
# Without one cloud-init wants en_US, which Debian does not make for it.
echo LANG=C.UTF-8 > "$tree/etc/default/locale"
: > "$tree/etc/machine-id"
rm -f "$tree"/etc/ssh/ssh_host_*
"$here/mkconfig.sh" "$tree" "$tree/boot"

# A GPT whose first partition, of 1400 MiB, begins at 1 MiB.
truncate -s 1402M "$image.new"
sgdisk --new=1:2048:2869247 --typecode=1:8303 "$image.new" > /dev/null
mke2fs -q -t ext4 -U "$uuid" -E offset=1048576 -d "$tree" "$image.new" 1400M
mv "$image.new" "$image"
echo "$key" > "$image.key"
