# cython: language_level=3, boundscheck=False, wraparound=False, binding=False, autotestdict=False
"""The binding: copies arguments in, makes one C call without the GIL, hands an object out.

It runs in the caller and makes no decisions; csrc/caller/fastns.h says what the C code does. The _core_*.pxi
files are parts of this module, not modules of their own, because csrc/ has state: a single extension has a
single copy of it.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals, PyErr_Occurred
from libc.errno cimport errno, EAGAIN, EBADF, ECHILD, EINTR, EPIPE, ESRCH
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset, strlen
from posix.fcntl cimport F_DUPFD_CLOEXEC, F_GETFD, fcntl
from posix.resource cimport timeval
from posix.unistd cimport close, fchown, getpid

from fastns cimport _fastns as c

import io
import os
import sys

from fastns.errors import SpawnError, spawn_error


cdef extern from "<sched.h>" nogil:
    int libc_unshare "unshare"(int flags)
    int libc_setns "setns"(int fd, int kind)

cdef extern from "<errno.h>" nogil:
    int ECANCELED

cdef extern from "<signal.h>" nogil:
    int CLD_EXITED, CLD_KILLED, SIGKILL

cdef extern from "Python.h":
    int _run_handlers "PyErr_CheckSignals"() noexcept
    const char *PyUnicode_AsUTF8(object text) except NULL
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL

cdef extern from "caller/fastns.h" nogil:
    cpdef enum:  # constants of the Python module
        HOW_CREATE "FNS_HOW_CREATE"
        HOW_NO_SYMLINKS "FNS_HOW_NO_SYMLINKS"
        HOW_RECURSIVE "FNS_HOW_RECURSIVE"
        HOW_SLAVE "FNS_HOW_SLAVE"
        HOW_UNBINDABLE "FNS_HOW_UNBINDABLE"
        HOW_KEEP "FNS_HOW_KEEP"
        HOW_IDMAP "FNS_HOW_IDMAP"
        HOW_OPEN "FNS_HOW_OPEN"
        HOW_OWNED "FNS_HOW_OWNED"
        HOW_SEALED "FNS_HOW_SEALED"
        HOW_OPTIONAL "FNS_HOW_OPTIONAL"
        HOW_IF_THERE "FNS_HOW_IF_THERE"
        HOW_AHEAD "FNS_HOW_AHEAD"
        HOW_HALF "FNS_HOW_HALF"
        HOW_RAISE "FNS_HOW_RAISE"
        MAX_SOURCES "FNS_MAX_SOURCES"
        PIPE_STDIN "FNS_PIPE_STDIN"
        PIPE_STDOUT "FNS_PIPE_STDOUT"
        PIPE_STDERR "FNS_PIPE_STDERR"
        PIPE_JOINED "FNS_PIPE_JOINED"


cdef int _interrupted() noexcept with gil:
    """Runs the handlers of pending signals. C calls it while a start waits. If a handler raises, the start
    fails, and the exception stays set in this thread until the start has returned (_raise_pending())."""
    return PyErr_Occurred() != NULL or _run_handlers() != 0


c.fns_set_interrupted(_interrupted)


cdef int _raise_pending() except -1:
    return -1 if PyErr_Occurred() != NULL else 0


STAGES = tuple([c.fns_stage_name(i).decode() for i in range(c.FNS_STAGE_COUNT)])
OPS = {c.fns_op_name(i).decode(): i for i in range(c.FNS_OP_COUNT)}
DETAILS = {
    "source": c.FNS_DETAIL_SOURCE,
    "found": c.FNS_DETAIL_FOUND,
    "broken": c.FNS_DETAIL_BROKEN,
    "killed": c.FNS_DETAIL_KILLED,
    "id_map": c.FNS_DETAIL_ID_MAP,
    "memory": c.FNS_DETAIL_MEMORY,
}

cdef dict _id_maps = {
    "none": c.FNS_ID_MAP_NONE,
    "self": c.FNS_ID_MAP_SELF,
    "parent": c.FNS_ID_MAP_PARENT,
    "newuidmap": c.FNS_ID_MAP_NEWUIDMAP,
    "range": c.FNS_ID_MAP_RANGE,
}
cdef dict _detail_names = {number: name for name, number in DETAILS.items()}
cdef dict _stage_numbers = {name: i for i, name in enumerate(STAGES)}
cdef bint _program_loaded = False


cdef object _load_program():
    """Passes the program, a file beside this module, to the C code. Once per process."""
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
    if _program_loaded:  # another thread was faster, and spawns may use its copy already
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
include "_core_jobs.pxi"
include "_core_planfile.pxi"


# ---- this process and its kernel -------------------------------------------------------------------

def capabilities():
    """The calling thread's effective capabilities, one bit each. Raises: SpawnError, stage "capabilities"."""
    cdef uint64_t effective
    cdef int ret = c.fns_capabilities(&effective)
    if ret < 0:
        raise SpawnError("capabilities", -ret)
    return effective


def is_dumpable():
    """Whether this process owns its files in /proc. It does not after setuid() from root."""
    cdef int ret = c.fns_is_dumpable()
    if ret < 0:
        raise SpawnError("capabilities", -ret)
    return ret != 0


def landlock_abi():
    """The version of Landlock that this kernel has, or a negative errno."""
    return c.fns_landlock_abi()


def has_tree_namespaces():
    """Whether the kernel has OPEN_TREE_NAMESPACE (Linux 7.0)."""
    return c.fns_has_tree_namespaces() != 0


def user_namespace(tuple ids, bytes inotify):
    """The fd of this process's user namespace with a range of ids, created by the first call. Do not close it.

    Args:
        ids: (first uid, first gid, how many), outside.
        inotify: the namespace's limit on inotify instances, set at creation; b"": no limit.
    Raises: SpawnError, stage "clone" or "id_map"."""
    cdef c.fns_error error
    cdef int fd = c.fns_userns_of_range(ids[0], ids[1], ids[2],
                                        PyBytes_AS_STRING(inotify) if inotify else NULL, &error)
    if fd < 0:
        raise SpawnError(STAGES[error.stage], error.err)
    return fd


def unshare(int flags):
    """unshare(2) for the calling thread; 0, or the errno."""
    cdef int ret
    with nogil:
        ret = libc_unshare(flags)
    return errno if ret < 0 else 0


def setns(int fd, int flags):
    """setns(2) for the calling thread; 0, or the errno."""
    cdef int ret
    with nogil:
        ret = libc_setns(fd, flags)
    return errno if ret < 0 else 0
