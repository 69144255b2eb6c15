# cython: language_level=3, boundscheck=False, wraparound=False, binding=False, autotestdict=False
"""The binding: copies arguments in, makes one C call without the GIL, hands an object out.

No decision is taken here. Plans are compiled by _compile, handles live in sandbox.py, and what the
C code does is described in csrc/caller/fastns.h.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals, PyErr_Occurred
from libc.errno cimport errno, EACCES, EAGAIN, EBADF, ECHILD, EINTR, EMFILE, EPIPE, ESRCH, ETIME
from libc.stdint cimport int64_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset, strchr, strlen

from fastns cimport _fastns as c

import io
import os
import sys

from fastns.errors import SpawnError, hint_for


cdef extern from "<errno.h>" nogil:
    int ECANCELED

cdef extern from "<fcntl.h>" nogil:
    int F_GETFD
    int F_DUPFD_CLOEXEC
    int fcntl(int fd, int command, ...)

cdef extern from "Python.h":
    int _run_handlers "PyErr_CheckSignals"() noexcept
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL

cdef extern from "<sys/stat.h>" nogil:
    struct stat:
        uint64_t st_dev
        uint64_t st_ino
    int fstat(int fd, stat *about)

cdef extern from "<unistd.h>" nogil:
    int close(int fd)
    int fchown(int fd, unsigned uid, unsigned gid)
    int getpid()


cdef int _interrupted() noexcept with gil:
    """For C, in a start that waits: runs the handlers of pending signals. What they raise makes the start
    fail, and stays set in this thread until the start has returned (_raise_pending())."""
    return PyErr_Occurred() != NULL or _run_handlers() != 0


c.fns_set_interrupted(_interrupted)


cdef int _raise_pending() except -1:
    return -1 if PyErr_Occurred() != NULL else 0


STAGES = tuple([c.fns_stage_name(i).decode() for i in range(c.FNS_STAGE_COUNT)])
OPS = {c.fns_op_name(i).decode(): i for i in range(c.FNS_OP_COUNT)}
HOW_CREATE = c.FNS_HOW_CREATE
HOW_NO_SYMLINKS = c.FNS_HOW_NO_SYMLINKS
HOW_RECURSIVE = c.FNS_HOW_RECURSIVE
HOW_SLAVE = c.FNS_HOW_SLAVE
HOW_UNBINDABLE = c.FNS_HOW_UNBINDABLE
HOW_KEEP = c.FNS_HOW_KEEP
HOW_IDMAP = c.FNS_HOW_IDMAP
HOW_OPEN = c.FNS_HOW_OPEN
HOW_OWNED = c.FNS_HOW_OWNED
HOW_SEALED = c.FNS_HOW_SEALED
HOW_OPTIONAL = c.FNS_HOW_OPTIONAL
HOW_IF_THERE = c.FNS_HOW_IF_THERE
HOW_AHEAD = c.FNS_HOW_AHEAD
HOW_SHARE = c.FNS_HOW_SHARE
MAX_SOURCES = c.FNS_MAX_SOURCES
PLAN_INIT = c.FNS_PLAN_INIT
ID_MAPS = {
    "none": c.FNS_ID_MAP_NONE,
    "self": c.FNS_ID_MAP_SELF,
    "parent": c.FNS_ID_MAP_PARENT,
    "newuidmap": c.FNS_ID_MAP_NEWUIDMAP,
    "range": c.FNS_ID_MAP_RANGE,
}

cdef dict _stage_numbers = {name: i for i, name in enumerate(STAGES)}
cdef bint _program_loaded = False


cdef object _load_program():
    global _program_loaded
    if _program_loaded:
        return
    path = os.path.join(os.path.dirname(__file__), "_program")
    try:
        with open(path, "rb") as file:
            read = file.read()
    except OSError as exc:
        raise SpawnError("helper", exc.errno, path=path,
                         hint="the installation is incomplete: reinstall fastns") from exc
    if _program_loaded:  # by another thread while this one read: its spawns use those bytes
        return
    if c.fns_set_program(PyBytes_AS_STRING(read), len(read)) < 0:
        raise MemoryError
    _program_loaded = True


COUNTS = tuple([c.fns_count_name(i).decode() for i in range(c.FNS_COUNTS)])


@cython.final
cdef class CgroupPool:
    """The leaves of one plan in this process (csrc/caller/cgroup.c); owns the fds it is given.

    hierarchies: (fd of the directory, cgroup v2?); settings: (hierarchy, file, text); counters:
    (one of COUNTS, hierarchy, file, key, scale, is it a peak, text that resets it, "" for a new cgroup, or None);
    memory: (hierarchy, file, file to reclaim by or None, text) or None; cpu_time: ns, 0: any."""

    cdef c.fns_cgroups *groups
    cdef c.fns_cgroup_plan plan
    cdef c.fns_cgroup_setting *settings
    cdef c.fns_cgroup_counter *counters
    cdef list texts
    cdef readonly int owner

    def __cinit__(self, tuple hierarchies, tuple settings, tuple counters, memory,
                  uint64_t cpu_time):
        cdef int ret
        self.texts = []
        self.owner = getpid()
        self.settings = <c.fns_cgroup_setting *>calloc(len(settings) or 1,
                                                       sizeof(c.fns_cgroup_setting))
        self.counters = <c.fns_cgroup_counter *>calloc(len(counters) or 1,
                                                       sizeof(c.fns_cgroup_counter))
        if self.settings == NULL or self.counters == NULL:
            raise MemoryError
        if len(hierarchies) > c.FNS_MAX_HIERARCHIES:
            raise ValueError("too many cgroup hierarchies")
        for i, (number, file, text) in enumerate(settings):
            self.settings[i].hierarchy = number
            self.settings[i].file = self.text(file)
            self.settings[i].value = self.text(text)
        for i, (kind, number, file, key, scale, peak, reset) in enumerate(counters):
            self.counters[i].kind = COUNTS.index(kind)
            self.counters[i].hierarchy = number
            self.counters[i].file = self.text(file)
            self.counters[i].key = self.text(key)
            self.counters[i].scale = scale
            self.counters[i].peak = peak
            self.counters[i].reset = self.text(reset)
        self.plan.settings = self.settings
        self.plan.n_settings = len(settings)
        self.plan.counters = self.counters
        self.plan.n_counters = len(counters)
        if memory is not None:
            self.plan.memory_hierarchy = memory[0]
            self.plan.memory_file = self.text(memory[1])
            self.plan.reclaim_file = self.text(memory[2])
            self.plan.reclaim_text = self.text(memory[3])
        self.plan.cpu_time_ns = cpu_time
        for i, (fd, unified) in enumerate(hierarchies):
            self.plan.hierarchies[i].directory = fd
            self.plan.hierarchies[i].unified = unified
        self.plan.n_hierarchies = len(hierarchies)
        ret = c.fns_cgroups_open(&self.groups, &self.plan)
        if ret < 0:
            raise SpawnError("cgroup", -ret)

    cdef const char *text(self, text) except? NULL:
        if text is None:
            return NULL
        cdef bytes data = text.encode()
        self.texts.append(data)
        return PyBytes_AS_STRING(data)

    def remove(self, unsigned patience_ms):
        """Removes the directories of all leaves, and makes no more; whether none is left."""
        cdef int ret
        with nogil:
            ret = c.fns_cgroups_remove(self.groups, patience_ms)
        return ret == 0

    def __dealloc__(self):
        if self.groups != NULL:
            c.fns_cgroups_close(self.groups)
            for i in range(self.plan.n_hierarchies):
                close(self.plan.hierarchies[i].directory)
        free(self.settings)
        free(self.counters)


cdef object _counts(const c.fns_leaf *leaf):
    """By name; None: not known."""
    return {name: None if leaf.counts[i] == c.FNS_NO_COUNT else leaf.counts[i]
            for i, name in enumerate(COUNTS)}


# ---- fds of the caller's ----------------------------------------------------------------------------

@cython.final
cdef class Fd:
    """An fd that is closed with the last reference to it. A signal handler may raise between any two steps
    of Python, and a bare number would be lost there; here an fd is made, or handed on, in one step."""

    cdef int fd

    def __cinit__(self):
        self.fd = -1

    def fileno(self):
        return self.fd

    def close(self):
        cdef int fd = self.fd
        self.fd = -1
        if fd >= 0:
            close(fd)

    def file(self, str how):
        """A buffered file, "rb" or "wb", which owns the fd from then on."""
        cdef int fd = self.fd
        raw = io.FileIO("<pipe>", how, opener=self.give)
        raw.name = fd
        return io.BufferedReader(raw) if how == "rb" else io.BufferedWriter(raw)

    def give(self, name, flags):
        fd = self.fd
        self.fd = -1
        return fd

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()

    def __dealloc__(self):
        if self.fd >= 0:
            close(self.fd)


def open_pipe(owner=None):
    """The reading end and the writing end. They are given to `owner`, (uid, gid), if the caller may.
    OSError: no fd is left."""
    cdef int ends[2]
    cdef Fd reading = Fd(), writing = Fd()
    cdef int ret = c.fns_open_pipe(ends)
    if ret < 0:
        raise OSError(-ret, os.strerror(-ret))
    reading.fd, writing.fd = ends[0], ends[1]
    if owner is not None:
        fchown(reading.fd, owner[0], owner[1])
    return reading, writing


def open_null():
    """/dev/null, to read and to write. OSError: no fd is left."""
    cdef Fd null = Fd()
    null.fd = c.fns_open_null()
    if null.fd < 0:
        raise OSError(-null.fd, os.strerror(-null.fd))
    return null


# ---- the user namespace of a range of ids ----------------------------------------------------------

@cython.final
cdef class _UserNamespace:
    """One that was made: its fd, and whether that is still the same file."""

    cdef int fd
    cdef stat file

    cdef bint is_there(self) except -1:
        cdef stat now
        if fstat(self.fd, &now) < 0:
            if errno == EBADF:
                return False
            raise SpawnError("clone", errno)
        return (now.st_ino == self.file.st_ino
                and now.st_dev == self.file.st_dev)


cdef dict _user_namespaces = {}  # (first uid, first gid, how many) -> _UserNamespace


def user_namespace(tuple ids):
    """The fd of this process's user namespace with the range `ids`: made when it is first asked for, or
    when the fd was closed by another part of this process. SpawnError at stage "clone" or "id_map"."""
    cdef c.fns_error error
    cdef int fd
    cdef _UserNamespace known = _user_namespaces.get(ids)
    if known is not None and known.is_there():
        return known.fd
    uid, gid, size = ids
    uid_map, gid_map = (b"0 %d %d\n" % (first, size) for first in (uid, gid))
    from fastns._policy.userns import inotify_limit

    cdef bytes limit = inotify_limit() or b""
    fd = c.fns_userns_open(PyBytes_AS_STRING(uid_map), PyBytes_AS_STRING(gid_map),
                           PyBytes_AS_STRING(limit) if limit else NULL, &error)
    if fd < 0:
        raise SpawnError(STAGES[error.stage], error.err)
    known = _UserNamespace()
    known.fd = fd
    fstat(fd, &known.file)
    _user_namespaces[ids] = known
    return fd


@cython.final
cdef class Plan:
    """A compiled spec: what a sandbox's first process does, in order.

    Made by fastns.compile(); accepted wherever spec= is; immutable, so that any number of threads may
    spawn from it at once.
    """

    cdef c.fns_plan plan
    cdef c.fns_op *op_array
    cdef bytes arena
    cdef readonly tuple ops
    cdef readonly tuple environ
    cdef readonly tuple search_path
    cdef readonly bytes cwd
    cdef readonly str id_map
    cdef readonly str method
    cdef readonly tuple namespaces
    cdef readonly uint64_t max_output  # bytes kept of stdout and stderr each; 0: all
    cdef readonly bint capped  # over max_output a sandbox is ended
    cdef readonly object cgroups  # cgroups.CgroupPlan; None: its sandboxes stay in the caller's
    cdef object live  # cgroups.Cgroups of this process
    cdef readonly Plan sandbox  # of a template: what its server does for each sandbox
    cdef readonly str mount_namespace  # how it begins: "copied", "tree", "template"; "host": no new one
    cdef readonly bint filtered  # whether its sandboxes have a filter of system calls
    cdef char **envp  # into environ
    cdef readonly tuple ids  # range of its user namespace, as user_namespace() takes it; None: none
    cdef readonly tuple view  # without a rootfs: the destinations of what is mounted; None
    cdef readonly tuple pipe_owner  # uid and gid for pipes that are made for its stdio; None: as made
    cdef readonly tuple binds  # what the spec binds: see _compile/decide.py
    cdef dict offsets
    cdef list parts
    cdef uint32_t used

    def __cinit__(self, *, tuple ops, tuple environ, tuple search_path, bytes cwd,
                  uint64_t clone_flags, str id_map, bytes uid_map, bytes gid_map,
                  uint32_t n_early, bint hop, bint init, tuple namespaces,
                  bint maps_first=False, bint own_memory=False,
                  Plan sandbox=None, str method=None, uint32_t netns_pool=0,
                  uint64_t max_output=0, bint capped=False, cgroups=None, tuple ids=None, tuple pipe_owner=None,
                  tuple binds=(), tuple view=None):
        cdef c.fns_op *op
        cdef int bad
        self.ops = ops
        self.ids = ids
        self.pipe_owner = pipe_owner
        self.view = view
        self.binds = binds
        if ids is not None:
            self.plan.owner_uid, self.plan.owner_gid = ids[0], ids[1]
        if pipe_owner is not None:
            self.plan.pipe_uid, self.plan.pipe_gid = pipe_owner
        self.environ = environ
        self.search_path = search_path
        self.cwd = cwd
        self.id_map = id_map
        self.method = method or ("staged" if hop else "direct")
        self.namespaces = namespaces
        self.sandbox = sandbox
        self.cgroups = cgroups
        self.max_output = max_output
        self.capped = capped
        if sandbox is not None:
            self.plan.sandbox = &sandbox.plan
        if cgroups is not None and self.method == "template":
            self.plan.args_max = cgroups.args_max
        self.offsets = {}
        self.parts = [b"\0"]
        self.used = 1
        self.mount_namespace = (
            "template" if self.method == "template" else "host" if "mount" not in namespaces
            else "tree" if any(item.code == "tree_namespace" for item in ops) else "copied")
        self.filtered = any(item.code == "seccomp" for item in self.ops)
        self.op_array = <c.fns_op *>calloc(max(len(ops), 1), sizeof(c.fns_op))
        self.envp = <char **>calloc(len(environ) + 1, sizeof(char *))
        if self.op_array == NULL or self.envp == NULL:
            raise MemoryError
        for i, item in enumerate(environ):
            self.envp[i] = PyBytes_AS_STRING(<bytes?>item)
        for i, item in enumerate(ops):
            op = &self.op_array[i]
            op.code = OPS[item.code]
            op.stage = _stage_numbers[item.stage]
            op.how = item.how
            op.flags = item.flags
            op.arg = item.arg
            op.source = self.place(item.source)
            op.target = self.place(item.target)
            op.type = self.place(item.type)
            op.data = self.place(item.data)
        self.plan.uid_map = self.place(uid_map)
        self.plan.gid_map = self.place(gid_map)
        self.parts.append(b"\0")
        self.arena = b"".join(self.parts)
        self.parts = None
        self.offsets = None
        self.plan.ops = self.op_array
        self.plan.n_ops = len(ops)
        self.plan.strings = PyBytes_AS_STRING(self.arena)
        self.plan.n_strings = len(self.arena)
        self.plan.n_early = n_early
        self.plan.options = ((c.FNS_PLAN_HOP if hop else 0)
                             | (c.FNS_PLAN_INIT if init else 0)
                             | (c.FNS_PLAN_MAPS_FIRST if maps_first else 0)
                             | (c.FNS_PLAN_OWN_MEMORY if own_memory else 0)
                             | (c.FNS_PLAN_SERVER if sandbox is not None else 0))
        self.plan.id_map = ID_MAPS[id_map]
        self.plan.clone_flags = clone_flags
        self.plan.netns_pool = netns_pool
        if c.fns_plan_check(&self.plan, &bad) < 0:
            raise ValueError(f"not a valid plan (op {bad})")
        _load_program()
        self.plan.file = c.fns_file_new()
        if self.plan.file == NULL:
            raise MemoryError

    def __dealloc__(self):
        c.fns_file_free(self.plan.file)
        free(self.op_array)
        free(self.envp)

    cdef int userns(self) except -1:
        """The fd its sandboxes join; 0: they join none."""
        return 0 if self.ids is None else user_namespace(self.ids)

    cdef uint32_t place(self, bytes text) except? 0xffffffff:
        """The offset of `text` in the arena; equal texts share one place."""
        if text is None:
            return 0
        found = self.offsets.get(text)
        if found is None:
            found = self.used
            if found + len(text) + 2 > 0xffffffff:
                raise ValueError("the spec holds more than 4 GiB of text and files")
            self.offsets[text] = found
            self.parts.append(text)
            self.parts.append(b"\0")
            self.used += len(text) + 1
        return found

    cdef CgroupPool pool(self):
        """The leaves for its sandboxes, made at the first use in each process; None: none."""
        if self.cgroups is None:
            return None
        live = self.live
        if live is None or live.owner != getpid():
            with self.cgroups.making():
                live = self.live
                if live is None or live.owner != getpid():
                    live = self.live = self.cgroups.make()
        return live.pool

    @property
    def limits(self):
        """Names of the spec's limits that are enforced."""
        return () if self.cgroups is None else self.cgroups.enforced

    def close(self):
        """Lets go of its cgroups, which are removed when nobody uses them any more."""
        self.live = None

    def describe(self) -> list:
        """The ops in order, a line each, as `fastns run --dry-run` prints them."""
        lines = []
        if self.plan.options & c.FNS_PLAN_HOP:
            lines.append("helper: a process of its own makes the sandbox")
        lines.append("clone: " + (" ".join(self.namespaces) or "no new namespace"))
        if self.ids is not None:
            uid, gid, size = self.ids
            lines.append(f"id_map: range uids 0 {uid} {size}, gids 0 {gid} {size}")
        elif self.id_map != "none":
            lines.append(f"id_map: {self.id_map}")
        owners = {}
        if self.binds:
            from fastns._policy import owners as _owners
            owners = _owners.notes(self)
        for i, op in enumerate(self.ops):
            kept = owners.get(op.target, "") if op.code == "bind" else ""
            lines.append(f"{op.stage}[{i}] {op}{kept}".rstrip())
        lines.append("chdir " + os.fsdecode(self.cwd))
        return lines

    def __repr__(self) -> str:
        return f"<fastns.Plan: {len(self.ops)} ops, {self.method}>"


