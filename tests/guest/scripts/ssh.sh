# An SSH server (dropbear, which the test brings along) for the user and the key of the NoCloud seed on /dev/vdb, until the
# power button.

. /scripts/button.sh
find_button || fail "no power button"
. /scripts/network.sh
mkdir -p /dev/pts /etc/dropbear /mnt/seed
mount -t devpts devpts /dev/pts
mount -t iso9660 -o ro /dev/vdb /mnt/seed || fail "no seed on vdb"
while read -r line; do
	case $line in
	"- name: "*) user=${line#*\"} user=${user%\"*} ;;
	ssh_authorized_keys:*) key=${line#*\"} key=${key%%\"*} ;;
	esac
done < /mnt/seed/user-data
home=/home/$user
mkdir -p "$home/.ssh"
echo "$key" > "$home/.ssh/authorized_keys"
echo "$user:x:1000:1000::$home:/bin/sh" > /etc/passwd
echo "$user:x:1000:" > /etc/group
/usr/sbin/dropbear -E -R -s || fail "no SSH server"
echo SERVING
guest button "$button" && result "button=pressed"
