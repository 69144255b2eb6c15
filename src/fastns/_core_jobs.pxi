# Part of _core.pyx: jobs, which a loop in C runs to their end, or only starts.

cdef enum:
    MAX_PLAIN = 4096  # bytes of the longest argument that run_plain() takes

cdef bint _utf8 = sys.getfilesystemencoding() == "utf-8"
cdef tuple _INHERITED = (-1, -1, -1)


@cython.final
cdef class _Jobs:
    """An array of struct fns_job and its memory.

    items: (argv, environ, directories, cwd, stdio, pipes, input, timeout_ns or None, limit or 0, extra)
    each. extra: for a command of a container, ((uid, gid) or None for the plan's, enum fns_transfer, an fd >= 3
    of records to put first or 0); otherwise None.
    plan: with a server, the plan of its sandboxes."""

    cdef c.fns_job *jobs
    cdef list arguments
    cdef list items
    cdef Plan plan
    cdef Server server
    cdef CgroupPool groups
    cdef size_t n
    cdef size_t first  # all jobs before this index are handed out
    cdef bytearray handed_out

    def __cinit__(self, Plan plan, Server server, list items):
        cdef _Arguments arguments
        cdef c.fns_job *job
        self.plan = plan
        self.server = server
        self.groups = _pool_of(plan, server)
        self.n = len(items)
        self.items = items
        self.arguments = []
        self.jobs = <c.fns_job *>calloc(self.n or 1, sizeof(c.fns_job))
        if self.jobs == NULL:
            raise MemoryError
        for i, (argv, environ, directories, cwd, stdio, pipes, data, timeout_ns, limit, extra) in enumerate(items):
            arguments = _Arguments(argv, environ, directories, cwd, stdio, ())
            arguments.set_extra(extra)
            self.arguments.append(arguments)
            job = &self.jobs[i]
            _set_job(job, plan, server, arguments, self.groups)
            job.pipes = pipes
            job.timeout_ns = -1 if timeout_ns is None else timeout_ns
            job.io.input = PyBytes_AS_STRING(<bytes?>data)
            job.io.input_size = len(data)
            job.io.limit = limit
            job.io.capped = plan.capped

    def __dealloc__(self):
        if self.jobs != NULL:
            for i in range(self.n):
                self.free_output(i)
        free(self.jobs)

    cdef void free_output(self, size_t i) noexcept:
        c.fns_buffer_free(&self.jobs[i].io.output[0])
        c.fns_buffer_free(&self.jobs[i].io.output[1])

    cdef Process process(self, size_t i):
        """The Process of a started job, which owns the job's fds from now on."""
        cdef Process process = _new_process(self.plan, self.server, &self.jobs[i], self.groups)
        gone = &self.jobs[i].io.process
        gone.pid = gone.pidfd = gone.control = -1
        return process

    cdef void discard(self) noexcept:
        """Kills what an interrupted batch has started, then reaps it by dropping a Process of each."""
        for i in range(self.n):
            if self.jobs[i].io.process.pidfd >= 0 and not self.plan.container:
                c.fns_kill_all(&self.plan.plan, &self.jobs[i].io.process)
        for i in range(self.n):
            if self.jobs[i].io.process.pid > 0:
                self.process(i)

    cdef bint failed(self, size_t i) noexcept:
        return self.jobs[i].error.stage != c.FNS_STAGE_NONE

    cdef object error(self, size_t i):
        cdef _Arguments arguments = self.arguments[i]
        return _spawn_error(self.plan, arguments.argv[0], arguments.cwd, &self.jobs[i].error)

    cdef object started(self, size_t i):
        """SpawnError or Process."""
        return self.error(i) if self.failed(i) else self.process(i)

    cdef object outcome(self, size_t i):
        """SpawnError, or (result tuple, stdout, stderr, bytes dropped of each, timed_out, over, reused, times)."""
        cdef c.fns_job *job = &self.jobs[i]
        cdef c.fns_io *io = &job.io
        if self.failed(i):
            return self.error(i)
        out = err = None
        if job.pipes & PIPE_STDOUT:
            out = PyBytes_FromStringAndSize(io.output[0].data, io.output[0].size)
        if job.pipes & PIPE_STDERR:
            err = PyBytes_FromStringAndSize(io.output[1].data, io.output[1].size)
        counts = None if job.groups == NULL else _counts(&job.cgroup)
        return (_result(&io.process, &job.result, counts), out, err,
                (io.output[0].dropped, io.output[1].dropped), job.timed_out != 0, io.over != 0,
                job.result.reused != 0, _times(&io.process, &job.result))

    cdef int hand_out(self, object each) except -1:
        """Calls each(i, outcome) for every job that has finished since the last call, and frees its output."""
        cdef size_t i
        if self.handed_out is None:
            self.handed_out = bytearray(self.n)
        for i in range(self.first, self.n):
            if self.handed_out[i] or not self.failed(i) and self.jobs[i].result.code == 0:
                continue  # not reaped yet
            outcome = self.outcome(i)
            self.handed_out[i] = 1
            self.free_output(i)
            each(i, outcome)
        while self.first < self.n and self.handed_out[self.first]:
            self.first += 1
        return 0

    cdef int run(self, unsigned concurrency, bint spawn=False, object progress=None, object each=None) except -1:
        """Runs the jobs to their end, or only starts them. An exception kills those that still run."""
        cdef c.fns_batch *batch
        cdef int ret
        cdef bint rooms = self.plan.rooms and not spawn and self.jobs.connection == 0
        if self.n == 0:
            return 0
        ret = c.fns_batch_open(&batch, self.jobs, self.n, concurrency, spawn)
        if ret < 0:
            raise SpawnError("stdio", -ret)
        if rooms:
            self.server.lend(batch)
        try:
            while True:
                with nogil:
                    ret = c.fns_batch_run(batch)
                _raise_pending()
                if ret < 0:
                    raise SpawnError("wait", -ret)
                if each is not None:
                    self.hand_out(each)
                if progress is not None:
                    progress(c.fns_batch_done(batch))
                if ret == 1:
                    break
                PyErr_CheckSignals()
        except BaseException:
            with nogil:
                c.fns_batch_close(batch)
            raise
        if rooms:
            self.server.take_back(batch)
        c.fns_batch_close(batch)
        return 0

    cdef int run_one(self) except -1:
        """Runs the only job. ConnectionAbortedError: the server was gone, and nothing was started."""
        cdef bint parked = False
        cdef Server server = self.server
        if server is None:
            return self.run(1)
        self.jobs.connection = server.take(&parked, True)
        try:
            self.run(1)
        finally:
            server.give(self.jobs.connection, parked, c.fns_job_spares(self.jobs))
        if c.fns_job_unsent(self.jobs):
            server.aborted()
        return 0


