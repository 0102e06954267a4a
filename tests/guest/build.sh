#!/bin/sh
# Builds the test guest, `vmlinux`, `bzImage`, `initrd.cpio` and `agent.cpio`, from Debian's
# packages into ${GUEST_OUT:-target/guest}. Each part is rebuilt only when the
# hash of what goes into it changes.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
out=${GUEST_OUT:-$here/../../target/guest}
mkdir -p "$out"
out=$(cd "$out" && pwd)

# Two builds at once would take each other's tree away.
exec 9> "$out/.lock"
flock 9

packages="linux-source-6.1 busybox-static bc bison cpio flex gcc libc6-dev libelf-dev make patch xz-utils"

missing() {
	for package in $packages; do
		dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2> /dev/null | grep -q '^ii' ||
			echo "$package"
	done
}

lacking=$(missing)
if [ -n "$lacking" ]; then
	[ "$(id -u)" = 0 ] || {
		echo "tests/guest: install these packages first:" $lacking >&2
		exit 1
	}
	export DEBIAN_FRONTEND=noninteractive
	apt-get install -qq -y --no-install-recommends $lacking ||
		{ apt-get update -qq && apt-get install -qq -y --no-install-recommends $lacking; }
fi

# part NAME PRODUCT INPUT...: runs NAME.sh unless PRODUCT is as INPUT left it.
part() {
	name=$1 product=$2
	shift 2
	key=$({
		dpkg-query -W linux-source-6.1 busybox-static gcc binutils
		cd "$here" && find "$name.sh" "$@" -type f | LC_ALL=C sort | xargs sha256sum
	} | sha256sum)
	stamp=$out/.$name.key
	if [ -f "$product" ] && [ "$(cat "$stamp" 2> /dev/null)" = "$key" ]; then
		return
	fi
	rm -f "$stamp"
	"$here/$name.sh" "$out"
	echo "$key" > "$stamp"
}

part kernel "$out/vmlinux" kernel.config patches
part agent "$out/agent.cpio"
part initrd "$out/initrd.cpio" bare.h dhcp6.c forge.c init.c init.sh scripts
