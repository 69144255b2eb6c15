#!/bin/bash
# Runs as root in a guest of tests/kernels.sh: prepares a root and runs the command in it.
#
# In the guest's own root every read goes to the host. The new root shows the same files below a
# writable layer, mounted in a way that lets the guest's kernel cache them. Directories that need a
# disk's file system are on a disk.
# Usage: kernels_guest.sh DIRECTORY COMMAND [ARG…]
set -euo pipefail

if [ "${1:-}" != --in-root ]; then exec unshare --mount "$0" --in-root "$@"; fi
shift

root=/run/fastns-root
mkdir -p $root/{machine,layer,new}
mount -t 9p -o ro,trans=virtio,version=9p2000.L,cache=loose,msize=512000 machine $root/machine
mount -t tmpfs -o mode=755 layer $root/layer
mkdir -m 755 $root/layer/{upper,work}
mount -t overlay -o lowerdir=$root/machine,upperdir=$root/layer/upper,workdir=$root/layer/work \
    machine $root/new

cd $root/new
modules=$(readlink "/lib/modules/$(uname -r)")
mount --rbind /dev dev
mount -t proc -o nosuid,nodev,noexec proc proc
mount -t sysfs -o nosuid,nodev,noexec sysfs sys
mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755,nosuid,nodev tmpfs run
mkdir -p lib/modules
ln -sfn "$modules" "lib/modules/$(uname -r)"
mkdir -p .old
pivot_root . .old
umount --lazy /.old
rmdir /.old

modprobe -a virtio_blk ext4 dummy
ip link add host0 type dummy # like any machine, have an interface besides lo
mkdir /run/disk
mount /dev/vda /run/disk
mkdir -m 1777 /run/disk/{tmp,var-tmp}
mount --bind /run/disk/tmp /tmp
mount --bind /run/disk/var-tmp /var/tmp
cd "$1"
mount --bind /run/disk build/rootfs
shift
exec "$@"
