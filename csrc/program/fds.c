/* Closing fds by the dozen. Runs in the program and in a template's sandboxes (child.h). */
#include "fds.h"

#include "shared/sys.h"

void fns_close_all(const int *fds, int n)
{
    for (int i = 0; i < n; i++)
        fns_close(fds[i]);
}

int fns_close_but(const int fds[3])
{
    int first = 3;
    for (;;) {
        int next = 0; /* the lowest that is kept */
        for (int i = 0; i < 3; i++)
            if (fds[i] >= first && (!next || fds[i] < next))
                next = fds[i];
        if (!next)
            return (int)fns_sys3(__NR_close_range, first, ~0u, 0);
        long result = next > first ? fns_sys3(__NR_close_range, first, next - 1, 0) : 0;
        if (result < 0)
            return (int)result;
        first = next + 1;
    }
}
