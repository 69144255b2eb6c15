# cython: language_level=3, boundscheck=False, wraparound=False, binding=False, autotestdict=False
"""The binding: copies arguments in, makes one C call without the GIL, hands an object out.

No decision is taken here. Plans are compiled by _compile.py, handles live in sandbox.py, and what the
C code does is described in csrc/fastns.h.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EINTR, EAGAIN, EBADF, EINVAL, EMFILE, EPIPE, EPROTO
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from fastns cimport _fastns as c

import os

from fastns.errors import SpawnError


cdef extern from "<errno.h>" nogil:
    int ECANCELED

cdef extern from "<unistd.h>" nogil:
    int close(int fd)
    int getpid()


STAGES = tuple([c.fns_stage_name(i).decode() for i in range(c.FNS_STAGE_COUNT)])
OPS = {c.fns_op_name(i).decode(): i for i in range(c.FNS_OP_COUNT)}
HOW_CREATE = c.FNS_HOW_CREATE
HOW_NO_SYMLINKS = c.FNS_HOW_NO_SYMLINKS
HOW_RECURSIVE = c.FNS_HOW_RECURSIVE
HOW_SLAVE = c.FNS_HOW_SLAVE
HOW_UNBINDABLE = c.FNS_HOW_UNBINDABLE
PLAN_STAGED = c.FNS_PLAN_STAGED
PLAN_INIT = c.FNS_PLAN_INIT
ID_MAPS = {
    "none": c.FNS_ID_MAP_NONE,
    "self": c.FNS_ID_MAP_SELF,
    "parent": c.FNS_ID_MAP_PARENT,
    "newuidmap": c.FNS_ID_MAP_NEWUIDMAP,
}

cdef dict _stage_numbers = {name: i for i, name in enumerate(STAGES)}
cdef bint _programs_loaded = False


cdef object _load_programs():
    global _programs_loaded
    if _programs_loaded:
        return
    read = []
    for name in ("_exec", "_helper"):
        path = os.path.join(os.path.dirname(__file__), name)
        try:
            with open(path, "rb") as file:
                read.append(file.read())
        except OSError as exc:
            raise SpawnError("helper", exc.errno, path=path,
                             hint="the installation is incomplete: reinstall fastns") from exc
    if _programs_loaded:  # by another thread while this one read: its spawns use those bytes
        return
    if (c.fns_set_program(c.FNS_PROGRAM_EXEC, PyBytes_AS_STRING(read[0]), len(read[0])) < 0
            or c.fns_set_program(c.FNS_PROGRAM_HELPER, PyBytes_AS_STRING(read[1]),
                                 len(read[1])) < 0):
        raise MemoryError
    _programs_loaded = True


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
    cdef readonly Plan sandbox  # of a template: what its server does for each sandbox
    cdef dict offsets
    cdef list parts
    cdef uint32_t used

    def __cinit__(self, *, tuple ops, tuple environ, tuple search_path, bytes cwd,
                  uint64_t clone_flags, str id_map, bytes uid_map, bytes gid_map,
                  uint32_t n_early, bint staged, bint init, tuple namespaces,
                  Plan sandbox=None, str method=None):
        cdef c.fns_op *op
        cdef int bad
        self.ops = ops
        self.environ = environ
        self.search_path = search_path
        self.cwd = cwd
        self.id_map = id_map
        self.method = method or ("staged" if staged else "direct")
        self.namespaces = namespaces
        self.sandbox = sandbox
        if sandbox is not None:
            self.plan.sandbox = &sandbox.plan
        self.offsets = {}
        self.parts = [b"\0"]
        self.used = 1
        self.op_array = <c.fns_op *>calloc(max(len(ops), 1), sizeof(c.fns_op))
        if self.op_array == NULL:
            raise MemoryError
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
        self.plan.options = ((c.FNS_PLAN_STAGED if staged else 0)
                             | (c.FNS_PLAN_INIT if init else 0)
                             | (c.FNS_PLAN_SERVER if sandbox is not None else 0))
        self.plan.id_map = ID_MAPS[id_map]
        self.plan.clone_flags = clone_flags
        if c.fns_plan_check(&self.plan, &bad) < 0:
            raise ValueError(f"not a valid plan (op {bad})")
        _load_programs()

    def __dealloc__(self):
        free(self.op_array)

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

    def describe(self) -> list:
        """The ops in order, a line each, as `fastns run --dry-run` prints them."""
        lines = []
        if self.plan.options & c.FNS_PLAN_STAGED:
            lines.append("helper: a process of its own makes the sandbox")
        lines.append("clone: " + (" ".join(self.namespaces) or "no new namespace"))
        if self.id_map != "none":
            lines.append(f"id_map: {self.id_map}")
        for i, op in enumerate(self.ops):
            lines.append(f"{op.stage}[{i}] {op}".rstrip())
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


cdef object _spawn_error(Plan plan, _Arguments arguments, const c.fns_error *error):
    """A SpawnError in words: which op, which path."""
    stage = STAGES[error.stage]
    path = hint = None
    if error.op_index >= 0:
        op = plan.ops[error.op_index]
        path = op.source if error.detail == c.FNS_DETAIL_SOURCE else (op.target or op.source)
    elif error.stage == c.FNS_STAGE_EXEC:
        path = arguments.argv[0]
    elif error.stage == c.FNS_STAGE_CHDIR:
        path = arguments.cwd
    if error.detail == c.FNS_DETAIL_FOUND:
        hint = ("the file is there, but the interpreter of its #! line, or the ELF loader it names, "
                "is missing inside the root")
    elif error.detail == c.FNS_DETAIL_KILLED:
        hint = "the process was killed while it was being set up (out of memory, or a signal)"
    exc = SpawnError(stage, error.err, op_index=error.op_index,
                     path=None if path is None else os.fsdecode(path), hint=hint)
    exc.found = error.detail == c.FNS_DETAIL_FOUND
    return exc


# ---- one sandbox ---------------------------------------------------------------------------------

@cython.final
cdef class Process:
    """A started sandbox: its pid, its pidfd, and the waiting and killing of it.

    Dropped before it was reaped (an exception between the spawn and the handle), it ends the sandbox.
    """

    cdef c.fns_process process
    cdef c.fns_result result
    cdef readonly bint reaped
    cdef bint lost  # somebody else reaped it
    cdef Plan plan
    cdef Server server  # whose sandbox it is; None: it is this process's own child
    cdef int owner  # the process it belongs to: a forked copy ends nothing
    cdef int waiters  # threads inside a call that uses the pidfd: the last one out closes it

    @property
    def pid(self):
        return self.process.pid

    @property
    def pidfd(self):
        return self.process.pidfd

    def wait(self, timeout_ns=None):
        """True once the sandbox has ended; False when `timeout_ns` has passed first."""
        cdef int ret
        cdef int64_t left = -1
        cdef uint64_t end = 0
        if self.process.pidfd < 0:
            return True
        if timeout_ns is not None:
            left = max(0, timeout_ns)
            end = c.fns_now() + <uint64_t>left
        self.waiters += 1
        try:
            while True:
                with nogil:
                    ret = c.fns_wait(&self.process, left)
                if ret >= 0:
                    return ret > 0
                if ret != -EINTR:
                    raise OSError(-ret, os.strerror(-ret))
                PyErr_CheckSignals()
                if timeout_ns is not None:
                    left = max(0, <int64_t>(end - c.fns_now()))
        finally:
            self.leave()

    def reap(self):
        """(code, status, user s, system s, max rss bytes, is that exact, wall s) of an ended sandbox, and closes it.

        None while it has not ended. SpawnError at stage "wait" when somebody else reaped it."""
        cdef int ret
        if not self.reaped:
            if self.process.pidfd < 0:
                return None
            ret = c.fns_reap(&self.process, &self.result)
            if ret == -EAGAIN:
                return None
            self.lost = ret < 0
            self.reaped = ret >= 0
            if self.waiters == 0:
                self.close()
            if ret < 0:
                raise SpawnError("helper" if ret == -ECANCELED else "wait", -ret)
        return _result(&self.process, &self.result)

    def kill(self, int signal):
        """Sends a signal to the sandbox's first process; 0, or the errno."""
        cdef int ret = -EBADF
        if self.process.pidfd >= 0 and not self.reaped:
            ret = c.fns_kill(&self.process, signal)
        return -ret

    def kill_all(self):
        """Ends every process of the sandbox: its pid namespace, or the tree; 0, or the errno."""
        cdef int ret = -EBADF
        if self.process.pidfd >= 0 and not self.reaped:
            ret = c.fns_kill_all(&self.plan.plan, &self.process)
        return -ret

    cdef void leave(self) noexcept:
        self.waiters -= 1
        if (self.reaped or self.lost) and self.waiters == 0:
            self.close()

    cdef void close(self) noexcept:
        if self.process.pidfd >= 0:
            close(self.process.pidfd)
        if self.process.control >= 0:
            if self.server is not None and self.reaped:
                self.server.give(self.process.control)
            else:
                close(self.process.control)
        self.process.pidfd = self.process.control = -1

    def __dealloc__(self):
        if self.process.pidfd >= 0 and not self.reaped and self.owner == getpid():
            if self.plan is not None:  # None: the garbage collector has cleared this object
                c.fns_kill_all(&self.plan.plan, &self.process)
            c.fns_kill(&self.process, 9)
            while c.fns_wait(&self.process, -1) == -EINTR:
                pass
            c.fns_reap(&self.process, &self.result)
        self.close()


