# Waits for the ACPI power button. Sourced by `shell` as well.

button_pressed() {
	node=
	for event in /sys/class/input/event*; do
		sysfs "$event/device/name"
		[ "$value" != "Power Button" ] || node=/dev/input/${event##*/}
	done
	[ -n "$node" ] || fail "no power button"
	[ "$name" = shell ] || echo "WAITING"
	# struct input_event: 16 bytes of time, then type 1 (key), code 116 (power).
	set -- $(od -An -v -tu2 -j16 -N4 "$node")
	[ "$1/$2" = 1/116 ]
}

[ "$name" != button ] || {
	button_pressed && result "button=pressed" || result "button=unknown event"
}
