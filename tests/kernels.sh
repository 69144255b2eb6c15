#!/bin/bash
# Boots another Linux kernel on this machine's file system and runs a command there, as root.
#
# The kernels are Debian's, from the mirror that this machine's apt uses. They are downloaded and
# unpacked below build/kernels, never installed. virtme-ng starts them in QEMU, without KVM. The guest
# sees this file system below a layer in its memory, which takes all writes. /tmp, /var/tmp and
# build/rootfs are on an ext4 disk, because the guest's other file systems cannot be idmapped (tmpfs can
# since 6.3). Changes to the disk are dropped, too. Cgroups are version 2, with all controllers.
#
# Usage: tests/kernels.sh get [KERNEL…]         downloads (default: all of them)
#        tests/kernels.sh disk                    makes the disk, from build/rootfs
#        tests/kernels.sh KERNEL COMMAND [ARG…]   boots KERNEL; exits with COMMAND's status
# KERNEL: 6.1, 6.12 or 7.x. FASTNS_KERNEL_TIMEOUT: seconds after which the guest is killed and the
# status is 124; default 600. FASTNS_KERNEL_VERBOSE=1 shows the kernel's messages.
set -euo pipefail
umask 022

top=$(cd "$(dirname "$0")/.." && pwd)
kernels=$top/build/kernels
disk=$kernels/disk
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
all=(6.1 6.12 7.x)
path=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

fail() {
    echo "kernels: $*" >&2
    exit 125
}

# Prints the Debian suite that has this kernel.
suite_of() {
    case $1 in
    6.1) echo bookworm ;;
    6.12) echo bookworm-backports ;;
    7.x) echo trixie-backports ;;
    *) fail "no kernel $1; there are: ${all[*]}" ;;
    esac
}

# Reads the names of a suite's packages and prints those of the kernel's newest build. An unsigned build
# is one package. 7.x has no unsigned build; its kernel and its modules are two packages.
packages_of() {
    local version
    case $1 in
    6.1) grep -Ex 'linux-image-6\.1\.[0-9.-]+-amd64-unsigned' | sort -V | tail -n 1 ;;
    6.12) grep -Ex 'linux-image-6\.12\.[0-9.]+\+deb12-amd64-unsigned' | sort -V | tail -n 1 ;;
    7.x)
        version=$(grep -Ex 'linux-image-7\.[0-9.]+\+deb13-amd64' | sort -V | tail -n 1)
        [ -z "$version" ] || printf 'linux-%s-%s\n' binary "${version#linux-image-}" \
            modules "${version#linux-image-}"
        ;;
    esac
}

# ---- downloading, with a separate apt configuration ----

apt_options=()
make_apt() { # SUITE
    local apt=$kernels/apt mirror
    mkdir -p "$apt"/{state/lists/partial,cache/archives/partial}
    mirror=$(apt-get update --print-uris | sed -n "s,^'\(.*\)/dists/bookworm/InRelease'.*,\1,p" |
        head -n 1)
    [ -n "$mirror" ] || fail "apt's sources have no Debian 12 (bookworm)"
    echo "deb [signed-by=$keyring] $mirror $1 main" >"$apt/$1.list"
    apt_options=(
        -q -o "Dir::State=$apt/state" -o Dir::State::status=/var/lib/dpkg/status
        -o "Dir::Cache=$apt/cache" -o "Dir::Etc::SourceList=$apt/$1.list" -o Dir::Etc::SourceParts=-
        -o APT::Get::List-Cleanup=false -o APT::Sandbox::User=root
    )
    apt-get "${apt_options[@]}" -o APT::Update::Post-Invoke-Success= update
}