# ---- arguments of one spawn ----------------------------------------------------------------------

@cython.final
cdef class _Arguments:
    """struct fns_args and the memory behind it."""

    cdef c.fns_args args
    cdef char **block
    cdef int *keep
    cdef tuple argv, envp, paths
    cdef bytes cwd

    def __cinit__(self, tuple argv, tuple envp, tuple paths, bytes cwd, tuple stdio, tuple keep):
        cdef Py_ssize_t i, at = 0
        self.argv, self.envp, self.paths, self.cwd = argv, envp, paths, cwd
        self.block = <char **>calloc(len(argv) + len(envp) + len(paths) + 3, sizeof(char *))
        self.keep = <int *>calloc(max(len(keep), 1), sizeof(int))
        if self.block == NULL or self.keep == NULL:
            raise MemoryError
        self.args.argv = self.block
        at = self.fill(at, argv)
        self.args.envp = self.block + at
        at = self.fill(at, envp)
        self.args.paths = self.block + at
        self.fill(at, paths)
        self.args.cwd = PyBytes_AS_STRING(cwd)
        for i in range(len(keep)):
            self.keep[i] = keep[i]
        self.args.keep = self.keep
        self.args.n_keep = len(keep)
        for i in range(3):
            self.args.stdio[i] = stdio[i]

    cdef Py_ssize_t fill(self, Py_ssize_t at, tuple items) except -1:
        for item in items:
            self.block[at] = PyBytes_AS_STRING(<bytes?>item)
            at += 1
        return at + 1

    def __dealloc__(self):
        free(self.block)
        free(self.keep)


