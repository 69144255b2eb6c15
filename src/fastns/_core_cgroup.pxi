# Part of _core.pyx: the cgroups of sandboxes with limits.

COUNTS = tuple([c.fns_count_name(i).decode() for i in range(c.FNS_COUNTS)])


@cython.final
cdef class CgroupPool:
    """The cgroups of one plan's sandboxes in this process (csrc/caller/cgroup.c).

    Args:
        hierarchies: (fd of the directory, whether it is cgroup v2) each; from now on the pool owns the fds.
        settings: (index of the hierarchy, file, text) each.
        counters: (one of COUNTS, index of the hierarchy, file, key, scale, whether it is a peak, reset) each.
            reset: the text that resets it; "": nothing does, so each sandbox gets a new cgroup; None: it is not
            reset, and compared with its value before the start.
        memory: (index of the hierarchy, file with the bytes in use, file that reclaims memory or None, text to
            write to the latter); None: memory is not counted.
        cpu_time: ns after which a sandbox is killed; 0: never.
    Raises: SpawnError, stage "cgroup"."""

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
        if len(hierarchies) > c.FNS_MAX_HIERARCHIES:
            for fd, _ in hierarchies:
                close(fd)
            raise ValueError("too many cgroup hierarchies")
        for i, (fd, unified) in enumerate(hierarchies):
            self.plan.hierarchies[i] = c.fns_cgroup_hierarchy(fd, unified)
        self.plan.n_hierarchies = len(hierarchies)
        self.settings = <c.fns_cgroup_setting *>calloc(len(settings) or 1,
                                                       sizeof(c.fns_cgroup_setting))
        self.counters = <c.fns_cgroup_counter *>calloc(len(counters) or 1,
                                                       sizeof(c.fns_cgroup_counter))
        if self.settings == NULL or self.counters == NULL:
            raise MemoryError
        for i, (number, file, text) in enumerate(settings):
            self.settings[i] = c.fns_cgroup_setting(number, self.text(file), self.text(text))
        for i, (kind, number, file, key, scale, peak, reset) in enumerate(counters):
            self.counters[i] = c.fns_cgroup_counter(COUNTS.index(kind), number, self.text(file), self.text(key),
                                                    scale, peak, self.text(reset))
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
        """Removes all of its cgroups, and creates no more. False: some are still in use."""
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


cdef object _counts(const c.fns_cgroup *cgroup):
    """Name -> count; None: not known."""
    return {name: None if cgroup.counts[i] == c.FNS_NO_COUNT else cgroup.counts[i]
            for i, name in enumerate(COUNTS)}
