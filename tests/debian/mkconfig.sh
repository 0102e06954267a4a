#!/bin/sh
# mkconfig.sh ROOT BOOT: has the grub-mkconfig of the system in ROOT write BOOT/grub/grub.cfg, as if BOOT were /boot of a
# system on the disk that grub-probe and grub-mkrelpath beside this tell of. Root; what it mounts is in a namespace of its own.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$2/grub"
exec unshare --mount sh -euc '
	mount --bind "$1" "$0/boot"
	mount --bind "$2/grub-probe" "$0/usr/sbin/grub-probe"
	mount --bind "$2/grub-mkrelpath" "$0/usr/bin/grub-mkrelpath"
	mount -t proc proc "$0/proc"
	mount -t tmpfs tmpfs "$0/dev"
	mkdir -p "$0/dev/disk/by-uuid"
	mknod -m 666 "$0/dev/null" c 1 3
	touch "$0/dev/disk/by-uuid/$("$2/grub-probe" --target=fs_uuid)"
	chroot "$0" grub-mkconfig -o /boot/grub/grub.cfg
' "$1" "$2" "$here"
