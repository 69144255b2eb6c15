#!/bin/bash
# Runs pytest, with the given arguments, as an unprivileged user.
#
# Started by a user, it runs pytest from .venv. Started by root, it runs pytest as "fastns-test",
# who may be unable to enter this checkout or its virtual environment. It therefore builds the
# source archive, installs it into a fresh environment of Debian's python3 below /var/tmp, and
# copies the tests beside it. This also tests that the source archive is complete.
#
# Usage: tests/run_as_user.sh [ARG…]
#        tests/run_as_user.sh --prepare DIRECTORY            only prepares the directory
#        tests/run_as_user.sh --prepared DIRECTORY [ARG…]    only runs pytest there
# With FASTNS_PREPARED=DIRECTORY the first form copies a prepared directory.
set -euo pipefail
umask 022

cd "$(dirname "$0")/.."
python=$PWD/.venv/bin/python
user=fastns-test

prepare() { # DIRECTORY
    local away=$1 archives name
    chmod 755 "$away"
    "$python" -m build --sdist --outdir "$away/dist" . >"$away/build.log" 2>&1 ||
        { cat "$away/build.log"; exit 1; }
    archives=("$away"/dist/*.tar.gz)
    /usr/bin/python3 -m venv "$away/venv"
    "$away/venv/bin/python" -m pip install --quiet "${archives[0]}[test]"

    # The tests and the files that they read, but not src/: they must import the installed package.
    for name in tests csrc docs examples benchmarks pyproject.toml setup.py Makefile ./*.md; do
        if [ -e "$name" ]; then cp -a "$name" "$away/"; fi
    done
    mkdir -p "$away/build/tests"
    cp -a build/rootfs "$away/build/rootfs"
    chown -R "$user:" "$away/tests" "$away/build/tests"
    chown "$user:" "$away"
}

# Runs pytest in $away. Uses exec, so that no process of root stays in the user's cgroup.
run() { # [ARG…]
    cd "$away"
    exec setpriv --reuid="$user" --regid="$user" --init-groups --inh-caps=-all \
        env -i HOME="$(getent passwd "$user" | cut -d: -f6)" USER="$user" LANG=C.UTF-8 TERM=dumb \
        PATH="$away/venv/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin" \
        CI="${CI:-}" FASTNS_NO_SKIP="${FASTNS_NO_SKIP:-}" FASTNS_LONG="${FASTNS_LONG:-}" \
        FASTNS_DELEGATED="${FASTNS_DELEGATED:-}" \
        "$away/venv/bin/python" -m pytest -p no:cacheprovider "$@"
}

if [ "$(id -u)" != 0 ]; then
    exec "$python" -m pytest "$@"
fi
case ${1:-} in
--prepare)
    prepare "$2"
    ;;
--prepared)
    away=$2
    run "${@:3}"
    ;;
*)
    away=$(mktemp -d /var/tmp/fastns-test-XXXXXX)
    trap 'rm -rf "$away"' EXIT
    if [ -n "${FASTNS_PREPARED:-}" ]; then cp -a "$FASTNS_PREPARED/." "$away"; else prepare "$away"; fi
    (run "$@")
    ;;
esac
