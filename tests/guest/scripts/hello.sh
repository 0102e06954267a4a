# What the guest sees: kernel, processors, memory, disks, network cards.

read -r _ _ release _ < /proc/version
result "kernel=$release"
cpus=0
for cpu in /sys/devices/system/cpu/cpu[0-9]*; do
	cpus=$((cpus + 1))
done
result "cpus=$cpus"
sysfs /sys/devices/system/cpu/online && result "online=$value"
read -r _ kib _ < /proc/meminfo
result "memory_kib=$kib"
read -r up _ < /proc/uptime
result "uptime=$up"

for disk in /sys/block/*; do
	[ -e "$disk/device" ] || continue
	name=${disk##*/}
	sysfs "$disk/serial" && result "serial.$name=$value"
	sysfs "$disk/ro" && result "ro.$name=$value"
	sysfs "$disk/size" && result "sectors.$name=$value"
	for key in logical_block_size physical_block_size write_cache discard_max_bytes; do
		sysfs "$disk/queue/$key" && result "$key.$name=$value"
	done
	set -- "$disk"/mq/*
	result "queues.$name=$#"
done

for card in /sys/class/net/*; do
	[ -e "$card/device" ] || continue
	name=${card##*/}
	sysfs "$card/address" && result "mac.$name=$value"
	sysfs "$card/device/../acpi_index" && result "acpi_index.$name=$value"
	sysfs "$card/mtu" && result "mtu.$name=$value"
	set -- "$card"/queues/rx-*
	result "queues.$name=$#"
done
