/*
 * The floor: a hand-written all-reduce (sum, float32, in place) of two processes that does the
 * least work the hardware allows. It shares nothing with the product: an independent yardstick.
 *
 * Build: cc -O3 -march=native -o floor floor.c
 * Usage: floor [--back-to-back] [--symmetric] BYTES:ITERATIONS...
 * --symmetric: the ranks' arrays lie in memory that both can address, so nothing need be copied.
 * Prints one JSON line per size: percentiles of the slower rank of each iteration.
 */
#define _GNU_SOURCE
#include "floor.h"

/*
 * Up to 1 KiB: each line carries its own flag. Two buffers alternate: a rank that completes
 * operation n has seen the peer's lines of n, so the peer has read its lines of n - 1.
 * Copies whole lines; x is padded to allow that.
 */
static void floor_lines(js_floor *floor)
{
    uint64_t seq = ++floor->line_seq;
    js_floor_line *own = floor->own->lines[seq & 1];
    js_floor_line *peer = floor->peer->lines[seq & 1];
    size_t lines = (floor->count + FLOOR_LINE_FLOATS - 1) / FLOOR_LINE_FLOATS;
    for (size_t i = 0; i < lines; i++) {
        floor_copy(own[i].values, floor->x + i * FLOOR_LINE_FLOATS, FLOOR_LINE_FLOATS);
        floor_store(&own[i].seq, seq);
    }
    for (size_t i = 0; i < lines; i++) {
        while (floor_load(&peer[i].seq) != seq) {
        }
        floor_add(floor->x + i * FLOOR_LINE_FLOATS, peer[i].values, FLOOR_LINE_FLOATS);
    }
}

static float *floor_slot(js_floor_rank *rank, unsigned ring, const js_floor *floor, uint64_t chunk)
{
    float *base = (float *)(void *)rank->ring[ring];
    return base + (chunk % floor->slots) * floor->chunk_floats;
}

static size_t floor_chunk_count(const js_floor *floor, size_t total, size_t chunk)
{
    size_t left = total - chunk * floor->chunk_floats;
    return left < floor->chunk_floats ? left : floor->chunk_floats;
}

/*
 * One-shot, streamed: publish x chunk by chunk, at most `ahead` chunks before the own fold, and add
 * the peer's chunks. Having received chunk c, a rank knows that the peer has consumed every chunk
 * up to c - ahead; so 2 * ahead slots need no counter of consumed chunks.
 */
static void floor_ring(js_floor *floor)
{
    size_t chunks = (floor->count + floor->chunk_floats - 1) / floor->chunk_floats;
    uint64_t before = floor->chunks_before;
    size_t sent = 0;
    for (size_t done = 0; done < chunks; done++) {
        for (; sent < chunks && sent < done + floor->ahead; sent++) {
            floor_copy(floor_slot(floor->own, 0, floor, before + sent),
                       floor->x + sent * floor->chunk_floats,
                       floor_chunk_count(floor, floor->count, sent));
            floor_store(&floor->own->published, before + sent + 1);
        }
        floor_wait(&floor->peer->published, before + done + 1);
        floor_add(floor->x + done * floor->chunk_floats,
                  floor_slot(floor->peer, 0, floor, before + done),
                  floor_chunk_count(floor, floor->count, done));
    }
    floor->chunks_before = before + chunks;
}

/*
 * Two-shot, streamed: send the peer's half, fold the own half, return the result. Step s sends
 * chunk s, folds chunk s - ahead and takes the result of chunk s - 2 * ahead; what a rank receives
 * in step s proves that the peer has consumed all but the last 2 * ahead + 1 chunks of both rings.
 */
static void floor_two_shot(js_floor *floor)
{
    size_t half = floor->count / 2;
    size_t chunks = (half + floor->chunk_floats - 1) / floor->chunk_floats;
    uint64_t before = floor->chunks_before;
    float *mine = floor->x + floor->rank * half;
    float *theirs = floor->x + (1 - floor->rank) * half;
    for (size_t step = 0; step < chunks + 2 * floor->ahead; step++) {
        if (step < chunks) {
            floor_copy(floor_slot(floor->own, 0, floor, before + step),
                       theirs + step * floor->chunk_floats, floor_chunk_count(floor, half, step));
            floor_store(&floor->own->published, before + step + 1);
        }
        if (step >= floor->ahead && step - floor->ahead < chunks) {
            size_t chunk = step - floor->ahead;
            floor_wait(&floor->peer->published, before + chunk + 1);
            floor_add_to_both(mine + chunk * floor->chunk_floats,
                              floor_slot(floor->own, 1, floor, before + chunk),
                              floor_slot(floor->peer, 0, floor, before + chunk),
                              floor_chunk_count(floor, half, chunk));
            floor_store(&floor->own->folded, before + chunk + 1);
        }
        if (step >= 2 * floor->ahead) {
            size_t chunk = step - 2 * floor->ahead;
            floor_wait(&floor->peer->folded, before + chunk + 1);
            floor_copy(theirs + chunk * floor->chunk_floats,
                       floor_slot(floor->peer, 1, floor, before + chunk),
                       floor_chunk_count(floor, half, chunk));
        }
    }
    floor->chunks_before = before + chunks;
}

