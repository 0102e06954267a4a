# Copies the head of /dev/vda to /dev/vdb and proves that it arrived.
# Direct I/O unless podvisor.direct=0: large requests, and no page cache.

mib=${p_mib:-16}
[ "${p_direct:-1}" = 1 ] && in=iflag=direct out=oflag=direct || in= out=

digest() {
	set -- $(dd if="$1" bs=1M count="$mib" $in status=none | sha256sum)
	value=$1
}

digest /dev/vda
result "sha256=$value"
dd if=/dev/vda of=/dev/vdb bs=1M count="$mib" $in $out conv=fsync status=none || fail "copy"
echo 1 > /proc/sys/vm/drop_caches
digest /dev/vdb
result "copy.sha256=$value"
