/* Packing and reading a plan file. Runs in the parent. */
#define _GNU_SOURCE
#include "planfile.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>

static const char magic[8] = "fnsplan";

/* A part of the file. */
struct part {
    uint64_t offset, size;
};

/* A hint in the file: offsets into the texts. */
struct packed_hint {
    uint16_t stage, detail;
    int32_t err;
    uint32_t path, text;
};

/* The texts are one part; what is said of them are offsets into it. Lists are one text after the other. */
struct header {
    char magic[8];
    struct fns_identity identity;
    uint64_t size;
    int64_t timeout_ns;
    uint64_t max_output;
    struct fns_plan plan; /* its pointers mean nothing here */
    struct part ops, strings, hints, texts;
    uint32_t envp, n_envp, directories, n_directories, cwd, maps[2], inotify;
};

/* ---- who runs this --------------------------------------------------------------------------- */

/* The first line of a small file, without its end. Its length, or -errno. */
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
    memset(identity, 0,
           sizeof *identity); /* what lies between the fields is compared, and written */
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

struct packer {
    char *base; /* NULL on the first round, which only measures */
    size_t used;
};

static size_t round_up(size_t size)
{
    return (size + 7) & ~(size_t)7;
}

static size_t put(struct packer *packer, const void *data, size_t size)
{
    size_t at = packer->used;
    if (packer->base && size)
        memcpy(packer->base + at, data, size);
    packer->used += size;
    return at;
}

static struct part put_part(struct packer *packer, const void *data, size_t size)
{
    packer->used = round_up(packer->used);
    return (struct part){put(packer, data, size), size};
}

static uint32_t put_text(struct packer *packer, size_t texts, const char *text)
{
    return (uint32_t)(put(packer, text, strlen(text) + 1) - texts);
}

static uint32_t put_list(struct packer *packer, size_t texts, char *const *list, uint32_t *n)
{
    size_t at = packer->used;
    for (*n = 0; list[*n]; ++*n)
        put_text(packer, texts, list[*n]);
    return (uint32_t)(at - texts);
}

static size_t pack(char *base, const struct fns_planfile *file, const struct fns_identity *identity)
{
    struct packer packer = {.base = base, .used = sizeof(struct header)};
    struct header header;
    memset(&header, 0, sizeof header); /* nothing of this process's memory goes out */
    memcpy(header.magic, magic, sizeof magic);
    header.identity = *identity;
    header.timeout_ns = file->timeout_ns;
    header.max_output = file->max_output;
    header.plan = file->plan;
    header.plan.file = NULL;
    header.plan.ops = NULL;
    header.plan.strings = NULL;
    const struct fns_plan *plan = &file->plan;
    header.ops = put_part(&packer, plan->ops, plan->n_ops * sizeof *plan->ops);
    header.strings = put_part(&packer, plan->strings, plan->n_strings);
    header.texts = put_part(&packer, "", 1);
    size_t texts = header.texts.offset;
    header.cwd = put_text(&packer, texts, file->cwd);
    header.inotify = put_text(&packer, texts, file->inotify);
    for (int i = 0; i < 2; i++)
        header.maps[i] = put_text(&packer, texts, file->maps[i]);
    header.envp = put_list(&packer, texts, file->envp, &header.n_envp);
    header.directories = put_list(&packer, texts, file->directories, &header.n_directories);
    size_t hint_texts = packer.used;
    for (uint32_t i = 0; i < file->n_hints; i++) {
        put_text(&packer, texts, file->hints[i].path);
        put_text(&packer, texts, file->hints[i].text);
    }
    header.texts.size = packer.used - texts;
    header.hints = put_part(&packer, NULL, 0);
    for (uint32_t i = 0; i < file->n_hints; i++) {
        const struct fns_hint *hint = &file->hints[i];
        uint32_t path = (uint32_t)(hint_texts - texts),
                 text = path + (uint32_t)strlen(hint->path) + 1;
        const struct packed_hint packed = {hint->stage, hint->detail, hint->err, path, text};
        put(&packer, &packed, sizeof packed);
        hint_texts += strlen(hint->path) + strlen(hint->text) + 2;
    }
    header.hints.size = packer.used - header.hints.offset;
    header.size = packer.used;
    if (base)
        memcpy(base, &header, sizeof header);
    return packer.used;
}

int fns_planfile_pack(const struct fns_planfile *file, const struct fns_identity *identity,
                      void **bytes, size_t *size)
{
    *size = pack(NULL, file, identity);
    *bytes = calloc(1, *size);
    if (!*bytes)
        return -ENOMEM;
    pack(*bytes, file, identity);
    return 0;
}

/* ---- reading --------------------------------------------------------------------------------- */

/* A part as so many items of a size; NULL: it does not lie in the file, or is not just that long. */
static const void *part_at(const char *bytes, size_t size, struct part part, uint64_t n,
                           size_t each)
{
    if (part.offset > size || part.size > size - part.offset || part.offset % 8)
        return NULL;
    return n <= UINT32_MAX && n * each == part.size ? bytes + part.offset : NULL;
}

