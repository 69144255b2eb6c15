#!/bin/bash
# Runs tests in a guest of tests/kernels.sh: as root, and at the same time as an unprivileged user who
# has a part of the cgroup tree, delegated as systemd does it. Exits with 0 if both succeed.
# Usage: kernels_tests.sh limits|escape|rooms|all [ARG…]; arguments go to pytest
set -euo pipefail

selection=$1
shift
limits=(tests/sandbox/test_{limits,cpu_time,cgroup2,core_handler}.py)
case $selection in
limits) tests=("${limits[@]}") ;;
escape) tests=(tests/escape) ;;
rooms) tests=(tests/sandbox/test_{rooms,networks,leftovers}.py) ;;
all) tests=("${limits[@]}" tests/sandbox/test_{namespaces,mounts,roots}.py tests/escape) ;;
*)
    echo "usage: $0 limits|escape|rooms|all" >&2
    exit 2
    ;;
esac
export FASTNS_EMULATED=1
user=fastns-test
prepared=build/kernels/user
away=/var/tmp/fastns-test

# The tests need a block device that they can read from, and swap. The guest has neither.
modprobe brd rd_nr=1 rd_size=16384
modprobe zram num_devices=1
echo 128M >/sys/block/zram0/disksize
mkswap /dev/zram0 >/dev/null
swapon /dev/zram0

mkdir "$away"
mount --bind "$prepared" "$away"

part=/sys/fs/cgroup/delegated
echo '+cpuset +cpu +io +memory +pids' >/sys/fs/cgroup/cgroup.subtree_control
mkdir -p $part/own
chown $user: $part $part/cgroup.{procs,threads,subtree_control} $part/own{,/cgroup.procs}

(
    echo $BASHPID >$part/own/cgroup.procs
    FASTNS_DELEGATED=1 exec tests/run_as_user.sh --prepared "$away" -q "$@" "${tests[@]}"
) >/tmp/user.log 2>&1 &
status=0
.venv/bin/python -m pytest -p no:cacheprovider -q "$@" "${tests[@]}" || status=$?
echo "---- as $user ----"
wait $! || status=$?
cat /tmp/user.log
for group in $part/fastns $part/own/fastns $part/own $part /sys/fs/cgroup/fastns; do
    [ -d $group ] || continue # none of the selected tests made it
    rmdir $group || { ls -d $group/*/ $group/*/*/; status=1; } # a test left cgroups in it
done
exit $status
