# A read-only disk must refuse, whoever asks.

disk=${p_disk:-vda}
sysfs "/sys/block/$disk/ro" && result "ro=$value"
if echo probe 2> /dev/null > "/dev/$disk" && sync; then
	result "write=accepted"
else
	result "write=refused"
fi
