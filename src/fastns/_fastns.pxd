"""Declares the C API (csrc/caller/fastns.h, and csrc/cli/planfile.h for plan files) for Cython."""

from libc.stdint cimport int32_t, int64_t, uint16_t, uint32_t, uint64_t
from posix.resource cimport rusage


cdef extern from "caller/fastns.h" nogil:
    enum:
        FNS_STAGE_NONE, FNS_STAGE_COUNT, FNS_OP_COUNT, FNS_IO_TIMEOUT
        FNS_COUNTS, FNS_NO_COUNT, FNS_MAX_HIERARCHIES
        FNS_DETAIL_SOURCE, FNS_DETAIL_FOUND, FNS_DETAIL_KILLED
        FNS_DETAIL_BROKEN, FNS_DETAIL_ID_MAP, FNS_DETAIL_MEMORY
        FNS_PLAN_HOP, FNS_PLAN_INIT, FNS_PLAN_SERVER, FNS_PLAN_MAPS_FIRST, FNS_PLAN_OWN_MEMORY
        FNS_PLAN_NETWORKS, FNS_PLAN_ROOMS, FNS_PLAN_AHEAD, FNS_PLAN_CONTAINER
        FNS_ID_MAP_NONE, FNS_ID_MAP_SELF, FNS_ID_MAP_PARENT, FNS_ID_MAP_NEWUIDMAP, FNS_ID_MAP_RANGE

    struct fns_file:
        pass

    enum fns_patience:
        FNS_AT_ONCE, FNS_PATIENT, FNS_MAY_GIVE_UP

    struct fns_error:
        uint16_t stage, detail
        int32_t op_index, err

    struct fns_op:
        uint16_t code, stage
        uint32_t how
        uint64_t flags, arg
        uint32_t source, target, type, data

    struct fns_plan:
        const fns_op *ops
        const char *strings
        uint32_t n_ops, n_strings, n_early, options, id_map, uid_map, gid_map
        uint64_t clone_flags
        const fns_plan *sandbox
        uint32_t owner_uid, owner_gid, pipe_uid, pipe_gid
        uint64_t args_max
        fns_file *file

    struct fns_stats:
        uint64_t networks_made, networks_reused, networks_touched, networks_exposed
        uint64_t rooms_made, rooms_reused, rooms_touched, rooms_exposed

    struct fns_args:
        char *const *argv
        char *const *envp
        char *const *paths
        const char *cwd
        const int *keep
        uint32_t n_keep, transfer, has_ids, uid, gid
        int userns, files, stdio[3]

    struct fns_process:
        int pid, pidfd, control, served, remote, number
        uint64_t start
        long rss_floor

    struct fns_cgroup_hierarchy:
        int directory, unified

    struct fns_cgroup_setting:
        uint32_t hierarchy
        const char *file, *value

    struct fns_cgroup_counter:
        uint32_t kind, hierarchy
        const char *file, *key
        uint64_t scale
        uint32_t peak
        const char *reset

    struct fns_cgroup_plan:
        fns_cgroup_hierarchy hierarchies[8]
        const fns_cgroup_setting *settings
        const fns_cgroup_counter *counters
        uint32_t n_hierarchies, n_settings, n_counters, memory_hierarchy
        const char *memory_file, *reclaim_file, *reclaim_text
        uint64_t cpu_time_ns

    struct fns_cgroup:
        int number
        uint64_t counts[1]  # FNS_COUNTS

    struct fns_cgroups:
        pass

    int fns_cgroups_open(fns_cgroups **groups, const fns_cgroup_plan *plan)
    int fns_cgroups_remove(fns_cgroups *groups, unsigned patience_ms)
    void fns_cgroups_close(fns_cgroups *groups)
    const char *fns_count_name(unsigned kind)
    void fns_cgroup_give(fns_cgroups *groups, fns_cgroup *cgroup)
    int fns_is_over(const fns_cgroup *cgroup)

    struct fns_result:
        int code, status
        rusage usage
        uint64_t queued, executed, ended, end
        int reused, lost

    struct fns_buffer:
        char *data
        size_t size
        uint64_t dropped

    struct fns_io:
        fns_process process
        int fds[3]
        const char *input
        size_t input_size, limit
        int capped, over
        fns_buffer output[2]
        uint64_t deadline

    struct fns_job:
        const fns_plan *plan
        const fns_process *server
        fns_cgroups *groups
        const fns_cgroup *whole
        fns_args args
        unsigned pipes
        int connection
        int64_t timeout_ns
        fns_io io
        fns_error error
        fns_result result
        fns_cgroup cgroup
        int timed_out

    struct fns_batch:
        pass

    const char *fns_stage_name(unsigned stage)
    const char *fns_op_name(unsigned code)
    int fns_plan_check(const fns_plan *plan, int *bad_op)
    char **fns_command_paths(const char *command, char *const *directories)
    fns_file *fns_file_new()
    void fns_file_free(fns_file *file)
    int fns_userns_of_range(uint32_t uid, uint32_t gid, uint64_t count, const char *inotify,
                            fns_error *error)
    int fns_set_program(const void *data, size_t size)
    int fns_server_start(const fns_plan *plan, int null, int userns, fns_cgroups *groups,
                         fns_cgroup *cgroup, fns_process *server,
                         fns_error *error)
    void fns_server_stop(const fns_process *server)
    void fns_server_close(fns_process *server)
    int fns_server_connect(const fns_process *server, fns_patience patience)
    int fns_server_reap(int connection, const fns_process *process, fns_result *result)
    int fns_server_kill(int connection, const fns_process *process, fns_result *result)
    int fns_server_park(int connection)
    int fns_server_look(int connection, const fns_process *process, int *pidfd)
    int fns_server_stats(const fns_process *server, int connection, fns_stats *stats)
    void fns_set_interrupted(int (*interrupted)() noexcept nogil)
    int fns_wait(const fns_process *process, int64_t timeout_ns)
    void fns_attend(const fns_process *process, int killed)
    int fns_reap(const fns_process *process, fns_result *result)
    int fns_kill(const fns_process *process, int signal)
    int fns_kill_all(const fns_plan *plan, const fns_process *process)
    uint64_t fns_now()
    void fns_buffer_free(fns_buffer *buffer)
    void fns_io_prepare(fns_io *io)
    int fns_io_run(fns_io *io)
    int fns_io_finish(fns_io *io)
    void fns_io_close(fns_io *io)
    int fns_open_pipe(int ends[2])
    int fns_open_null()
    int fns_job_spawn(fns_job *job, int connection)
    int fns_job_spares(const fns_job *job)
    int fns_job_unsent(const fns_job *job)
    int fns_batch_open(fns_batch **batch, fns_job *jobs, size_t n_jobs, unsigned concurrency,
                       int spawn)
    int fns_batch_run(fns_batch *batch)
    size_t fns_batch_done(const fns_batch *batch)
    void fns_server_disconnect(int connection)
    int fns_batch_give(fns_batch *batch, int connection)
    int fns_batch_take(fns_batch *batch)
    void fns_batch_close(fns_batch *batch)
    int fns_capabilities(uint64_t *effective)
    int fns_is_dumpable()
    int fns_landlock_abi()
    int fns_has_tree_namespaces()
    int fns_can_idmap(const char *path, int recursive, int userns) nogil


cdef extern from "cli/planfile.h" nogil:
    struct fns_identity:
        pass
    struct fns_hint:
        uint16_t stage, detail
        int32_t err
        const char *path, *text
    struct fns_planfile:
        fns_plan plan
        char *const *envp
        char *const *directories
        const char *cwd, *maps[2], *inotify
        int64_t timeout_ns
        uint64_t max_output
        fns_hint *hints
        uint32_t n_hints
    int fns_identify(fns_identity *identity)
    int fns_planfile_pack(const fns_planfile *file, const fns_identity *identity, void **bytes,
                          size_t *size)
