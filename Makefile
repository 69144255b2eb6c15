# The commands for working on this project; `make help` lists them.
# On a fresh Debian 12, `make test` installs everything it needs (as root, or with sudo).

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
SEED   := build/seed

PY_FILES := $(wildcard setup.py src tests benchmarks examples docs)
C_FILES := $(wildcard src/fastns/_entry.c csrc/*/*.[ch] tests/*.[ch] tests/c/*.[ch] tests/fuzz/*.[ch] tests/escape/*.c benchmarks/*.c)
SUDO    := $(if $(filter 0,$(shell id -u)),,sudo)
PYTEST_ARGS ?=

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help run shell quick test test-root test-user test-pythons test-kernels setup-kernels escape faults lint fix manual asan tsan fuzz \
        bench compare setup-compare docs setup-docs wheel sdist packages setup \
        install clean distclean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*##  *\(.*\)/\1|\2/p' $(MAKEFILE_LIST) | \
	    while IFS='|' read -r name text; do printf '%-12s %s\n' "$$name" "$$text"; done

# ---- see it work ----

# Binds a directory and three files of build/seed. SEED_COMMANDS prints each command before its output.
SEED_RUN = $(BIN)/fastns run --rootfs $(SEED)/rootfs --hostname container \
    -v $(SEED)/volume:/mnt \
    -v $(SEED)/conf/hosts:/etc/hosts \
    -v $(SEED)/conf/hostname:/etc/hostname \
    -v $(SEED)/conf/resolv.conf:/etc/resolv.conf --
define SEED_COMMANDS
exec 2>&1; set -x
pwd; hostname; ipcs -q; ps aux; mount
cat /etc/hosts /etc/hostname /etc/resolv.conf
ls /mnt; cat /mnt/egon_test.txt
endef
export SEED_COMMANDS

run: $(SEED)/.made  ## runs a container with its own root, volume and files, and shows what it sees
	$(SEED_RUN) bash -lc "$$SEED_COMMANDS"

shell: $(SEED)/.made  ## the same container, with a shell to look around in
	$(SEED_RUN) bash -l

$(SEED)/.made: $(STAMP) Makefile
	rm -rf $(SEED)
	mkdir -p $(SEED)/conf $(SEED)/volume
	$(BIN)/fastns rootfs build $(SEED)/rootfs bash ls ps mount hostname ipcs cat
	printf '127.0.0.1 localhost container\n' >$(SEED)/conf/hosts
	printf 'container\n' >$(SEED)/conf/hostname
	printf 'nameserver 192.0.2.53\n' >$(SEED)/conf/resolv.conf
	printf 'a file of the host, seen through a volume\n' >$(SEED)/volume/egon_test.txt
	touch $@

# ---- test and check ----

quick: install  ## the unit tests: half a minute, without privileges, and nothing is sandboxed
	$(BIN)/python -m pytest -p no:cacheprovider -q tests/unit $(PYTEST_ARGS)

test: test-root test-user  ## all tests, as root and as an unprivileged user

test-root: setup install  ## all tests as root (with sudo where needed)
	@mkdir -p build/tests
	$(SUDO) env PYTHONDONTWRITEBYTECODE=1 CI="$(CI)" FASTNS_NO_SKIP="$(FASTNS_NO_SKIP)" \
	    FASTNS_LONG="$(FASTNS_LONG)" $(BIN)/python -m pytest -p no:cacheprovider $(PYTEST_ARGS)

test-user: setup install  ## all tests as an unprivileged user, from the source archive when root
	tests/run_as_user.sh $(PYTEST_ARGS)

# PYTHONS: the versions, such as "3.12 3.13". Default: every version that is found.
test-pythons: install  ## build, unit tests and some sandbox tests with every Python that is found
	PYTHONS="$(PYTHONS)" tests/pythons.sh $(PYTEST_ARGS)

# KERNELS: any of 6.1, 6.12 and 7.x. KERNEL_TESTS: limits, escape, rooms or all. "all" also runs tests of
# namespaces, mounts and roots.
KERNELS ?= 6.1 6.12 7.x
KERNEL_TESTS ?= all
test-kernels: setup install setup-kernels  ## the sandbox, limits and escape tests on other kernels, in QEMU
	@status=0; for kernel in $(KERNELS); do \
	    echo "---- kernel $$kernel ----"; \
	    $(SUDO) env CI="$(CI)" FASTNS_NO_SKIP="$(FASTNS_NO_SKIP)" FASTNS_KERNEL_TIMEOUT=3600 \
	        tests/kernels.sh "$$kernel" tests/kernels_tests.sh $(KERNEL_TESTS) $(PYTEST_ARGS) || \
	        { echo "kernel $$kernel: failed ($$?)"; status=1; }; \
	done; exit $$status

setup-kernels: install
	tests/setup.sh kernels $(KERNELS)
	$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["kernels"])' | \
	    xargs $(BIN)/python -m pip install --quiet
	$(SUDO) rm -rf build/kernels/user
	$(SUDO) mkdir -p build/kernels/user
	$(SUDO) tests/run_as_user.sh --prepare build/kernels/user

escape: setup install  ## only the escape tests, as root and as a user, and a table of their results
	$(MAKE) test-root PYTEST_ARGS='tests/escape -q --no-header'
	$(MAKE) test-user PYTEST_ARGS='tests/escape -q --no-header'

# CASE: the name of one fault in the table, to inject only that. FAULTS_ARGS: more arguments (--help).
faults: setup install  ## makes a start's system calls (by default a sample) fail, stop or kill it; prints a table
	$(SUDO) env PYTHONPATH=tests $(BIN)/python -m faults $(FAULTS_ARGS) $(CASE)

lint: install  ## style and types: ruff, mypy, stubtest, clang-format
	$(BIN)/ruff check $(PY_FILES)
	$(BIN)/ruff format --check $(PY_FILES)
	$(BIN)/mypy --strict src
	MYPYPATH=src $(BIN)/python -m mypy.stubtest fastns._core
	clang-format --dry-run -Werror $(C_FILES)
	for script in tests/*.sh .ci/run; do bash -n "$$script" || exit 1; done

fix: install  ## formats everything in place
	$(BIN)/ruff check --fix --exit-zero --quiet $(PY_FILES)  # `make lint` says what is left
	$(BIN)/ruff format $(PY_FILES)
	clang-format -i $(C_FILES)

manual: install  ## docs/fastns.1, the manual page, from the parsers of the command line
	$(BIN)/python docs/manual.py

asan: packages  ## the C tests under AddressSanitizer and UBSan
	$(MAKE) -C tests/c asan

# ROUNDS: how many times each thread repeats its work.
ROUNDS ?= 20
tsan: packages  ## spawns, batches and templates from many threads, under ThreadSanitizer
	$(MAKE) -C tests/c tsan ROUNDS=$(ROUNDS)

# FUZZ_SECONDS: how long each target runs.
FUZZ_SECONDS ?= 600
fuzz: packages install  ## everything that parses, with random input: C by libFuzzer, Python by hypothesis
	$(MAKE) -C tests/fuzz run FUZZ_SECONDS=$(FUZZ_SECONDS)
	HYPOTHESIS_STORAGE_DIRECTORY=build/fuzz/hypothesis $(BIN)/python tests/fuzz/parsers.py --seconds $(FUZZ_SECONDS)

compare: setup-compare install  ## the race against everything else: benchmarks/results/
	cd benchmarks && $(SUDO) $(abspath $(BIN))/python -m compare $(COMPARE_ARGS)

setup-compare:
	tests/setup.sh compare

bench: install  ## what a spawn costs here, and its ratio to posix_spawn and others
	$(BIN)/python -m pytest benchmarks -o python_files='bench_*.py' \
	    --benchmark-columns=median,iqr,min,rounds --benchmark-sort=name $(PYTEST_ARGS)

# ---- documentation ----

docs: setup-docs  ## the documentation as web pages, build/docs/index.html; a warning is an error
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet -c docs/site . build/docs

setup-docs: install
	$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"])' | \
	    xargs $(BIN)/python -m pip install --quiet

# ---- build and install ----

wheel: install  ## dist/*.whl
	$(BIN)/python -m build --wheel --outdir dist .

sdist: install  ## dist/*.tar.gz
	$(BIN)/python -m build --sdist --outdir dist .

packages:  ## installs the missing Debian packages
	@tests/setup.sh packages

setup:  ## packages, the test user and the root file systems the tests use
	@tests/setup.sh

install: $(STAMP)  ## .venv with fastns in it, editable, and all tools

# The build makes the default filter from these files.
FILTER := src/fastns/seccomp.py src/fastns/_filters.py \
    $(wildcard src/fastns/_policy/seccomp_*.py) $(patsubst %,src/fastns/_policy/%.py,bpf syscalls)

$(STAMP): pyproject.toml setup.py src/fastns/_entry.c $(wildcard csrc/*/*.* src/fastns/*.p[yx][xdi]) $(FILTER) | packages
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo '$(PYTHON) is older than 3.11: make PYTHON=python3.11'; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	FASTNS_WERROR=1 $(BIN)/python -m pip install --quiet --editable '.[test,bench,dev]'
	$(BIN)/python -m compileall -q src/fastns  # pip does this only for installs that are not editable
	touch $@

clean:  ## removes what was built; keeps .venv and the root file systems
	rm -rf dist $(SEED) build/docs build/temp.* build/lib.* build/bdist.* build/tests src/*.egg-info
	rm -rf .mypy_cache .pytest_cache .ruff_cache src/fastns/*.so src/fastns/_core.c
	rm -rf src/fastns/filters
	rm -f src/fastns/_program $(STAMP)
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean  ## removes everything that is not in the repository
	rm -rf $(VENV)
	$(SUDO) rm -rf build
