# cython: language_level=3, boundscheck=False, wraparound=False, binding=False, autotestdict=False
"""The binding: copies arguments in, makes one C call without the GIL, hands an object out.

It takes no decisions. _compile.py compiles plans, sandbox.py has the handles, errors.py the words of an
error, and csrc/caller/fastns.h says what the C code does. The files _core_*.pxi are parts of this module:
there is one extension, so that csrc/ and its state exist once.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals, PyErr_Occurred
from libc.errno cimport errno, EAGAIN, EBADF, ECHILD, EINTR, EPIPE, ESRCH, ETIME
from libc.stdint cimport int64_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset, strlen

from fastns cimport _fastns as c

import io
import os
import sys

from fastns.errors import SpawnError, spawn_error


cdef extern from "<errno.h>" nogil:
    int ECANCELED

cdef extern from "<fcntl.h>" nogil:
    int F_GETFD
    int F_DUPFD_CLOEXEC
    int fcntl(int fd, int command, ...)

cdef extern from "Python.h":
    int _run_handlers "PyErr_CheckSignals"() noexcept
    const char *PyUnicode_AsUTF8(object text) except NULL
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL

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

DETAILS = {
    "source": c.FNS_DETAIL_SOURCE,
    "found": c.FNS_DETAIL_FOUND,
    "broken": c.FNS_DETAIL_BROKEN,
    "killed": c.FNS_DETAIL_KILLED,
    "id_map": c.FNS_DETAIL_ID_MAP,
    "memory": c.FNS_DETAIL_MEMORY,
}

cdef dict _detail_names = {number: name for name, number in DETAILS.items()}
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

include "_core_fd.pxi"
include "_core_cgroup.pxi"
include "_core_plan.pxi"
include "_core_start.pxi"
include "_core_process.pxi"
include "_core_server.pxi"
include "_core_pipes.pxi"
include "_core_planfile.pxi"


# ---- jobs: run to their end in C -------------------------------------------------------------------

cdef enum:
    MAX_PLAIN = 4096  # bytes of a text

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
        """items: (argv, environ, directories, cwd, stdio, pipes, input, timeout_ns or None, limit or 0)"""
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
        for i, (argv, environ, directories, cwd, stdio, pipes, data, timeout_ns, limit) in enumerate(items):
            arguments = _Arguments(argv, environ, directories, cwd, stdio, ())
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
            job.input = PyBytes_AS_STRING(<bytes?>data)
            job.input_size = len(data)
            job.timeout_ns = -1 if timeout_ns is None else timeout_ns
            job.limit = limit
            job.capped = plan.capped
            job.process.pidfd = job.process.control = -1

    def __dealloc__(self):
        if self.jobs != NULL:
            for i in range(self.n):
                c.fns_buffer_free(&self.jobs[i].output[0])
                c.fns_buffer_free(&self.jobs[i].output[1])
        free(self.jobs)

    cdef Process process(self, size_t i):
        cdef Process process = _new_process(self.plan, &self.jobs[i], self.groups)
        process.server = self.server
        self.jobs[i].process.pid = self.jobs[i].process.pidfd = self.jobs[i].process.control = -1
        return process

    cdef void discard(self) noexcept:
        """Ends and reaps what a stopped spawn batch has started; a Process does so as it is dropped."""
        for i in range(self.n):
            if self.jobs[i].process.pidfd >= 0:
                c.fns_kill_all(&self.plan.plan, &self.jobs[i].process)
        for i in range(self.n):
            if self.jobs[i].process.pid > 0:
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
            c.fns_buffer_free(&self.jobs[i].output[0])
            c.fns_buffer_free(&self.jobs[i].output[1])
            each(i, outcome)
        while self.first < self.n and self.handed_out[self.first]:
            self.first += 1
        return 0


cdef tuple _outcome(const c.fns_job *job):
    """(result tuple, stdout, stderr, bytes dropped of each, timed_out, over)"""
    out = err = None
    if job.pipes & c.FNS_PIPE_STDOUT:
        out = PyBytes_FromStringAndSize(job.output[0].data, job.output[0].size)
    if job.pipes & c.FNS_PIPE_STDERR:
        err = PyBytes_FromStringAndSize(job.output[1].data, job.output[1].size)
    counts = None if job.groups == NULL else _counts(&job.leaf)
    return (_result(&job.process, &job.result, counts), out, err,
            (job.output[0].dropped, job.output[1].dropped), job.timed_out != 0, job.over != 0)


cdef int _run_job(c.fns_job *job, Server server) except -1:
    """To its end, or to job.error. ConnectionAbortedError: the server was gone before it was asked."""
    cdef c.fns_io io
    cdef bint parked = False
    cdef int ret, connection = -1
    if server is not None:
        connection = server.take(&parked)
    cdef bint late = False
    with nogil:
        ret = c.fns_job_start(job, &io, connection)
        if ret >= 0:
            ret = c.fns_io_run(&io)
    cdef bint over = ret == -ETIME and job.timed_out  # before there was a sandbox
    cdef bint started = job.error.stage == c.FNS_STAGE_NONE and not over
    cdef bint aborted = ret == -EPIPE and job.error.detail == c.FNS_DETAIL_BROKEN
    if not started and PyErr_Occurred() != NULL:
        try:
            _raise_pending()
        finally:
            if server is not None:
                server.give(connection, parked, False)
    if started:
        try:
            while ret == -EINTR:
                PyErr_CheckSignals()
                with nogil:
                    ret = c.fns_io_run(&io)
        except BaseException:
            with nogil:
                c.fns_job_finish(job, &io, 1)
            if server is not None:
                server.give(connection, parked, False)
            raise
        job.timed_out = ret == c.FNS_IO_TIMEOUT
        late = ret != c.FNS_IO_DONE
        with nogil:
            c.fns_job_finish(job, &io, late)
        if ret < 0:  # this error counts, not the end of the sandbox that was killed because of it
            c.fns_set_error(&job.error, c.FNS_STAGE_STDIO, -1, ret)
    if server is not None:
        server.give(connection, parked, c.fns_job_spares(job) and not late)
        if aborted:
            server.aborted()
    return 0


def run(Plan plan, Server server, tuple item):
    """Runs one item to its end (_Jobs); _Jobs.outcome(). `plan`: a server's sandbox, if there is one.

    ConnectionAbortedError: the server was gone before it was asked."""
    cdef _Jobs jobs = _Jobs(plan, server, [item])
    _run_job(jobs.jobs, server)
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
                  result.usage.ru_maxrss * 1024, result.usage.ru_maxrss > job.process.rss_floor, None)
    done.wall_time = (result.end - job.process.start) * 1e-9
    done.method = plan.method
    done.truncated = False
    done.cause = "exited"
    done.limits = ()
    done.id_map = plan.id_map
    done.mount_namespace = plan.mount_namespace
    return done


def run_plain(Plan plan, Server server, object args, unsigned pipes, timeout_ns):
    """run() of `args` with the plan's environment and directory, and the caller's streams.

    None: `args` is not a list or tuple of short texts that can be a command, or a standard stream is
    closed: Python's checks then find the words for it."""
    cdef tuple argv = _plain(args)
    if argv is None or fcntl(0, F_GETFD) < 0 or fcntl(1, F_GETFD) < 0 or fcntl(2, F_GETFD) < 0:
        return None
    cdef _Jobs jobs = _Jobs(plan, server, [(argv, plan.environ, plan.search_path, plan.cwd, _UNCHANGED, pipes,
                                            b"", timeout_ns, 0)])
    cdef c.fns_job *job = jobs.jobs
    _run_job(job, server)
    if (job.error.stage == c.FNS_STAGE_NONE and job.result.code == 1 and job.result.status == 0 and not pipes
            and jobs.groups is None and not job.timed_out):
        return _completed(args, plan, job)
    return jobs.outcome(0)


