# Leases on all cards that have a link, then questions to and from other hosts, on command from
# the console: each line is run by the shell, `guest ask ...` among them.

# Asks for a lease for card $1, and goes to the background with it.
lease() {
	udhcpc -i "$1" -n -t 5 -T 3 -O mtu -O staticroutes -O search -O tftp -O bootfile -O ntpsrv \
		-p "/tmp/$1.pid" -s /scripts/lease.sh
}

ip link set lo up
for card in /sys/class/net/*; do
	[ -e "$card/device" ] || continue
	ip link set "${card##*/}" up
	read -r link < "$card/carrier"
	[ "$link" = 0 ] || lease "${card##*/}" || fail "no lease on ${card##*/}"
done
guest echo 7000 &

# Renews the lease of card $1.
renew() { read -r pid < "/tmp/$1.pid" && kill -USR1 "$pid"; }

# Adds IPv6 address $2 to card $1, usable at once.
address6() {
	echo 0 > "/proc/sys/net/ipv6/conf/$1/accept_dad"
	ip -6 addr add "$2" dev "$1"
}

# Prints which answers the name $1 has.
lookup() {
	nslookup "$1" > /tmp/lookup 2>&1
	while read -r word answer; do
		case $word in Address*) result "lookup=${answer#1: }" ;; esac
	done < /tmp/lookup
}

# Prints the state of card $1.
carrier() { read -r value < "/sys/class/net/$1/carrier" && result "carrier.$1=$value"; }

# Prints the IPv6 default route.
route6() { result "route6=$(ip -6 route show default)"; }

echo READY
while read -r line; do
	[ "$line" != done ] || break
	eval "$line"
	echo "DID $line"
done
