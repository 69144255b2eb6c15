/* Moves files into a container and out of it (shared/transfer.h). Runs in a clone in the server's memory, with the rights
 * of a command, in place of its exec.
 *
 * Paths are looked up inside the root, so no link leads outside. Only files, directories and links are moved, and nothing
 * that is opened can block.
 */
#include "server.h"

#include "shared/transfer.h"

enum { MAX_DEPTH = 64, BUFFER_SIZE = 32768, NAMES_SIZE = 4096 };
enum { OPEN_FLAGS = O_CLOEXEC | O_NONBLOCK | O_NOCTTY, DIRECTORY_FLAGS = O_CLOEXEC | O_DIRECTORY };
enum { PERMISSIONS = 0777, SEEK_DATA = 3, SEEK_HOLE = 4 };

struct transfer {
    int input, output; /* fds */
    int depth;
    int directories[MAX_DEPTH];  /* fds of those entered; the first is AT_FDCWD */
    uint32_t modes[MAX_DEPTH];   /* PUT: set when they are left */
    int64_t places[MAX_DEPTH];   /* GET: where to go on in them */
    uint32_t lengths[MAX_DEPTH]; /* of the path of each */
    int cuts;                    /* READ: files are cut off at `left` */
    uint64_t left;               /* READ, GET: how many bytes may still be sent */
    char buffer[BUFFER_SIZE];    /* a record, and what follows it */
    char path[FNS_PATH_SIZE]; /* of the directory at hand, for errors; cut off if it is too long */
    char name[FNS_PATH_SIZE]; /* of the entry at hand */
};

/* ---- the streams ---------------------------------------------------------------------------- */

/* Reads exactly `size` bytes of the input. 0 or -errno; -ECANCELED: the caller has stopped. */
static long read_all(const struct transfer *transfer, void *to, size_t size)
{
    char *bytes = to;
    while (size) {
        long n = fns_read(transfer->input, bytes, size);
        if (n <= 0)
            return n < 0 ? n : -ECANCELED;
        bytes += n;
        size -= (size_t)n;
    }
    return 0;
}

/* Writes all to an fd. 0 or -errno. */
static long write_all(int fd, const char *bytes, size_t size)
{
    while (size) {
        long n = fns_write(fd, bytes, size);
        if (n < 0)
            return n;
        bytes += n;
        size -= (size_t)n;
    }
    return 0;
}

/* Sends a record with a name. */
static long send(struct transfer *transfer, struct fns_record record, const char *name)
{
    record.name_size = (uint32_t)fns_length(name);
    memcpy(transfer->buffer, &record, sizeof record);
    memcpy(transfer->buffer + sizeof record, name, record.name_size);
    return write_all(transfer->output, transfer->buffer, sizeof record + record.name_size);
}

/* ---- directories ---------------------------------------------------------------------------- */

/* Appends the entry at hand to the path of the directory. Returns the new length. */
static uint32_t append_name(struct transfer *transfer)
{
    uint32_t length = transfer->lengths[transfer->depth];
    if (length && length < FNS_PATH_SIZE - 1)
        transfer->path[length++] = '/';
    for (const char *at = transfer->name; *at && length < FNS_PATH_SIZE - 1; at++)
        transfer->path[length++] = *at;
    transfer->path[length] = 0;
    return length;
}

/* Sends ERROR with the path of the entry at hand. */
static long send_error(struct transfer *transfer, long result)
{
    const struct fns_record record = {.kind = FNS_RECORD_ERROR, .error = (int)-result};
    append_name(transfer);
    return send(transfer, record, transfer->path);
}

/* Sends END_ALL, or ERROR for a negative result. Returns the exit status. */
static int finish(struct transfer *transfer, long result)
{
    const struct fns_record record = {.kind = FNS_RECORD_END_ALL};
    if (result >= 0)
        return send(transfer, record, "") < 0;
    FNS_IGNORE(send_error(transfer, result), "the exit status tells");
    return 1;
}

static int here(const struct transfer *transfer)
{
    return transfer->directories[transfer->depth];
}