static void floor_read_peer(const js_floor *floor, float *target, const float *source, size_t count)
{
    struct iovec local = { .iov_base = target, .iov_len = count * sizeof(float) };
    struct iovec remote = { .iov_base = (void *)(uintptr_t)source, .iov_len = local.iov_len };
    if (process_vm_readv(floor->peer->pid, &local, 1, &remote, 1, 0) != (ssize_t)local.iov_len) {
        floor_fail("process_vm_readv");
    }
}

/*
 * Single copy by the kernel (process_vm_readv), for sizes that dwarf a system call: fold the own
 * half from the peer's private memory, then fetch the peer's half, chunk by chunk. Meets at the
 * start (the peer's input is complete) and at the end (the peer has read its copy).
 */
static void floor_kernel(js_floor *floor)
{
    size_t half = floor->count / 2;
    size_t chunks = (half + floor->chunk_floats - 1) / floor->chunk_floats;
    uint64_t before = floor->chunks_before;
    float *mine = floor->x + floor->rank * half;
    float *theirs = floor->x + (1 - floor->rank) * half;
    floor_store(&floor->own->published, before + 1);
    floor_wait(&floor->peer->published, before + 1);
    for (size_t step = 0; step <= chunks; step++) {
        if (step < chunks) {
            size_t count = floor_chunk_count(floor, half, step);
            floor_read_peer(floor, floor->scratch, mine + step * floor->chunk_floats, count);
            floor_add(mine + step * floor->chunk_floats, floor->scratch, count);
            floor_store(&floor->own->folded, before + step + 1);
        }
        if (step > 0) {
            float *target = theirs + (step - 1) * floor->chunk_floats;
            floor_wait(&floor->peer->folded, before + step);
            floor_read_peer(floor, target, target, floor_chunk_count(floor, half, step - 1));
        }
    }
    floor->chunks_before = before + chunks + 1;
    floor_store(&floor->own->published, floor->chunks_before);
    floor_wait(&floor->peer->published, floor->chunks_before);
}

/*
 * Fold the own half where the peer put it, and write the sum there too: each line goes to the
 * folding rank and comes back. Symmetric arrays need no copies. Meets at the start and at the end.
 */
static void floor_lend(js_floor *floor)
{
    size_t half = floor->count / 2;
    size_t begin = floor->rank * half;
    float *theirs = floor->x + (1 - floor->rank) * half;
    float *lent = (float *)(void *)floor->own->ring[0];
    float *source = floor->peer_x ? floor->peer_x + begin : (void *)floor->peer->ring[0];
    uint64_t now = ++floor->chunks_before;
    if (floor->peer_x == NULL) {
        floor_copy(lent, theirs, half);
    }
    floor_store(&floor->own->published, now);
    floor_wait(&floor->peer->published, now);
    floor_add_to_both(floor->x + begin, source, source, half);
    floor_store(&floor->own->folded, now);
    floor_wait(&floor->peer->folded, now);
    if (floor->peer_x == NULL) {
        floor_copy(theirs, lent, half);
    }
}

/*
 * Which of them is fastest depends on the size and on the machine's caches, so each run tries all.
 * A ring larger than the second-level cache can win at middle sizes: a slot comes round again
 * only after the peer's copy of it has been evicted, so that writing it invalidates nobody's line.
 */
