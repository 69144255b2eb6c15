/* The slots that sandboxes start in: memory that is made once and used again. Runs in a template's server. */
#include "slots.h"

#include "linux.h"

static struct fns_slot *slots[FNS_MAX_SLOTS];
static int n_slots;

static struct fns_slot *make_slot(long *error)
{
    *error = -ENOMEM;
    if (n_slots == FNS_MAX_SLOTS)
        return 0;
    struct fns_slot *slot = fns_map(sizeof *slot, error);
    if (!slot)
        return 0;
    *error = fns_sys3(__NR_mprotect, slot->stack, FNS_PAGE, PROT_NONE);
    if (*error >= 0)
        return slots[n_slots++] = slot;
    FNS_IGNORE(fns_sys2(__NR_munmap, slot, sizeof *slot), "memory that nobody has touched");
    return 0; /* without a guard page it is not used */
}

struct fns_slot *fns_take_slot(long *error)
{
    struct fns_slot *slot = 0;
    for (int i = 0; i < n_slots && !slot; i++)
        if (!slots[i]->taken)
            slot = slots[i];
    if (!slot)
        slot = make_slot(error);
    if (slot && slot->mapped) {
        FNS_IGNORE(fns_sys2(__NR_munmap, slot->mapped, slot->mapped_size), "it only costs memory");
        slot->mapped = 0;
    }
    return slot;
}
