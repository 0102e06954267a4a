#!/bin/sh
# Init of the emulated host: this machine's files by 9p, read-only below a layer in memory, then the
# command of the kernel's command line (nested.cmd, base64). The status is the last line.
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs dev /dev
while read -r module; do
	/bin/busybox insmod "/modules/$module" || echo "NESTED: no $module"
done < /modules/order
/bin/busybox mkdir -p /lower /layer
/bin/busybox mount -t tmpfs tmpfs /layer
/bin/busybox mkdir -p /layer/upper /layer/work
/bin/busybox mount -t 9p -o trans=virtio,version=9p2000.L,ro,msize=512000,cache=loose root /lower
/bin/busybox mount -t overlay -o lowerdir=/lower,upperdir=/layer/upper,workdir=/layer/work overlay /root
for name in proc sys dev; do /bin/busybox mount --move /$name /root/$name; done
/bin/busybox mount -t tmpfs tmpfs /root/tmp
/bin/busybox mount -t tmpfs tmpfs /root/run
/bin/busybox mkdir -p /root/dev/shm /root/dev/net
[ -e /root/dev/net/tun ] || /bin/busybox mknod /root/dev/net/tun c 10 200
command=$(/bin/busybox sed -n 's/.*nested\.cmd=\([^ ]*\).*/\1/p' /root/proc/cmdline | /bin/busybox base64 -d)
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
/bin/busybox ip link set lo up
# Not below a root of one's own only, as chroot alone would do: no user namespaces could be made there.
cd /root
/bin/busybox mount --move . /
/bin/busybox chroot . /bin/sh -c "$command"
echo "NESTED-STATUS $?"
/bin/busybox chroot . /bin/busybox poweroff -f
