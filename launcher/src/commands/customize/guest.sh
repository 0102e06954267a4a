# What `podvisor customize` has done in its guest, as root. $1 is where the disk with this file is mounted: `inject` puts
# files into place, `script` is run if it is there, `user-data` and `seal` are there if cloud-init's user data are what
# counts and if the disk becomes an image for others. Later, $2 is the status so far.

files=$1
work=/var/tmp/podvisor-customize

# port NAME: the device of the port of that name.
port() {
	for directory in /sys/class/virtio-ports/*; do
		name=
		read -r name < "$directory/name"
		if [ "$name" = "$1" ]; then
			echo "/dev/${directory##*/}"
			return
		fi
	done
}

# put MODE FILE PATH: a file of the disk, for `inject`.
put() {
	mkdir -p "${3%/*}/" && cp "$files/$2" "$3" && chmod "$1" "$3"
}

run() {
	. "$files/inject" || return
	[ -e "$files/script" ] || return 0
	cp "$files/script" "$work/script" && chmod 700 "$work/script" || return
	cd /
	"$work/script"
}

has_cloud_init() {
	command -v cloud-init > /dev/null
}

# What must not be the same in two machines.
seal() {
	rm -f /etc/ssh/ssh_host_*
	if has_cloud_init; then
		cloud-init clean --logs || return
	fi
	rm -rf /var/lib/cloud
	# systemd keeps one that it has not written yet mounted there.
	umount /etc/machine-id 2> /dev/null
	[ ! -e /etc/machine-id ] || : > /etc/machine-id
	[ -h /var/lib/dbus/machine-id ] || rm -f /var/lib/dbus/machine-id
}

if [ -z "${2-}" ]; then
	exec 3> "$(port podvisor.output)" 4> "$(port podvisor.status)"
	mkdir -p "$work"
	(run) >&3 2>&1 3>&- 4>&- < /dev/null
	status=$?
	# cloud-init is not done before this is, so what waits for it is another process.
	if has_cloud_init; then
		setsid sh "$files/guest.sh" "$files" "$status" > /dev/null 2>&1 < /dev/null &
		exit 0
	fi
else
	status=$2
	cloud-init status --wait > "$work/status" 2>&1
	seeded=$?
	# 2: it has warnings.
	[ "$seeded" != 2 ] || seeded=0
	if [ -e "$files/user-data" ]; then
		cat /var/log/cloud-init-output.log >&3
		[ "$status" != 0 ] || status=$seeded
	fi
fi
echo "status $status" >&4
if [ "$status" = 0 ] && [ -e "$files/seal" ] && seal >&3 2>&1; then
	echo sealed >&4
fi
rm -rf "$work"
sync
if [ -d /run/systemd/system ]; then
	systemctl poweroff
else
	poweroff
fi
