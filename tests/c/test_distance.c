/* Near and far: copies past the caches, votes on the distance, and what a stream makes of them. */
#include "js_distance.h"
#include "js_frame.h"
#include "js_stream.h"
#include "js_test.h"

#include <jetstream/js_api.h>
#include <sys/mman.h>

#define SLOTS 4u
#define RING_BYTES 4096u
#define COPY_BYTES_MAX 400u

/* Every length and alignment: the bytes are right, and no line but its own changes. */
static void test_copy(void)
{
    static uint8_t to[COPY_BYTES_MAX + 3 * JS_CACHE_LINE] JS_ALIGNED(JS_CACHE_LINE);
    static uint8_t from[COPY_BYTES_MAX + JS_CACHE_LINE];
    for (uint32_t i = 0; i < sizeof(from); i++) {
        from[i] = (uint8_t)(i * 7 + 1);
    }
    for (uint32_t bytes = 0; bytes <= COPY_BYTES_MAX; bytes++) {
        uint32_t shift = bytes % JS_CACHE_LINE;
        uint64_t end = JS_CACHE_LINE + js_round_up(bytes, JS_CACHE_LINE);
        memset(to, 0xee, sizeof(to));
        js_copy_streaming(to + JS_CACHE_LINE, from + shift, bytes);
        JS_TEST_CHECK(memcmp(to + JS_CACHE_LINE, from + shift, bytes) == 0);
        for (uint32_t i = 0; i < JS_CACHE_LINE; i++) {
            JS_TEST_EQ_U64(to[i], 0xee);
            JS_TEST_EQ_U64(to[end + i], 0xee);
        }
    }
}

static void vote(js_distance *distance, bool is_far, uint32_t times)
{
    for (uint32_t i = 0; i < times; i++) {
        js_distance_vote(distance, distance->far_ticks - !is_far);
    }
}

/* Only votes in a row change what is believed, either way, and the communicator counts. */
static void test_votes(void)
{
    uint32_t far_count = 0;
    js_distance one, two;
    js_distance_open(&one, &far_count);
    js_distance_open(&two, &far_count);
    JS_TEST_CHECK(one.is_far == 0 && far_count == 0 && one.far_ticks > 1);
    for (uint32_t i = 0; i < 100; i++) { /* now and then a line comes late: an interrupt, a miss */
        vote(&one, true, 1);
        vote(&one, false, 1);
    }
    JS_TEST_CHECK(one.is_far == 0);
    vote(&one, true, JS_DISTANCE_VOTES - 1);
    JS_TEST_CHECK(one.is_far == 0 && far_count == 0);
    vote(&one, true, 100);
    vote(&two, true, JS_DISTANCE_VOTES);
    JS_TEST_CHECK(one.is_far == 1 && two.is_far == 1 && far_count == 2);
    vote(&one, false, JS_DISTANCE_VOTES - 1);
    JS_TEST_CHECK(one.is_far == 1 && far_count == 2);
    vote(&one, false, 100);
    JS_TEST_CHECK(one.is_far == 0 && two.is_far == 1 && far_count == 1);
}

static void test_forced(void)
{
    uint32_t far_count = 0;
    js_distance distance;
    JS_TEST_EQ_U64(js_distance_is_learned(), JS_COPY_HAS_STREAMING);
    js_cores_force(JS_CORES_FAR);
    js_distance_open(&distance, &far_count);
    JS_TEST_CHECK(distance.is_far == 1 && far_count == 1 && !js_distance_is_learned());
    js_cores_force(JS_CORES_NEAR);
    js_distance_open(&distance, &far_count);
    JS_TEST_CHECK(distance.is_far == 0 && far_count == 1 && !js_distance_is_learned());
    js_cores_force(JS_CORES_LEARNED);
}

typedef struct far_test {
    uint8_t *memory;
    uint64_t ends[SLOTS];
    js_stream_tx tx;
    js_stream_rx rx;
    uint32_t far_count;
    js_distance distance;
} far_test;

