/* Unpacking, and messages with fds. Runs in the caller, the program and a template's sandboxes. */
#include "wire.h"

#include "sys.h"

/* ---- unpacking -------------------------------------------------------------------------------- */

/* Whether `size` bytes hold n items at an offset that is a multiple of `align`. */
static int holds(uint64_t size, uint64_t offset, uint64_t n, uint64_t item, uint64_t align)
{
    return offset % align == 0 && offset <= size && n <= (size - offset) / item;
}

int fns_open_text(char *base, uint64_t size, const char **text)
{
    uint64_t offset = (uintptr_t)*text;
    if (!offset || offset >= size || base[size - 1])
        return -EPROTO;
    *text = base + offset;
    return 0;
}

int fns_open_list(char *base, uint64_t size, char *const **list)
{
    uint64_t offset = (uintptr_t)*list;
    for (uint64_t at = offset;; at += sizeof at) {
        if (!at || !holds(size, at, 1, sizeof at, sizeof at))
            return -EPROTO;
        const char **item = (const char **)(void *)(base + at);
        if (!*item)
            break;
        if (fns_open_text(base, size, item) < 0)
            return -EPROTO;
    }
    *list = (char *const *)(void *)(base + offset);
    return 0;
}

int fns_open_items(char *base, uint64_t size, uint64_t n, uint64_t item_size, void *pointer)
{
    uintptr_t at;
    __builtin_memcpy(&at, pointer, sizeof at);
    if (!holds(size, at, n, item_size, sizeof(uint64_t)))
        return -EPROTO;
    at += (uintptr_t)base;
    __builtin_memcpy(pointer, &at, sizeof at);
    return 0;
}

int fns_open_plan(char *base, uint64_t size, struct fns_plan *plan)
{
    int result = fns_open_items(base, size, plan->n_ops, sizeof *plan->ops, &plan->ops);
    return result < 0 ? result : fns_open_items(base, size, plan->n_strings, 1, &plan->strings);
}

/* They must ascend, because fns_place_fds() closes the ranges between them. */
static int ascend(const int *fds, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        if (fds[i] <= (i ? fds[i - 1] : 2) || fds[i] == INT32_MAX)
            return 0;
    return 1;
}

int fns_open_request(struct fns_request *request, uint64_t size, int n_fds, struct fns_args *args)
{
    char *base = (char *)request;
    if (size < sizeof *request ||
        (request->kind != FNS_REQUEST_RUN && request->kind != FNS_REQUEST_SPAWN))
        return -EPROTO;
    *args = request->args;
    if (args->n_keep > FNS_REQUEST_FDS || args->n_groups > FNS_MAX_GROUPS || args->clone_into > 1 ||
        args->clone_into > args->n_groups ||
        n_fds != 3 + (int)(args->n_keep + args->n_groups) + (request->kind == FNS_REQUEST_SPAWN))
        return -EPROTO;
    if (fns_open_items(base, size, args->n_keep, sizeof(int), &args->keep) < 0 ||
        fns_open_items(base, size, args->n_groups, sizeof(int), &args->groups) < 0 ||
        fns_open_list(base, size, &args->argv) < 0 || fns_open_list(base, size, &args->envp) < 0 ||
        fns_open_list(base, size, &args->paths) < 0 ||
        (args->cwd && fns_open_text(base, size, &args->cwd) < 0))
        return -EPROTO;
    return ascend(args->keep, args->n_keep) ? 0 : -EPROTO;
}

/* ---- messages with fds ------------------------------------------------------------------------ */

/* struct msghdr, iovec, cmsghdr and ucred as the kernel lays them out: the program has no libc. */
struct vector {
    const void *base;
    size_t size;
};
struct header {
    void *name;
    int name_size;
    struct vector *vector;
    size_t n_vectors;
    void *control;
    size_t control_size;
    unsigned flags;
};
struct item { /* of a control message */
    size_t size;
    int level, type;
    int data[];
};

enum { SOCKET_LEVEL = 1 /* SOL_SOCKET */, RIGHTS = 1, CREDENTIALS = 2 /* SCM_* */ };
enum { TRUNCATED = 0x20, CONTROL_TRUNCATED = 8, NO_SIGNAL = 0x4000 };
#define CLOSE_ON_EXEC 0x40000000 /* MSG_CMSG_CLOEXEC */

#define ITEM_SPACE(n) ((sizeof(struct item) + (n) * sizeof(int) + 7) & ~(size_t)7)
#define MAX_CONTROL (ITEM_SPACE(FNS_REQUEST_FDS) + ITEM_SPACE(3))

/* Writes an item of n ints to control data. Returns how many bytes it takes. */
static size_t put_item(char *at, int type, const int *data, size_t n)
{
    struct item *item = (struct item *)(void *)at;
    item->size = sizeof *item + n * sizeof *data;
    item->level = SOCKET_LEVEL;
    item->type = type;
    for (size_t i = 0; i < n; i++)
        item->data[i] = data[i];
    return ITEM_SPACE(n);
}

long fns_send_message(int socket, const void *bytes, size_t size, const int *fds, int n_fds,
                      int pid, int flags)
{
    char control[MAX_CONTROL] __attribute__((aligned(8)));
    struct vector vector = {bytes, size};
    struct header header = {.vector = &vector, .n_vectors = 1, .control = control};
    if (n_fds)
        header.control_size = put_item(control, RIGHTS, fds, (size_t)n_fds);
    if (pid > 0) {
        const int self[3] = {pid, (int)fns_sys0(__NR_geteuid), (int)fns_sys0(__NR_getegid)};
        header.control_size += put_item(control + header.control_size, CREDENTIALS, self, 3);
    }
    return fns_sys3(__NR_sendmsg, socket, &header, flags | NO_SIGNAL);
}

long fns_send(int socket, const struct fns_message *message, int fd, int pid)
{
    long result;
    do
        result = fns_send_message(socket, message, sizeof *message, &fd, fd >= 0, pid, 0);
    while (result == -EINTR);
    return result;
}

long fns_receive_message(int socket, void *bytes, size_t size, int *fds, int *n_fds, int *pid,
                         int flags)
{
    char control[MAX_CONTROL] __attribute__((aligned(8)));
    const size_t space = ITEM_SPACE((size_t)*n_fds) + (pid ? ITEM_SPACE(3) : 0);
    struct vector vector = {bytes, size};
    struct header header = {
        .vector = &vector, .n_vectors = 1, .control = control, .control_size = space};
    long n = fns_sys3(__NR_recvmsg, socket, &header, flags | CLOSE_ON_EXEC);
    int came = 0, lost = n > 0 && header.flags & (TRUNCATED | CONTROL_TRUNCATED);
    if (n < 0)
        header.control_size = 0;
    for (size_t at = 0; at + sizeof(struct item) <= header.control_size;) {
        const struct item *item = (const struct item *)(const void *)(control + at);
        size_t n_ints = (item->size - sizeof *item) / sizeof(int);
        if (item->type == CREDENTIALS && pid)
            *pid = item->data[0];
        for (size_t i = 0; item->type == RIGHTS && i < n_ints; i++) {
            if (came < *n_fds) {
                fds[came++] = item->data[i];
            } else { /* the padding had room for one more fd */
                fns_close(item->data[i]);
                lost = 1;
            }
        }
        at += ITEM_SPACE(n_ints);
    }
    while (lost && came)
        fns_close(fds[--came]);
    *n_fds = lost ? -1 : came;
    return n;
}