/* Enters a directory. Takes the fd, which may be -errno. */
static long enter(struct transfer *transfer, int fd)
{
    if (fd < 0)
        return fd;
    if (transfer->depth + 1 == MAX_DEPTH)
        return fns_done_with(fd, -ENAMETOOLONG);
    uint32_t length = append_name(transfer);
    transfer->lengths[++transfer->depth] = length;
    transfer->directories[transfer->depth] = fd;
    transfer->places[transfer->depth] = 0;
    return 0;
}

static void leave(struct transfer *transfer)
{
    fns_close(transfer->directories[transfer->depth--]);
}

/* ---- into the container --------------------------------------------------------------------- */

/* Makes the directories above an entry that are missing. 0, or -errno with the name of the directory that failed. */
static long make_parents(struct transfer *transfer)
{
    for (char *at = transfer->name + 1; *at; at++) {
        if (*at != '/')
            continue;
        *at = 0;
        long result = fns_sys3(__NR_mkdirat, here(transfer), transfer->name, FNS_DIRECTORY_MODE);
        if (result < 0 && result != -EEXIST)
            return result;
        *at = '/';
    }
    return 0;
}

static long open_to_write(struct transfer *transfer)
{
    const int flags = O_WRONLY | O_CREAT | O_TRUNC | OPEN_FLAGS;
    struct statx about;
    long fd = fns_sys4(__NR_openat, here(transfer), transfer->name, flags, 0600);
    if (fd == -ETXTBSY && /* it is a program that runs: let that keep the old file */
        fns_sys3(__NR_unlinkat, here(transfer), transfer->name, 0) >= 0)
        fd = fns_sys4(__NR_openat, here(transfer), transfer->name, flags, 0600);
    if (fd < 0)
        return fd == -ENXIO ? -EOPNOTSUPP : fd; /* ENXIO: a FIFO without a reader, or a socket */
    long result = fns_sys5(__NR_statx, fd, "", AT_EMPTY_PATH, STATX_TYPE, &about);
    if (result >= 0 && (about.stx_mode & FNS_S_IFMT) != FNS_S_IFREG)
        result = -EOPNOTSUPP;
    return result < 0 ? fns_done_with((int)fd, result) : fd;
}

/* Writes what follows BYTES to the file. */
static long write_bytes(struct transfer *transfer, int fd, uint64_t size, uint64_t offset)
{
    long result = fns_sys3(__NR_lseek, fd, offset, 0);
    while (result >= 0 && size) {
        size_t part = size < BUFFER_SIZE ? (size_t)size : BUFFER_SIZE;
        result = read_all(transfer, transfer->buffer, part);
        if (result >= 0)
            result = write_all(fd, transfer->buffer, part);
        size -= part;
    }
    return result;
}

/* Makes a file from FILE and the records that follow. */
static long put_file(struct transfer *transfer, const struct fns_record *file)
{
    struct fns_record record;
    long result, fd = open_to_write(transfer);
    if (fd == -ENOENT) {
        fd = make_parents(transfer);
        if (fd >= 0)
            fd = open_to_write(transfer);
    }
    if (fd < 0)
        return fd;
    do {
        result = read_all(transfer, &record, sizeof record);
        if (result >= 0 && record.kind == FNS_RECORD_BYTES)
            result = write_bytes(transfer, (int)fd, record.size, record.offset);
    } while (result >= 0 && record.kind == FNS_RECORD_BYTES);
    if (result >= 0 && record.kind != FNS_RECORD_END)
        result = -EPROTO;
    if (result >= 0)
        result = fns_sys2(__NR_ftruncate, fd, record.offset);
    if (result >= 0)
        result = fns_sys2(__NR_fchmod, fd, file->mode & PERMISSIONS);
    const int64_t time[4] = {file->time / FNS_NS, file->time % FNS_NS, file->time / FNS_NS,
                             file->time % FNS_NS};
    if (result >= 0 && file->time > 0)
        result = fns_sys4(__NR_utimensat, fd, 0, time, 0);
    return fns_done_with((int)fd, result);
}

static long put_directory(struct transfer *transfer, uint32_t mode)
{
    long result = fns_sys3(__NR_mkdirat, here(transfer), transfer->name, 0700);
    if (result == -ENOENT) {
        result = make_parents(transfer);
        if (result >= 0)
            result = fns_sys3(__NR_mkdirat, here(transfer), transfer->name, 0700);
    }
    int is_new = result >= 0;
    if (result < 0 && result != -EEXIST)
        return result;
    result = enter(transfer, fns_open_in(here(transfer), transfer->name, DIRECTORY_FLAGS));
    transfer->modes[transfer->depth] = is_new ? mode & PERMISSIONS : 0;
    return result;
}

