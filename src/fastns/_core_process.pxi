# Part of _core.pyx: a started sandbox, until it is reaped.

@cython.final
@cython.no_gc_clear
cdef class Process:
    """A started sandbox: waits for it, reaps it, kills it.

    When fds are scarce, a template's sandbox has a pidfd only during the calls that need it. Dropping an
    object before it was reaped kills its sandbox, because an exception may occur after the start and before
    the caller has a handle.
    """

    cdef c.fns_process process
    cdef c.fns_result result
    cdef readonly bint reaped
    cdef bint lost  # its status: another part of this process reaped it, or its server was killed
    cdef bint killed  # by kill_all()
    cdef bint reaping  # a thread is asking the server to reap it
    cdef Plan plan
    cdef Server server  # its parent; None: it is a child of this process
    cdef int owner  # pid of the process that started it: a forked copy of this object kills nothing
    cdef CgroupPool groups
    cdef c.fns_cgroup cgroup
    cdef int users  # how many threads are in a call that uses the pidfd; the last one closes it
    cdef bint borrowed  # the pidfd was opened only for these calls

    @property
    def pid(self):
        return self.process.pid

    @property
    def pidfd(self):
        self.keep()
        return self.process.pidfd

    cdef int enter(self) noexcept:
        """Opens the pidfd for one call. leave() must follow, also after a failure.

        Returns 1: it is open; 0: the sandbox has ended, or another process started it; -errno."""
        cdef int ret, pidfd = -1
        self.users += 1
        if self.process.pidfd >= 0:
            return 1
        if not self.process.served or self.reaped or self.lost or self.owner != getpid():
            return 0
        ret = self.server.ask(&self.process, NULL, &pidfd)
        if ret == 1 and self.process.pidfd < 0:
            self.process.pidfd = pidfd
            self.borrowed = True
        elif ret == 1:  # another thread has opened one
            close(pidfd)
        # It ended with the server, or another thread has reaped it.
        return 0 if ret == -ECANCELED or ret == -ECHILD else ret

    cdef int enter_alive(self) noexcept:
        """enter(), to send a signal. -EBADF: the sandbox was reaped; -ESRCH: it has ended."""
        cdef int ret = self.enter()
        if self.reaped or self.lost:
            return -EBADF
        return ret if ret else -ESRCH

    cdef int keep(self) except -1:
        """Opens the pidfd, and keeps it open until the sandbox is reaped."""
        cdef int ret = self.enter()
        self.borrowed = False
        self.leave()
        if ret < 0:
            raise SpawnError("wait", -ret)
        return 0

    def wait(self, timeout_ns=None):
        """Returns True once the sandbox has ended; False if `timeout_ns` has passed first."""
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
        """Reaps a sandbox that has ended. Returns _result(); None: it has not ended, or its status is lost and
        an earlier call raised.

        Raises: SpawnError, stage "wait" if another part of this process reaped it, "helper" if it was killed
        with its server, "init" if its reaper failed."""
        cdef int ret
        if not self.reaped:
            if self.lost:
                return None
            ret = self.reap_now()
            if ret == -EAGAIN:
                return None
            if ret < 0 and ret != -ECHILD and ret != -ECANCELED:  # the caller can try again
                raise SpawnError("wait", -ret)
            self.lost = ret < 0
            self.reaped = ret >= 0
            if self.users == 0:
                self.close()
            if ret < 0:
                raise SpawnError("helper" if ret == -ECANCELED else "wait", -ret)
        if self.result.lost:
            raise SpawnError("init", self.result.lost, hint=(
                "the reaper could not report how the command ended"))
        return _result(&self.process, &self.result,
                       None if self.groups is None else _counts(&self.cgroup))

    cdef int reap_now(self) noexcept:
        """Reaps without waiting. -EAGAIN: it has not ended, or another thread is reaping it; -errno."""
        cdef int ret
        if self.server is None:
            ret = c.fns_reap(&self.process, &self.result)
            if ret != -EAGAIN:
                self.give_cgroup()
            return ret
        if self.owner != getpid():  # the kernel's errno for another process's children
            return -ECHILD
        if self.reaping:
            return -EAGAIN
        ret = self.enter()
        if ret > 0 and c.fns_wait(&self.process, 0) == 0:
            ret = -EAGAIN
        self.leave()
        return ret if ret < 0 else self.ask(False)

    cdef int ask(self, bint kill) noexcept:
        """Has the server reap the sandbox; kill: kill it first. 0 or -errno."""
        self.reaping = True
        cdef int ret = self.server.ask(&self.process, &self.result, NULL, kill)
        self.reaping = False
        if ret >= 0 or ret == -ECANCELED:
            self.give_cgroup()
        if ret == -ECANCELED and self.plan.container and self.groups is not None and c.fns_is_over(&self.cgroup):
            self.result.code, self.result.status = CLD_KILLED, SIGKILL  # with its container
            self.result.end = c.fns_now()
            ret = 0
        return ret

    cdef void give_cgroup(self) noexcept:
        if self.groups is not None and self.owner == getpid():
            c.fns_cgroup_give(self.groups.groups, &self.cgroup)

    def kill(self, int signal):
        """Sends a signal to the first process; 0, or the errno."""
        cdef int ret = self.enter_alive()
        if ret > 0:
            ret = c.fns_kill(&self.process, signal)
        self.leave()
        return -ret

    def kill_all(self):
        """Kills every process of its pid namespace or, if it has none, of its process tree; 0, or the errno."""
        cdef int ret = self.enter_alive()
        if ret > 0 and self.plan.container:
            ret = 0
            if not self.reaping:  # by another thread, once it has ended
                ret = self.ask(True)
                self.reaped = ret >= 0
        elif ret > 0:
            ret = c.fns_kill_all(&self.plan.plan, &self.process)
            self.killed = True
        self.leave()
        return -ret

    cdef void leave(self) noexcept:
        self.users -= 1
        if (self.reaped or self.lost or self.borrowed) and self.users == 0:
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
            if self.enter() > 0 and self.plan.container:
                self.ask(True)
            elif self.process.pidfd >= 0:
                c.fns_kill_all(&self.plan.plan, &self.process)
                c.fns_kill(&self.process, 9)
                while c.fns_wait(&self.process, -1) == -EINTR:
                    c.fns_attend(&self.process, True)
            if not self.plan.container:
                self.reap_now()
            self.leave()
        self.close()


