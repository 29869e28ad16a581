/* What the floor is made of: what a rank shows its peer, what it keeps, words that carry order. */
#ifndef FLOOR_H
#define FLOOR_H

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

enum {
    FLOOR_RANKS = 2,
    FLOOR_LINE_FLOATS = 14, /* payload beside the sequence number in one cache line */
    FLOOR_LINES = 20,       /* lines per buffer: 1 KiB of payload needs 19 */
    FLOOR_RING_BYTES = 8 << 20,
    FLOOR_SCRATCH_BYTES = 256 << 10,
    FLOOR_SAMPLES = 1 << 16,         /* most iterations of one size */
    FLOOR_ECHOES = 1000,             /* exchanges of one line in a probe */
    FLOOR_LIMIT_S = 120,             /* SIGALRM ends a run that hangs */
    FLOOR_START_MARGIN_TICKS = 1000, /* from the later arrival to the common start */
};

/* One cache line: payload and flag travel in one transfer. Writer: owner. seq is stored last. */
typedef struct {
    float values[FLOOR_LINE_FLOATS];
    uint64_t seq;
} js_floor_line;

/* What one rank shows the other. Everything here is written by its owner only. */
typedef struct {
    _Alignas(128) uint64_t arrival_ticks[2]; /* release; alternate, see floor_meet */
    _Alignas(128) uint64_t published;        /* release: chunks of the first stream */
    _Alignas(128) uint64_t folded;           /* release: chunks of the second stream */
    _Alignas(128) uint64_t echo;             /* release; see floor_probe */
    _Alignas(128) js_floor_line lines[2][FLOOR_LINES];
    _Alignas(4096) unsigned char ring[2][FLOOR_RING_BYTES];
    uint64_t latency_ticks[FLOOR_SAMPLES];
    uint64_t wrong_count;
    pid_t pid;
    bool reads_peer; /* process_vm_readv of the peer is permitted */
} js_floor_rank;

/* The private state of one rank. A private x lies at the same address in both processes. */
typedef struct {
    js_floor_rank *own;
    js_floor_rank *peer;
    unsigned rank;
    float *x;
    float *peer_x; /* NULL where arrays are private */
    float *scratch;
    size_t count;
    size_t chunk_floats;
    size_t ahead;
    size_t slots;
    uint64_t meetings;
    uint64_t start_ticks; /* of the last meeting */
    uint64_t echoes;
    uint64_t line_seq;
    uint64_t chunks_before; /* chunks of all operations before this one */
} js_floor;

typedef struct {
    const char *name;
    void (*run)(js_floor *floor);
    size_t chunk_bytes;
    size_t ahead;      /* chunks */
    size_t ring_bytes; /* at least 2 * ahead + 1 chunks */
    size_t max_bytes;  /* of an operation */
} js_floor_method;

static void floor_fail(const char *what)
{
    fprintf(stderr, "floor: %s: %s\n", what, strerror(errno));
    _exit(1);
}

static uint64_t floor_load(const uint64_t *word)
{
    return __atomic_load_n(word, __ATOMIC_ACQUIRE);
}

static void floor_store(uint64_t *word, uint64_t value)
{
    __atomic_store_n(word, value, __ATOMIC_RELEASE);
}

static void floor_wait(const uint64_t *word, uint64_t value)
{
    while (floor_load(word) < value) {
    }
}

static void floor_copy(float *restrict target, const float *restrict source, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        target[i] = source[i];
    }
}

static void floor_add(float *restrict target, const float *restrict source, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        target[i] += source[i];
    }
}

/* slot may be source. */
static void floor_add_to_both(float *restrict x, float *slot, const float *source, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        x[i] += source[i];
        slot[i] = x[i];
    }
}

#endif
