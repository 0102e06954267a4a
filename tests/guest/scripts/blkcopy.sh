# Copies the head of /dev/vda to /dev/vdb and prints the digest of both.
# Direct I/O unless podvisor.direct=0: large requests, and no page cache.

mib=${p_mib:-16}
[ "${p_direct:-1}" = 1 ] && in=iflag=direct out=oflag=direct || in= out=

guest digest /dev/vda "$mib" || fail "digest"
dd if=/dev/vda of=/dev/vdb bs=1M count="$mib" $in $out conv=fsync status=none || fail "copy"
guest digest /dev/vdb "$mib" copy. || fail "digest"
