# Waits for the ACPI power button. Sourced by `shell` as well.

# Sets $button to the event device of the power button.
find_button() {
	for event in /sys/class/input/event*; do
		sysfs "$event/device/name"
		[ "$value" != "Power Button" ] || button=/dev/input/${event##*/}
	done
	[ -n "$button" ]
}

if [ "$name" = button ]; then
	find_button || fail "no power button"
	guest button "$button" && result "button=pressed"
fi
