/* Where a command is looked for. Runs in the caller. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fastns.h"

char **fns_command_paths(const char *command, char *const *directories)
{
    char *const none[] = {NULL};
    int is_path = strchr(command, '/') != NULL;
    size_t n = 0, length = strlen(command), size = is_path ? length + 1 : 0;
    for (char *const *at = is_path ? none : directories; *at; at++, n++)
        size += strlen(*at) + length + 2;
    char **paths = malloc((n + is_path + 1) * sizeof *paths + size);
    if (!paths)
        return NULL;
    char *text = (char *)(paths + n + is_path + 1);
    for (size_t i = 0; i < n; i++) {
        paths[i] = text;
        text += sprintf(text, "%s/%s", directories[i], command) + 1;
    }
    if (is_path)
        paths[n++] = strcpy(text, command);
    paths[n] = NULL;
    return paths;
}
