# Runs Debian's guest agent (agent.cpio) at its port, with the ext4 of vda mounted, until it is told to shut the guest down.

for port in /sys/class/virtio-ports/*; do
	sysfs "$port/name" && [ "$value" = org.qemu.guest_agent.0 ] && channel=/dev/${port##*/}
done
[ -n "$channel" ] || fail "no port"
mount -t ext4 /dev/vda /mnt || fail "/dev/vda holds no ext4"
result "agent=$channel"
qemu-ga -m virtio-serial -p "$channel" -t /run -f /run/qemu-ga.pid
result "agent=$?"
