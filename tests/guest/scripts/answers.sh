# What the NIC itself answers: a DHCP lease and its renewal, a DHCPv6 lease and its renewal, the
# router of an advertisement. Needs the kernel's IPv6, so no ipv6.disable=1.

card=${p_card:-eth0}
ip link set lo up
ip link set "$card" up || fail "no card $card"
# In the foreground, so that its script's words reach the console, but not waited for.
udhcpc -i "$card" -f -t 5 -T 3 -O mtu -O staticroutes -O search -s /scripts/lease.sh &
udhcpc=$!

# The script of udhcpc leaves /lease.
wait_for_lease() {
	for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
		[ ! -r /lease ] || return
		sleep 1
	done
	fail "no lease"
}
wait_for_lease

dhcp6 "$card" > /tmp/dhcp6
while read -r _ line; do
	result "$line"
	case $line in dhcp6.ip=*) ip -6 addr add "${line#*=}/128" dev "$card" ;; esac
done < /tmp/dhcp6
for _ in 1 2 3 4 5 6 7 8 9 10; do
	router=$(ip -6 route show default)
	[ -z "$router" ] || break
	sleep 1
done
result "route6=$router"

# To the server's address, by the way of all packets.
rm /lease
echo RENEWING
kill -USR1 "$udhcpc"
wait_for_lease
if [ -n "$p_ping6" ]; then
	ping -6 -c 1 -W 5 "$p_ping6" && result "ping6=ok" || result "ping6=lost"
fi
