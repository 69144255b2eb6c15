#!/bin/bash
# Builds the package with every interpreter on PATH or in pyenv. Runs the unit tests with each, and
# the sandbox tests that depend most on Python itself. Each interpreter has its own virtual
# environment below build/pythons. The last line names the expected interpreters that are missing;
# those in `newer` are optional.
#
# Usage: tests/pythons.sh [ARG…]   ARG goes to pytest; PYTHONS="3.12 3.13" picks some.
set -euo pipefail
cd "$(dirname "$0")/.."

expected=(3.11 3.12 3.13)
newer=(3.14 3.15)
slice=(tests/sandbox/test_{handle,results,pipes,batch,template,threads}.py
    tests/sandbox/test_{interrupted,caller_unharmed,leaks,lost}.py)
build=$PWD/build/pythons

# Prints the path of the newest patch release of a version. Ignores free-threaded builds.
find_python() { # VERSION
    local candidate
    for candidate in "$(command -v "python$1" || true)" \
        $(printf '%s\n' "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$1".*/bin/"python$1" | sort -rV); do
        if [ -x "$candidate" ] && "$candidate" -c 'import sys, sysconfig, venv
sys.exit("%d.%d" % sys.version_info[:2] != sys.argv[1]
         or bool(sysconfig.get_config_var("Py_GIL_DISABLED")))' "$1" 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
}

tested=() failed=() missing=()
mkdir -p "$build"
rm -rf "$build/dist"
.venv/bin/python -m build --sdist --outdir "$build/dist" . >"$build/sdist.log" 2>&1 ||
    { cat "$build/sdist.log"; exit 1; }
archives=("$build"/dist/*.tar.gz)

for version in ${PYTHONS:-"${expected[@]}" "${newer[@]}"}; do
    python=$(find_python "$version")
    if [ -z "$python" ]; then
        if [[ -n "${PYTHONS:-}" || " ${expected[*]} " == *" $version "* ]]; then
            missing+=("$version")
        fi
        continue
    fi
    echo "---- $("$python" --version): $python ----"
    if "$python" -m venv --clear "$build/$version" &&
        "$build/$version/bin/python" -m pip install --quiet "${archives[0]}[test]" &&
        "$build/$version/bin/python" -m pytest -p no:cacheprovider -q \
            tests/unit "${slice[@]}" "$@"; then
        tested+=("$version")
    else
        failed+=("$version")
    fi
done

echo "passed: ${tested[*]:-none}; failed: ${failed[*]:-none}; not found: ${missing[*]:-none}"
[ ${#tested[@]} -gt 0 ] && [ ${#failed[@]} = 0 ]
