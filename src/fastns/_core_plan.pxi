# Part of _core.pyx: Plan, a compiled spec in C structures.

@cython.final
cdef class Plan:
    """A compiled spec: what a sandbox's first process does, in order.

    fastns.compile() makes it, and every `spec` argument accepts it. It is immutable: any number of threads may
    spawn from it at once.
    """

    cdef c.fns_plan plan
    cdef c.fns_op *op_array
    cdef bytes arena
    cdef object live  # this process's cgroups.Cgroups
    cdef readonly tuple ops, environ, search_path, namespaces
    cdef readonly bytes cwd
    cdef readonly str id_map
    cdef readonly str method  # "direct", "staged", "template"
    cdef readonly bint hop  # another process joins namespaces first, then clones the sandbox
    cdef readonly str mount_namespace  # what it starts from: "copied", "tree", "template"; "host": no new one
    cdef readonly bint filtered  # its sandboxes have a filter of system calls
    cdef readonly uint64_t max_output  # bytes kept of stdout and stderr each; 0: all
    cdef readonly bint capped  # a sandbox that exceeds max_output is killed
    cdef readonly object cgroups  # cgroup_plan.CgroupPlan; None: its sandboxes stay in the caller's cgroups
    cdef readonly Plan sandbox  # only in a template's plan: the plan of its sandboxes
    cdef readonly bint rooms  # a template's sandboxes serve again if nothing shows that they were used
    cdef readonly bint container  # of a container's commands
    cdef readonly tuple limits  # the names of those that are enforced
    cdef readonly tuple ids  # the range of its user namespace, for user_namespace(); None: no range
    cdef readonly bytes inotify  # also for user_namespace()
    cdef readonly tuple view  # without a rootfs: the destinations of all mounts; else None
    cdef readonly tuple pipe_owner  # (uid, gid) that own the pipes of its stdio; None: the caller
    # (destination, source, whether recursive, whether it may be plain, why it is plain or "") for each bind
    cdef readonly tuple binds
    cdef readonly tuple last_ids  # of a container's commands: the last uid and gid of its range; None: no range
    cdef readonly object spec  # the Spec that was compiled

    def __cinit__(self, *, tuple ops, tuple environ, tuple search_path, bytes cwd,
                  uint64_t clone_flags, str id_map, bytes uid_map, bytes gid_map,
                  uint32_t n_early, bint init, str method, tuple namespaces,
                  str mount_namespace, bint filtered,
                  bint maps_first=False, bint own_memory=False,
                  Plan sandbox=None, bint keeps_networks=False, bint rooms=False, bint ahead=False,
                  bint container=False, tuple limits=None,
                  uint64_t max_output=0, bint capped=False, cgroups=None, tuple ids=None,
                  bytes inotify=b"", tuple pipe_owner=None, tuple binds=(), tuple view=None,
                  object spec=None, tuple last_ids=None):
        cdef _Arena arena = _Arena()
        cdef int bad
        self.ops = ops
        self.environ = environ
        self.search_path = search_path
        self.cwd = cwd
        self.id_map = id_map
        self.method = method
        self.hop = n_early > 0
        self.namespaces = namespaces
        self.mount_namespace = mount_namespace
        self.filtered = filtered
        self.max_output = max_output
        self.capped = capped
        self.cgroups = cgroups
        self.sandbox = sandbox
        self.rooms = rooms
        self.container = container
        self.limits = limits or (() if cgroups is None else cgroups.enforced)
        self.ids = ids
        self.inotify = inotify
        self.view = view
        self.pipe_owner = pipe_owner
        self.binds = binds
        self.spec = spec
        self.last_ids = last_ids
        self.op_array = <c.fns_op *>calloc(len(ops) or 1, sizeof(c.fns_op))
        if self.op_array == NULL:
            raise MemoryError
        for i, item in enumerate(ops):
            self.op_array[i] = c.fns_op(
                OPS[item.code], _stage_numbers[item.stage], item.how, item.flags, item.arg,
                arena.place(item.source), arena.place(item.target), arena.place(item.type),
                arena.place(item.data))
        self.plan.uid_map = arena.place(uid_map)
        self.plan.gid_map = arena.place(gid_map)
        self.arena = arena.joined()
        self.plan.ops = self.op_array
        self.plan.n_ops = len(ops)
        self.plan.strings = PyBytes_AS_STRING(self.arena)
        self.plan.n_strings = len(self.arena)
        self.plan.n_early = n_early
        self.plan.options = ((c.FNS_PLAN_HOP if self.hop else 0)
                             | (c.FNS_PLAN_INIT if init else 0)
                             | (c.FNS_PLAN_MAPS_FIRST if maps_first else 0)
                             | (c.FNS_PLAN_OWN_MEMORY if own_memory else 0)
                             | (c.FNS_PLAN_NETWORKS if keeps_networks else 0)
                             | (c.FNS_PLAN_ROOMS if rooms else 0)
                             | (c.FNS_PLAN_AHEAD if ahead else 0)
                             | (c.FNS_PLAN_CONTAINER if container else 0)
                             | (c.FNS_PLAN_SERVER if sandbox is not None else 0))
        self.plan.id_map = _id_maps[id_map]
        self.plan.clone_flags = clone_flags
        if sandbox is not None:
            self.plan.sandbox = &sandbox.plan
        if ids is not None:
            self.plan.owner_uid, self.plan.owner_gid = ids[0], ids[1]
        if pipe_owner is not None:
            self.plan.pipe_uid, self.plan.pipe_gid = pipe_owner
        if cgroups is not None and method == "template":
            self.plan.args_max = cgroups.args_max
        if c.fns_plan_check(&self.plan, &bad) < 0:
            raise ValueError(f"not a valid plan (op {bad})")
        _load_program()
        self.plan.file = c.fns_file_new()
        if self.plan.file == NULL:
            raise MemoryError

    def __dealloc__(self):
        c.fns_file_free(self.plan.file)
        free(self.op_array)

    cdef int userns(self) except -1:
        """The fd of the user namespace that its sandboxes join; 0: they join none."""
        return 0 if self.ids is None else user_namespace(self.ids, self.inotify)

    cdef CgroupPool pool(self):
        """The cgroups of its sandboxes, created on first use in each process; None: the plan has none."""
        if self.cgroups is None:
            return None
        live = self.live
        if live is None or live.owner != getpid():
            with self.cgroups.making():
                live = self.live
                if live is None or live.owner != getpid():
                    live = self.live = self.cgroups.make()
        return live.pool

    def close(self):
        """Drops its cgroups, which are removed when nothing uses them any more."""
        self.live = None

    def can_idmap(self, bytes path, bint recursive):
        """Whether a bind of this path can be idmapped to the plan's range of ids: 0 if so, else the errno."""
        if self.ids is None:
            raise ValueError("a plan without a range of ids")
        cdef int userns = self.userns(), ret
        cdef const char *text = PyBytes_AS_STRING(path)
        with nogil:
            ret = c.fns_can_idmap(text, recursive, userns)
        return -ret

    def describe(self) -> list:
        """The ops in order, a line each, as `fastns run --dry-run` prints them."""
        from fastns import _dry_run
        return _dry_run.lines(self)

    def __repr__(self) -> str:
        return f"<fastns.Plan: {len(self.ops)} ops, {self.method}>"


@cython.final
cdef class _Arena:
    """The strings of a plan, NUL-terminated in one buffer. Equal ones are stored once."""

    cdef dict offsets
    cdef bytearray buffer

    def __cinit__(self):
        self.offsets = {None: 0}
        self.buffer = bytearray(1)

    cdef uint32_t place(self, bytes text) except? 0xffffffff:
        """The offset of a text; 0 for None."""
        found = self.offsets.get(text)
        if found is None:
            found = self.offsets[text] = len(self.buffer)
            if found + len(text) + 2 > 0xffffffff:
                raise ValueError("the spec holds more than 4 GiB of text and files")
            self.buffer += text
            self.buffer.append(0)
        return found

    cdef bytes joined(self):
        self.buffer.append(0)
        return bytes(self.buffer)
