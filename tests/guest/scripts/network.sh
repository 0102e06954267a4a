# Brings up the card and asks for a lease; sets $gateway.

card=${p_card:-eth0}
ip link set lo up
ip link set "$card" up || fail "no card $card"
udhcpc -i "$card" -f -n -q -t 5 -T 2 -O mtu -O staticroutes -O search \
	-s /scripts/lease.sh > /tmp/udhcpc 2>&1 || { cat /tmp/udhcpc; fail "no lease"; }
grep RESULT /tmp/udhcpc
. /lease