static const js_floor_method floor_methods[] = {
    { "lines", floor_lines, 0, 0, 0, 1 << 10 },
    { "ring-64k", floor_ring, 64 << 10, 4, 1 << 20, SIZE_MAX },
    { "ring-2k", floor_ring, 2 << 10, 3, 14 << 10, 1 << 20 },
    { "ring-2k-deep", floor_ring, 2 << 10, 3, 4 << 20, 1 << 20 },
    { "ring-16k-deep", floor_ring, 16 << 10, 2, 4 << 20, SIZE_MAX },
    { "ring-32k-deep", floor_ring, 32 << 10, 2, 8 << 20, SIZE_MAX },
    { "ring-128k-deep", floor_ring, 128 << 10, 3, 4 << 20, SIZE_MAX },
    { "two-shot-2k", floor_two_shot, 2 << 10, 2, 10 << 10, 1 << 20 },
    { "two-shot-16k", floor_two_shot, 16 << 10, 2, 1 << 20, SIZE_MAX },
    { "two-shot-64k", floor_two_shot, 64 << 10, 3, 1 << 20, SIZE_MAX },
    { "two-shot-128k-deep", floor_two_shot, 128 << 10, 2, 4 << 20, SIZE_MAX },
    { "two-shot-256k", floor_two_shot, 256 << 10, 1, 1 << 20, SIZE_MAX },
    { "kernel-256k", floor_kernel, 256 << 10, 0, 0, SIZE_MAX },
    { "lend", floor_lend, 0, 0, 0, FLOOR_RING_BYTES },
    { "zero-copy", floor_lend, 0, 0, 0, SIZE_MAX },
};

/*
 * Both ranks leave at the same tick: a margin after the later arrival. Arrivals alternate between
 * two words, so that a fast rank's next arrival cannot overwrite one that its peer has yet to read;
 * a fresh arrival is recognised by being later than the last start.
 */
static uint64_t floor_meet(js_floor *floor)
{
    uint64_t slot = floor->meetings++ & 1;
    uint64_t last = __rdtsc();
    uint64_t peer;
    uint64_t now;
    floor_store(&floor->own->arrival_ticks[slot], last);
    while ((peer = floor_load(&floor->peer->arrival_ticks[slot])) <= floor->start_ticks) {
    }
    floor->start_ticks = (peer > last ? peer : last) + FLOOR_START_MARGIN_TICKS;
    while ((now = __rdtsc()) < floor->start_ticks) {
    }
    return now;
}

static void floor_use(js_floor *floor, const js_floor_method *method)
{
    floor->chunk_floats = method->chunk_bytes / sizeof(float);
    floor->ahead = method->ahead;
    floor->slots = method->ring_bytes / (method->chunk_bytes + (method->chunk_bytes == 0));
    (void)floor_meet(floor); /* the rings change their layout: both ranks must have drained them */
}

/* One operation on data that differs at each index; every element of the result is checked. */
static void floor_verify(js_floor *floor, const js_floor_method *method)
{
    for (size_t i = 0; i < floor->count; i++) {
        floor->x[i] = (float)(i % 1021 + floor->rank);
    }
    (void)floor_meet(floor);
    method->run(floor);
    for (size_t i = 0; i < floor->count; i++) {
        floor->own->wrong_count += floor->x[i] != (float)(2 * (i % 1021) + 1);
    }
}

/*
 * Times `iterations` operations. The input is rewritten and the ranks meet before each one, outside
 * the timed window; back to back they do neither, and the values soon overflow to infinity.
 */
static void floor_measure(js_floor *floor, const js_floor_method *method, size_t iterations,
                          bool back_to_back)
{
    unsigned processor;
    for (size_t i = 0; i < iterations; i++) {
        uint64_t begin;
        if (back_to_back) {
            begin = __rdtsc();
            method->run(floor);
            floor->own->latency_ticks[i] = __rdtscp(&processor) - begin;
            continue;
        }
        for (size_t k = 0; k < floor->count; k++) {
            floor->x[k] = (float)(i % 8 + floor->rank);
        }
        begin = floor_meet(floor);
        method->run(floor);
        floor->own->latency_ticks[i] = __rdtscp(&processor) - begin;
        floor->own->wrong_count += floor->x[floor->count - 1] != (float)(2 * (i % 8) + 1);
    }
    (void)floor_meet(floor);
}

static int floor_order(const void *left, const void *right)
{
    uint64_t a = *(const uint64_t *)left;
    uint64_t b = *(const uint64_t *)right;
    return (a > b) - (a < b);
}

/* Sorts the slower rank's latency of each iteration into `sorted`. Leaves the samples alone. */
static void floor_slower(const js_floor *floor, uint64_t *sorted, size_t iterations)
{
    for (size_t i = 0; i < iterations; i++) {
        uint64_t own = floor->own->latency_ticks[i];
        uint64_t peer = floor->peer->latency_ticks[i];
        sorted[i] = own > peer ? own : peer;
    }
    qsort(sorted, iterations, sizeof(sorted[0]), floor_order);
}

