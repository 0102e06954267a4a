#!/bin/sh
# Builds $1/agent.cpio: what initrd.cpio lacks for Debian's guest agent, which are the program, its libraries, and accounts
# that it can change. Called by build.sh. Nothing is installed.
set -eu

out=$1
tree=$out/agent
root=$tree/root
packages="qemu-guest-agent libc6 libglib2.0-0 libnuma1 libpcre2-8-0 libudev1 liburing2"
libraries="libc.so.6 libm.so.6 libglib-2.0.so.0 libgmodule-2.0.so.0 libnuma.so.1 libpcre2-8.so.0 libudev.so.1 liburing.so.2"

rm -rf "$tree"
mkdir -p "$tree/packages" "$root/bin" "$root/etc" "$root/lib/x86_64-linux-gnu" "$root/lib64" "$root/root" "$root/run" \
	"$root/var"
download() { (cd "$tree/packages" && apt-get -q -o APT::Sandbox::User=root download $packages > /dev/null); }
# The second time with new package lists, if the old ones name what is there no more.
download || { apt-get update -q && download; }
for package in "$tree/packages"/*.deb; do
	dpkg-deb -x "$package" "$tree/packages/tree"
done

cp "$tree/packages/tree/usr/sbin/qemu-ga" "$root/bin/"
for name in $libraries; do
	file=$(find "$tree/packages/tree" -name "$name" | head -n 1)
	cp -L "$file" "$root/lib/x86_64-linux-gnu/$name"
done
cp -L "$tree/packages/tree/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2" "$root/lib64/"

echo 'root:x:0:0:root:/root:/bin/sh' > "$root/etc/passwd"
echo 'root:x:0:' > "$root/etc/group"
echo 'root:*:19000:0:99999:7:::' > "$root/etc/shadow"
printf 'NAME="Test guest"\nPRETTY_NAME="Test guest 1"\nID=test\nVERSION_ID="1"\nVERSION="1 (one)"\n' > "$root/etc/os-release"
ln -s ../run "$root/var/run"
# The agent gives it `root:PASSWORD`; Debian's busybox has none.
cat > "$root/bin/chpasswd" << 'END'
#!/bin/sh
read -r line
echo "$line:19000:0:99999:7:::" > /etc/shadow
END
chmod 755 "$root/bin/chpasswd"
# One who is logged in (utmp(5)): type 7, then terminal, user and host at 8, 44 and 76, and the seconds at 340.
{
	printf '\007' && head -c 7 /dev/zero
	printf 'ttyS0' && head -c 31 /dev/zero
	printf 'tester' && head -c 290 /dev/zero
	printf '\000\020\040\140' && head -c 40 /dev/zero
} > "$root/run/utmp"

(cd "$root" && find . | LC_ALL=C sort | cpio -o -H newc -R 0:0 --quiet) > "$out/agent.cpio.new"
rm -rf "$tree"
mv "$out/agent.cpio.new" "$out/agent.cpio"