cdef object _spawn_error(Plan plan, bytes command, bytes cwd, const c.fns_error *error):
    """A SpawnError in words: which op, which path."""
    stage = STAGES[error.stage]
    path = hint = None
    if error.op_index >= 0:
        op = plan.ops[error.op_index]
        path = op.source if error.detail == c.FNS_DETAIL_SOURCE else (op.target or op.source)
        if op.code in ("mount", "show") and path is not None and path is op.target:
            path = b"/" + path.lstrip(b"/")
    elif error.stage == c.FNS_STAGE_EXEC:
        path = command
    elif error.stage == c.FNS_STAGE_CHDIR:
        path = cwd
    path = None if path is None else os.fsdecode(path)
    if plan.view is not None:
        from fastns import _view

        hint = _view.hint_of(stage, error.err, path, plan.view, error.detail == c.FNS_DETAIL_FOUND)
    if hint is not None:
        pass
    elif error.detail == c.FNS_DETAIL_FOUND:
        hint = ("the file is there, but the interpreter of its #! line, or the ELF loader it names, "
                "is missing inside the root")
    elif error.detail == c.FNS_DETAIL_KILLED:
        hint = "the process was killed while it was being set up (out of memory, or a signal)"
    elif error.detail == c.FNS_DETAIL_ID_MAP:
        hint = ("this file system cannot be idmapped, so owners cannot be kept: for a bind, leave out the "
                "option idmap; for a root, use ext4, xfs or btrfs, or give namespaces={'user': 'host'}")
    elif error.detail == c.FNS_DETAIL_MEMORY:
        hint = ("arguments and environment leave too little of the memory limit for a start: raise memory, or "
                "pass them in a file or by stdin")
    elif error.detail == c.FNS_DETAIL_BROKEN and error.err in (ECANCELED, EMFILE, EBADF):
        hint = "the template's server was killed, or has no fds left (RLIMIT_NOFILE)"
    elif plan.view is not None:
        hint = hint_for(stage, error.err, path, host_root=True)
    if error.err == EACCES and plan.binds and stage in ("exec", "chdir", "landlock"):
        from fastns._policy import owners as _owners
        hint = _owners.hint(plan, path, hint or hint_for(stage, error.err, path))
    exc = SpawnError(stage, error.err, op_index=error.op_index, path=path, hint=hint)
    exc.found = error.detail == c.FNS_DETAIL_FOUND
    return exc


