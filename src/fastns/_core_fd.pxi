# Part of _core.pyx: fds as Python objects; opens pipes and /dev/null.

@cython.final
cdef class Fd:
    """An fd that is closed when the last reference to this object goes away.

    A signal handler may raise between any two steps of Python code, which would leak an fd held as a plain
    number. Here an fd is created, or passed to another owner, in a single step."""

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
        """Passes the fd to the caller, who must close it. Can be the `opener` of open()."""
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
    """Opens a pipe, close-on-exec. Returns its read end and its write end.

    owner: (uid, gid) to chown the ends to, if the caller may do that; None: no change.
    Raises: OSError if no fd is left."""
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
    """Opens /dev/null for reading and writing. Raises: OSError if no fd is left."""
    cdef Fd null = Fd()
    null.fd = c.fns_open_null()
    if null.fd < 0:
        raise OSError(-null.fd, os.strerror(-null.fd))
    return null
