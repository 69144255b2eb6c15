/* Packs and reads a plan file. Runs in the caller. */
#define _GNU_SOURCE
#include "planfile.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "caller/pack.h"

static const char magic[8] = "fnsplan";

/* The start of the file. Each pointer in it is an offset from here. */
struct header {
    char magic[8];
    struct fns_identity identity;
    uint64_t size;
    struct fns_planfile file;
};

/* ---- who runs this --------------------------------------------------------------------------- */

/* Reads the first line of a small file, without the newline. Its length, or -errno. */
static int read_line(const char *path, char *line, size_t size)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, line, size - 1);
    int ret = n < 0 ? -errno : 0;
    if (fd >= 0)
        close(fd);
    line[n < 0 ? 0 : n] = 0;
    line[strcspn(line, "\n")] = 0;
    return ret < 0 ? ret : (int)strlen(line);
}

int fns_identify(struct fns_identity *identity)
{
    struct utsname names;
    struct stat space;
    char id[48], score[16];
    memset(identity, 0, sizeof *identity); /* unused bytes are compared and written too */
    snprintf(identity->build, sizeof identity->build, "%s", FNS_BUILD);
    if (uname(&names) < 0)
        return -errno;
    if (read_line("/etc/machine-id", id, sizeof id) <= 0)
        snprintf(id, sizeof id, "without a machine-id");
    snprintf(identity->machine, sizeof identity->machine, "Linux %.60s %.60s, %s", names.release,
             names.machine, id);
    getresuid(&identity->uids[0], &identity->uids[1], &identity->uids[2]);
    getresgid(&identity->gids[0], &identity->gids[1], &identity->gids[2]);
    int ret = fns_capabilities(&identity->capabilities);
    if (ret < 0)
        return ret;
    if (stat("/proc/self/ns/user", &space) < 0)
        return -errno;
    identity->userns = space.st_ino;
    ret = read_line("/proc/self/oom_score_adj", score, sizeof score);
    identity->oom_protected = score[0] == '-';
    return ret < 0 ? ret : 0;
}

/* ---- packing --------------------------------------------------------------------------------- */

static struct fns_hint *pack_hints(struct fns_packer *packer, const struct fns_planfile *file)
{
    size_t at = (size_t)fns_pack(packer, NULL, file->n_hints * sizeof *file->hints);
    for (uint32_t i = 0; i < file->n_hints; i++) {
        struct fns_hint hint = file->hints[i];
        hint.path = fns_pack_text(packer, hint.path);
        hint.text = fns_pack_text(packer, hint.text);
        fns_pack_at(packer, at + i * sizeof hint, &hint, sizeof hint);
    }
    return (struct fns_hint *)at;
}

int fns_planfile_pack(const struct fns_planfile *file, const struct fns_identity *identity,
                      void **bytes, size_t *size)
{
    struct header header;
    struct fns_packer packer = {.bytes = NULL};
    struct fns_planfile *packed = &header.file;
    memset(&header, 0, sizeof header); /* otherwise the padding would leak this process's memory */
    fns_pack(&packer, NULL, sizeof header);
    memcpy(header.magic, magic, sizeof magic);
    header.identity = *identity;
    *packed = *file;
    packed->plan.file = NULL;
    fns_pack_plan(&packer, &packed->plan);
    packed->envp = fns_pack_list(&packer, file->envp);
    packed->directories = fns_pack_list(&packer, file->directories);
    packed->hints = pack_hints(&packer, file);
    packed->cwd = fns_pack_text(&packer, file->cwd);
    packed->inotify = fns_pack_text(&packer, file->inotify);
    for (int i = 0; i < 2; i++)
        packed->maps[i] = fns_pack_text(&packer, file->maps[i]);
    header.size = *size = packer.used;
    fns_pack_at(&packer, 0, &header, sizeof header);
    *bytes = packer.bytes;
    return packer.bytes ? 0 : -ENOMEM;
}

