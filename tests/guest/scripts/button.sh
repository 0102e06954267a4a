# Waits for the ACPI power button. Sourced by `shell` as well.

# Sets $button to the event device of the power button.
find_button() {
	for event in /sys/class/input/event*; do
		sysfs "$event/device/name"
		[ "$value" != "Power Button" ] || button=/dev/input/${event##*/}
	done
	[ -n "$button" ]
}

await_button() {
	# struct input_event: 16 bytes of time, then type 1 (key), code 116 (power).
	set -- $(od -An -v -tu2 -j16 -N4 "$button")
	[ "$1/$2" = 1/116 ]
}

if [ "$name" = button ]; then
	find_button || fail "no power button"
	echo WAITING
	await_button && result "button=pressed" || result "button=unknown event"
fi
