# Part of _core.pyx: makes plan files (csrc/cli/planfile.h).

def pack_plan(Plan plan, timeout_ns, list hints):
    """Returns the bytes of a plan file, from which fastns-exec starts this plan's sandboxes for this caller.

    Args:
        timeout_ns: a sandbox is killed this long after its start; None: never.
        hints: (stage or "" for any, one of DETAILS or "", errno or 0, path or b"", text) each.
    Raises: OSError if /proc cannot be read."""
    cdef c.fns_planfile file
    cdef c.fns_identity identity
    cdef void *data = NULL
    cdef size_t size = 0
    cdef _Arguments lists = _Arguments((), plan.environ, plan.search_path, plan.cwd, (-1, -1, -1), ())
    cdef bytes uid_map = b"", gid_map = b""
    cdef int ret = c.fns_identify(&identity)
    if ret < 0:
        raise OSError(-ret, os.strerror(-ret), "/proc")
    if plan.ids is not None:
        uid, gid, count = plan.ids
        uid_map, gid_map = b"0 %d %d\n" % (uid, count), b"0 %d %d\n" % (gid, count)
    memset(&file, 0, sizeof(c.fns_planfile))
    file.plan = plan.plan
    file.envp = lists.args.envp
    file.directories = lists.directories
    file.cwd = PyBytes_AS_STRING(plan.cwd)
    file.maps[0], file.maps[1] = PyBytes_AS_STRING(uid_map), PyBytes_AS_STRING(gid_map)
    file.inotify = PyBytes_AS_STRING(plan.inotify)
    file.timeout_ns = -1 if timeout_ns is None else timeout_ns
    file.max_output = plan.max_output
    file.n_hints = len(hints)
    file.hints = <c.fns_hint *>calloc(len(hints) or 1, sizeof(c.fns_hint))
    if file.hints == NULL:
        raise MemoryError
    try:
        for i, (stage, detail, err, path, text) in enumerate(hints):
            file.hints[i] = c.fns_hint(_stage_numbers[stage] if stage else 0, DETAILS[detail] if detail else 0,
                                       err, PyBytes_AS_STRING(<bytes?>path), PyBytes_AS_STRING(<bytes?>text))
        if c.fns_planfile_pack(&file, &identity, &data, &size) < 0:
            raise MemoryError
        return PyBytes_FromStringAndSize(<char *>data, size)
    finally:
        free(file.hints)
        free(data)
