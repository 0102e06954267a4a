# What each disk is: serial, whether it refuses writes, and, of an ISO 9660 file system, its label and
# the first line of each file; then writes to those named in p_write, separated by colons.

mkdir -p /mnt/iso
for disk in /sys/block/vd*; do
	name=${disk##*/}
	sysfs "$disk/serial" && result "serial.$name=$value"
	sysfs "$disk/ro" && result "ro.$name=$value"
	sysfs "$disk/size" && result "sectors.$name=$value"
	mount -t iso9660 -o ro "/dev/$name" /mnt/iso 2> /dev/null || continue
	# The label is 32 bytes at 40 of sector 16.
	label=$(dd if="/dev/$name" bs=8 skip=4101 count=4 2> /dev/null)
	result "label.$name=${label%% *}"
	for file in /mnt/iso/* /mnt/iso/*/*/*; do
		[ -f "$file" ] || continue
		line=
		read -r line < "$file"
		result "file.$name.${file#/mnt/iso/}=$line"
	done
	umount /mnt/iso
done

IFS=:
for name in $p_write; do
	# In the middle of a cluster that holds other data, and one that holds none.
	dd if="/dev/$name" bs=512 count=1 2> /dev/null | { read -r old; result "first.$name=$old"; }
	echo changed | dd of="/dev/$name" bs=512 seek=9 conv=sync,fsync 2> /dev/null
	echo changed | dd of="/dev/$name" bs=512 seek=20000 conv=sync,fsync 2> /dev/null
	again=$(dd if="/dev/$name" bs=512 skip=20000 count=1 2> /dev/null)
	result "wrote.$name=${again%%[!a-z]*}"
done
unset IFS