/* ---- reading --------------------------------------------------------------------------------- */

static int open_hints(char *bytes, size_t size, struct fns_planfile *file)
{
    const void *hints = file->hints;
    if (fns_open_items(bytes, size, file->n_hints, sizeof *file->hints, &hints) < 0)
        return -EPROTO;
    file->hints = (struct fns_hint *)(uintptr_t)hints;
    for (uint32_t i = 0; i < file->n_hints; i++)
        if (fns_open_text(bytes, size, &file->hints[i].path) < 0 ||
            fns_open_text(bytes, size, &file->hints[i].text) < 0)
            return -EPROTO;
    return 0;
}

/* Turns the offsets into pointers. The plan is checked last: a damaged file may have items that overlap. */
static int open_file(char *bytes, size_t size, struct fns_planfile *file)
{
    struct fns_plan *plan = &file->plan;
    int bad;
    plan->sandbox = NULL;
    plan->file = NULL;
    if (fns_open_plan(bytes, size, plan) < 0 || fns_open_list(bytes, size, &file->envp) < 0 ||
        fns_open_list(bytes, size, &file->directories) < 0 || open_hints(bytes, size, file) < 0)
        return -EPROTO;
    const char **texts[] = {&file->cwd, &file->inotify, &file->maps[0], &file->maps[1]};
    for (int i = 0; i < 4; i++)
        if (fns_open_text(bytes, size, texts[i]) < 0)
            return -EPROTO;
    /* The maps are for the user namespace that the plan joins. */
    if ((plan->id_map == FNS_ID_MAP_RANGE) != (*file->maps[0] && *file->maps[1]) ||
        plan->options & FNS_PLAN_SERVER)
        return -EINVAL;
    return fns_plan_check(plan, &bad);
}

static int is_callers(const struct fns_identity *one, const struct fns_identity *other)
{
    return !memcmp(one->uids, other->uids, sizeof one->uids) &&
           !memcmp(one->gids, other->gids, sizeof one->gids) &&
           one->capabilities == other->capabilities && one->userns == other->userns &&
           one->oom_protected == other->oom_protected;
}

/* The first reason why a file is not for `identity`; 0: none. */
static int compare(const struct fns_identity *made_for, const struct fns_identity *identity)
{
    if (memcmp(made_for->build, identity->build, sizeof identity->build) != 0)
        return FNS_PLANFILE_BUILD;
    if (memcmp(made_for->machine, identity->machine, sizeof identity->machine) != 0)
        return FNS_PLANFILE_MACHINE;
    return is_callers(made_for, identity) ? 0 : FNS_PLANFILE_CALLER;
}

int fns_planfile_read(void *bytes, size_t size, const struct fns_identity *identity,
                      struct fns_identity *made_for, struct fns_planfile *file)
{
    /* Look at the build first: another build may have another header. */
    const size_t known = offsetof(struct header, identity) + sizeof identity->build;
    struct header header;
    memset(file, 0, sizeof *file);
    memset(made_for, 0, sizeof *made_for);
    memset(&header, 0, sizeof header);
    if (size < known || memcmp(bytes, magic, sizeof magic) != 0)
        return FNS_PLANFILE_NO_PLAN;
    memcpy(&header, bytes, size < sizeof header ? size : sizeof header);
    *made_for = header.identity;
    made_for->build[sizeof made_for->build - 1] = 0;
    made_for->machine[sizeof made_for->machine - 1] = 0;
    int fault = compare(&header.identity, identity);
    if (fault == FNS_PLANFILE_BUILD)
        return fault;
    if (size < sizeof header || header.size != size)
        return FNS_PLANFILE_DAMAGED;
    if (fault)
        return fault;
    if (open_file(bytes, size, &header.file) < 0)
        return FNS_PLANFILE_DAMAGED;
    *file = header.file;
    return 0;
}