get() { # KERNEL
    local kernel=$1 new=$kernels/$1.new suite packages archive
    if [ -d "$kernels/$kernel" ]; then return; fi
    suite=$(suite_of "$kernel")
    echo "kernels: downloading $kernel"
    rm -rf "$new"
    mkdir -p "$new"
    make_apt "$suite"
    mapfile -t packages < <(apt-cache "${apt_options[@]}" pkgnames linux- | packages_of "$kernel")
    [ ${#packages[@]} -gt 0 ] || fail "$suite has no kernel $kernel"
    (cd "$new" && apt-get "${apt_options[@]}" download "${packages[@]}")
    for archive in "$new"/*.deb; do
        dpkg-deb --extract "$archive" "$new"
        rm "$archive"
    done
    rm -rf "$new"/usr/lib/debug "$new"/usr/share
    mv "$new" "$kernels/$kernel"
}

make_disk() {
    mkdir -p "$kernels"
    rm -f "$disk" "$disk.new"
    truncate -s 4G "$disk.new"
    mkfs.ext4 -q -O ^has_journal -E root_owner=0:0 -d "$top/build/rootfs" "$disk.new"
    mv "$disk.new" "$disk"
}

# ---- booting ----

boot() { # KERNEL COMMAND...
    local image run status=0
    image=$(find "$kernels/$1" -name 'vmlinuz*' -type f 2>/dev/null | head -n 1)
    [ -n "$image" ] || fail "kernel $1 is missing: tests/kernels.sh get $1"
    [ -x "$top/.venv/bin/vng" ] || fail "virtme-ng is missing: make setup-kernels"
    [ -f "$disk" ] || fail "the disk is missing: tests/kernels.sh disk"
    shift

    # The guest reads its command from a file. /dev/null and the pipe keep the guest's console devices
    # away from the command's stdin, stdout and stderr.
    run=$(mktemp -d "$kernels/run-XXXXXX")
    {
        printf '('
        printf '%q ' env HOME=/root LANG=C.UTF-8 "PATH=$top/.venv/bin:$path" "CI=${CI:-}" \
            "FASTNS_NO_SKIP=${FASTNS_NO_SKIP:-}" PYTHONDONTWRITEBYTECODE=1 \
            "$top/tests/kernels_guest.sh" "$top" "$@"
        printf ') </dev/null 2>&1 | cat; exit "${PIPESTATUS[0]}"\n'
    } >"$run/command"

    # Runs in the background, so that the traps below can kill the guest on a signal. QEMU reopens its
    # stdout, which would truncate a file; pipes avoid that.
    PATH=$top/.venv/bin:$PATH timeout --kill-after=5 "${FASTNS_KERNEL_TIMEOUT:-600}" \
        vng ${FASTNS_KERNEL_VERBOSE:+--verbose} --disable-kvm --force-9p --cpus 2 --memory 2G \
        --append tsc=reliable --qemu-opts="-global virtio-serial-pci.ioeventfd=off \
            -fsdev local,id=machine,path=/,security_model=none,readonly=on,multidevs=remap \
            -device virtio-9p-pci,fsdev=machine,mount_tag=machine \
            -drive if=virtio,format=raw,snapshot=on,file=$disk" \
        -r "$image" -- bash "$run/command" </dev/null > >(cat) 2> >(cat >&2) &
    guest=$!
    trap '[ -z "$guest" ] || kill "$guest" 2>/dev/null || true; rm -rf "'"$run"'"' EXIT
    trap 'exit 143' TERM
    trap 'exit 130' INT
    wait "$guest" || status=$?
    guest= # its pid may be reused by now
    [ "$status" != 124 ] || echo "kernels: the guest was killed by its timeout" >&2
    exit "$status"
}

case ${1:-} in
get)
    shift
    for kernel in "${@:-"${all[@]}"}"; do get "$kernel"; done
    ;;
disk)
    make_disk
    ;;
'' | -*)
    sed -n '/^# Usage/,/^[^#]/{/^#/{s/^# \{0,1\}//;p}}' "$0" >&2
    exit 2
    ;;
*)
    [ $# -gt 1 ] || fail "no command"
    suite_of "$1" >/dev/null
    boot "$@"
    ;;
esac
