#!/bin/busybox sh
# Called by udhcpc with the lease in its environment: configures the card and
# reports what the DHCP server said.

case $1 in
bound) ;;
# A client in the background says what it says to nobody.
renew) exec > /dev/console ;;
*) exit 0 ;;
esac

[ -z "$mtu" ] || ip link set "$interface" mtu "$mtu"
ip addr add "$ip/$mask" ${broadcast:+broadcast "$broadcast"} dev "$interface"

# Option 121 replaces the router option (RFC 3442).
if [ -n "$staticroutes" ]; then
	set -- $staticroutes
	while [ $# -ge 2 ]; do
		case $2 in
		0.0.0.0) ip route add "$1" dev "$interface" ;;
		*) ip route add "$1" via "$2" dev "$interface" ;;
		esac
		shift 2
	done
elif [ -n "$router" ]; then
	# A pod's gateway may lie outside its subnet.
	ip route add default via "${router%% *}" dev "$interface" 2> /dev/null || {
		ip route add "${router%% *}" dev "$interface"
		ip route add default via "${router%% *}" dev "$interface"
	}
fi

for server in $dns; do
	echo "nameserver $server"
done > /etc/resolv.conf
[ -z "$search$domain" ] || echo "search ${search:-$domain}" >> /etc/resolv.conf
[ -z "$hostname" ] || echo "$hostname" > /proc/sys/kernel/hostname

echo "RESULT ip=$ip
RESULT mask=$subnet
RESULT prefix=$mask
RESULT gw=${router%% *}
RESULT routes=$staticroutes
RESULT dns=$dns
RESULT search=${search:-$domain}
RESULT hostname=$hostname
RESULT mtu=$mtu
RESULT options=$tftp $bootfile $ntpsrv $opt240
RESULT lease=$lease
RESULT server=$serverid"
echo "gateway=${router%% *}" > /lease