cdef tuple _UNCHANGED = (-1, -1, -1)


cdef tuple _plain(object args):
    """argv, if it needs no checks beside these; None: it does."""
    cdef Py_ssize_t size
    cdef const char *text
    cdef tuple argv
    if not _utf8 or not (type(args) is list or type(args) is tuple):
        return None
    argv = tuple(args)  # another thread may change a list
    if not argv or not argv[0]:
        return None
    try:
        for word in argv:
            if type(word) is not str:
                return None
            text = PyUnicode_AsUTF8AndSize(word, &size)
            if size > MAX_PLAIN or strlen(text) != <size_t>size:
                return None
    except UnicodeEncodeError:
        return None
    return argv


cdef int _run_jobs(_Jobs jobs, unsigned concurrency, bint spawn, object progress,
                   object each) except -1:
    cdef c.fns_batch *batch
    cdef int ret
    if jobs.n == 0:
        return 0
    ret = c.fns_batch_open(&batch, jobs.jobs, jobs.n, min(concurrency, <unsigned>jobs.n), spawn)
    if ret < 0:
        raise SpawnError("stdio", -ret)
    try:
        while True:
            PyErr_CheckSignals()
            with nogil:
                ret = c.fns_batch_run(batch)
            _raise_pending()
            if ret < 0 and ret != -EINTR:
                raise SpawnError("wait", -ret)
            if each is not None:
                jobs.hand_out(each)
            if progress is not None:
                progress(c.fns_batch_done(batch))
            if ret == 1:
                return 0
    except BaseException:
        with nogil:
            c.fns_batch_close(batch)
        batch = NULL
        if spawn:
            jobs.discard()
        raise
    finally:
        if batch != NULL:
            with nogil:
                c.fns_batch_close(batch)


def spawn_batch(Plan plan, Server server, list items, unsigned concurrency):
    """Starts every item; a Process or a SpawnError for each, in order."""
    cdef _Jobs jobs = _Jobs(plan, server, items)
    _run_jobs(jobs, concurrency, True, None, None)
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


def user_namespace(tuple ids, bytes inotify):
    """The fd of this process's user namespace with a range of ids, made when it is first asked for.

    Args:
        ids: (first uid, first gid, how many), outside.
        inotify: the limit on inotify instances that it has; b"": none. Of a new one only.
    Raises: SpawnError, stage "clone" or "id_map"."""
    cdef c.fns_error error
    cdef int fd = c.fns_userns_of_range(ids[0], ids[1], ids[2],
                                        PyBytes_AS_STRING(inotify) if inotify else NULL, &error)
    if fd < 0:
        raise SpawnError(STAGES[error.stage], error.err)
    return fd


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
