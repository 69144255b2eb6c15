/* What a server is requested to do (requests.c). */
#ifndef FNS_REQUESTS_H
#define FNS_REQUESTS_H

/* Reads a message of the control socket: who else ends the server, or a new connection. */
void fns_read_control(int control);

/* Reads a request of a connection, and carries it out. */
void fns_read_request(int connection);

/* The caller has shut a connection down, or closed it. */
void fns_hang_up(int connection);

#endif
