#!/bin/sh
# run.sh COMMAND: runs a shell command as root on an emulated machine that has hardware
# virtualization (AMD SVM, by QEMU's TCG), Debian's stock kernel as host and this machine's files.
# Writes are lost. Exits with the command's status, or another than 0 if the machine itself came to nothing:
# now and then a processor of TCG's, while in a guest, gets no interrupt for minutes. It has NESTED_MEMORY (1024) MiB on each of two
# NUMA nodes and NESTED_SECS seconds (500). Behind an IOMMU it has two disks to give away: virtio-blk at 0000:00:10.0, NVMe at
# 0000:00:11.0.
set -eu

out=${NESTED_OUT:-$(cd "$(dirname "$0")/../.." && pwd)/target/nested}
memory=${NESTED_MEMORY:-1024}
command=$(printf %s "$1" | base64 -w0)
log=$(mktemp)
disks=$(mktemp -d)
trap 'rm -rf "$log" "$disks"' EXIT
truncate -s 32M "$disks/virtio" "$disks/nvme"
timeout --foreground "${NESTED_SECS:-500}" qemu-system-x86_64 -accel tcg,thread=multi -machine q35 -cpu max,la57=off,xsave=off,+svm,+npt -smp 2 -m "$((2 * memory))" \
	-object memory-backend-ram,id=m0,size="${memory}M" -numa node,nodeid=0,cpus=0,memdev=m0 \
	-object memory-backend-ram,id=m1,size="${memory}M" -numa node,nodeid=1,cpus=1,memdev=m1 -numa dist,src=0,dst=1,val=21 \
	-nodefaults -no-reboot -display none -serial stdio \
	-kernel "$out/host-vmlinuz" -initrd "$out/host.cpio" \
	-append "console=ttyS0 quiet panic=-1 softlockup_panic=1 sysctl.kernel.panic_on_rcu_stall=1 mitigations=off numa_balancing=disable nested.cmd=$command" \
	-device amd-iommu \
	-drive if=none,id=virtio,format=raw,file="$disks/virtio" -device virtio-blk-pci,addr=10,drive=virtio,iommu_platform=on,disable-legacy=on \
	-drive if=none,id=nvme,format=raw,file="$disks/nvme" -device nvme,addr=11,drive=nvme,serial=PV-NVME \
	-virtfs local,path=/,mount_tag=root,security_model=none,readonly=on,multidevs=remap \
	| tee "$log"
exit "$(sed -n 's/^NESTED-STATUS \([0-9]*\).*/\1/p' "$log" | tail -n 1 | grep . || echo 70)"
