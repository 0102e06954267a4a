#!/bin/sh
# Fetches Debian's stock kernels and builds what run.sh boots: ${NESTED_OUT:-target/nested}/host.cpio
# (the emulated host's initrd), stock.cpio (modules and init that turn the test guest's initrd into
# one for a stock kernel) and the two kernels. Cached; see README.md.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
out=${NESTED_OUT:-$here/../../target/nested}
mkdir -p "$out"
out=$(cd "$out" && pwd)

# newest NAME: the versioned package that a meta package depends on.
newest() {
	apt-cache depends "$1" | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1
}

find_packages() {
	host=$(newest linux-image-amd64)
	stock=$(newest linux-image-cloud-amd64)
	[ -n "$host" ] && [ -n "$stock" ]
}
find_packages || { apt-get update -q && find_packages; } || {
	echo "tests/nested: no package linux-image-amd64 or linux-image-cloud-amd64" >&2
	exit 1
}
key=$({ echo "$host $stock"; cd "$here" && sha256sum build.sh host-init.sh stock-init.sh; } | sha256sum)
[ "$(cat "$out/.key" 2> /dev/null)" = "$key" ] && exit 0
rm -f "$out/.key"

download() { apt-get -q -o APT::Sandbox::User=root download "$1" > /dev/null; }

# unpack PACKAGE: downloads a package and unpacks it to $out/tree-PACKAGE, without installing it.
unpack() {
	rm -rf "$out/tree-$1"
	rm -f "$out/$1"_*.deb
	# The second time with new package lists, if the old ones name what is there no more.
	(cd "$out" && download "$1") || { apt-get update -q && cd "$out" && download "$1"; }
	dpkg-deb -x "$out/$1"_*.deb "$out/tree-$1"
	rm -f "$out/$1"_*.deb
}

# modules TREE DESTINATION NAME...: copies modules and what they depend on; writes their names in
# loading order to DESTINATION/order.
modules() {
	tree=$1 destination=$2
	shift 2
	version=$(ls "$tree/lib/modules")
	depmod -b "$tree" "$version"
	mkdir -p "$destination"
	: > "$destination/order"
	for name in "$@"; do
		modprobe -d "$tree" -S "$version" -D "$name" | sed -n 's/^insmod \([^ ]*\).*/\1/p' |
			while read -r file; do
				base=${file##*/}
				[ -f "$destination/$base" ] && continue
				cp "$file" "$destination/$base"
				echo "$base" >> "$destination/order"
			done
	done
}

# archive FOLDER FILE: an initrd.
archive() {
	(cd "$1" && find . | LC_ALL=C sort | cpio -o -H newc -R 0:0 --quiet) > "$2"
}

unpack "$host"
unpack "$stock"
rm -rf "$out/host" "$out/stock"

mkdir -p "$out/host/bin" "$out/host/proc" "$out/host/sys" "$out/host/dev" "$out/host/root"
cp /bin/busybox "$out/host/bin/busybox"
ln -s busybox "$out/host/bin/sh"
cp "$here/host-init.sh" "$out/host/init"
modules "$out/tree-$host" "$out/host/modules" \
	virtio_pci 9p 9pnet_virtio overlay kvm-amd vhost_vsock vfio-pci loop tun bridge veth dummy nf_tables
archive "$out/host" "$out/host.cpio"
cp "$out/tree-$host"/boot/vmlinuz-* "$out/host-vmlinuz"

mkdir -p "$out/stock"
cp "$here/stock-init.sh" "$out/stock/stock-init"
modules "$out/tree-$stock" "$out/stock/modules" \
	virtio_pci virtio_blk virtio_net virtio-rng vmw_vsock_virtio_transport nvme button evdev pvpanic aesni-intel algif_skcipher
archive "$out/stock" "$out/stock.cpio"
cp "$out/tree-$stock"/boot/vmlinuz-* "$out/stock-vmlinuz"

rm -rf "$out"/tree-* "$out/host" "$out/stock"
echo "$key" > "$out/.key"