cdef double _seconds(const timeval *time) noexcept:
    return time.tv_sec + time.tv_usec * 1e-6


cdef double _wall_time(const c.fns_process *process, const c.fns_result *result) noexcept:
    return (result.end - process.start) * 1e-9


cdef double _between(uint64_t begin, uint64_t end) noexcept:
    return 0 if end < begin else (end - begin) * 1e-9


cdef tuple _times(const c.fns_process *process, const c.fns_result *result):
    """The fields of a Timings."""
    return (result.queued * 1e-9, _between(process.start, result.executed),
            _between(result.executed, result.ended), _between(result.ended, result.end))


cdef tuple _used(const c.fns_process *process, const c.fns_result *result, object counts):
    """What Usage.of() makes a Usage from."""
    usage = &result.usage
    return (_seconds(&usage.ru_utime), _seconds(&usage.ru_stime),
            usage.ru_maxrss * 1024, usage.ru_maxrss > process.rss_floor, counts)


cdef tuple _result(const c.fns_process *process, const c.fns_result *result, object counts):
    """(returncode, _used(), wall time)"""
    cdef int returncode = result.status if result.code == CLD_EXITED else -result.status
    return returncode, _used(process, result, counts), _wall_time(process, result)


cdef Process _new_process(Plan plan, Server server, const c.fns_job *job, CgroupPool groups):
    cdef Process new = Process.__new__(Process)
    new.groups = groups
    new.cgroup = job.cgroup
    new.plan = plan
    new.server = server
    new.process = job.io.process
    new.owner = getpid()
    return new
