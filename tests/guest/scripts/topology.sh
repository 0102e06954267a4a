# How the guest groups its processors, and which features it was given.

while IFS=$'\t:' read -r key value; do
	value=${value# }
	case $key in
	processor) cpu=$value ;;
	"physical id" | "core id" | siblings | "cpu cores" | apicid)
		result "cpuinfo.$cpu.${key// /_}=$value" ;;
	"model name") [ "$cpu" != 0 ] || result "model=$value" ;;
	flags) [ "$cpu" != 0 ] || result "flags=$value" ;;
	esac
done < /proc/cpuinfo
# The lists cannot be read byte by byte, as the shell does.
cd /sys/devices/system/cpu
grep . cpu[0-9]*/topology/*_id cpu[0-9]*/topology/*_siblings_list |
	while IFS=/: read -r cpu _ key value; do
		result "$cpu.$key=$value"
	done
sysfs online && result "online=$value"
cd /
