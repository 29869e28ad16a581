/* The full stack between two ranks, for links.c: a queue pair that a C loop posts to and polls, the
 * engine's rounds, the mirror, the connection and the link; or, on one host, the shared segment. */
#ifndef LINKS_STACK_H
#define LINKS_STACK_H

#include <jetstream/js_api.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define LINKS_STACK_MESSAGE_BYTES (1u << 20) /* of a stream */
#define LINKS_STACK_SHM 0u                   /* kind: both ranks on one host */

/* How the other rank is reached; told out of band. */
typedef struct links_stack_address {
    js_link_address link;
    int32_t pid; /* on one host: where the segment is */
    int32_t fd;
} links_stack_address;

typedef struct links_stack links_stack;

/* Opens rank `role` of two. kind: LINKS_STACK_SHM, or that of the link at `place`. */
links_stack *links_stack_open(uint32_t kind, uint32_t role, const js_link_config *config,
                              links_stack_address *own);
void links_stack_connect(links_stack *stack, const links_stack_address *peer);
/* Messages, or puts with a signal, there and back; samples [count - warm], in ticks. */
void links_stack_ping(links_stack *stack, bool puts, uint32_t bytes, uint32_t count, uint32_t warm,
                      uint64_t *samples);
void links_stack_pong(links_stack *stack, bool puts, uint32_t bytes, uint32_t count);
/* Goes once round all rings, with the other rank: the first lap meets pages that are not there. */
void links_stack_warm(links_stack *stack);
/* `count` messages or puts of LINKS_STACK_MESSAGE_BYTES one way, and an answer to the last. */
void links_stack_stream(links_stack *stack, bool puts, uint32_t count);
void links_stack_sink(links_stack *stack, bool puts, uint32_t count);
/* What the connection has sent and received so far, by js_rel's names; -1: there is none. */
int64_t links_stack_counter(links_stack *stack, const char *name);
/* Frees what a process holds; the other rank is done by then, or soon. */
void links_stack_close(links_stack *stack);

#endif
