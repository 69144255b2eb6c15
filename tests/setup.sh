#!/bin/bash
# Prepares a Debian 12 machine for the tests. May be run again: it keeps what exists.
#
# Installs the missing Debian packages, makes the unprivileged user "fastns-test" with ranges of
# subordinate ids, and two root file systems, build/rootfs/debian and build/rootfs/busybox.
# Runs as root, or as a user who may sudo.
#
# Usage: tests/setup.sh [packages|compare|kernels [KERNEL…]|all]
# Default: all. "compare" installs the rivals of `make compare`, "kernels" everything that `make
# test-kernels` boots.
set -euo pipefail
umask 022

here=$(cd "$(dirname "$0")" && pwd)
build=$(dirname "$here")/build
user=fastns-test

packages=(
    gcc make libc6-dev python3 python3-dev python3-venv         # to build the package
    busybox-static mmdebstrap                                   # root file systems
    bash coreutils hostname iproute2 mount nftables procps util-linux  # their contents
    uidmap libcap2-bin                                          # newuidmap, newgidmap, setcap
    clang clang-format libclang-rt-14-dev strace                # checks of the C code
    fish zsh                                                    # to test completion
)
included=bash,coreutils,hostname,iproute2,mount,procps,python3-minimal,util-linux

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

install_packages() {
    local missing=() package
    for package in "${packages[@]}"; do
        if ! dpkg-query --show --showformat '${db:Status-Status}' "$package" 2>/dev/null |
            grep -qx installed; then
            missing+=("$package")
        fi
    done
    if [ ${#missing[@]} -gt 0 ]; then
        echo "setup: installing ${missing[*]}"
        as_root apt-get update -q
        as_root env DEBIAN_FRONTEND=noninteractive \
            apt-get install -q -y --no-install-recommends "${missing[@]}"
    fi
}

make_user() {
    if ! id "$user" >/dev/null 2>&1; then
        echo "setup: making the user $user"
        as_root useradd --create-home --shell /bin/bash "$user"
    fi
    # useradd assigns ranges unless login.defs says otherwise.
    grep -q "^$user:" /etc/subuid || as_root usermod --add-subuids 2000000-2065535 "$user"
    grep -q "^$user:" /etc/subgid || as_root usermod --add-subgids 2000000-2065535 "$user"
}

# A minimal Debian, from this machine's package sources.
make_debian() {
    local root=$build/rootfs/debian stamp=$build/rootfs/debian.stamp made_by
    made_by=$(sha256sum <"$0")
    if [ -d "$root" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$made_by" ]; then
        return
    fi
    echo "setup: making $root"
    local sources=() file options
    for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list \
        /etc/apt/sources.list.d/*.sources; do
        if [ -s "$file" ]; then sources+=("$file"); fi
    done
    options=$(mktemp)
    # mmdebstrap does not read proxies, certificates and clock settings from /etc/apt.
    apt-config dump Acquire |
        grep -E '^Acquire::(http|https|Retries|Check-Date|Check-Valid-Until)[: ]' >"$options" || true
    # Remove this machine's settings. The three files exist so that mounts can cover them.
    local forget='cd "$1/etc"
        rm -f hosts hostname resolv.conf apt/apt.conf.d/99mmdebstrap
        touch hosts hostname resolv.conf'
    as_root rm -rf "$root" "$root.new"
    as_root mmdebstrap --quiet --mode=root --variant=essential --include="$included" \
        --aptopt="$options" --customize-hook="$forget" \
        bookworm "$root.new" "${sources[@]}"
    rm -f "$options"
    as_root mv "$root.new" "$root"
    echo "$made_by" >"$stamp"
}

make_busybox() {
    local root=$build/rootfs/busybox new=$build/rootfs/busybox.new name
    if [ -d "$root" ]; then
        return
    fi
    echo "setup: making $root"
    rm -rf "$new"
    mkdir -p "$new"/{bin,dev,etc,mnt,proc,root,run,sys,tmp}
    cp /bin/busybox "$new/bin/busybox"
    while read -r name; do
        if [ "$name" != busybox ]; then ln -s busybox "$new/bin/$name"; fi
    done < <(/bin/busybox --list)
    echo 'root:x:0:0:root:/root:/bin/sh' >"$new/etc/passwd"
    echo 'root:x:0:' >"$new/etc/group"
    touch "$new"/etc/{hosts,hostname,resolv.conf}
    mv "$new" "$root"
}

case ${1:-all} in
packages)
    install_packages
    ;;
compare)
    packages+=(bubblewrap crun runc firejail)
    install_packages
    ;;
kernels)
    shift
    # virtme-ng inspects a kernel with kmod and file; udev runs in the guest.
    packages+=(qemu-system-x86 udev kmod file e2fsprogs)
    install_packages
    as_root "$here/kernels.sh" get "$@"
    as_root "$here/kernels.sh" disk
    ;;
all)
    install_packages
    make_user
    mkdir -p "$build/rootfs"
    make_debian
    make_busybox
    ;;
*)
    echo "usage: $0 [packages|compare|kernels [KERNEL…]|all]" >&2
    exit 2
    ;;
esac
