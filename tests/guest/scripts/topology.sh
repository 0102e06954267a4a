# How the guest groups its processors, and which features it was given.

while IFS=$'\t:' read -r key value; do
	case $key in
	processor) cpu=${value# } ;;
	"physical id" | "core id" | siblings | "cpu cores" | apicid)
		echo "RESULT cpuinfo.$cpu.${key// /_}=${value# }" ;;
	"model name") [ "$cpu" != 0 ] || result "model=${value# }" ;;
	flags) [ "$cpu" != 0 ] || result "flags=${value# }" ;;
	esac
done < /proc/cpuinfo
for cpu in /sys/devices/system/cpu/cpu[0-9]*; do
	for key in core_id physical_package_id thread_siblings_list core_siblings_list; do
		sysfs "$cpu/topology/$key" && result "${cpu##*/}.$key=$value"
	done
done
sysfs /sys/devices/system/cpu/online && result "online=$value"