# ---- one sandbox ---------------------------------------------------------------------------------

@cython.final
@cython.no_gc_clear
cdef class Process:
    """A started sandbox: its pid, its pidfd, and the waiting and killing of it.

    A server's sandbox has no pidfd here where fds are scarce: one is opened for as long as it is used.

    Dropped before it was reaped (an exception between the spawn and the handle), it ends the sandbox.
    """

    cdef c.fns_process process
    cdef c.fns_result result
    cdef readonly bint reaped
    cdef bint lost  # somebody else reaped it
    cdef bint killed  # by kill_all()
    cdef bint reaping  # a thread is asking a server for its end
    cdef Plan plan
    cdef Server server  # whose sandbox it is; None: it is this process's own child
    cdef int owner  # the process it belongs to: a forked copy ends nothing
    cdef CgroupPool groups
    cdef c.fns_leaf leaf
    cdef int waiters  # threads inside a call that uses the pidfd: the last one out closes it
    cdef bint borrowed  # the pidfd is there for these only

    @property
    def pid(self):
        return self.process.pid

    @property
    def pidfd(self):
        self.keep()
        return self.process.pidfd

    cdef int enter(self) noexcept:
        """1: the pidfd is there until leave(); 0: the sandbox has ended, or is not this process's;
        -errno. To be followed by leave() in any case."""
        cdef int ret, pidfd = -1
        self.waiters += 1
        if self.process.pidfd >= 0:
            return 1
        if not self.process.served or self.reaped or self.lost or self.owner != getpid():
            return 0
        ret = self.server.look(&self.process, &pidfd)
        if ret == 1 and self.process.pidfd < 0:
            self.process.pidfd = pidfd
            self.borrowed = True
        elif ret == 1:  # another thread was sooner
            close(pidfd)
        # Ended with the server, or reaped by another thread meanwhile.
        return 0 if ret == -ECANCELED or ret == -ECHILD else ret

    cdef int enter_alive(self) noexcept:
        """enter() for a signal: -EBADF once reaped, -ESRCH when it has ended."""
        cdef int ret = self.enter()
        if self.reaped or self.lost:
            return -EBADF
        return ret if ret else -ESRCH

    cdef int keep(self) except -1:
        """From now on the pidfd is there as long as the sandbox is not reaped."""
        cdef int ret = self.enter()
        self.borrowed = False
        self.leave()
        if ret < 0:
            raise SpawnError("wait", -ret)
        return 0

    def wait(self, timeout_ns=None):
        """True once the sandbox has ended; False when `timeout_ns` has passed first."""
        cdef int ret
        cdef int64_t left = -1
        cdef uint64_t end = 0
        if timeout_ns is not None:
            left = max(0, timeout_ns)
            end = c.fns_now() + <uint64_t>left
        ret = self.enter()
        try:
            if ret < 0:
                raise SpawnError("wait", -ret)
            while ret > 0:
                with nogil:
                    ret = c.fns_wait(&self.process, left)
                if ret >= 0:
                    return ret > 0
                if ret != -EINTR:
                    raise SpawnError("wait", -ret)
                c.fns_attend(&self.process, self.killed)
                PyErr_CheckSignals()
                if timeout_ns is not None:
                    left = max(0, <int64_t>(end - c.fns_now()))
                ret = 1
            return True
        finally:
            self.leave()

    def reap(self):
        """(code, status, user s, system s, max rss bytes, is that exact, wall s) of an ended sandbox, and closes it.

        None while it has not ended. SpawnError at stage "wait" when somebody else reaped it."""
        cdef int ret
        if not self.reaped:
            if self.lost:
                return None
            ret = self.reap_now()
            if ret == -EAGAIN:
                return None
            if ret < 0 and ret != -ECHILD and ret != -ECANCELED:  # try again: it is still there
                raise SpawnError("wait", -ret)
            self.lost = ret < 0
            self.reaped = ret >= 0
            if self.waiters == 0:
                self.close()
            if ret < 0:
                raise SpawnError("helper" if ret == -ECANCELED else "wait", -ret)
        if self.result.lost:
            raise SpawnError("init", self.result.lost, hint=(
                "the reaper could not report how the command ended"))
        return _result(&self.process, &self.result,
                       None if self.groups is None else _counts(&self.leaf))

    cdef int reap_now(self) noexcept:
        """0, -EAGAIN, or -errno."""
        cdef int ret
        if self.server is None:
            ret = c.fns_reap(&self.process, &self.result)
            if ret != -EAGAIN:
                self.give_leaf()
            return ret
        if self.owner != getpid():  # as the kernel has it for other people's children
            return -ECHILD
        if self.reaping:
            return -EAGAIN
        ret = self.enter()
        if ret > 0 and c.fns_wait(&self.process, 0) == 0:
            ret = -EAGAIN
        self.leave()
        if ret < 0:
            return ret
        self.reaping = True
        ret = self.server.reap(&self.process, &self.result)
        self.reaping = False
        if ret >= 0 or ret == -ECANCELED:
            self.give_leaf()
        return ret

    cdef void give_leaf(self) noexcept:
        if self.groups is not None and self.owner == getpid():
            c.fns_leaf_give(self.groups.groups, &self.leaf)

    def kill(self, int signal):
        """Sends a signal to the sandbox's first process; 0, or the errno."""
        cdef int ret = self.enter_alive()
        if ret > 0:
            ret = c.fns_kill(&self.process, signal)
        self.leave()
        return -ret

    def kill_all(self):
        """Ends every process of the sandbox: its pid namespace, or the tree; 0, or the errno."""
        cdef int ret = self.enter_alive()
        if ret > 0:
            ret = c.fns_kill_all(&self.plan.plan, &self.process)
            self.killed = True
        self.leave()
        return -ret

    cdef void leave(self) noexcept:
        self.waiters -= 1
        if (self.reaped or self.lost or self.borrowed) and self.waiters == 0:
            self.close()
            self.borrowed = False

    cdef void close(self) noexcept:
        if self.process.pidfd >= 0:
            close(self.process.pidfd)
        if self.process.control >= 0:
            close(self.process.control)
        self.process.pidfd = self.process.control = -1

    def __dealloc__(self):
        if not self.reaped and not self.lost and self.owner == getpid():
            if self.enter() > 0:
                c.fns_kill_all(&self.plan.plan, &self.process)
                c.fns_kill(&self.process, 9)
                while c.fns_wait(&self.process, -1) == -EINTR:
                    c.fns_attend(&self.process, True)
            self.reap_now()
            self.leave()
        self.close()


