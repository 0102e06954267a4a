# Sourced by the demos: what this host lacks, in the words of `podvisor check-host`, and a pod's network.

# Ends the demo with check-host's status where a machine with disk and network could not run.
require_host() {
    local said status=0
    said=$("$podvisor" check-host) || status=$?
    [ "$status" -eq 0 ] && return
    echo "== This host cannot run the demo. podvisor check-host says:" >&2
    grep -A 1 --no-group-separator '^MISSING' <<<"$said" >&2
    exit "$status"
}

# After a run that failed with status $1: all that check-host says.
run_failed() {
    echo "== The run ended with status $1. podvisor check-host says of this host:" >&2
    "$podvisor" check-host >&2 || true
    exit "$1"
}

# Makes network namespace $pod, with an eth0 that has an address and a route, and that of its gateway, $pod-gw.
make_pod() {
    local host=pvd$$
    ip netns add "$pod"
    ip netns add "$pod-gw"
    ip -n "$pod" link add eth0 type veth peer name "$host" netns "$pod-gw"
    ip -n "$pod-gw" address add 10.244.1.1/24 dev "$host"
    ip -n "$pod-gw" link set "$host" up
    ip -n "$pod" address add 10.244.1.7/24 dev eth0
    ip -n "$pod" link set lo up
    ip -n "$pod" link set eth0 up
    ip -n "$pod" route add default via 10.244.1.1
}

delete_pod() {
    ip netns delete "$pod" 2>/dev/null || true
    ip netns delete "$pod-gw" 2>/dev/null || true
}
