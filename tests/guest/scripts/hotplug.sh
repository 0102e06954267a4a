# Uses the disks that come while the machine runs, one at a time, until it is
# told to stop by a word on the console. A disk is written to, and read until it
# goes. Then a NIC that comes, which sends until it goes.

disk=${p_disk:-vda}
result "hotplug=ready"
round=0
while :; do
	until [ -e "/sys/block/$disk/size" ]; do
		read -r -t 1 word && break 2
	done
	round=$((round + 1))
	sysfs "/sys/block/$disk/size" && result "sectors=$value"
	printf '%015d\n' "$round" | dd of="/dev/$disk" conv=notrunc,fsync status=none && result "wrote=$round"
	# Requests are under way when it goes.
	while [ -e "/sys/block/$disk/size" ]; do
		dd if="/dev/$disk" of=/dev/null bs=64k count=16 iflag=direct 2> /dev/null
	done
	result "gone=$round"
done

until [ -e /sys/class/net/eth0 ]; do
	sleep 1
done
sysfs /sys/class/net/eth0/address && result "nic=$value"
ip addr add 10.9.9.2/24 dev eth0
ip link set eth0 up
ping=lost
while [ -e /sys/class/net/eth0 ]; do
	if ping -c 1 -W 1 10.9.9.1 > /dev/null; then
		ping=ok
		break
	fi
done
result "ping=$ping"
while [ -e /sys/class/net/eth0 ]; do
	ping -c 1 -W 1 -s 1000 10.9.9.1 > /dev/null
done
result "nic=gone"
