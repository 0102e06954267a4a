# The least of cloud-init: runs the user data of a NoCloud seed, which are a script, in the system on the ext4 of /dev/vda,
# which gets a shell for it.

root=/mnt/root
mkdir -p "$root" /mnt/seed
mount -t ext4 /dev/vda "$root" || fail "no file system on vda"
for disk in /sys/block/vd*; do
	mount -t iso9660 -o ro "/dev/${disk##*/}" /mnt/seed 2> /dev/null || continue
	[ ! -e /mnt/seed/meta-data ] || break
	umount /mnt/seed
done
read -r line < /mnt/seed/user-data || fail "no user data"
[ "${line#\#!}" != "$line" ] || fail "user data that are no script"
for name in dev proc sys; do
	mkdir -p "$root/$name"
	mount -o bind "/$name" "$root/$name"
done
mkdir -p "$root/bin"
cp /bin/busybox "$root/bin/sh"
cp /mnt/seed/user-data "$root/user-data"
chroot "$root" /bin/sh /user-data
result "seed=$?"
rm "$root/user-data"
umount "$root/run/podvisor-files" "$root/dev" "$root/proc" "$root/sys" "$root" || fail "still in use"
