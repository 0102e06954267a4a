# Answers on the guest agent's port until it is told `end`, and once on hvc0; before that it asks for a login as getty does, and
# waits for none.

for port in /sys/class/virtio-ports/*; do
	sysfs "$port/name" && [ "$value" = org.qemu.guest_agent.0 ] && channel=/dev/${port##*/}
done
[ -n "$channel" ] || fail "no port"
echo "vm login: "
{ read -r line <&3 && echo "said $line" >&3; } 3<> /dev/hvc0 &
result "port=$value"
while [ "$line" != end ]; do
	if read -r line <&4; then
		echo "answer $line" >&4
	else
		sleep 1
	fi
done 4<> "$channel"
