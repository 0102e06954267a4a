# For people: a pod's network, a pod's volume, and out.

. /scripts/network.sh

if [ -b /dev/vda ]; then
	mount -t ext4 /dev/vda /mnt || fail "/dev/vda holds no ext4"
	[ ! -r /mnt/visits ] || read -r visits < /mnt/visits
	visits=$((${visits:-0} + 1))
	echo "$visits" > /mnt/visits
	umount /mnt
	result "visits=$visits"
fi

ping -c 3 -i 0.2 -W 2 "$gateway" && result "ping=ok" || result "ping=lost"