/*
 * The median time of one line from core to core. A hypervisor may move the virtual cores closer
 * together or further apart at any time; this tells which of them a measurement met.
 */
static uint64_t floor_probe(js_floor *floor, uint64_t *sorted)
{
    (void)floor_meet(floor);
    for (size_t i = 0; i < FLOOR_ECHOES; i++) {
        uint64_t begin = __rdtsc();
        floor->echoes++;
        if (floor->rank == 0) {
            floor_store(&floor->own->echo, floor->echoes);
        }
        floor_wait(&floor->peer->echo, floor->echoes);
        if (floor->rank != 0) {
            floor_store(&floor->own->echo, floor->echoes);
        }
        sorted[i] = (__rdtsc() - begin) / 2;
    }
    qsort(sorted, FLOOR_ECHOES, sizeof(sorted[0]), floor_order);
    return sorted[FLOOR_ECHOES / 2];
}

static bool floor_fits(const js_floor *floor, const js_floor_method *method)
{
    if (method->run == floor_kernel && !(floor->own->reads_peer && floor->peer->reads_peer)) {
        return false;
    }
    bool is_zero_copy = method->run == floor_lend && method->max_bytes == SIZE_MAX;
    if (floor->peer_x ? method->run == floor_kernel : is_zero_copy) {
        return false;
    }
    bool halves = method->run != floor_lines && method->run != floor_ring;
    if (halves && floor->count % FLOOR_RANKS != 0) {
        return false;
    }
    return floor->count * sizeof(float) <= method->max_bytes;
}

/* The method with the lowest median in a short trial; both ranks see the same samples and agree. */
static const js_floor_method *floor_choose(js_floor *floor, uint64_t *sorted, size_t iterations,
                                           bool back_to_back)
{
    const js_floor_method *best = &floor_methods[1]; /* fits any size */
    uint64_t best_ticks = UINT64_MAX;
    size_t trials = iterations < 60 ? 3 : iterations / 20;
    for (size_t i = 0; i < sizeof(floor_methods) / sizeof(floor_methods[0]); i++) {
        const js_floor_method *method = &floor_methods[i];
        if (!floor_fits(floor, method)) {
            continue;
        }
        floor_use(floor, method);
        floor_verify(floor, method);
        floor_measure(floor, method, trials, back_to_back);
        floor_slower(floor, sorted, trials);
        (void)floor_meet(floor); /* both have read the samples */
        if (sorted[trials / 2] < best_ticks) {
            best_ticks = sorted[trials / 2];
            best = method;
        }
    }
    floor_use(floor, best);
    return best;
}

static double floor_ticks_per_us(void)
{
    struct timespec from;
    struct timespec to;
    uint64_t begin = __rdtsc();
    double ns = 0.0;
    clock_gettime(CLOCK_MONOTONIC, &from);
    while (ns < 20e6) {
        clock_gettime(CLOCK_MONOTONIC, &to);
        ns = (double)(to.tv_sec - from.tv_sec) * 1e9 + (double)(to.tv_nsec - from.tv_nsec);
    }
    return (double)(__rdtsc() - begin) / (ns / 1e3);
}

static void *floor_map(size_t bytes, int sharing)
{
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, sharing | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        floor_fail("mmap");
    }
    (void)madvise(memory, bytes, MADV_HUGEPAGE); /* best effort */
    return memory;
}

static void floor_pin(unsigned rank)
{
    cpu_set_t allowed;
    cpu_set_t chosen;
    unsigned seen = 0;
    if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0) {
        floor_fail("sched_getaffinity");
    }
    CPU_ZERO(&chosen);
    for (unsigned cpu = 0; cpu < CPU_SETSIZE && CPU_COUNT(&chosen) == 0; cpu++) {
        if (CPU_ISSET(cpu, &allowed) && seen++ == rank) {
            CPU_SET(cpu, &chosen);
        }
    }
    if (CPU_COUNT(&chosen) == 0 || sched_setaffinity(0, sizeof(chosen), &chosen) != 0) {
        floor_fail("pinning: one core per rank is needed");
    }
}