cdef double _seconds(const c.timeval *time) noexcept:
    return time.tv_sec + time.tv_usec * 1e-6


cdef tuple _result(const c.fns_process *process, const c.fns_result *result, object counts):
    return (
        result.code,
        result.status,
        _seconds(&result.usage.ru_utime),
        _seconds(&result.usage.ru_stime),
        result.usage.ru_maxrss * 1024,
        result.usage.ru_maxrss > process.rss_floor,
        (result.end - process.start) * 1e-9,
        counts,
    )


cdef Process _new_process(Plan plan, const c.fns_job *job, CgroupPool groups):
    cdef Process new = Process.__new__(Process)
    new.groups = groups
    new.leaf = job.leaf
    process = &job.io.process
    new.plan = plan
    new.process = process[0]
    new.owner = getpid()
    return new


def spawn(Plan plan, tuple argv, tuple envp, tuple paths, bytes cwd, tuple stdio, tuple keep):
    """Starts one sandbox; SpawnError says which step failed."""
    cdef _Arguments arguments = _Arguments(argv, envp, paths, cwd, stdio, keep)
    cdef CgroupPool groups = plan.pool()
    cdef c.fns_job job
    cdef int ret
    _set_job(&job, plan, arguments, groups)
    job.args.userns = plan.userns()
    with nogil:
        ret = c.fns_job_spawn(&job, -1)
    _raise_pending()
    if ret < 0:
        raise _spawn_error(plan, argv[0], cwd, &job.error)
    return _new_process(plan, &job, groups)


cdef void _set_job(c.fns_job *job, Plan plan, _Arguments arguments, CgroupPool groups) noexcept:
    memset(job, 0, sizeof(c.fns_job))
    job.plan = &plan.plan
    job.args = arguments.args
    job.groups = NULL if groups is None else groups.groups
    job.leaf.number = -1


@cython.final
cdef class Server:
    """A template's server process, and the connections to it that are free.

    Made from the plan of a template; start() and stop() are template.py's to call, one thread at a
    time, the rest anybody's. `parked`: how many sandboxes are made ahead, each behind a connection of
    its own.
    """

    cdef c.fns_process process
    cdef readonly Plan plan
    cdef readonly bint running
    cdef list free
    cdef list ahead
    cdef int owner

    def __cinit__(self, Plan plan, int null, int parked=0):
        cdef c.fns_error error
        cdef int ret, userns
        self.process.pidfd = self.process.control = -1
        self.plan = plan
        self.free = []
        self.ahead = []
        self.owner = getpid()
        userns = plan.userns()
        with nogil:
            ret = c.fns_server_start(&plan.plan, null, userns, &self.process, &error)
        _raise_pending()
        if ret < 0:
            raise _spawn_error(plan, None, None, &error)
        self.running = True
        for _ in range(parked):
            self.park()

    @property
    def pid(self):
        return self.process.pid

    def alive(self):
        """Whether it runs, and is this process's."""
        return self.usable() and c.fns_wait(&self.process, 0) == 0

    def usable(self):
        """As alive(), as far as this process knows: spawn() and run() find out."""
        return self.running and self.owner == getpid()

    cdef int connect(self) except -1:
        cdef int connection
        with nogil:
            connection = c.fns_server_connect(&self.process, c.FNS_MAY_GIVE_UP)
        _raise_pending()
        if connection == -EPIPE:  # its control socket is closed: it is ending, or has ended
            self.running = False
            raise ConnectionAbortedError
        if connection < 0:
            raise SpawnError("helper", -connection)
        return connection

    cdef int take(self, bint *parked) except -1:
        """A connection; the first to come back is the first to have a new sandbox behind it."""
        parked[0] = len(self.ahead) > 0
        if parked[0]:
            return self.ahead.pop(0)
        if self.free:
            return self.free.pop()
        return self.connect()

    cdef void give(self, int connection, bint parked, bint usable) noexcept:
        """After its use; one that cannot be used again is replaced when it was for sandboxes ahead."""
        cdef list to = self.ahead if parked else self.free
        if usable and self.running and self.owner == getpid() and len(to) < 1024:
            to.append(connection)
            return
        close(connection)
        if parked:
            self.park()

    cdef void park(self) noexcept:
        cdef int connection
        if not self.running or self.owner != getpid():
            return
        connection = c.fns_server_connect(&self.process, c.FNS_AT_ONCE)
        if connection < 0:  # whoever asks next finds out
            return
        if c.fns_server_park(connection) < 0:
            close(connection)
        else:
            self.ahead.append(connection)

    def spawn(self, tuple argv, tuple envp, tuple paths, bytes cwd, tuple stdio, tuple keep):
        """As the module's spawn(). ConnectionAbortedError: the server was gone before it was asked."""
        cdef _Arguments arguments = _Arguments(argv, envp, paths, cwd, stdio, keep)
        cdef Plan plan = self.plan.sandbox
        cdef CgroupPool groups = plan.pool()
        cdef c.fns_job job
        cdef bint parked
        cdef int ret, connection = self.take(&parked)
        _set_job(&job, plan, arguments, groups)
        job.server = &self.process
        with nogil:
            ret = c.fns_job_spawn(&job, connection)
        broken = ret < 0 and job.error.detail == c.FNS_DETAIL_BROKEN
        try:
            _raise_pending()
        finally:
            self.give(connection, parked, not broken and not (ret >= 0 and parked))
        if broken and ret == -EPIPE:
            self.aborted()
        if ret < 0:
            raise _spawn_error(plan, argv[0], cwd, &job.error)
        cdef Process new = _new_process(plan, &job, groups)
        new.server = self
        return new

    cdef int aborted(self) except -1:
        """One connection was closed by the server: the others may be, and a new one tells why."""
        self.close_connections()
        raise ConnectionAbortedError

    cdef int take_any(self) noexcept:
        """A connection to ask about a sandbox, to be given back; -ECANCELED: the server is gone."""
        cdef int connection
        if self.free:
            return self.free.pop()
        with nogil:
            connection = c.fns_server_connect(&self.process, c.FNS_PATIENT)
        return -ECANCELED if connection == -EPIPE else connection

    cdef int reap(self, const c.fns_process *process, c.fns_result *result) noexcept:
        cdef int ret, connection = self.take_any()
        if connection < 0:
            return connection
        with nogil:
            ret = c.fns_server_reap(connection, process, result)
        self.give(connection, False, ret >= 0)
        return ret

    cdef int look(self, const c.fns_process *process, int *pidfd) noexcept:
        """fns_server_look()."""
        cdef int ret, connection = self.take_any()
        if connection < 0:
            return connection
        with nogil:
            ret = c.fns_server_look(connection, process, pidfd)
        self.give(connection, False, ret >= 0)
        return ret

    def pool(self):
        """(network namespaces made, waits for one, seconds waited) of its pool."""
        cdef c.fns_pool_state state
        cdef int connection = self.free.pop() if self.free else self.connect()
        cdef int ret = c.fns_server_pool(&self.process, connection, &state)
        self.give(connection, False, ret >= 0)
        if ret < 0:
            raise SpawnError("helper", -ret)
        return state.made, state.waits, state.wait_ns * 1e-9

    def stop(self):
        """Ends the server and with it every sandbox of it."""
        self.running = False
        self.close_connections()
        if self.owner == getpid():
            with nogil:
                c.fns_server_stop(&self.process)

    cdef void close_connections(self) noexcept:
        for connections in (self.free, self.ahead):
            while connections:
                close(connections.pop())

    def __dealloc__(self):
        self.close_connections()
        if self.owner == getpid():
            c.fns_server_stop(&self.process)
        c.fns_server_close(&self.process)  # not before: other threads may use these fds