static void far_open(far_test *t)
{
    js_stream_layout layout = {
        .reader_count = 1, .slots = SLOTS, .payload_bytes = RING_BYTES, .sequence_start = SLOTS
    };
    *t = (far_test){ .memory = mmap(NULL, js_stream_bytes(&layout), PROT_READ | PROT_WRITE,
                                    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) };
    JS_TEST_REQUIRE(t->memory != MAP_FAILED);
    js_stream_open_tx(&t->tx, t->memory, &layout, t->ends, js_frame_route(0, 5, 0));
    js_stream_open_rx(&t->rx, t->memory, &layout, 0);
    js_distance_open(&t->distance, &t->far_count);
    t->rx.distance = &t->distance;
    t->tx.far_count = &t->far_count;
}

/* A frame there and away again; returns whether it went past the caches. */
static bool far_pass(far_test *t, uint32_t bytes, uint32_t looks, bool is_awaited)
{
    uint8_t data[RING_BYTES / 2];
    memset(data, (int)bytes, sizeof(data));
    uint8_t *to = js_stream_reserve(&t->tx, bytes);
    JS_TEST_REQUIRE(to != NULL);
    bool is_past = js_stream_fill(&t->tx, to, data, bytes);
    JS_TEST_CHECK(!is_awaited || js_stream_peek(&t->rx) == NULL);
    js_stream_publish(&t->tx, bytes, t->tx.route, js_frame_body(bytes, 0, 0));
    for (uint32_t i = 0; i < looks; i++) {
        js_stream_line *line = js_stream_peek(&t->rx);
        JS_TEST_REQUIRE(line != NULL);
        const uint8_t *at = js_stream_payload(&t->rx, line, bytes);
        JS_TEST_CHECK(at != NULL && memcmp(at, data, bytes) == 0);
    }
    js_stream_release(&t->rx);
    return is_past;
}

/* One frame in JS_DISTANCE_EVERY votes, once, however often it is looked at; the next one that was
 * awaited. */
static void test_stream_learns(void)
{
    far_test t;
    far_open(&t);
    t.distance.far_ticks = 0; /* whatever it takes is far */
    for (uint32_t i = 0; i < 10 * JS_DISTANCE_EVERY; i++) {
        JS_TEST_CHECK(!far_pass(&t, 1024, 2, false)); /* it lay there already: tells nothing */
    }
    JS_TEST_EQ_U64(t.distance.votes, 0);
    uint32_t frames = (JS_DISTANCE_VOTES - 2) * JS_DISTANCE_EVERY + 1;
    for (uint32_t i = 0; i < frames; i++) {
        JS_TEST_CHECK(!far_pass(&t, 1024, 5, true));
    }
    JS_TEST_EQ_U64(t.distance.votes, JS_DISTANCE_VOTES - 1);
    for (uint32_t i = 0; i < JS_DISTANCE_EVERY; i++) {
        far_pass(&t, 1024, 5, true);
    }
    JS_TEST_CHECK(t.distance.is_far == 1);
    JS_TEST_CHECK(far_pass(&t, JS_STREAM_FAR_BYTES, 1, true));
    JS_TEST_CHECK(far_pass(&t, JS_STREAM_FAR_BYTES + 1, 1, true));
    JS_TEST_CHECK(!far_pass(&t, JS_STREAM_FAR_BYTES - 1, 1, true));
    t.distance.far_ticks = UINT64_MAX; /* and now nothing is */
    for (uint32_t i = 0; i < JS_DISTANCE_VOTES * JS_DISTANCE_EVERY; i++) {
        far_pass(&t, 1024, 1, true);
    }
    JS_TEST_CHECK(t.distance.is_far == 0 && !far_pass(&t, 1024, 1, true));
}

JS_TEST_MAIN(JS_TEST(test_copy), JS_TEST(test_votes), JS_TEST(test_forced),
             JS_TEST(test_stream_learns))