static long leave_directory(struct transfer *transfer)
{
    long result = 0;
    if (transfer->depth == 0)
        return -EPROTO;
    if (transfer->modes[transfer->depth])
        result = fns_sys2(__NR_fchmod, here(transfer), transfer->modes[transfer->depth]);
    leave(transfer);
    return result;
}

static long put_link(struct transfer *transfer, uint64_t size)
{
    if (size >= FNS_PATH_SIZE)
        return -ENAMETOOLONG;
    long result = read_all(transfer, transfer->buffer, (size_t)size);
    if (result < 0)
        return result;
    transfer->buffer[size] = 0;
    for (int tries = 0; tries < 2; tries++) {
        result = fns_sys3(__NR_symlinkat, transfer->buffer, here(transfer), transfer->name);
        if (result != -EEXIST)
            break;
        FNS_IGNORE(fns_sys3(__NR_unlinkat, here(transfer), transfer->name, 0), "EEXIST again");
    }
    return result;
}

static long put(struct transfer *transfer)
{
    struct fns_record record;
    for (;;) {
        long result = read_all(transfer, &record, sizeof record);
        if (result < 0)
            return result;
        if (record.name_size >= FNS_PATH_SIZE)
            return -ENAMETOOLONG;
        result = read_all(transfer, transfer->name, record.name_size);
        transfer->name[record.name_size] = 0;
        if (result < 0)
            return result;
        switch (record.kind) {
        case FNS_RECORD_FILE: result = put_file(transfer, &record); break;
        case FNS_RECORD_DIRECTORY: result = put_directory(transfer, record.mode); break;
        case FNS_RECORD_LEAVE: result = leave_directory(transfer); break;
        case FNS_RECORD_LINK: result = put_link(transfer, record.size); break;
        case FNS_RECORD_END_ALL: return 0;
        default: return -EPROTO;
        }
        if (result < 0)
            return result;
    }
}

/* ---- out of the container ------------------------------------------------------------------- */

static long seek(int fd, uint64_t offset, int whence)
{
    return fns_sys3(__NR_lseek, fd, offset, whence);
}

/* Sends the data from `offset` to before `end`. Sends zeros for what is missing, as the file may shrink meanwhile, and for
 * what cannot be read, so that the next record is found. */
static long send_bytes(struct transfer *transfer, int fd, uint64_t offset, uint64_t end)
{
    const struct fns_record record = {
        .kind = FNS_RECORD_BYTES, .size = end - offset, .offset = offset};
    long result = seek(fd, offset, 0);
    if (result < 0)
        return result;
    result = send(transfer, record, "");
    if (result < 0)
        return result;
    for (long n = 1; offset < end; offset += (uint64_t)n) {
        size_t part = end - offset < BUFFER_SIZE ? (size_t)(end - offset) : BUFFER_SIZE;
        n = result >= 0 && n > 0 ? fns_read(fd, transfer->buffer, part) : 0;
        result = n < 0 ? n : result;
        if (n <= 0) {
            memset(transfer->buffer, 0, part);
            n = (long)part;
        }
        long sent = write_all(transfer->output, transfer->buffer, (size_t)n);
        if (sent < 0)
            return sent;
    }
    return result < 0 ? result : 0;
}

/* Sends the data of a file that had `size` bytes when it was opened, without its holes. Data that is appended meanwhile
 * is left out. */
static long send_data(struct transfer *transfer, int fd, uint64_t size)
{
    for (uint64_t offset = 0; offset < size;) {
        long data = seek(fd, offset, SEEK_DATA), hole = -ENXIO;
        if (data == -ENXIO) /* only a hole is left */
            break;
        if (data >= 0)
            hole = seek(fd, (uint64_t)data, SEEK_HOLE);
        if (data < 0 || hole < 0) { /* the file system knows no holes, or the file is changing */
            data = (long)offset;
            hole = (long)size;
        }
        uint64_t end = (uint64_t)hole < size ? (uint64_t)hole : size;
        if ((uint64_t)data >= end)
            break;
        long result = send_bytes(transfer, fd, (uint64_t)data, end);
        if (result < 0)
            return result;
        offset = end;
    }
    const struct fns_record record = {.kind = FNS_RECORD_END, .offset = size};
    return send(transfer, record, "");
}