@cython.final
cdef class Pipes:
    """Feeds and drains the pipes of a sandbox, by copies of the three fds it is given (-1: none)."""

    cdef c.fns_io io
    cdef object input
    cdef Process process

    def __cinit__(self, Process process, int stdin, int stdout, int stderr, bytes input,
                  uint64_t limit=0):
        cdef int *fds = self.io.fds
        fds[0] = fds[1] = fds[2] = -1
        process.keep()
        self.process = process
        self.input = input
        self.io.process = process.process
        for i, fd in enumerate((stdin, stdout, stderr)):
            if fd >= 0:
                fds[i] = fcntl(fd, F_DUPFD_CLOEXEC, 3)
                if fds[i] < 0:
                    raise SpawnError("stdio", errno)
        self.io.input = PyBytes_AS_STRING(input)
        self.io.input_size = len(input)
        self.io.limit = limit
        self.io.capped = process.plan.capped

    @property
    def dropped(self):
        """Bytes beyond the limit: of stdout, of stderr."""
        return self.io.output[0].dropped, self.io.output[1].dropped

    @property
    def over(self):
        """Whether more came than a capped plan allows: the sandbox is to be ended."""
        return self.io.over != 0

    def run(self, timeout_ns=None):
        """Until everything is at its end, or over the limit of a capped plan: True; False when
        `timeout_ns` has passed first."""
        cdef int ret
        self.io.deadline = 0
        if timeout_ns is not None:
            self.io.deadline = c.fns_now() + <uint64_t>max(0, timeout_ns) + 1
        self.process.waiters += 1
        self.io.process = self.process.process  # its pidfd is closed once it was reaped
        try:
            while True:
                with nogil:
                    ret = c.fns_io_run(&self.io)
                if ret == -EINTR:
                    PyErr_CheckSignals()
                elif ret < 0:
                    raise SpawnError("wait", -ret)
                else:
                    return ret != c.FNS_IO_TIMEOUT
        finally:
            self.process.leave()

    def finish(self):
        """After a kill: takes what is left in the pipes and waits for the sandbox to end."""
        self.process.waiters += 1
        self.io.process = self.process.process
        with nogil:
            c.fns_io_finish(&self.io)
        self.process.leave()

    def output(self, int which):
        """What has come so far: 1 stdout, 2 stderr."""
        cdef c.fns_buffer *buffer = &self.io.output[which - 1]
        return PyBytes_FromStringAndSize(buffer.data, buffer.size) if buffer.size else b""

    def __dealloc__(self):
        c.fns_io_close(&self.io)
        c.fns_buffer_free(&self.io.output[0])
        c.fns_buffer_free(&self.io.output[1])


# ---- jobs: run to their end in C -------------------------------------------------------------------

cdef enum:
    MAX_PLAIN = 4096  # bytes of a text
    MAX_WORDS = 64

cdef bint _utf8 = sys.getfilesystemencoding() == "utf-8"

PIPE_STDIN = c.FNS_PIPE_STDIN
PIPE_STDOUT = c.FNS_PIPE_STDOUT
PIPE_STDERR = c.FNS_PIPE_STDERR
PIPE_JOINED = c.FNS_PIPE_JOINED


@cython.final
cdef class _Jobs:
    """An array of struct fns_job and what its pointers lead to."""

    cdef c.fns_job *jobs
    cdef list arguments
    cdef list inputs
    cdef Plan plan
    cdef Server server
    cdef CgroupPool groups
    cdef size_t n
    cdef size_t first  # all before it are handed out
    cdef bytearray handed_out

    def __cinit__(self, Plan plan, Server server, list items):
        """items: (argv, envp, paths, cwd, stdio, pipes, input, timeout_ns or None, limit or 0)"""
        cdef _Arguments arguments
        cdef c.fns_job *job
        self.plan = plan
        self.server = server
        self.groups = plan.pool()
        cdef int userns = 0 if server is not None else plan.userns()
        self.n = len(items)
        self.handed_out = bytearray(self.n)
        self.arguments = []
        self.inputs = []
        self.jobs = <c.fns_job *>calloc(self.n or 1, sizeof(c.fns_job))
        if self.jobs == NULL:
            raise MemoryError
        for i, (argv, envp, paths, cwd, stdio, pipes, data, timeout_ns, limit) in enumerate(items):
            arguments = _Arguments(argv, envp, paths, cwd, stdio, ())
            self.arguments.append(arguments)
            self.inputs.append(data)
            job = &self.jobs[i]
            job.plan = &plan.plan
            job.server = NULL if server is None else &server.process
            job.args = arguments.args
            job.args.userns = userns
            job.groups = NULL if self.groups is None else self.groups.groups
            job.leaf.number = -1
            job.pipes = pipes
            job.io.input = PyBytes_AS_STRING(<bytes?>data)
            job.io.input_size = len(data)
            job.timeout_ns = -1 if timeout_ns is None else timeout_ns
            job.io.limit = limit
            job.io.capped = plan.capped
            job.io.process.pidfd = job.io.process.control = -1

    def __dealloc__(self):
        if self.jobs != NULL:
            for i in range(self.n):
                c.fns_buffer_free(&self.jobs[i].io.output[0])
                c.fns_buffer_free(&self.jobs[i].io.output[1])
        free(self.jobs)

    cdef Process process(self, size_t i):
        cdef Process process = _new_process(self.plan, &self.jobs[i], self.groups)
        process.server = self.server
        gone = &self.jobs[i].io.process
        gone.pid = gone.pidfd = gone.control = -1
        return process

    cdef void discard(self) noexcept:
        """Ends and reaps what a stopped spawn batch has started; a Process does so as it is dropped."""
        for i in range(self.n):
            if self.jobs[i].io.process.pidfd >= 0:
                c.fns_kill_all(&self.plan.plan, &self.jobs[i].io.process)
        for i in range(self.n):
            if self.jobs[i].io.process.pid > 0:
                self.process(i)

    cdef object error(self, size_t i):
        cdef _Arguments arguments = self.arguments[i]
        return _spawn_error(self.plan, arguments.argv[0], arguments.cwd, &self.jobs[i].error)

    cdef object started(self, size_t i):
        """SpawnError or Process."""
        return self.error(i) if self.jobs[i].error.stage != c.FNS_STAGE_NONE else self.process(i)

    cdef object outcome(self, size_t i):
        """SpawnError, or _outcome()."""
        if self.jobs[i].error.stage != c.FNS_STAGE_NONE:
            return self.error(i)
        return _outcome(&self.jobs[i])

    cdef int hand_out(self, object each) except -1:
        """Calls each(i, outcome) for every job that has finished since the last time, and keeps no
        output of it."""
        cdef size_t i
        for i in range(self.first, self.n):
            if self.handed_out[i]:
                continue
            if self.jobs[i].error.stage == c.FNS_STAGE_NONE and self.jobs[i].result.code == 0:
                continue  # a code is there once it is reaped
            outcome = self.outcome(i)
            self.handed_out[i] = 1
            c.fns_buffer_free(&self.jobs[i].io.output[0])
            c.fns_buffer_free(&self.jobs[i].io.output[1])
            each(i, outcome)
        while self.first < self.n and self.handed_out[self.first]:
            self.first += 1
        return 0


