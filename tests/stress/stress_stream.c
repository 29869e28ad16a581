/* js_stream under load: one producer, 1 to 7 readers in threads, frames of random sizes, numbers
 * that cross 2^32 early on; every byte that a reader gets is checked. */
#include "js_frame.h"
#include "js_stream.h"
#include "js_stress.h"

#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>

#define READERS_MAX 7u
#define RING_BYTES 16384u
#define SLOTS_MAX 64u
#define BYTES_MAX (RING_BYTES / 2)

typedef struct stream_run {
    js_stream_layout layout;
    uint8_t *memory;
    uint64_t seed;
    uint64_t deadline_ns;
    uint64_t frames; /* published; set by the producer at its end, then read after joining */
    uint64_t bytes;
} stream_run;

typedef struct stream_reader {
    stream_run *run;
    uint32_t index;
    uint64_t frames;
    pthread_t thread;
} stream_reader;

/* The size of a frame, as the producer and each reader draw it from the same seed. */
static uint32_t run_size(uint64_t *random)
{
    uint32_t kind = js_stress_below(random, 8);
    uint32_t most = kind < 4 ? 64 : kind < 7 ? 1024 : BYTES_MAX;
    return js_stress_below(random, most + 1);
}

static void run_pause(uint32_t *idle)
{
    js_cpu_relax();
    if (++*idle % 64 == 0) {
        sched_yield();
    }
}

static uint8_t run_byte(uint64_t frame, uint32_t i)
{
    return (uint8_t)(frame * 37 + i + (i >> 8));
}

static void run_fill(uint8_t *to, uint64_t frame, uint32_t bytes)
{
    for (uint32_t i = 0; i < bytes; i++) {
        to[i] = run_byte(frame, i);
    }
}

static void producer_put(js_stream_tx *tx, uint64_t frame, uint32_t bytes, uint32_t imm)
{
    uint64_t body = js_frame_body(bytes, (uint32_t)frame & 0xffffu, imm);
    uint32_t idle = 0;
    if (bytes <= JS_STREAM_INLINE_BYTES) {
        uint8_t payload[JS_STREAM_INLINE_BYTES];
        run_fill(payload, frame, bytes);
        while (!js_stream_has_slot(tx)) {
            run_pause(&idle);
        }
        js_stream_publish_inline(tx, payload, bytes, tx->route, body);
        return;
    }
    uint8_t *to;
    while ((to = js_stream_reserve(tx, bytes)) == NULL) {
        run_pause(&idle);
    }
    run_fill(to, frame, bytes);
    js_stream_publish(tx, bytes, tx->route, body);
}

/* The last frame carries imm 1. */
static void *producer_main(void *argument)
{
    stream_run *run = argument;
    js_stream_tx tx;
    uint64_t ends[SLOTS_MAX] = { 0 };
    uint64_t random = run->seed;
    js_stream_open_tx(&tx, run->memory, &run->layout, ends, js_frame_route(0, 3, 0));
    while (run->frames % 256 != 0 || js_clock_ns() < run->deadline_ns) {
        uint32_t bytes = run_size(&random);
        producer_put(&tx, run->frames++, bytes, 0);
        run->bytes += bytes;
    }
    producer_put(&tx, run->frames++, 0, 1);
    return NULL;
}

static void *reader_main(void *argument)
{
    stream_reader *self = argument;
    stream_run *run = self->run;
    js_stream_rx rx;
    uint64_t random = run->seed;
    uint64_t own = run->seed + 1 + self->index;
    uint32_t idle = 0;
    bool is_last = false;
    js_stream_open_rx(&rx, run->memory, &run->layout, self->index);
    while (!is_last) {
        js_stream_line *line = js_stream_peek(&rx);
        if (line == NULL) {
            run_pause(&idle);
            continue;
        }
        is_last = js_frame_imm(line->body) == 1;
        uint32_t bytes = is_last ? 0 : run_size(&random);
        JS_TEST_EQ_U64(js_frame_length_bytes(line->body), bytes);
        JS_TEST_EQ_U64(js_frame_fragment(line->body), self->frames & 0xffffu);
        const uint8_t *from = js_stream_payload(&rx, line, bytes);
        JS_TEST_REQUIRE(from != NULL);
        uint32_t wrong = 0;
        for (uint32_t i = 0; i < bytes; i++) {
            wrong += from[i] != run_byte(self->frames, i);
        }
        JS_TEST_EQ_U64(wrong, 0);
        JS_TEST_REQUIRE(js_test_failures() == 0); /* what follows would be noise */
        if (js_stress_below(&own, 4096) == 0) {
            sched_yield(); /* a reader that falls behind */
        }
        js_stream_release(&rx);
        self->frames++;
    }
    return NULL;
}

static void run_once(uint32_t reader_count, uint32_t slots, uint64_t seed, uint64_t part_ns)
{
    stream_run run = {
        .layout = { .reader_count = reader_count,
                    .slots = slots,
                    .payload_bytes = RING_BYTES,
                    .sequence_start = UINT32_MAX - 1000 },
        .seed = seed,
        .deadline_ns = js_stress_deadline_ns(part_ns),
    };
    stream_reader readers[READERS_MAX];
    pthread_t producer;
    uint64_t bytes = js_stream_bytes(&run.layout);
    run.memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    JS_TEST_REQUIRE(run.memory != MAP_FAILED);
    for (uint32_t i = 0; i < reader_count; i++) {
        readers[i] = (stream_reader){ .run = &run, .index = i };
        JS_TEST_REQUIRE(pthread_create(&readers[i].thread, NULL, reader_main, &readers[i]) == 0);
    }
    JS_TEST_REQUIRE(pthread_create(&producer, NULL, producer_main, &run) == 0);
    pthread_join(producer, NULL);
    for (uint32_t i = 0; i < reader_count; i++) {
        pthread_join(readers[i].thread, NULL);
        JS_TEST_EQ_U64(readers[i].frames, run.frames);
    }
    printf("%u readers, %2u lines: %" PRIu64 " frames, %" PRIu64 " bytes\n", reader_count, slots,
           run.frames, run.bytes);
    fflush(stdout);
    munmap(run.memory, bytes);
}

int main(int argc, char **argv)
{
    static const uint32_t slots[] = { 2, SLOTS_MAX };
    js_stress stress = js_stress_arguments(argc, argv, 3);
    uint64_t part_ns = stress.seconds * 1000000000u / (READERS_MAX * JS_ARRAY_LEN(slots));
    for (uint32_t readers = 1; readers <= READERS_MAX; readers++) {
        for (size_t i = 0; i < JS_ARRAY_LEN(slots); i++) {
            run_once(readers, slots[i], stress.seed + readers, part_ns);
        }
    }
    return js_test_failures() != 0;
}
