/* js_stream in one thread: layout, order, laps, a full ring, and readers that misbehave. */
#include "js_frame.h"
#include "js_stream.h"
#include "js_test.h"

#include <sys/mman.h>

#define SLOTS 4u
#define RING_BYTES 512u
#define READERS_MAX 3u

typedef struct stream_test {
    js_stream_layout layout;
    uint8_t *memory;
    uint64_t ends[SLOTS];
    js_stream_tx tx;
    js_stream_rx rx[READERS_MAX];
} stream_test;

static void stream_open(stream_test *t, uint32_t readers, uint32_t start)
{
    *t = (stream_test){ .layout = { .reader_count = readers,
                                    .slots = SLOTS,
                                    .payload_bytes = RING_BYTES,
                                    .sequence_start = start } };
    t->memory = mmap(NULL, js_stream_bytes(&t->layout), PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    JS_TEST_REQUIRE(t->memory != MAP_FAILED);
    js_stream_open_tx(&t->tx, t->memory, &t->layout, t->ends, js_frame_route(0, 5, 0));
    for (uint32_t i = 0; i < readers; i++) {
        js_stream_open_rx(&t->rx[i], t->memory, &t->layout, i);
    }
}

static void stream_close(stream_test *t)
{
    munmap(t->memory, js_stream_bytes(&t->layout));
}

/* Publishes a frame of `bytes` filled with `fill`; false when there is no room. */
static bool stream_put(stream_test *t, uint32_t bytes, uint8_t fill)
{
    uint64_t body = js_frame_body(bytes, 0, fill);
    uint8_t small[JS_STREAM_INLINE_BYTES];
    if (bytes <= JS_STREAM_INLINE_BYTES) {
        memset(small, fill, sizeof(small));
        if (!js_stream_has_slot(&t->tx)) {
            return false;
        }
        js_stream_publish_inline(&t->tx, small, bytes, t->tx.route, body);
        return true;
    }
    uint8_t *to = js_stream_reserve(&t->tx, bytes);
    if (to == NULL) {
        return false;
    }
    JS_TEST_CHECK(to >= t->tx.payload && to + bytes <= t->tx.payload + RING_BYTES);
    memset(to, fill, bytes);
    js_stream_publish(&t->tx, bytes, t->tx.route, body);
    return true;
}

/* Takes the next frame of a reader and checks it; false when there is none. */
static bool stream_take(stream_test *t, uint32_t reader, uint32_t bytes, uint8_t fill)
{
    js_stream_line *line = js_stream_peek(&t->rx[reader]);
    if (line == NULL) {
        return false;
    }
    JS_TEST_EQ_U64(line->route, t->tx.route);
    JS_TEST_EQ_U64(js_frame_length_bytes(line->body), bytes);
    JS_TEST_EQ_U64(js_frame_imm(line->body), fill);
    const uint8_t *at = js_stream_payload(&t->rx[reader], line, bytes);
    JS_TEST_REQUIRE(at != NULL);
    for (uint32_t i = 0; i < bytes; i++) {
        JS_TEST_EQ_U64(at[i], fill);
    }
    js_stream_release(&t->rx[reader]);
    return true;
}

static void test_layout(void)
{
    stream_test t;
    stream_open(&t, 3, SLOTS);
    JS_TEST_EQ_U64(js_stream_bytes(&t.layout), 4096 + 4096);
    JS_TEST_CHECK((const uint8_t *)t.tx.readers == t.memory);
    JS_TEST_CHECK((uint8_t *)t.tx.lines == t.memory + 3 * 64);
    JS_TEST_CHECK(t.tx.payload == t.memory + 4096);
    for (uint32_t i = 0; i < 3; i++) {
        JS_TEST_CHECK((uint8_t *)t.rx[i].self == t.memory + 64 * (size_t)i);
        JS_TEST_CHECK(t.rx[i].lines == t.tx.lines && t.rx[i].payload == t.tx.payload);
    }
    stream_close(&t);
}

static void test_start(void)
{
    JS_TEST_CHECK(!js_stream_start_fits(0, 4));
    JS_TEST_CHECK(js_stream_start_fits(1, 4));
    JS_TEST_CHECK(js_stream_start_fits(UINT32_MAX - 3, 4));
    JS_TEST_CHECK(!js_stream_start_fits(UINT32_MAX - 2, 4)); /* zero in the first lap */
    JS_TEST_CHECK(!js_stream_start_fits(UINT32_MAX, 4));
}

/* Frames come in order and once, for every start and through many laps of numbers and bytes. */
static void test_order_and_wrap(void)
{
    static const uint32_t starts[] = { 1, SLOTS, 7, UINT32_MAX - 3, UINT32_MAX - 20 };
    static const uint32_t sizes[] = { 0, 1, 40, 41, 64, 65, 200, 256, 7, 255 };
    for (size_t s = 0; s < JS_ARRAY_LEN(starts); s++) {
        stream_test t;
        stream_open(&t, 2, starts[s]);
        for (uint32_t i = 0; i < 1000; i++) {
            uint32_t bytes = sizes[i % JS_ARRAY_LEN(sizes)];
            JS_TEST_CHECK(js_stream_peek(&t.rx[0]) == NULL);
            JS_TEST_CHECK(stream_put(&t, bytes, (uint8_t)i));
            JS_TEST_CHECK(stream_take(&t, 0, bytes, (uint8_t)i));
            JS_TEST_CHECK(stream_take(&t, 1, bytes, (uint8_t)i));
        }
        JS_TEST_EQ_U64(t.tx.psn, (uint32_t)(starts[s] + 1000));
        JS_TEST_EQ_U64(t.tx.readers[1].consumed, 1000);
        stream_close(&t);
    }
}

/* Lends a frame of `bytes`; the reader adds one to each; it comes back. */
static void stream_lend(stream_test *t, uint32_t bytes, uint8_t fill)
{
    JS_TEST_CHECK(js_stream_given_back(&t->tx, bytes) == NULL); /* nothing is lent */
    js_stream_lend(&t->tx);
    JS_TEST_CHECK(stream_put(t, bytes, fill));
    JS_TEST_CHECK(js_stream_given_back(&t->tx, bytes) == NULL); /* not consumed */
    js_stream_line *line = js_stream_peek(&t->rx[0]);
    JS_TEST_REQUIRE(line != NULL);
    uint8_t *at = js_stream_payload(&t->rx[0], line, bytes);
    JS_TEST_REQUIRE(at != NULL);
    memset(at, fill + 1, bytes);
    js_stream_release(&t->rx[0]);
    const uint8_t *back = js_stream_given_back(&t->tx, bytes);
    JS_TEST_REQUIRE(back != NULL);
    for (uint32_t i = 0; i < bytes; i++) {
        JS_TEST_EQ_U64(back[i], fill + 1u);
    }
    js_stream_take_back(&t->tx);
}

static void test_lending(void)
{
    static const uint32_t sizes[] = { 0, 1, 40, 41, 200, 256 };
    stream_test t;
    stream_open(&t, 1, UINT32_MAX - 20);
    for (uint32_t i = 0; i < 100; i++) {
        stream_lend(&t, sizes[i % JS_ARRAY_LEN(sizes)], (uint8_t)i);
    }
    stream_close(&t);
    /* Given back but not taken back: neither its line nor its bytes are free. */
    stream_open(&t, 1, SLOTS);
    for (uint8_t i = 0; i < 2; i++) {
        js_stream_lend(&t.tx);
        JS_TEST_CHECK(stream_put(&t, 256, i));
        JS_TEST_CHECK(stream_take(&t, 0, 256, i));
    }
    JS_TEST_CHECK(!stream_put(&t, 64, 9));
    JS_TEST_CHECK(js_stream_given_back(&t.tx, 256) != NULL);
    js_stream_take_back(&t.tx);
    JS_TEST_CHECK(stream_put(&t, 64, 9));
    stream_close(&t);
}

static void test_window(void)
{
    stream_test t;
    stream_open(&t, 1, SLOTS);
    JS_TEST_CHECK(stream_put(&t, 100, 1));
    JS_TEST_CHECK(!js_stream_set_window(&t.tx, 128)); /* a frame is under way */
    JS_TEST_CHECK(js_stream_set_window(&t.tx, RING_BYTES));
    JS_TEST_CHECK(stream_take(&t, 0, 100, 1));
    JS_TEST_CHECK(js_stream_set_window(&t.tx, 128));
    for (uint8_t i = 0; i < 20; i++) {
        uint8_t *to = js_stream_reserve(&t.tx, 100);
        JS_TEST_CHECK(to == t.tx.payload); /* always the same bytes */
        JS_TEST_CHECK(stream_put(&t, 100, i));
        JS_TEST_CHECK(js_stream_reserve(&t.tx, 100) == NULL);
        JS_TEST_CHECK(stream_take(&t, 0, 100, i));
    }
    JS_TEST_CHECK(js_stream_set_window(&t.tx, RING_BYTES));
    JS_TEST_CHECK(stream_put(&t, 256, 3) && stream_put(&t, 256, 4) && !stream_put(&t, 64, 5));
    JS_TEST_CHECK(stream_take(&t, 0, 256, 3) && stream_take(&t, 0, 256, 4));
    stream_close(&t);
}

/* The ring is as good as empty when its window has changed, though the next frame is not read. */
static void test_room_in_a_new_window(void)
{
    stream_test t;
    stream_open(&t, 1, SLOTS);
    JS_TEST_CHECK(stream_put(&t, 100, 1) && stream_take(&t, 0, 100, 1));
    JS_TEST_CHECK(js_stream_set_window(&t.tx, 128) && js_stream_set_window(&t.tx, RING_BYTES));
    JS_TEST_CHECK(stream_put(&t, 8, 2));
    js_stream_refresh(&t.tx);
    JS_TEST_CHECK(stream_put(&t, 256, 3) && stream_put(&t, 256, 4));
    JS_TEST_CHECK(stream_take(&t, 0, 8, 2) && stream_take(&t, 0, 256, 3));
    JS_TEST_CHECK(stream_take(&t, 0, 256, 4));
    stream_close(&t);
}

/* A payload somewhere else in the segment; one that would end outside of it is refused. */
static void test_reference(void)
{
    static uint8_t segment[1024];
    stream_test t;
    stream_open(&t, 1, SLOTS);
    t.tx.segment = t.rx[0].segment = segment;
    t.tx.segment_bytes = t.rx[0].segment_bytes = sizeof(segment);
    JS_TEST_CHECK(js_stream_can_refer(&t.tx, segment, 1024));
    JS_TEST_CHECK(js_stream_can_refer(&t.tx, segment + 1023, 1));
    JS_TEST_CHECK(!js_stream_can_refer(&t.tx, segment + 1, 1024));
    JS_TEST_CHECK(!js_stream_can_refer(&t.tx, segment + 1024, 1));
    JS_TEST_CHECK(!js_stream_can_refer(&t.tx, t.memory, 1));
    JS_TEST_CHECK(js_stream_has_slot(&t.tx));
    js_stream_publish_ref(&t.tx, segment + 100, t.tx.route, js_frame_body(300, 0, 0));
    js_stream_line *line = js_stream_peek(&t.rx[0]);
    JS_TEST_REQUIRE(line != NULL);
    JS_TEST_EQ_U64(js_frame_flags(line->route), JS_FRAME_FLAG_REF);
    JS_TEST_CHECK(js_stream_payload(&t.rx[0], line, 300) == segment + 100);
    JS_TEST_CHECK(js_stream_payload(&t.rx[0], line, 924) == segment + 100);
    JS_TEST_CHECK(js_stream_payload(&t.rx[0], line, 925) == NULL);
    line->payload.offset = UINT64_MAX - 10;
    JS_TEST_CHECK(js_stream_payload(&t.rx[0], line, 300) == NULL);
    stream_close(&t);
}

static void test_full_of_slots(void)
{
    stream_test t;
    stream_open(&t, 1, UINT32_MAX - 3);
    for (uint32_t round = 0; round < 5; round++) {
        for (uint8_t i = 0; i < SLOTS; i++) {
            JS_TEST_CHECK(stream_put(&t, 8, i));
        }
        JS_TEST_CHECK(!stream_put(&t, 8, 99));
        JS_TEST_CHECK(!stream_put(&t, 100, 99));
        JS_TEST_CHECK(stream_take(&t, 0, 8, 0));
        JS_TEST_CHECK(stream_put(&t, 8, SLOTS));
        JS_TEST_CHECK(!stream_put(&t, 8, 99));
        for (uint8_t i = 1; i <= SLOTS; i++) {
            JS_TEST_CHECK(stream_take(&t, 0, 8, i));
        }
        JS_TEST_CHECK(!stream_take(&t, 0, 8, 0));
    }
    stream_close(&t);
}

/* The ring of bytes is full before the ring of lines is; nothing in use is overwritten. */
static void test_full_of_bytes(void)
{
    stream_test t;
    stream_open(&t, 1, SLOTS);
    for (uint32_t round = 0; round < 9; round++) {
        JS_TEST_CHECK(stream_put(&t, 250, 1));
        JS_TEST_CHECK(stream_put(&t, 200, 2));
        JS_TEST_CHECK(!stream_put(&t, 65, 99));
        JS_TEST_CHECK(stream_put(&t, 12, 3)); /* inline: needs no bytes of the ring */
        JS_TEST_CHECK(stream_take(&t, 0, 250, 1));
        JS_TEST_CHECK(stream_take(&t, 0, 200, 2));
        JS_TEST_CHECK(stream_take(&t, 0, 12, 3));
    }
    stream_close(&t);
}

/* A frame that would cross the end of the ring starts at its beginning, and waits for it. */
static void test_skip_to_the_beginning(void)
{
    stream_test t;
    stream_open(&t, 1, SLOTS);
    JS_TEST_CHECK(stream_put(&t, 192, 1));
    JS_TEST_CHECK(stream_put(&t, 192, 2));  /* up to byte 384 */
    JS_TEST_CHECK(!stream_put(&t, 192, 3)); /* 128 left, and the beginning is in use */
    JS_TEST_CHECK(stream_take(&t, 0, 192, 1));
    JS_TEST_CHECK(stream_put(&t, 192, 3));
    JS_TEST_EQ_U64(t.tx.lines[(t.tx.psn - 1) & (SLOTS - 1)].payload.offset, 0);
    JS_TEST_CHECK(!stream_put(&t, 64, 4));
    JS_TEST_CHECK(stream_take(&t, 0, 192, 2));
    JS_TEST_CHECK(stream_put(&t, 64, 4));
    JS_TEST_CHECK(stream_take(&t, 0, 192, 3));
    JS_TEST_CHECK(stream_take(&t, 0, 64, 4));
    stream_close(&t);
}

static void test_slowest_reader_holds(void)
{
    stream_test t;
    stream_open(&t, 3, UINT32_MAX - 3);
    for (uint8_t i = 0; i < SLOTS; i++) {
        JS_TEST_CHECK(stream_put(&t, 41, i));
    }
    for (uint8_t i = 0; i < SLOTS; i++) {
        JS_TEST_CHECK(stream_take(&t, 0, 41, i));
        JS_TEST_CHECK(i == 0 || stream_take(&t, 2, 41, (uint8_t)(i - 1)));
    }
    JS_TEST_EQ_U64(js_stream_slowest(&t.tx), 1);
    JS_TEST_CHECK(!stream_put(&t, 41, 9));
    JS_TEST_CHECK(stream_take(&t, 1, 41, 0));
    JS_TEST_CHECK(stream_put(&t, 41, 9));
    JS_TEST_CHECK(!stream_put(&t, 41, 10));
    JS_TEST_CHECK(stream_take(&t, 1, 41, 1));
    JS_TEST_CHECK(stream_take(&t, 1, 41, 2));
    JS_TEST_EQ_U64(js_stream_slowest(&t.tx), 1); /* 2 behind, as is reader 2: the lower one */
    JS_TEST_CHECK(stream_take(&t, 1, 41, 3));
    JS_TEST_EQ_U64(js_stream_slowest(&t.tx), 2);
    stream_close(&t);
}

/* Whatever stands in a reader's word, no frame that is in use is overwritten. */
static void test_corrupt_reader_word_blocks(void)
{
    static const uint32_t wrong[] = { 5, 100, UINT32_MAX, 0x80000000u, UINT32_MAX - 3 };
    for (size_t i = 0; i < JS_ARRAY_LEN(wrong); i++) {
        stream_test t;
        stream_open(&t, 2, SLOTS);
        for (uint8_t k = 0; k < SLOTS; k++) {
            JS_TEST_CHECK(stream_put(&t, 100, k));
        }
        JS_TEST_CHECK(stream_take(&t, 0, 100, 0));
        js_store_rel_u32(&t.rx[1].self->consumed, wrong[i]);
        JS_TEST_CHECK(!stream_put(&t, 100, 9));
        JS_TEST_CHECK(!stream_put(&t, 1, 9));
        JS_TEST_EQ_U64(js_stream_slowest(&t.tx), 1);
        js_store_rel_u32(&t.rx[1].self->consumed, 0);
        for (uint8_t k = 0; k < SLOTS; k++) {
            JS_TEST_CHECK(stream_take(&t, 1, 100, k));
        }
        JS_TEST_CHECK(stream_put(&t, 100, 9)); /* it recovers */
        stream_close(&t);
    }
}

/* The same while there are lines left and it is bytes that are short. */
static void test_corrupt_reader_word_frees_no_bytes(void)
{
    stream_test t;
    stream_open(&t, 2, SLOTS);
    JS_TEST_CHECK(stream_put(&t, 250, 1));
    JS_TEST_CHECK(stream_put(&t, 250, 2));
    js_store_rel_u32(&t.rx[1].self->consumed, 77);
    JS_TEST_CHECK(!stream_put(&t, 250, 3)); /* both are still read by reader 0 */
    JS_TEST_CHECK(!stream_put(&t, 250, 3));
    JS_TEST_CHECK(stream_take(&t, 0, 250, 1));
    JS_TEST_CHECK(stream_take(&t, 0, 250, 2));
    stream_close(&t);
}

static void test_stale_and_torn_lines_are_not_seen(void)
{
    stream_test t;
    stream_open(&t, 1, SLOTS);
    js_stream_line *line = &t.tx.lines[0];
    static const uint64_t stale[] = { 0, SLOTS - 1, SLOTS + 1, 2 * SLOTS, UINT32_MAX };
    for (size_t i = 0; i < JS_ARRAY_LEN(stale); i++) {
        line->order = stale[i];
        JS_TEST_CHECK(js_stream_peek(&t.rx[0]) == NULL);
    }
    line->order = SLOTS;
    JS_TEST_CHECK(js_stream_peek(&t.rx[0]) == line);
    stream_close(&t);
}

static void test_payload_outside_the_ring_is_refused(void)
{
    stream_test t;
    stream_open(&t, 1, SLOTS);
    js_stream_line *line = &t.tx.lines[0];
    static const uint64_t bad[] = { RING_BYTES, RING_BYTES - 63, UINT64_MAX, UINT64_MAX - 63 };
    for (size_t i = 0; i < JS_ARRAY_LEN(bad); i++) {
        line->payload.offset = bad[i];
        JS_TEST_CHECK(js_stream_payload(&t.rx[0], line, 64) == NULL);
    }
    line->payload.offset = RING_BYTES - 64;
    JS_TEST_CHECK(js_stream_payload(&t.rx[0], line, 64) == t.tx.payload + RING_BYTES - 64);
    JS_TEST_CHECK(js_stream_payload(&t.rx[0], line, 40) == line->payload.bytes);
    stream_close(&t);
}

/* A random sequence against a plain model: what is in flight is a list of sizes and fills. */
static void test_against_a_list(void)
{
    stream_test t;
    stream_open(&t, 2, UINT32_MAX - 1000);
    uint32_t random = 12345;
    uint32_t bytes[1u << 14];
    uint32_t put = 0;
    uint32_t taken[2] = { 0, 0 };
    while (put < JS_ARRAY_LEN(bytes)) {
        random = random * 1664525u + 1013904223u;
        uint32_t who = random >> 30;
        if (who >= 2) {
            uint32_t size = (random >> 8) % 257;
            size = (random >> 20 & 3) == 0 ? size % 41 : size;
            bytes[put] = size;
            put += stream_put(&t, size, (uint8_t)put);
            uint32_t slow = taken[0] < taken[1] ? taken[0] : taken[1];
            JS_TEST_CHECK(put - slow <= SLOTS);
        } else {
            uint32_t at = taken[who];
            bool got = stream_take(&t, who, bytes[at], (uint8_t)at);
            JS_TEST_CHECK(got == (at < put));
            taken[who] += got;
        }
    }
    stream_close(&t);
}

JS_TEST_MAIN(JS_TEST(test_layout), JS_TEST(test_start), JS_TEST(test_order_and_wrap),
             JS_TEST(test_lending), JS_TEST(test_window), JS_TEST(test_room_in_a_new_window),
             JS_TEST(test_reference), JS_TEST(test_full_of_slots), JS_TEST(test_full_of_bytes),
             JS_TEST(test_skip_to_the_beginning), JS_TEST(test_slowest_reader_holds),
             JS_TEST(test_corrupt_reader_word_blocks),
             JS_TEST(test_corrupt_reader_word_frees_no_bytes),
             JS_TEST(test_stale_and_torn_lines_are_not_seen),
             JS_TEST(test_payload_outside_the_ring_is_refused), JS_TEST(test_against_a_list))
