# A running sandbox.

@cython.final
@cython.no_gc_clear
cdef class Process:
    """A started sandbox: its pid, its pidfd, and the waiting and killing of it.

    A server's sandbox has no pidfd here where fds are scarce: one is opened for as long as it is used.

    Dropped before it was reaped (an exception between the spawn and the handle), it ends the sandbox.
    """

    cdef c.fns_process process
    cdef c.fns_result result
    cdef readonly bint reaped
    cdef bint lost  # somebody else reaped it
    cdef bint killed  # by kill_all()
    cdef bint reaping  # a thread is asking a server for its end
    cdef Plan plan
    cdef Server server  # whose sandbox it is; None: it is this process's own child
    cdef int owner  # the process it belongs to: a forked copy ends nothing
    cdef CgroupPool groups
    cdef c.fns_leaf leaf
    cdef int waiters  # threads inside a call that uses the pidfd: the last one out closes it
    cdef bint borrowed  # the pidfd is there for these only

    @property
    def pid(self):
        return self.process.pid

    @property
    def pidfd(self):
        self.keep()
        return self.process.pidfd

    cdef int enter(self) noexcept:
        """1: the pidfd is there until leave(); 0: the sandbox has ended, or is not this process's;
        -errno. To be followed by leave() in any case."""
        cdef int ret, pidfd = -1
        self.waiters += 1
        if self.process.pidfd >= 0:
            return 1
        if not self.process.served or self.reaped or self.lost or self.owner != getpid():
            return 0
        ret = self.server.look(&self.process, &pidfd)
        if ret == 1 and self.process.pidfd < 0:
            self.process.pidfd = pidfd
            self.borrowed = True
        elif ret == 1:  # another thread was sooner
            close(pidfd)
        # Ended with the server, or reaped by another thread meanwhile.
        return 0 if ret == -ECANCELED or ret == -ECHILD else ret

    cdef int enter_alive(self) noexcept:
        """enter() for a signal: -EBADF once reaped, -ESRCH when it has ended."""
        cdef int ret = self.enter()
        if self.reaped or self.lost:
            return -EBADF
        return ret if ret else -ESRCH

    cdef int keep(self) except -1:
        """From now on the pidfd is there as long as the sandbox is not reaped."""
        cdef int ret = self.enter()
        self.borrowed = False
        self.leave()
        if ret < 0:
            raise SpawnError("wait", -ret)
        return 0

    def wait(self, timeout_ns=None):
        """True once the sandbox has ended; False when `timeout_ns` has passed first."""
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
        """(code, status, user s, system s, max rss bytes, is that exact, wall s) of an ended sandbox, and closes it.

        None while it has not ended. SpawnError at stage "wait" when somebody else reaped it."""
        cdef int ret
        if not self.reaped:
            if self.lost:
                return None
            ret = self.reap_now()
            if ret == -EAGAIN:
                return None
            if ret < 0 and ret != -ECHILD and ret != -ECANCELED:  # try again: it is still there
                raise SpawnError("wait", -ret)
            self.lost = ret < 0
            self.reaped = ret >= 0
            if self.waiters == 0:
                self.close()
            if ret < 0:
                raise SpawnError("helper" if ret == -ECANCELED else "wait", -ret)
        if self.result.lost:
            raise SpawnError("init", self.result.lost, hint=(
                "the reaper could not report how the command ended"))
        return _result(&self.process, &self.result,
                       None if self.groups is None else _counts(&self.leaf))

    cdef int reap_now(self) noexcept:
        """0, -EAGAIN, or -errno."""
        cdef int ret
        if self.server is None:
            ret = c.fns_reap(&self.process, &self.result)
            if ret != -EAGAIN:
                self.give_leaf()
            return ret
        if self.owner != getpid():  # as the kernel has it for other people's children
            return -ECHILD
        if self.reaping:
            return -EAGAIN
        ret = self.enter()
        if ret > 0 and c.fns_wait(&self.process, 0) == 0:
            ret = -EAGAIN
        self.leave()
        if ret < 0:
            return ret
        self.reaping = True
        ret = self.server.reap(&self.process, &self.result)
        self.reaping = False
        if ret >= 0 or ret == -ECANCELED:
            self.give_leaf()
        return ret

    cdef void give_leaf(self) noexcept:
        if self.groups is not None and self.owner == getpid():
            c.fns_leaf_give(self.groups.groups, &self.leaf)

    def kill(self, int signal):
        """Sends a signal to the sandbox's first process; 0, or the errno."""
        cdef int ret = self.enter_alive()
        if ret > 0:
            ret = c.fns_kill(&self.process, signal)
        self.leave()
        return -ret

    def kill_all(self):
        """Ends every process of the sandbox: its pid namespace, or the tree; 0, or the errno."""
        cdef int ret = self.enter_alive()
        if ret > 0:
            ret = c.fns_kill_all(&self.plan.plan, &self.process)
            self.killed = True
        self.leave()
        return -ret

    cdef void leave(self) noexcept:
        self.waiters -= 1
        if (self.reaped or self.lost or self.borrowed) and self.waiters == 0:
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
            if self.enter() > 0:
                c.fns_kill_all(&self.plan.plan, &self.process)
                c.fns_kill(&self.process, 9)
                while c.fns_wait(&self.process, -1) == -EINTR:
                    c.fns_attend(&self.process, True)
            self.reap_now()
            self.leave()
        self.close()


cdef double _seconds(const c.timeval *time) noexcept:
    return time.tv_sec + time.tv_usec * 1e-6


cdef tuple _result(const c.fns_process *process, const c.fns_result *result, object counts):
    return (
        result.code,
        result.status,
        _seconds(&result.usage.ru_utime),
        _seconds(&result.usage.ru_stime),
        result.usage.ru_maxrss * 1024,
        result.usage.ru_maxrss > process.rss_floor,
        (result.end - process.start) * 1e-9,
        counts,
    )


cdef Process _new_process(Plan plan, const c.fns_job *job, CgroupPool groups):
    cdef Process new = Process.__new__(Process)
    new.groups = groups
    new.leaf = job.leaf
    process = &job.process
    new.plan = plan
    new.process = process[0]
    new.owner = getpid()
    return new
