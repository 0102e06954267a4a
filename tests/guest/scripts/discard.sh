# Gives the first MiB of /dev/vda back to the host, then reads it.

sysfs /sys/block/vda/queue/discard_max_bytes && result "discard_max_bytes=$value"
if blkdiscard -o 0 -l 1048576 /dev/vda; then
	result "discard=ok"
else
	result "discard=refused"
fi
guest digest /dev/vda 1
