# The NUMA nodes that the kernel sees; its lists cannot be read byte by byte, as
# the shell does.

cd /sys/devices/system/node
grep . node[0-9]*/cpulist node[0-9]*/distance |
	while IFS=/: read -r node key value; do
		result "$key.$node=$value"
	done
cd /
