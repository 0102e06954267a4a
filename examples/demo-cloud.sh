#!/usr/bin/env bash
# demo-cloud.sh [SUITE]: boots a whole Debian from its own disk with a cloud-init seed (examples/cloud.yaml), logs in to it from
# the pod's gateway, reboots it, presses its power button, has `podvisor ssh` go into it when it is run without a VMI, and has
# `customize` install a package in a copy. Ends with an error where the guest is not as the seed says. Needs root and a /dev/kvm with hardware virtualization.
set -euo pipefail
cd "$(dirname "$0")/.."

disk=${DEBIAN_OUT:-target/debian}/${1:-bookworm}.img
podvisor=${PODVISOR:-target/podvisor}
. examples/host.sh
require_host
work=$(mktemp -d)
pod=pv-cloud-$$
vm=

cleanup() {
    [ -z "$vm" ] || kill -KILL "$vm" 2>/dev/null || true
    delete_pod
    rm -rf "$work"
}
trap cleanup EXIT

make_pod
ssh-keygen -q -t ed25519 -N '' -C ada -f "$work/key"
sed "s|SSH_KEY|$(cat "$work/key.pub")|" examples/cloud.yaml > "$work/cloud.yaml"

echo "== podvisor image inspect $disk"
"$podvisor" image inspect "$disk"
echo "== podvisor run examples/cloud.yaml, in network namespace $pod"
ip netns exec "$pod" "$podvisor" run "$work/cloud.yaml" --volume root="$disk" < /dev/null &
vm=$!

# login COMMAND: runs it in the guest.
login() {
    ip netns exec "$pod-gw" ssh -i "$work/key" -oLogLevel=ERROR -oStrictHostKeyChecking=no -oConnectTimeout=60 \
        -oUserKnownHostsFile=/dev/null ada@10.244.1.7 "$1"
}

# boot_after ID: waits until the guest lets its user in and has another boot ID, which it prints.
boot_after() {
    local id=
    until id=$(login 'cat /proc/sys/kernel/random/boot_id' 2>/dev/null) && [ "$id" != "$1" ]; do
        kill -0 "$vm" 2>/dev/null || return 1
        sleep 1
    done
    echo "$id"
}

first=$(boot_after '') || { wait "$vm" || run_failed $?; exit 1; }
echo "== ssh ada@10.244.1.7, from the pod's gateway:"
login 'cloud-init status --wait || [ $? = 2 ]; hostname; uname -r; cat /proc/cmdline /var/lib/made-by-runcmd'
[ "$(login 'hostname; cat /var/lib/made-by-runcmd')" = $'cloud\nfor ada' ]

echo "== a reboot:"
login 'sudo systemctl reboot' || true
boot_after "$first" > /dev/null || { wait "$vm" || run_failed $?; exit 1; }
login 'uptime; ls -l /var/lib/made-by-runcmd'

echo "== the power button:"
kill -TERM "$vm"
wait "$vm" || run_failed $?
vm=

echo "== the disk without a VMI, behind passt, and podvisor ssh:"
at_home() { ip netns exec "$pod" env XDG_STATE_HOME="$work/state" XDG_DATA_HOME="$work/data" "$podvisor" "$@"; }
trap 'at_home ctl --vm first stop || true; cleanup' EXIT
at_home run --detach --name first "$disk" --user me --memory 512Mi --publish 2222:22
[ "$(at_home ssh first -- id -un)" = me ]
at_home ctl --vm first powerButton
at_home ctl --vm first events | tail -n 1 | grep '"exitStatus":0'
trap cleanup EXIT

echo "== podvisor customize, with a package of a local file:"
mkdir -p "$work/hello/DEBIAN" "$work/hello/usr/bin"
cat > "$work/hello/DEBIAN/control" <<'CONTROL'
Package: hello-podvisor
Version: 1
Architecture: all
Maintainer: nobody
Description: says hello
CONTROL
printf '#!/bin/sh\necho hello from a package\n' > "$work/hello/usr/bin/hello-podvisor"
chmod 755 "$work/hello/usr/bin/hello-podvisor"
dpkg-deb --root-owner-group --build "$work/hello" "$work/hello.deb" > /dev/null
printf '#!/bin/sh\nset -e\napt-get install -y /tmp/hello.deb\nhello-podvisor\n' > "$work/setup.sh"
"$podvisor" customize "$disk" --run "$work/setup.sh" --inject "$work/hello.deb:/tmp/hello.deb" --no-network \
    --memory 512Mi --out "$work/golden.qcow2" | tee "$work/said"
grep -q 'hello from a package' "$work/said"
"$podvisor" image inspect "$work/golden.qcow2"
