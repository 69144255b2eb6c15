# Part of _core.pyx: the server of a template or a container, and the connections to it.

cdef enum:
    MAX_CONNECTIONS = 1024  # that are kept while nothing uses them
    MAX_ROOMS = 64


@cython.final
cdef class Server:
    """The server process of a template or a container, and the free connections to it.

    Only one thread at a time may call the constructor and stop(); template.py ensures that. Any thread may call
    the rest.

    Args:
        plan: the server's.
        null: /dev/null, open as an fd >= 3.
        ready: how many sandboxes are made ahead, each on a connection of its own.
    Raises: SpawnError."""

    cdef c.fns_process process
    cdef readonly Plan plan
    cdef readonly bint running
    cdef list free  # connections
    cdef list ahead  # connections with a sandbox that was made ahead, or with a room
    cdef size_t most_ahead
    cdef int owner
    cdef CgroupPool groups
    cdef c.fns_cgroup cgroup  # of a container

    def __cinit__(self, Plan plan, int null, int ready=0):
        cdef c.fns_error error
        cdef int ret, userns
        cdef c.fns_cgroups *groups
        self.process.pidfd = self.process.control = -1
        self.plan = plan
        self.free = []
        self.ahead = []
        self.most_ahead = MAX_ROOMS if plan.sandbox.rooms else MAX_CONNECTIONS
        self.owner = getpid()
        self.cgroup.number = -1
        self.groups = plan.pool()
        userns = plan.userns()
        groups = NULL if self.groups is None else self.groups.groups
        with nogil:
            ret = c.fns_server_start(&plan.plan, null, userns, groups, &self.cgroup, &self.process, &error)
        _raise_pending()
        if ret < 0:
            raise _spawn_error(plan, None, None, &error)
        self.running = True
        for _ in range(ready):
            self.park()

    @property
    def pid(self):
        return self.process.pid

    def alive(self):
        """Whether it runs and belongs to this process."""
        return self.usable() and c.fns_wait(&self.process, 0) == 0

    def usable(self):
        """As alive(), but does not check that the server runs: if not, a start raises ConnectionAbortedError."""
        return self.running and self.owner == getpid()

    # ---- connections ----

    cdef int connect(self) except -1:
        cdef int connection
        with nogil:
            connection = c.fns_server_connect(&self.process, c.FNS_MAY_GIVE_UP)
        _raise_pending()
        if connection == -EPIPE:  # the server has closed its socket: it is ending, or has ended
            self.running = False
            raise ConnectionAbortedError
        if connection < 0:
            raise SpawnError("helper", -connection)
        return connection

    cdef int take(self, bint *parked, bint runs) except -1:
        """Takes a connection for one start. Of the parked ones, the oldest is the most likely to be ready.

        runs: the command is run to its end. Only such commands use rooms, and each room has its connection."""
        cdef bint rooms = self.plan.sandbox.rooms
        parked[0] = runs if rooms else len(self.ahead) > 0
        if parked[0] and self.ahead:
            return self.ahead.pop(0)
        if self.free and not parked[0]:
            return self.free.pop()
        return self.connect()

    cdef void give(self, int connection, bint parked, bint usable) noexcept:
        """Takes a connection back. An unusable one is closed, and replaced if it was parked."""
        cdef list to = self.ahead if parked else self.free
        cdef size_t most = self.most_ahead if parked else MAX_CONNECTIONS
        if usable and self.running and self.owner == getpid() and len(to) < most:
            to.append(connection)
            return
        self.disconnect(connection)
        if parked and not usable:
            self.park()

    cdef void lend(self, c.fns_batch *batch) noexcept:
        """Gives a batch the connections of idle rooms."""
        while self.ahead:
            if c.fns_batch_give(batch, self.ahead[len(self.ahead) - 1]) < 0:
                break
            self.ahead.pop()

    cdef void take_back(self, c.fns_batch *batch) noexcept:
        """Takes the connections of a batch's rooms, which serve the next commands."""
        cdef int connection = c.fns_batch_take(batch)
        while connection >= 0:
            self.give(connection, True, True)
            connection = c.fns_batch_take(batch)

    cdef void park(self) noexcept:
        cdef int connection
        if not self.running or self.owner != getpid():
            return
        connection = c.fns_server_connect(&self.process, c.FNS_AT_ONCE)
        if connection < 0:  # the next start reports it
            return
        if c.fns_server_park(connection) < 0:
            self.disconnect(connection)
        else:
            self.ahead.append(connection)

    cdef int take_any(self) noexcept:
        """A connection for a request about a sandbox; return it with give(). -ECANCELED: the server is gone."""
        cdef int connection
        if self.free:
            return self.free.pop()
        with nogil:
            connection = c.fns_server_connect(&self.process, c.FNS_PATIENT)
        return -ECANCELED if connection == -EPIPE else connection

    cdef int aborted(self) except -1:
        """The server has closed a connection, perhaps all: closes the rest, raises ConnectionAbortedError."""
        self.close_connections()
        raise ConnectionAbortedError

    cdef void close_connections(self) noexcept:
        for connections in (self.free, self.ahead):
            while connections:
                self.disconnect(connections.pop())

    cdef void disconnect(self, int connection) noexcept:
        if self.owner == getpid():
            c.fns_server_disconnect(connection)
        else:  # in a forked process: the other one still uses it
            close(connection)

    # ---- requests ----

    cdef int ask(self, const c.fns_process *process, c.fns_result *result, int *pidfd, bint kill=False) noexcept:
        """Calls fns_server_reap() or fns_server_kill(), or fns_server_look() if `result` is NULL."""
        cdef int ret, connection = self.take_any()
        if connection < 0:
            return connection
        with nogil:
            if result != NULL and kill:
                ret = c.fns_server_kill(connection, process, result)
            elif result != NULL:
                ret = c.fns_server_reap(connection, process, result)
            else:
                ret = c.fns_server_look(connection, process, pidfd)
        self.give(connection, False, ret >= 0)
        return ret

    def stats(self):
        """The fields of template.TemplateStats, in their order."""
        cdef c.fns_stats stats
        cdef int connection = self.free.pop() if self.free else self.connect()
        cdef int ret = c.fns_server_stats(&self.process, connection, &stats)
        self.give(connection, False, ret >= 0)
        if ret == -ECANCELED:  # the server was killed: another is started
            self.aborted()
        if ret < 0:
            raise SpawnError("helper", -ret)
        return (stats.networks_made, stats.networks_reused, stats.networks_touched, stats.networks_exposed,
                stats.rooms_made, stats.rooms_reused, stats.rooms_touched, stats.rooms_exposed)

    def stop(self):
        """Ends the server and all of its sandboxes."""
        self.running = False
        self.close_connections()
        if self.owner == getpid():
            with nogil:
                c.fns_server_stop(&self.process)
            self.give_cgroup()

    cdef void give_cgroup(self) noexcept:
        if self.groups is not None:
            c.fns_cgroup_give(self.groups.groups, &self.cgroup)

    def __dealloc__(self):
        self.close_connections()
        if self.owner == getpid():
            c.fns_server_stop(&self.process)
            self.give_cgroup()
        c.fns_server_close(&self.process)  # not in stop(): other threads may use these fds