def run(Plan plan, Server server, tuple item):
    """Runs one item, as in _Jobs, to its end. Returns _Jobs.outcome().

    ConnectionAbortedError: the server was gone, and nothing was started."""
    cdef _Jobs jobs = _Jobs(plan, server, [item])
    jobs.run_one()
    return jobs.outcome(0)


def run_plain(Plan plan, Server server, object args, unsigned pipes, timeout_ns):
    """The fast path of run(), for a command with no options but these.

    Returns the finished result of the most common case, else _Jobs.outcome(). None: `args` is not a list or
    tuple of short str, or a standard stream is closed. The caller then takes the slow path in Python, whose
    checks say what is wrong."""
    cdef tuple argv = _plain(args)
    if argv is None or fcntl(0, F_GETFD) < 0 or fcntl(1, F_GETFD) < 0 or fcntl(2, F_GETFD) < 0:
        return None
    cdef _Jobs jobs = _Jobs(plan, server, [(argv, plan.environ, plan.search_path, plan.cwd,
                                            _INHERITED, pipes, b"", timeout_ns, 0, None)])
    cdef c.fns_job *job = jobs.jobs
    jobs.run_one()
    if (not jobs.failed(0) and job.result.code == CLD_EXITED and job.result.status == 0 and not pipes
            and jobs.groups is None and not job.timed_out):
        return _completed(args, plan, job)
    return jobs.outcome(0)


cdef tuple _plain(object args):
    """argv as a tuple of str that can be passed on as UTF-8; None: the slow path has to check it."""
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


cdef object _completed_class = None


def set_completed_class(cls):
    """The class of run_plain()'s results."""
    global _completed_class
    _completed_class = cls


cdef object _completed(object args, Plan plan, const c.fns_job *job):
    """The result of a command that exited with 0, with nothing captured and nothing counted: what completed() in
    _run.py would make, with the same attributes."""
    done = _completed_class.__new__(_completed_class)
    done.args = args
    done.returncode = 0
    done.stdout = done.stderr = None
    done._used = _used(&job.io.process, &job.result, None)
    done.wall_time = _wall_time(&job.io.process, &job.result)
    done._times = _times(&job.io.process, &job.result)
    done.method = plan.method
    done.truncated = False
    if job.result.reused:
        done.reused = True
    done.cause = "exited"
    done.limits = ()
    done.id_map = plan.id_map
    done.mount_namespace = plan.mount_namespace
    return done


def spawn_batch(Plan plan, Server server, list items, unsigned concurrency):
    """Starts every item; a Process or a SpawnError for each, in order."""
    cdef _Jobs jobs = _Jobs(plan, server, items)
    try:
        jobs.run(concurrency, True)
        return [jobs.started(i) for i in range(jobs.n)]  # a signal handler may raise here too
    except BaseException:
        jobs.discard()
        raise


def run_batch(Plan plan, Server server, list items, unsigned concurrency, progress=None, each=None):
    """Runs every item to its end; _Jobs.outcome() for each, in order.

    progress: called from time to time with the number of finished jobs. each: each(i, outcome) is called soon
    after job i has finished, in any order, and before `progress`; the returned list is then empty. An
    exception in either kills the jobs that still run."""
    cdef _Jobs jobs = _Jobs(plan, server, items)
    jobs.run(concurrency, False, progress, each)
    return [jobs.outcome(i) for i in range(jobs.n)] if each is None else []
