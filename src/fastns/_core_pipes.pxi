# Part of _core.pyx: the pipes of a running sandbox, for Sandbox.communicate().

@cython.final
cdef class Pipes:
    """Writes to stdin and reads from stdout and stderr of a sandbox.

    Args:
        stdin, stdout, stderr: fds, which are copied; -1: none.
        limit: bytes kept of stdout and stderr each; 0: all."""

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
        c.fns_io_prepare(&self.io)
        self.io.input = PyBytes_AS_STRING(input)
        self.io.input_size = len(input)
        self.io.limit = limit
        self.io.capped = process.plan.capped

    @property
    def dropped(self):
        """Bytes of stdout and of stderr beyond the limit, which were read and thrown away."""
        return self.io.output[0].dropped, self.io.output[1].dropped

    @property
    def over(self):
        """Whether the output exceeds the limit of a capped plan. The caller then kills the sandbox."""
        return self.io.over != 0

    def run(self, timeout_ns=None):
        """Returns True once the sandbox has ended and its pipes are at their ends, or once `over` is set;
        False if `timeout_ns` has passed first."""
        cdef int ret
        self.io.deadline = 0
        if timeout_ns is not None:
            self.io.deadline = c.fns_now() + <uint64_t>max(0, timeout_ns) + 1
        self.process.users += 1
        self.io.process = self.process.process  # copied again: a reap may have closed the pidfd
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
        """After a kill: drains the pipes, and waits for the end of the sandbox."""
        self.process.users += 1
        self.io.process = self.process.process
        with nogil:
            c.fns_io_finish(&self.io)
        self.process.leave()

    def output(self, int which):
        """The output so far; which: 1 stdout, 2 stderr."""
        cdef c.fns_buffer *buffer = &self.io.output[which - 1]
        return PyBytes_FromStringAndSize(buffer.data, buffer.size) if buffer.size else b""

    def __dealloc__(self):
        c.fns_io_close(&self.io)
        c.fns_buffer_free(&self.io.output[0])
        c.fns_buffer_free(&self.io.output[1])