cdef tuple _outcome(const c.fns_job *job):
    """(result tuple, stdout, stderr, bytes dropped of each, timed_out, over)"""
    cdef const c.fns_io *io = &job.io
    out = err = None
    if job.pipes & c.FNS_PIPE_STDOUT:
        out = PyBytes_FromStringAndSize(io.output[0].data, io.output[0].size)
    if job.pipes & c.FNS_PIPE_STDERR:
        err = PyBytes_FromStringAndSize(io.output[1].data, io.output[1].size)
    counts = None if job.groups == NULL else _counts(&job.leaf)
    return (_result(&io.process, &job.result, counts), out, err,
            (io.output[0].dropped, io.output[1].dropped), job.timed_out != 0, io.over != 0)


cdef int _run_all(c.fns_job *jobs, size_t n, unsigned concurrency, bint spawn, _Jobs owner,
                  object progress, object each) except -1:
    """Runs jobs to their ends, or only starts them; an exception ends what still runs."""
    cdef c.fns_batch *batch
    cdef int ret = c.fns_batch_open(&batch, jobs, n, concurrency, spawn)
    if ret < 0:
        raise SpawnError("stdio", -ret)
    try:
        while True:
            with nogil:
                ret = c.fns_batch_run(batch)
            _raise_pending()
            if ret < 0:
                raise SpawnError("wait", -ret)
            if each is not None:
                owner.hand_out(each)
            if progress is not None:
                progress(c.fns_batch_done(batch))
            if ret == 1:
                break
            PyErr_CheckSignals()
    except BaseException:
        with nogil:
            c.fns_batch_close(batch)
        raise
    c.fns_batch_close(batch)
    return 0


cdef int _run_one(c.fns_job *job, Server server) except -1:
    """Runs one job to its end. ConnectionAbortedError: the server was gone before the job was sent."""
    cdef bint parked = False
    if server is None:
        return _run_all(job, 1, 1, False, None, None, None)
    job.connection = server.take(&parked)
    try:
        _run_all(job, 1, 1, False, None, None, None)
    finally:
        server.give(job.connection, parked, c.fns_job_spares(job))
    if c.fns_job_unsent(job):
        server.aborted()
    return 0


def run(Plan plan, Server server, tuple item):
    """Runs one item to its end (_Jobs); _Jobs.outcome(). `plan`: a server's sandbox, if there is one.

    ConnectionAbortedError: the server was gone before the job was sent."""
    cdef _Jobs jobs = _Jobs(plan, server, [item])
    _run_one(jobs.jobs, server)
    return jobs.outcome(0)


cdef object _completed_class = None


def set_completed_class(cls):
    """CompletedSandbox, for run_plain(): it is Python's."""
    global _completed_class
    _completed_class = cls


cdef object _completed(object args, Plan plan, const c.fns_job *job):
    """CompletedSandbox of one that has exited with 0, with nothing captured and nothing counted."""
    cdef const c.fns_result *result = &job.result
    done = _completed_class.__new__(_completed_class)
    done.args = args
    done.returncode = 0
    done.stdout = done.stderr = None
    done._used = (_seconds(&result.usage.ru_utime), _seconds(&result.usage.ru_stime),
                  result.usage.ru_maxrss * 1024, result.usage.ru_maxrss > job.io.process.rss_floor, None)
    done.wall_time = (result.end - job.io.process.start) * 1e-9
    done.method = plan.method
    done.truncated = False
    done.cause = "exited"
    done.limits = ()
    done.id_map = plan.id_map
    done.mount_namespace = plan.mount_namespace
    return done


def run_plain(Plan plan, Server server, object args, unsigned pipes, timeout_ns):
    """run() of `args` with little else said, checked and packed here, on the stack: what a start costs
    beside the kernel's part is the code that is run and the memory that is touched around it, which
    the caches have forgotten by the next start.

    None: `args` is not a list or tuple of a few short texts that can be a command, or a standard
    stream is closed."""
    cdef c.fns_job job
    cdef char *argv[MAX_WORDS + 1]
    cdef char *paths[MAX_WORDS + 1]
    cdef list found
    cdef CgroupPool groups
    cdef tuple words
    if not (type(args) is list or type(args) is tuple) or not _utf8:
        return None
    words = tuple(args)  # another thread may change a list
    try:
        if not _fill_plain(argv, words):
            return None
    except UnicodeEncodeError:
        return None
    if strchr(argv[0], b"/"):
        paths[0] = argv[0]
        paths[1] = NULL
    else:
        found = [directory + b"/" + argv[0] for directory in plan.search_path]
        if len(found) > MAX_WORDS:
            return None
        for i, path in enumerate(found):
            paths[i] = PyBytes_AS_STRING(<bytes?>path)
        paths[len(found)] = NULL
    if fcntl(0, F_GETFD) < 0 or fcntl(1, F_GETFD) < 0 or fcntl(2, F_GETFD) < 0:
        return None
    groups = plan.pool()
    memset(&job, 0, sizeof(c.fns_job))
    job.plan = &plan.plan
    job.server = NULL if server is None else &server.process
    job.groups = NULL if groups is None else groups.groups
    job.leaf.number = -1
    job.args.userns = 0 if server is not None else plan.userns()
    job.args.argv = argv
    job.args.paths = paths
    job.args.envp = plan.envp
    job.args.cwd = PyBytes_AS_STRING(plan.cwd)
    job.args.stdio[0] = job.args.stdio[1] = job.args.stdio[2] = -1
    job.pipes = pipes
    job.timeout_ns = -1 if timeout_ns is None else timeout_ns
    try:
        _run_one(&job, server)
        if job.error.stage != c.FNS_STAGE_NONE:
            return _spawn_error(plan, argv[0], plan.cwd, &job.error)
        if (job.result.code == 1 and job.result.status == 0 and not pipes and groups is None
                and not job.timed_out):
            return _completed(args, plan, &job)
        return _outcome(&job)
    finally:
        c.fns_buffer_free(&job.io.output[0])
        c.fns_buffer_free(&job.io.output[1])


