#!/bin/bash
# The guest's side of tests/kernels.sh: runs there as root, and then the command in it.
#
# The guest's own root asks the host for every read. This makes another one over a view of the same
# files that the guest's kernel may keep in memory, with a layer over it that takes what is written,
# and then runs the command there. Usage: kernels_guest.sh DIRECTORY COMMAND [ARG…]
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
mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs tmp
mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs var/tmp
mkdir -p lib/modules
ln -sfn "$modules" "lib/modules/$(uname -r)"
mkdir -p .old
pivot_root . .old
umount --lazy /.old
rmdir /.old

cd "$1"
shift
exec "$@"