cdef tuple _result(const c.fns_process *process, const c.fns_result *result):
    return (
        result.code,
        result.status,
        result.usage.ru_utime.tv_sec + result.usage.ru_utime.tv_usec * 1e-6,
        result.usage.ru_stime.tv_sec + result.usage.ru_stime.tv_usec * 1e-6,
        result.usage.ru_maxrss * 1024,
        result.usage.ru_maxrss > process.rss_floor,
        (result.end - process.start) * 1e-9,
    )


cdef Process _new_process(Plan plan, const c.fns_process *process):
    cdef Process new = Process.__new__(Process)
    new.plan = plan
    new.process = process[0]
    new.owner = getpid()
    return new


def spawn(Plan plan, tuple argv, tuple envp, tuple paths, bytes cwd, tuple stdio, tuple keep):
    """Starts one sandbox; SpawnError says which step failed."""
    cdef _Arguments arguments = _Arguments(argv, envp, paths, cwd, stdio, keep)
    cdef c.fns_process process
    cdef c.fns_error error
    cdef int ret
    with nogil:
        ret = c.fns_spawn(&plan.plan, &arguments.args, &process, &error)
    if ret < 0:
        raise _spawn_error(plan, arguments, &error)
    return _new_process(plan, &process)


@cython.final
cdef class Server:
    """A template's server process, and the connections to it that are free.

    Made from the plan of a template; start() and stop() are template.py's to call, one thread at a
    time, spawn() anybody's.
    """

    cdef c.fns_process process
    cdef readonly Plan plan
    cdef readonly bint running
    cdef list free
    cdef int owner

    def __cinit__(self, Plan plan, int null):
        cdef c.fns_error error
        cdef int ret
        self.plan = plan
        self.free = []
        self.owner = getpid()
        self.process.pidfd = self.process.control = -1
        with nogil:
            ret = c.fns_server_start(&plan.plan, null, &self.process, &error)
        if ret < 0:
            raise _spawn_error(plan, _Arguments((), (), (), b"/", (-1, -1, -1), ()), &error)
        self.running = True

    @property
    def pid(self):
        return self.process.pid

    def alive(self):
        """Whether it runs, and is this process's."""
        return (self.running and self.owner == getpid()
                and c.fns_wait(&self.process, 0) == 0)

    def spawn(self, tuple argv, tuple envp, tuple paths, bytes cwd, tuple stdio, tuple keep):
        """As the module's spawn(). ConnectionAbortedError: the server was gone before it was asked."""
        cdef _Arguments arguments = _Arguments(argv, envp, paths, cwd, stdio, keep)
        cdef Plan plan = self.plan.sandbox
        cdef c.fns_process process
        cdef c.fns_error error
        cdef int ret, connection
        if self.free:
            connection = self.free.pop()
        else:
            connection = c.fns_server_connect(&self.process)
        if connection == -EPIPE:
            self.running = False
            raise ConnectionAbortedError
        if connection < 0:
            raise SpawnError("helper", -connection)
        with nogil:
            ret = c.fns_server_spawn(connection, &plan.plan, &arguments.args, &process, &error)
        if ret < 0:
            if ret == -EPIPE:
                close(connection)
                self.running = False
                raise ConnectionAbortedError
            if ret == -ECANCELED or ret == -EPROTO or ret == -EMFILE or ret == -EBADF:
                close(connection)
            else:
                self.give(connection)
            raise _spawn_error(plan, arguments, &error)
        cdef Process new = _new_process(plan, &process)
        new.server = self
        return new

    cdef void give(self, int connection) noexcept:
        if self.running and self.owner == getpid() and len(self.free) < 256:
            self.free.append(connection)
        else:
            close(connection)

    def stop(self):
        """Ends the server and with it every sandbox of it."""
        self.running = False
        while self.free:
            close(self.free.pop())
        if self.owner == getpid():
            with nogil:
                c.fns_server_stop(&self.process)
        else:
            self.forget()

    cdef void forget(self) noexcept:
        if self.process.control >= 0:
            close(self.process.control)
        if self.process.pidfd >= 0:
            close(self.process.pidfd)
        self.process.control = self.process.pidfd = -1

    def __dealloc__(self):
        if self.free is not None:
            for connection in self.free:
                close(connection)
        if self.owner == getpid():
            c.fns_server_stop(&self.process)
        else:
            self.forget()


