/*
 * What the reliability protocol costs: two connections in one process exchange chunks of 8 bytes,
 * each through encoding, CRC, decoding and both connections, without a link.
 *
 * Build: cc -O3 -D_GNU_SOURCE -o bench_rel bench/c/bench_rel.c csrc/rel/js_rel*.c \
 *        csrc/wire/js_*.c csrc/base/js_{assert,cpu,status}.c \
 *        -Icsrc/include -Icsrc/base -Icsrc/wire -Icsrc/rel
 * Usage: bench_rel [ROUNDS]
 * Prints nanoseconds per round trip: the median and the best of blocks of 1000.
 */
#include "js_rel.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define BLOCK 1000u

static uint32_t delivered[2];

static bool on_place(void *context, uint32_t channel, uint32_t offset, const uint8_t *payload,
                     uint32_t bytes)
{
    (void)context;
    (void)channel;
    (void)offset;
    (void)payload;
    return bytes != 0;
}

static void on_deliver(void *context, const js_rel_chunk *chunk)
{
    *(uint32_t *)context += chunk->bytes == 8;
}

static uint64_t clock_ns(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static js_rel *connection(uint16_t own)
{
    js_rel_config config = {
        .local_dcid = own,
        .remote_dcid = 1 - own,
        .mtu_bytes = 1500,
        .window = 128,
        .rto_min_ns = 5000000,
        .rto_max_ns = 100000000,
        .ack_delay_ns = 20000,
        .give_up_ns = 1000000000,
    };
    js_rel_sink sink = { on_place, on_deliver, NULL, &delivered[own] };
    js_rel *rel = aligned_alloc(JS_CACHE_LINE, js_rel_bytes());
    if (rel == NULL) {
        exit(1);
    }
    js_rel_init(rel, &config, &sink);
    js_rel_open(rel, 1, 1500);
    return rel;
}

/* Frames from one to the other, until there are none. */
static void pass(js_rel *from, js_rel *to, uint64_t now_ns)
{
    uint8_t bytes[1500];
    js_wire_frame frame;
    uint32_t count = js_rel_tx(from, now_ns, bytes);
    while (count != 0) {
        if (js_wire_decode(bytes, count, &frame) == JS_WIRE_OK) {
            (void)js_rel_rx(to, now_ns, &frame);
        }
        count = js_rel_tx(from, now_ns, bytes);
    }
}

static int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a;
    uint64_t y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

int main(int argc, char **argv)
{
    static const uint8_t payload[8];
    uint32_t blocks = (argc > 1 ? (uint32_t)atoi(argv[1]) : 2000000) / BLOCK;
    uint64_t *took_ns = calloc(blocks + 1, sizeof(*took_ns));
    js_rel *a = connection(0);
    js_rel *b = connection(1);
    js_rel_chunk chunk = { .payload = payload, .bytes = 8 };
    uint64_t now_ns = 1000;
    if (took_ns == NULL || blocks == 0) {
        return 1;
    }
    for (uint32_t i = 0; i < 4; i++) {
        pass(a, b, now_ns);
        pass(b, a, now_ns);
    }
    for (uint32_t block = 0; block < blocks; block++) {
        uint64_t start_ns = clock_ns();
        for (uint32_t i = 0; i < BLOCK; i++) {
            now_ns += 1000;
            (void)js_rel_post(a, &chunk);
            pass(a, b, now_ns);
            (void)js_rel_post(b, &chunk);
            pass(b, a, now_ns);
        }
        took_ns[block] = clock_ns() - start_ns;
    }
    qsort(took_ns, blocks, sizeof(*took_ns), compare);
    const js_rel_stats *stats = js_rel_get_stats(a);
    printf(
        "round trip of 8 bytes: median %.1f ns, best %.1f ns; %u + %u delivered, %llu ACK frames\n",
        (double)took_ns[blocks / 2] / BLOCK, (double)took_ns[0] / BLOCK, delivered[0], delivered[1],
        (unsigned long long)stats->acks_sent);
    free(took_ns);
    free(a);
    free(b);
    return 0;
}
