# Behind passt: a lease, a name looked up, bytes both ways, and the end of the link.

. /scripts/network.sh
bytes=${p_bytes:-262144}
nslookup "$p_name" > /tmp/lookup 2>&1
while read -r word address; do
	case $word in Address*) result "lookup=${address#1: }" ;; esac
done < /tmp/lookup
guest receive 5001 "$bytes"
# passt (of 2023) refuses a connection whose SYN comes twice, as it does while packets are queued.
sleep 3
guest send "$gateway" 5002 "$bytes" && result "tx.bytes=$bytes"
echo WAITING
until read -r carrier < "/sys/class/net/$card/carrier" && [ "$carrier" = 0 ]; do
	sleep 1
done
result "carrier=$carrier"
