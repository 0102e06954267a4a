# Runs as process 1 after /init, with /proc, /sys and /dev mounted.
# Picks the scripts to run from the kernel command line: `test=a,b` or words
# after ` -- `; none means `shell`. Each word `podvisor.KEY=VALUE` becomes the
# shell variable p_KEY. Avoid forks here: each costs 100 ms where guest kernel
# code is interpreted.

result() { echo "RESULT $*"; }

# sysfs FILE: its first line in $value; fails if there is none.
sysfs() {
	value=
	[ ! -e "$1" ] || read -r value < "$1"
	[ -n "$value" ]
}

# Linux breaks the queues of virtio devices before it powers off, and virtio-net then spins for
# ever if TCP still has something to send.
finish() {
	for nic in /sys/class/net/*; do
		[ ! -e "$nic/device" ] || ip link set "${nic##*/}" down
	done
	echo GUEST-DONE
	exec guest down "${1:-off}"
}

fail() {
	result "error=$*"
	finish
}

tests=
read -r cmdline < /proc/cmdline
set -f
for word in $cmdline; do
	[ -z "$dashes" ] || { tests="$tests $word"; continue; }
	case $word in
	--) dashes=1 ;;
	test=*) tests="$tests ${word#test=}" ;;
	podvisor.*=*)
		key=${word%%=*}
		key=${key#podvisor.}
		case $key in
		*[!a-z0-9_]*) result "error=bad key $key" ;;
		*) value=${word#*=}; eval "p_$key=\$value" ;;
		esac
		;;
	esac
done
IFS=', '
set -- ${tests:-shell}
unset IFS
set +f

for name; do
	[ -r "/scripts/$name.sh" ] || fail "no test called $name"
	. "/scripts/$name.sh"
done
finish