@cython.final
cdef class Pipes:
    """Feeds and drains the pipes of a sandbox; owns the three fds it is given (-1: none)."""

    cdef c.fns_io io
    cdef object input
    cdef Process process

    def __cinit__(self, Process process, int stdin, int stdout, int stderr, bytes input):
        self.process = process
        self.input = input
        self.io.process = process.process
        self.io.fds[0], self.io.fds[1], self.io.fds[2] = stdin, stdout, stderr
        self.io.input = PyBytes_AS_STRING(input)
        self.io.input_size = len(input)
        self.io.stop = -1

    def run(self, timeout_ns=None):
        """Until everything is at its end: True; False when `timeout_ns` has passed first."""
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
                    raise OSError(-ret, os.strerror(-ret))
                else:
                    return ret == c.FNS_IO_DONE
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


# ---- batches -------------------------------------------------------------------------------------

@cython.final
cdef class _Jobs:
    """An array of struct fns_job and what its pointers lead to."""

    cdef c.fns_job *jobs
    cdef list arguments
    cdef list inputs
    cdef Plan plan
    cdef Server server
    cdef size_t n

    def __cinit__(self, Plan plan, list items, Server server):
        """items: (argv, envp, paths, cwd, stdio, input or None, timeout_ns or None)"""
        cdef _Arguments arguments
        cdef c.fns_job *job
        self.plan = plan
        self.server = server
        self.n = len(items)
        self.arguments = []
        self.inputs = []
        self.jobs = <c.fns_job *>calloc(max(self.n, 1), sizeof(c.fns_job))
        if self.jobs == NULL:
            raise MemoryError
        for i, (argv, envp, paths, cwd, stdio, data, timeout_ns) in enumerate(items):
            arguments = _Arguments(argv, envp, paths, cwd, stdio, ())
            self.arguments.append(arguments)
            self.inputs.append(data)
            job = &self.jobs[i]
            job.plan = &plan.plan
            job.server = NULL if server is None else &server.process
            job.args = arguments.args
            if data is not None:
                job.input = PyBytes_AS_STRING(<bytes?>data)
                job.input_size = len(data)
            job.timeout_ns = -1 if timeout_ns is None else timeout_ns
            job.process.pidfd = job.process.control = -1

    def __dealloc__(self):
        if self.jobs != NULL:
            for i in range(self.n):
                c.fns_buffer_free(&self.jobs[i].output[0])
                c.fns_buffer_free(&self.jobs[i].output[1])
        free(self.jobs)

    cdef void discard(self) noexcept:
        """Ends and reaps what a stopped spawn batch has started."""
        for i in range(self.n):
            if self.jobs[i].process.pidfd >= 0:
                process = _new_process(self.plan, &self.jobs[i].process)
                process.server = self.server
                self.jobs[i].process.pidfd = self.jobs[i].process.control = -1
                process.kill_all()
                process.wait()
                process.reap()

    cdef object outcome(self, size_t i, c.fns_batch_mode mode):
        """SpawnError, Process, or (pid, result tuple, stdout, stderr, timed_out)."""
        cdef c.fns_job *job = &self.jobs[i]
        cdef Process process
        if job.error.stage != c.FNS_STAGE_NONE:
            return _spawn_error(self.plan, <_Arguments>self.arguments[i], &job.error)
        if mode == c.FNS_BATCH_SPAWN:
            process = _new_process(self.plan, &job.process)
            process.server = self.server
            job.process.pidfd = job.process.control = -1
            return process
        out = err = None
        if mode == c.FNS_BATCH_CAPTURE:
            out = PyBytes_FromStringAndSize(job.output[0].data, job.output[0].size)
            err = PyBytes_FromStringAndSize(job.output[1].data, job.output[1].size)
        return (job.process.pid, _result(&job.process, &job.result), out, err, job.timed_out != 0)


