# Copies the head of /dev/vda to /dev/vdb, or to the devices of podvisor.to, and prints the digests.
# Direct I/O unless podvisor.direct=0: large requests, and no page cache.

mib=${p_mib:-16}
[ "${p_direct:-1}" = 1 ] && in=iflag=direct out=oflag=direct || in= out=

guest digest /dev/vda "$mib" || fail "digest"
IFS=,
for to in ${p_to:-vdb}; do
	unset IFS
	dd if=/dev/vda of="/dev/$to" bs=1M count="$mib" $in $out conv=fsync status=none || fail "copy to $to"
	guest digest "/dev/$to" "$mib" "${p_to:+$to.}copy." || fail "digest of $to"
done