/* Sends the file of the directory at hand that has this name; flags: O_NOFOLLOW or 0. */
static long send_file(struct transfer *transfer, const char *name, int flags)
{
    struct statx about;
    long fd = fns_sys4(__NR_openat, here(transfer), name, O_RDONLY | OPEN_FLAGS | flags, 0);
    if (fd < 0)
        return fd == -ENXIO ? -EOPNOTSUPP : fd;
    long result = fns_sys5(__NR_statx, fd, "", AT_EMPTY_PATH,
                           STATX_TYPE | STATX_MODE | STATX_SIZE | STATX_MTIME, &about);
    unsigned type = about.stx_mode & FNS_S_IFMT;
    if (result >= 0 && type != FNS_S_IFREG)
        result = type == FNS_S_IFDIR ? -EISDIR : -EOPNOTSUPP;
    uint64_t size = about.stx_size;
    if (result >= 0 && size > transfer->left && transfer->cuts)
        size = transfer->left;
    if (result >= 0 && size > transfer->left)
        result = -EFBIG;
    if (result >= 0) {
        transfer->left -= size;
        const struct fns_record record = {
            .kind = FNS_RECORD_FILE,
            .mode = about.stx_mode & PERMISSIONS,
            .size = about.stx_size,
            .time = about.stx_mtime.tv_sec * FNS_NS + about.stx_mtime.tv_nsec,
        };
        result = send(transfer, record, name);
    }
    if (result >= 0)
        result = send_data(transfer, (int)fd, size);
    return fns_done_with((int)fd, result);
}

static long send_link(struct transfer *transfer, const char *name)
{
    char *target = transfer->buffer + BUFFER_SIZE - FNS_PATH_SIZE;
    long n = fns_sys4(__NR_readlinkat, here(transfer), name, target, FNS_PATH_SIZE - 1);
    if (n < 0)
        return n;
    const struct fns_record record = {.kind = FNS_RECORD_LINK, .size = (uint64_t)n};
    long result = send(transfer, record, name);
    return result < 0 ? result : write_all(transfer->output, target, (size_t)n);
}

/* Sends a directory, without its entries, and enters it. */
static long send_directory(struct transfer *transfer, const char *name, uint32_t mode, int flags)
{
    const struct fns_record record = {.kind = FNS_RECORD_DIRECTORY, .mode = mode & PERMISSIONS};
    long result =
        enter(transfer, fns_open_in(here(transfer), name, O_RDONLY | DIRECTORY_FLAGS | flags));
    return result < 0 ? result : send(transfer, record, name);
}

/* Copies the next name in a directory, except "." and "..", to transfer->name. 1: there is one; 0; -errno. */
static long next_name(struct transfer *transfer)
{
    enum { NEXT_AT = 8, SIZE_AT = 16, NAME_AT = 19 }; /* in struct linux_dirent64, getdents(2) */
    char *entries = transfer->buffer;
    int64_t *place = &transfer->places[transfer->depth];
    for (;;) {
        long n = seek(here(transfer), (uint64_t)*place, 0);
        if (n >= 0)
            n = fns_sys3(__NR_getdents64, here(transfer), entries, NAMES_SIZE);
        if (n <= 0)
            return n;
        uint16_t size;
        for (long at = 0; at < n; at += size) {
            const char *name = entries + at + NAME_AT;
            memcpy(&size, entries + at + SIZE_AT, sizeof size);
            memcpy(place, entries + at + NEXT_AT, sizeof *place);
            if (name[0] == '.' && (!name[1] || (name[1] == '.' && !name[2])))
                continue;
            memcpy(transfer->name, name, fns_length(name) + 1);
            return 1;
        }
    }
}

static long send_entry(struct transfer *transfer)
{
    struct statx about;
    const char *name = transfer->name;
    long result = fns_sys5(__NR_statx, here(transfer), name, AT_SYMLINK_NOFOLLOW,
                           STATX_TYPE | STATX_MODE, &about);
    if (result == -ENOENT) /* it was removed meanwhile */
        return 0;
    if (result < 0)
        return result;
    switch (about.stx_mode & FNS_S_IFMT) {
    case FNS_S_IFREG: return send_file(transfer, name, O_NOFOLLOW);
    case FNS_S_IFDIR: return send_directory(transfer, name, about.stx_mode, O_NOFOLLOW);
    case FNS_S_IFLNK: return send_link(transfer, name);
    default: return -EOPNOTSUPP;
    }
}

