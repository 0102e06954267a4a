# A lease, then bytes both ways: receives on TCP port 5001 and reports them,
# then sends the pattern of init.c to podvisor.peer port 5002.

. /scripts/network.sh
bytes=${p_bytes:-16777216}
# TCP cuts its packets by the clock, and this guest's runs fast for what it can do.
echo 40 > /proc/sys/net/ipv4/tcp_min_tso_segs
guest receive 5001 "$bytes"
guest send "${p_peer:-$gateway}" 5002 "$bytes" && result "tx.bytes=$bytes"
