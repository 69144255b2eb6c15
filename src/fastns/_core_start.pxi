# Part of _core.pyx: one start, with its arguments and errors, and spawn().

@cython.final
@cython.freelist(8)
cdef class _Arguments:
    """A struct fns_args and its memory.

    Items of argv may be str, which are passed on as UTF-8; everything else is bytes without NUL."""

    cdef c.fns_args args
    cdef char **block
    cdef char **directories  # to look for argv[0] in
    cdef char **paths
    cdef int *keep
    cdef tuple argv, environ
    cdef bytes cwd

    def __cinit__(self, tuple argv, tuple environ, tuple directories, bytes cwd, tuple stdio, tuple keep):
        cdef Py_ssize_t i, at = 0
        self.argv, self.environ, self.cwd = argv, environ, cwd
        self.block = <char **>calloc(len(argv) + len(environ) + len(directories) + 3, sizeof(char *))
        self.keep = <int *>calloc(len(keep) or 1, sizeof(int))
        if self.block == NULL or self.keep == NULL:
            raise MemoryError
        self.args.argv = self.block
        at = self.fill(at, argv)
        self.args.envp = self.block + at
        at = self.fill(at, environ)
        self.directories = self.block + at
        self.fill(at, directories)
        if argv:
            self.paths = c.fns_command_paths(self.block[0], self.directories)
            if self.paths == NULL:
                raise MemoryError
        self.args.paths = self.paths
        self.args.cwd = PyBytes_AS_STRING(cwd)
        for i in range(len(keep)):
            self.keep[i] = keep[i]
        self.args.keep = self.keep
        self.args.n_keep = len(keep)
        for i in range(3):
            self.args.stdio[i] = stdio[i]

    cdef int set_extra(self, tuple extra) except -1:
        """extra: as in _Jobs."""
        if extra is None:
            return 0
        ids, self.args.transfer, self.args.files = extra
        if ids is not None:
            self.args.uid, self.args.gid = ids
            self.args.has_ids = 1
        if self.args.files:
            self.keep[0] = self.args.files
            self.args.n_keep = 1
        return 0

    cdef Py_ssize_t fill(self, Py_ssize_t at, tuple items) except -1:
        for item in items:
            if type(item) is str:
                self.block[at] = <char *>PyUnicode_AsUTF8(item)
            else:
                self.block[at] = PyBytes_AS_STRING(<bytes?>item)
            at += 1
        return at + 1

    def __dealloc__(self):
        free(self.block)
        free(self.paths)
        free(self.keep)


cdef object _spawn_error(Plan plan, object command, bytes cwd, const c.fns_error *error):
    return spawn_error(plan, STAGES[error.stage], error.err, error.op_index,
                       _detail_names.get(error.detail), command, cwd)


def spawn(Plan plan, Server server, tuple argv, tuple environ, tuple directories, bytes cwd, tuple stdio,
          tuple keep, tuple extra=None):
    """Starts one sandbox.

    plan: with a server, the plan of its sandboxes. extra: as in _Jobs.
    Raises: SpawnError, which names the step that failed. ConnectionAbortedError: the server was gone, and
    nothing was started."""
    cdef _Arguments arguments = _Arguments(argv, environ, directories, cwd, stdio, keep)
    cdef CgroupPool groups = _pool_of(plan, server)
    cdef c.fns_job job
    cdef bint parked = False, broken
    cdef int ret, connection = -1
    arguments.set_extra(extra)
    _set_job(&job, plan, server, arguments, groups)
    if server is not None:
        connection = server.take(&parked, False)
    with nogil:
        ret = c.fns_job_spawn(&job, connection)
    broken = ret < 0 and job.error.detail == c.FNS_DETAIL_BROKEN
    try:
        _raise_pending()
    finally:
        if server is not None:
            server.give(connection, parked, not broken and not (ret >= 0 and parked))
    if server is not None and broken and ret == -EPIPE:
        server.aborted()
    if ret < 0:
        raise _spawn_error(plan, argv[0], cwd, &job.error)
    return _new_process(plan, server, &job, groups)


cdef CgroupPool _pool_of(Plan plan, Server server):
    """The cgroups of the plan's sandboxes; of a container's commands, which share one, the server's. None: they
    have none."""
    return server.groups if plan.container else plan.pool()


cdef int _set_job(c.fns_job *job, Plan plan, Server server, _Arguments arguments,
                  CgroupPool groups) except -1:
    memset(job, 0, sizeof(c.fns_job))
    job.plan = &plan.plan
    job.server = NULL if server is None else &server.process
    job.args = arguments.args
    job.args.userns = plan.userns() if server is None else 0
    job.groups = NULL if groups is None else groups.groups
    job.whole = &server.cgroup if plan.container and groups is not None else NULL
    job.cgroup.number = -1
    job.io.process.pidfd = job.io.process.control = -1
    return 0