/* Sends all that is below the directories entered. */
static long send_entries(struct transfer *transfer)
{
    const struct fns_record left = {.kind = FNS_RECORD_LEAVE};
    while (transfer->depth) {
        long result = next_name(transfer);
        if (result > 0) {
            result = send_entry(transfer);
        } else if (result == 0) {
            leave(transfer);
            result = send(transfer, left, "");
        }
        if (result < 0)
            return result;
    }
    return 0;
}

static long get(struct transfer *transfer, const char *path)
{
    struct statx about;
    long result = fns_sys5(__NR_statx, AT_FDCWD, path, 0, STATX_TYPE | STATX_MODE, &about);
    if (result < 0)
        return result;
    if ((about.stx_mode & FNS_S_IFMT) != FNS_S_IFDIR)
        return send_file(transfer, path, 0);
    result = send_directory(transfer, path, about.stx_mode, 0);
    return result < 0 ? result : send_entries(transfer);
}

static long list(struct transfer *transfer, const char *path)
{
    const struct fns_record record = {.kind = FNS_RECORD_NAME};
    long result = enter(transfer, fns_open_in(AT_FDCWD, path, O_RDONLY | DIRECTORY_FLAGS));
    while (result >= 0) {
        result = next_name(transfer);
        if (result == 0)
            break;
        if (result > 0)
            result = send(transfer, record, transfer->name);
    }
    return result;
}

/* ---- all of it ------------------------------------------------------------------------------ */

static uint64_t number(const char *text)
{
    uint64_t n = 0;
    while (*text >= '0' && *text <= '9')
        n = n * 10 + (uint64_t)(*text++ - '0');
    return n;
}

static void set_name(struct transfer *transfer, const char *path)
{
    size_t size = fns_length(path) + 1;
    transfer->name[0] = 0;
    if (size <= FNS_PATH_SIZE)
        memcpy(transfer->name, path, size);
}

static void prepare(struct transfer *transfer, int input, int output)
{
    transfer->input = input;
    transfer->output = output;
    transfer->depth = 0;
    transfer->directories[0] = AT_FDCWD;
    transfer->lengths[0] = 0;
    transfer->left = 0;
    transfer->cuts = 0;
    transfer->name[0] = 0;
}

/* Sends each file, or why it cannot be read. */
static long read_files(struct transfer *transfer, char *const *paths)
{
    const uint64_t most = transfer->left;
    for (; *paths; paths++) {
        set_name(transfer, *paths);
        transfer->left = most;
        long result = send_file(transfer, *paths, 0);
        if (result < 0)
            result = send_error(transfer, result);
        if (result < 0)
            return result;
    }
    return 0;
}

int fns_run_transfer(const struct fns_args *args)
{
    enum { LIMIT, CUTS, PATHS }; /* argv */
    struct transfer transfer;
    prepare(&transfer, 0, 1);
    if (args->transfer == FNS_TRANSFER_PUT)
        return finish(&transfer, put(&transfer));
    for (int i = 0; i <= PATHS; i++)
        if (!args->argv[i])
            return finish(&transfer, -EPROTO);
    const char *path = args->argv[PATHS];
    transfer.left = number(args->argv[LIMIT]);
    transfer.cuts = *args->argv[CUTS] != 0;
    set_name(&transfer, path);
    if (args->transfer == FNS_TRANSFER_READ)
        return finish(&transfer, read_files(&transfer, args->argv + PATHS));
    if (args->transfer == FNS_TRANSFER_GET)
        return finish(&transfer, get(&transfer, path));
    return finish(&transfer, list(&transfer, path));
}

int fns_put_files(int file)
{
    struct transfer transfer;
    prepare(&transfer, file, file);
    long result = put(&transfer);
    if (result < 0 && seek(file, 0, 0) >= 0)
        FNS_IGNORE(send_error(&transfer, result), "the error then has no path");
    return (int)result;
}
