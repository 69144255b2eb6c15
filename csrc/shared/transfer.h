/* The records in which files go into a container and come out of it.
 *
 * Used by the caller, which is Python (src/fastns/_transfer.py), and by the program (program/transfer.c). A record is a
 * header, a name and then, for some kinds, more bytes. A directory is entered by its record, and left by LEAVE. The names
 * of entries are relative to it. The last record is END_ALL, or ERROR.
 *
 * Records may also be in a file that comes with a command (fns_args.files). They are put before its exec. If that fails,
 * ERROR replaces the first of them.
 */
#ifndef FNS_TRANSFER_H
#define FNS_TRANSFER_H

#include <stdint.h>

/* What a request asks for (fns_args.transfer). */
enum fns_transfer {
    FNS_TRANSFER_NONE, /* execute the command */
    FNS_TRANSFER_PUT,  /* make what the records on stdin describe; argv is not used */
    FNS_TRANSFER_READ, /* write each file argv[2...] to stdout, or an ERROR in its place */
    FNS_TRANSFER_GET,  /* write the file or the directory argv[2], with all below it, to stdout */
    FNS_TRANSFER_LIST  /* write the names in the directory argv[2] to stdout, as NAME */
};

enum fns_record_kind {
    FNS_RECORD_END_ALL,
    FNS_RECORD_ERROR, /* name: the path; error: errno. In GET: an entry of a type that is not transferred, EOPNOTSUPP */
    FNS_RECORD_FILE,      /* followed by BYTES and END */
    FNS_RECORD_BYTES,     /* `size` bytes follow; offset: where they belong */
    FNS_RECORD_END,       /* of a file; offset: its size. What no BYTES covered is a hole */
    FNS_RECORD_DIRECTORY, /* followed by its entries and LEAVE */
    FNS_RECORD_LEAVE,
    FNS_RECORD_LINK, /* `size` bytes follow: the target */
    FNS_RECORD_NAME
};

struct fns_record {
    uint32_t kind, mode; /* mode: permissions */
    uint32_t name_size;  /* without a NUL */
    int32_t error;
    uint64_t size, offset;
    int64_t time; /* of the last change, ns */
};

/* argv of READ and GET begins with the most bytes of data, in decimal: in READ of each file, in GET of all. More is EFBIG,
 * before anything of that file is sent; or, if the next argument is not empty, the rest of the file is left out, and `size`
 * of its FILE is the true size. LIST ignores these arguments. */

#endif