/* Ties the process's life to its parent's, pins, faults memory in, tries the kernel's copy. */
static void floor_start(js_floor *floor, size_t x_bytes, pid_t parent)
{
    float probe;
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) != 0 || getppid() != parent) {
        floor_fail("parent is gone");
    }
    floor_pin(floor->rank);
    (void)prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY); /* for floor_read_peer; fails without Yama */
    alarm(FLOOR_LIMIT_S);
    memset(floor->x, 0, x_bytes);
    memset(floor->scratch, 0, FLOOR_SCRATCH_BYTES);
    memset(floor->own, 0, sizeof(*floor->own));
    floor->own->pid = getpid();
    (void)floor_meet(floor);
    struct iovec local = { .iov_base = &probe, .iov_len = sizeof(probe) };
    struct iovec remote = { .iov_base = floor->x, .iov_len = sizeof(probe) };
    floor->own->reads_peer = process_vm_readv(floor->peer->pid, &local, 1, &remote, 1, 0) > 0;
    (void)floor_meet(floor);
}

static void floor_parse_size(const char *text, size_t *bytes, size_t *iterations)
{
    char *end;
    *bytes = strtoull(text, &end, 10);
    *iterations = *end == ':' ? strtoull(end + 1, &end, 10) : 0;
    if (*end != '\0' || *bytes < 4 || *bytes % 4 != 0 || *bytes > 1 << 30 || *iterations < 1 ||
        *iterations > FLOOR_SAMPLES) {
        errno = EINVAL;
        floor_fail(text);
    }
}

static void floor_run(js_floor *floor, char **sizes, int sizes_count, bool back_to_back)
{
    static uint64_t sorted[FLOOR_SAMPLES];
    double per_us = floor_ticks_per_us();
    for (int i = 0; i < sizes_count; i++) {
        size_t bytes;
        size_t n;
        floor_parse_size(sizes[i], &bytes, &n);
        floor->count = bytes / sizeof(float);
        const js_floor_method *method = floor_choose(floor, sorted, n, back_to_back);
        floor_verify(floor, method);
        double before_us = (double)floor_probe(floor, sorted) / per_us;
        floor_measure(floor, method, n, back_to_back);
        double after_us = (double)floor_probe(floor, sorted) / per_us;
        if (floor->rank == 0) {
            floor_slower(floor, sorted, n);
            printf("{\"bytes\": %zu, \"p50_us\": %.3f, \"p99_us\": %.3f, \"p999_us\": %.3f, "
                   "\"iters\": %zu, \"line_us\": [%.3f, %.3f], \"method\": \"%s\"}\n",
                   bytes, (double)sorted[n / 2] / per_us, (double)sorted[n * 99 / 100] / per_us,
                   (double)sorted[n * 999 / 1000] / per_us, n, before_us, after_us, method->name);
            fflush(stdout);
        }
        (void)floor_meet(floor);
    }
}

int main(int argc, char **argv)
{
    int next = 1;
    bool back_to_back = next < argc && strcmp(argv[next], "--back-to-back") == 0;
    next += back_to_back;
    bool symmetric = next < argc && strcmp(argv[next], "--symmetric") == 0;
    next += symmetric;
    char **sizes = argv + next;
    int sizes_count = argc - next;
    size_t x_bytes = 0;
    for (int i = 0; i < sizes_count; i++) {
        size_t bytes;
        size_t iterations;
        floor_parse_size(sizes[i], &bytes, &iterations);
        x_bytes = bytes > x_bytes ? bytes : x_bytes;
    }
    x_bytes = (x_bytes + sizeof(js_floor_line) + 4095) & ~(size_t)4095; /* lines: whole ones */

    js_floor_rank *ranks = floor_map(FLOOR_RANKS * sizeof(js_floor_rank), MAP_SHARED);
    js_floor floor = { .x = floor_map(FLOOR_RANKS * x_bytes, symmetric ? MAP_SHARED : MAP_PRIVATE),
                       .scratch = floor_map(FLOOR_SCRATCH_BYTES, MAP_PRIVATE) };
    pid_t parent = getpid();
    pid_t grandparent = getppid();
    pid_t child = fork();
    if (child < 0) {
        floor_fail("fork");
    }
    floor.rank = child == 0;
    floor.own = &ranks[floor.rank];
    floor.peer = &ranks[1 - floor.rank];
    if (symmetric) {
        size_t floats = x_bytes / sizeof(float);
        floor.peer_x = floor.x + (1 - floor.rank) * floats;
        floor.x += floor.rank * floats;
    }
    floor_start(&floor, x_bytes, child == 0 ? parent : grandparent);
    floor_run(&floor, sizes, sizes_count, back_to_back);
    if (child == 0) {
        _exit(floor.own->wrong_count != 0);
    }
    int status;
    if (waitpid(child, &status, 0) != child || status != 0 || floor.own->wrong_count != 0) {
        fprintf(stderr, "floor: wrong results\n");
        return 1;
    }
    return 0;
}