cdef bint _fill_plain(char **argv, tuple args) except -1:
    """Their bytes are the texts' own, and live as long as these."""
    cdef Py_ssize_t n = 0, size
    if not 0 < len(args) <= MAX_WORDS:
        return False
    for arg in args:
        if type(arg) is not str:
            return False
        argv[n] = <char *>PyUnicode_AsUTF8AndSize(arg, &size)
        if size > MAX_PLAIN or strlen(argv[n]) != <size_t>size:
            return False
        n += 1
    argv[n] = NULL
    return argv[0][0] != 0


cdef int _run_jobs(_Jobs jobs, unsigned concurrency, bint spawn, object progress, object each) except -1:
    if jobs.n == 0:
        return 0
    return _run_all(jobs.jobs, jobs.n, concurrency, spawn, jobs, progress, each)


def spawn_batch(Plan plan, Server server, list items, unsigned concurrency):
    """Starts every item; a Process or a SpawnError for each, in order."""
    cdef _Jobs jobs = _Jobs(plan, server, items)
    try:
        _run_jobs(jobs, concurrency, True, None, None)
    except BaseException:
        jobs.discard()
        raise
    return [jobs.started(i) for i in range(jobs.n)]


def run_batch(Plan plan, Server server, list items, unsigned concurrency, progress=None, each=None):
    """Runs every item to its end: _Jobs.outcome() for each, in order. `progress` is called now and
    then with how many are finished. With `each`, each(i, outcome) is called instead, in no order and
    before `progress`, soon after job i has finished; then the list is empty. An exception of either
    ends what still runs."""
    cdef _Jobs jobs = _Jobs(plan, server, items)
    _run_jobs(jobs, concurrency, False, progress, each)
    return [jobs.outcome(i) for i in range(jobs.n)] if each is None else []


def capabilities():
    """The calling thread's effective capabilities, a bit each. SpawnError, stage "capabilities"."""
    cdef uint64_t effective
    cdef int ret = c.fns_capabilities(&effective)
    if ret < 0:
        raise SpawnError("capabilities", -ret)
    return effective


def is_dumpable():
    """Whether the files of this process in /proc are its own: not after setuid() from root."""
    cdef int ret = c.fns_is_dumpable()
    if ret < 0:
        raise SpawnError("capabilities", -ret)
    return ret != 0


def landlock_abi():
    """The version of Landlock that this kernel has, or a negative errno."""
    return c.fns_landlock_abi()


# ---- unshare and setns ---------------------------------------------------------------------------

def has_tree_namespaces():
    """Whether the kernel makes a mount namespace of a tree (OPEN_TREE_NAMESPACE, Linux 7.0)."""
    return c.fns_has_tree_namespaces() != 0


def can_idmap(bytes path, bint recursive, tuple ids):
    """Whether a bind of this path can keep its owners in the range `ids`: 0, or the errno."""
    cdef int userns = user_namespace(ids), result
    cdef const char *text = PyBytes_AS_STRING(path)
    with nogil:
        result = c.fns_can_idmap(text, recursive, userns)
    return -result


def unshare(uint64_t flags):
    """unshare(2) for the calling thread; 0, or the errno."""
    cdef int ret
    with nogil:
        ret = c.fns_unshare(flags)
    return -ret


def setns(int fd, uint64_t flags):
    """setns(2) for the calling thread; 0, or the errno."""
    cdef int ret
    with nogil:
        ret = c.fns_setns(fd, flags)
    return -ret


# ---- plan files (csrc/cli/planfile.h) ------------------------------------------------------------

DETAILS = {"found": c.FNS_DETAIL_FOUND, "killed": c.FNS_DETAIL_KILLED, "id_map": c.FNS_DETAIL_ID_MAP}


def hint_of_error(Plan plan, str stage, int err, str detail):
    """The hint of a start that failed in this way, which is one of DETAILS; None: there is none."""
    cdef c.fns_error error
    error.stage = _stage_numbers[stage]
    error.detail = DETAILS[detail]
    error.op_index = -1
    error.err = err
    return _spawn_error(plan, b"", plan.cwd, &error).hint


def pack_plan(Plan plan, bytes inotify, timeout_ns, list hints):
    """The bytes of a file from which fastns-exec starts what this plan describes, for this caller.

    inotify: the limit on inotify instances of its user namespace, or b""; hints: (stage or "", one of
    DETAILS or "", errno or 0, path or b"", text). OSError: /proc cannot be read."""
    cdef c.fns_planfile file
    cdef c.fns_identity identity
    cdef c.fns_hint *packed
    cdef void *data = NULL
    cdef size_t size = 0
    cdef _Arguments lists = _Arguments((), plan.environ, plan.search_path, plan.cwd, (-1, -1, -1), ())
    cdef bytes uid_map = b"", gid_map = b""
    cdef int ret = c.fns_identify(&identity)
    if ret < 0:
        raise OSError(-ret, os.strerror(-ret), "/proc")
    if plan.ids is not None:
        uid, gid, count = plan.ids
        uid_map, gid_map = b"0 %d %d\n" % (uid, count), b"0 %d %d\n" % (gid, count)
    memset(&file, 0, sizeof(c.fns_planfile))
    file.plan = plan.plan
    file.envp = lists.args.envp
    file.directories = lists.args.paths
    file.cwd = PyBytes_AS_STRING(plan.cwd)
    file.maps[0], file.maps[1] = PyBytes_AS_STRING(uid_map), PyBytes_AS_STRING(gid_map)
    file.inotify = PyBytes_AS_STRING(inotify)
    file.timeout_ns = -1 if timeout_ns is None else timeout_ns
    file.max_output = plan.max_output
    file.n_hints = len(hints)
    file.hints = <c.fns_hint *>calloc(len(hints) or 1, sizeof(c.fns_hint))
    if file.hints == NULL:
        raise MemoryError
    try:
        for i, (stage, detail, err, path, text) in enumerate(hints):
            packed = &file.hints[i]
            packed.stage = _stage_numbers[stage] if stage else 0
            packed.detail = DETAILS[detail] if detail else 0
            packed.err = err
            packed.path = PyBytes_AS_STRING(<bytes?>path)
            packed.text = PyBytes_AS_STRING(<bytes?>text)
        if c.fns_planfile_pack(&file, &identity, &data, &size) < 0:
            raise MemoryError
        return PyBytes_FromStringAndSize(<char *>data, size)
    finally:
        free(file.hints)
        free(data)
