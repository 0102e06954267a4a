# Sourced by the demos: what this host lacks, in the words of `podvisor check-host`.

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
