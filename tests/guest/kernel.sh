#!/bin/sh
# Builds $1/vmlinux and $1/bzImage. Called by build.sh.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
out=$1
tree=$out/linux
log=$out/kernel.log

# Sources that no option of kernel.config can reach are most of the tarball;
# their Kconfig files and Makefiles are needed all the same.
rm -rf "$tree"
mkdir -p "$tree"
set --
for folder in sound drivers/gpu drivers/media drivers/staging drivers/infiniband drivers/scsi \
	drivers/net/ethernet drivers/net/wireless drivers/usb drivers/crypto drivers/iio \
	drivers/hwmon drivers/mtd drivers/md drivers/phy drivers/pinctrl drivers/clk; do
	set -- "$@" "--exclude=*/$folder/*.[ch]"
done
for arch in alpha arc arm arm64 csky hexagon ia64 loongarch m68k microblaze mips nios2 openrisc \
	parisc powerpc riscv s390 sh sparc um xtensa; do
	set -- "$@" "--exclude=*/arch/$arch/*.[chS]" "--exclude=*/arch/$arch/boot/dts" "--exclude=*/tools/arch/$arch"
done
echo "tests/guest: unpacking the kernel"
xz -dcT0 /usr/src/linux-source-6.1.tar.xz | tar -C "$tree" --strip-components=1 -x \
	--exclude='*/Documentation/*/*' --exclude='*/tools/perf' --exclude='*/tools/testing' "$@"

cd "$tree"
for patch in "$here"/patches/*.patch; do
	patch -s -p1 -i "$patch"
done

# The same input gives the same bytes.
export KBUILD_BUILD_TIMESTAMP=@0 KBUILD_BUILD_USER=podvisor KBUILD_BUILD_HOST=podvisor KBUILD_BUILD_VERSION=1

echo "tests/guest: building the kernel (log: $log)"
{
	make -s tinyconfig &&
		scripts/kconfig/merge_config.sh -m .config "$here/kernel.config" &&
		make -s olddefconfig
} > "$log" 2>&1 || { tail -20 "$log" >&2; exit 1; }

# Kconfig drops what its dependencies do not allow, without a word.
while read -r line; do
	case $line in
	CONFIG_*) grep -qxF "$line" .config || untaken="${untaken-} $line" ;;
	"# CONFIG_"*" is not set")
		symbol=${line#\# }
		grep -q "^${symbol%% *}=" .config && untaken="${untaken-} ${symbol%% *}=n" ;;
	esac
done < "$here/kernel.config"
[ -z "${untaken-}" ] || { echo "tests/guest: kernel.config: not taken:$untaken" >&2; exit 1; }

make -j"$(nproc)" bzImage >> "$log" 2>&1 || { grep -iB5 error "$log" | tail -40 >&2; exit 1; }

cp arch/x86/boot/bzImage "$out/bzImage"
cp .config "$out/kernel.config"
objcopy --strip-debug vmlinux "$out/vmlinux.new"
mv "$out/vmlinux.new" "$out/vmlinux"
cd "$out"
rm -rf "$tree"
