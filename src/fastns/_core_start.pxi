# One start: its arguments, its errors, and spawn().

@cython.final
@cython.freelist(8)
cdef class _Arguments:
    """struct fns_args and its memory.

    argv may hold str, which are passed on as UTF-8; everything else is bytes without NUL."""

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
        self.keep = <int *>calloc(max(len(keep), 1), sizeof(int))
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


def spawn(Plan plan, tuple argv, tuple environ, tuple directories, bytes cwd, tuple stdio, tuple keep):
    """Starts one sandbox. SpawnError names the step that failed."""
    cdef _Arguments arguments = _Arguments(argv, environ, directories, cwd, stdio, keep)
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
    job.cgroup.number = -1
    job.io.process.pidfd = job.io.process.control = -1