/* Where the pointers of a plan lead. 0 or -EINVAL. */
static int open_plan(const char *bytes, size_t size, struct part ops, struct part strings,
                     const struct fns_plan *packed, struct fns_plan *plan)
{
    int bad;
    *plan = *packed;
    plan->sandbox = NULL;
    plan->file = NULL;
    plan->ops = part_at(bytes, size, ops, plan->n_ops, sizeof *plan->ops);
    plan->strings = part_at(bytes, size, strings, plan->n_strings, 1);
    if (!plan->ops || !plan->strings || (plan->options & FNS_PLAN_SERVER))
        return -EINVAL;
    return fns_plan_check(plan, &bad);
}

/* The text at an offset of the texts, which end with NUL; NULL: it lies outside. */
static const char *text_at(const char *texts, uint64_t size, uint64_t offset)
{
    return offset < size ? texts + offset : NULL;
}

/* A list of texts as an array that NULL ends, to be freed. 0 or a fault. */
static int open_list(const char *texts, uint64_t size, uint64_t offset, uint32_t n,
                     char *const **list)
{
    if (n > size || offset > size)
        return FNS_PLANFILE_DAMAGED;
    char **texts_of = calloc(n + 1ul, sizeof *texts_of);
    *list = texts_of;
    if (!texts_of)
        return FNS_PLANFILE_NO_MEMORY;
    for (uint32_t i = 0; i < n; i++) {
        const char *text = text_at(texts, size, offset);
        if (!text)
            return FNS_PLANFILE_DAMAGED;
        texts_of[i] = (char *)(uintptr_t)text;
        offset += strlen(text) + 1;
    }
    return 0;
}

static int open_hints(const char *texts, uint64_t size, const struct packed_hint *packed,
                      struct fns_planfile *file)
{
    file->hints = calloc(file->n_hints + 1ul, sizeof *file->hints);
    if (!file->hints)
        return FNS_PLANFILE_NO_MEMORY;
    for (uint32_t i = 0; i < file->n_hints; i++) {
        file->hints[i] = (struct fns_hint){packed[i].stage, packed[i].detail, packed[i].err,
                                           text_at(texts, size, packed[i].path),
                                           text_at(texts, size, packed[i].text)};
        if (!file->hints[i].path || !file->hints[i].text)
            return FNS_PLANFILE_DAMAGED;
    }
    return 0;
}

static int open_texts(const char *bytes, size_t size, const struct header *header,
                      struct fns_planfile *file)
{
    const char *texts = part_at(bytes, size, header->texts, header->texts.size, 1);
    uint64_t n = header->texts.size;
    file->n_hints = (uint32_t)(header->hints.size / sizeof(struct packed_hint));
    const struct packed_hint *hints =
        part_at(bytes, size, header->hints, file->n_hints, sizeof *hints);
    if (!texts || !n || texts[n - 1] || !hints)
        return FNS_PLANFILE_DAMAGED;
    file->cwd = text_at(texts, n, header->cwd);
    file->inotify = text_at(texts, n, header->inotify);
    file->maps[0] = text_at(texts, n, header->maps[0]);
    file->maps[1] = text_at(texts, n, header->maps[1]);
    if (!file->cwd || !file->inotify || !file->maps[0] || !file->maps[1])
        return FNS_PLANFILE_DAMAGED;
    /* A namespace to join is made where the plan joins one, and only there. */
    if ((file->plan.id_map == FNS_ID_MAP_RANGE) != (*file->maps[0] && *file->maps[1]))
        return FNS_PLANFILE_DAMAGED;
    int fault = open_list(texts, n, header->envp, header->n_envp, &file->envp);
    if (!fault)
        fault = open_list(texts, n, header->directories, header->n_directories, &file->directories);
    return fault ? fault : open_hints(texts, n, hints, file);
}

static int is_callers(const struct fns_identity *one, const struct fns_identity *other)
{
    return !memcmp(one->uids, other->uids, sizeof one->uids) &&
           !memcmp(one->gids, other->gids, sizeof one->gids) &&
           one->capabilities == other->capabilities && one->userns == other->userns &&
           one->oom_protected == other->oom_protected;
}

/* The first thing in which a file is not for `identity`; 0: it is. */
static int compare(const struct fns_identity *made_for, const struct fns_identity *identity)
{
    if (memcmp(made_for->build, identity->build, sizeof identity->build) != 0)
        return FNS_PLANFILE_BUILD;
    if (memcmp(made_for->machine, identity->machine, sizeof identity->machine) != 0)
        return FNS_PLANFILE_MACHINE;
    return is_callers(made_for, identity) ? 0 : FNS_PLANFILE_CALLER;
}

int fns_planfile_read(const void *bytes, size_t size, const struct fns_identity *identity,
                      struct fns_identity *made_for, struct fns_planfile *file)
{
    /* The build comes first in the file: of another one not even the header's size is known. */
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
    file->timeout_ns = header.timeout_ns;
    file->max_output = header.max_output;
    if (open_plan(bytes, size, header.ops, header.strings, &header.plan, &file->plan) < 0)
        return FNS_PLANFILE_DAMAGED;
    fault = open_texts(bytes, size, &header, file);
    if (fault)
        fns_planfile_free(file);
    return fault;
}

void fns_planfile_free(struct fns_planfile *file)
{
    free((void *)(uintptr_t)file->envp);
    free((void *)(uintptr_t)file->directories);
    free(file->hints);
    file->envp = file->directories = NULL;
    file->hints = NULL;
}
