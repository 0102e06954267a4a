#!/bin/sh
# Builds $1/initrd.cpio. Called by build.sh.
#
# The archive is left uncompressed, as unpacking may be interpreted, and is
# written by hand: that needs no root for the console's device node, and the
# same input gives the same bytes.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
out=$1
init=$out/init
dhcp6=$out/dhcp6
forge=$out/forge
cipher=$out/cipher
archive=$out/initrd.cpio.new

# tool SOURCE PROGRAM
tool() {
	gcc -O2 -static -nostdlib -ffreestanding -fno-stack-protector -fno-pie -no-pie \
		-mgeneral-regs-only -Wall -Wextra -Werror -s -Wl,--build-id=none \
		-Wl,-z,noseparate-code -o "$2" "$here/$1"
}
tool init.c "$init"
tool dhcp6.c "$dhcp6"
tool forge.c "$forge"
tool cipher.c "$cipher"

inode=0

pad() {
	case $(($1 % 4)) in
	1) printf '\0\0\0' ;;
	2) printf '\0\0' ;;
	3) printf '\0' ;;
	esac
}

# entry NAME MODE SIZE [RDEV_MAJOR RDEV_MINOR]: a "newc" header.
entry() {
	inode=$((inode + 1))
	printf '070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X' \
		"$inode" "$2" 0 0 1 0 "$3" 0 0 "${4:-0}" "${5:-0}" $((${#1} + 1)) 0
	printf '%s\0' "$1"
	pad $((110 + ${#1} + 1))
}

folder() { entry "$1" $((0040755)) 0; }

# file NAME SOURCE MODE
file() {
	size=$(stat -c %s "$2")
	entry "$1" "$3" "$size"
	cat "$2"
	pad "$size"
}

link() {
	entry "$1" $((0120777)) ${#2}
	printf '%s' "$2"
	pad ${#2}
}

{
	for name in bin dev etc mnt proc scripts sys tmp; do
		folder "$name"
	done
	entry dev/console $((0020600)) 0 5 1
	file init "$init" $((0100755))
	link bin/guest ../init
	file bin/dhcp6 "$dhcp6" $((0100755))
	file bin/forge "$forge" $((0100755))
	file bin/cipher "$cipher" $((0100755))
	file bin/busybox /bin/busybox $((0100755))
	# Debian's shell finds the other applets in itself.
	link bin/sh busybox
	file init.sh "$here/init.sh" $((0100644))
	for script in "$here"/scripts/*.sh; do
		file "scripts/${script##*/}" "$script" $((0100755))
	done
	entry 'TRAILER!!!' 0 0
} > "$archive"
rm -f "$init" "$dhcp6" "$forge" "$cipher"
mv "$archive" "$out/initrd.cpio"