cdef list _run_jobs(_Jobs jobs, unsigned threads, c.fns_batch_mode mode):
    cdef c.fns_batch *batch
    cdef int ret
    if jobs.n == 0:
        return []
    ret = c.fns_batch_start(&batch, jobs.jobs, jobs.n, min(threads, <unsigned>jobs.n), mode)
    if ret < 0:
        jobs.discard()
        raise OSError(-ret, os.strerror(-ret))
    try:
        while True:
            PyErr_CheckSignals()
            with nogil:  # not for ever: a signal may come just before the wait begins
                ret = c.fns_batch_wait(batch, 200)
            if ret > 0:
                break
    except BaseException:
        c.fns_batch_stop(batch)
        with nogil:
            c.fns_batch_join(batch)
        if mode == c.FNS_BATCH_SPAWN:
            jobs.discard()
        raise
    with nogil:
        c.fns_batch_join(batch)
    return [jobs.outcome(i, mode) for i in range(jobs.n)]


def spawn_batch(Plan plan, list items, unsigned threads, Server server=None):
    """Starts every item; a Process or a SpawnError for each, in order. `plan`: a server's sandbox."""
    return _run_jobs(_Jobs(plan, items, server), threads, c.FNS_BATCH_SPAWN)


def run_batch(Plan plan, list items, unsigned threads, bint capture, Server server=None):
    """Runs every item to its end; see _Jobs.outcome for what comes back for each."""
    return _run_jobs(_Jobs(plan, items, server), threads,
                     c.FNS_BATCH_CAPTURE if capture else c.FNS_BATCH_RUN)


def capabilities():
    """The calling thread's effective capabilities, a bit each."""
    return c.fns_capabilities()


# ---- unshare and setns ---------------------------------------------------------------------------

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
