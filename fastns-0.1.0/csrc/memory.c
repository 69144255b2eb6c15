/* Memory files: the two programs', which are sealed, and what is handed to them. Runs in the parent.
 *
 * What a sandbox sees as /proc/self/exe before its own command runs is such a file: nothing of the
 * host's can be opened through it, and it cannot be written (CVE-2019-5736).
 */
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "message.h"
#include "spawn.h"

static struct {
    void *bytes;
    size_t size;
} programs[FNS_PROGRAM_COUNT];

int fns_set_program(enum fns_program which, const void *bytes, size_t size)
{
    void *copy = malloc(size);
    if (!copy)
        return -ENOMEM;
    memcpy(copy, bytes, size);
    free(programs[which].bytes);
    programs[which].bytes = copy;
    programs[which].size = size;
    return 0;
}

/* The ops follow the program in its file, and are mapped with it: its one segment is made longer. */
int fns_exec_image(const struct fns_plan *plan, void **image, size_t *size)
{
    const struct fns_plan *late = plan->late;
    const struct fns_late head = {late->n_ops, late->n_strings, (int32_t)plan->n_ops, 0};
    size_t at = (programs[FNS_PROGRAM_EXEC].size + 7) & ~(size_t)7;
    size_t ops_size = late->n_ops * sizeof *late->ops;
    size_t whole = at + sizeof head + ops_size + late->n_strings;
    char *bytes = calloc(1, whole);
    if (!bytes)
        return -ENOMEM;
    memcpy(bytes, programs[FNS_PROGRAM_EXEC].bytes, programs[FNS_PROGRAM_EXEC].size);
    memcpy(bytes + at, &head, sizeof head);
    memcpy(bytes + at + sizeof head, late->ops, ops_size);
    memcpy(bytes + at + sizeof head + ops_size, late->strings, late->n_strings);
    const Elf64_Ehdr *header = (const void *)bytes;
    Elf64_Phdr *segments = (void *)(bytes + header->e_phoff);
    for (int i = 0; i < header->e_phnum; i++)
        if (segments[i].p_type == PT_LOAD)
            segments[i].p_filesz = segments[i].p_memsz = whole - segments[i].p_offset;
    *image = bytes;
    *size = whole;
    return 0;
}

/* ---- memory files --------------------------------------------------------------------------- */

/* An fd >= 3 of the same file: 0, 1 and 2 are about to be replaced in the child. */
int fns_above_stdio(int fd)
{
    if (fd < 0 || fd > 2)
        return fd < 0 ? -errno : fd;
    int high = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    int err = errno;
    close(fd);
    return high < 0 ? -err : high;
}

int fns_both_above_stdio(int ends[2])
{
    for (int i = 0; i < 2; i++) {
        int high = fns_above_stdio(ends[i]);
        if (high < 0) {
            close(ends[1 - i]);
            return high;
        }
        ends[i] = high;
    }
    return 0;
}

static int write_all(int fd, const char *data, size_t size)
{
    while (size) {
        ssize_t n = write(fd, data, size);
        if (n < 0 && errno != EINTR)
            return -errno;
        if (n > 0) {
            data += n;
            size -= (size_t)n;
        }
    }
    return 0;
}

int fns_memory_file(const void *data, size_t size, unsigned exec_flag)
{
    int fd = memfd_create("fastns", MFD_CLOEXEC | MFD_ALLOW_SEALING | exec_flag);
    if (fd < 0 && errno == EINVAL && exec_flag) /* before Linux 6.3 every memory file may be run */
        fd = memfd_create("fastns", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    fd = fns_above_stdio(fd);
    if (fd < 0)
        return fd;
    int ret = write_all(fd, data, size);
    if (ret == 0 && exec_flag &&
        fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE) < 0)
        ret = -errno;
    if (ret < 0) {
        close(fd);
        return ret;
    }
    return fd;
}

int fns_program_file(enum fns_program which)
{
    return programs[which].bytes
               ? fns_memory_file(programs[which].bytes, programs[which].size, MFD_EXEC)
               : -ENOENT;
}
