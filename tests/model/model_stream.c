/* js_stream under all interleavings: one producer, one or two readers, the smallest rings, numbers
 * and bytes that wrap. Every reader must see every frame once, in order and whole; and what is
 * lent must come back as the reader has rewritten it. */
#include "js_frame.h"
#include "js_model.h"
#include "js_stream.h"
#include "js_test.h"

#define SLOTS_MAX 4u
#define RING_BYTES 256u
#define READERS_MAX 3u
#define FRAMES_MAX 8u
#define MEMORY_BYTES 8192u /* a page of words and lines, a page of payload */

typedef enum stream_bug {
    BUG_NONE,
    BUG_PUBLISH_EARLY, /* the number before the payload */
    BUG_RELEASE_EARLY, /* the reader frees a frame, then reads it */
    BUG_IGNORE_READER, /* the producer looks at the first reader alone */
    BUG_IGNORE_BYTES,  /* the producer looks for lines, not for bytes */
    BUG_TAKE_EARLY,    /* the producer takes a lent frame back before it is given back */
    BUG_REUSE_LENT,    /* the producer forgets that what is given back is not taken back yet */
} stream_bug;

/* What a case explores; the same for all its schedules. */
static struct {
    uint32_t readers;
    uint32_t slots;
    uint32_t frames;
    uint32_t start;
    const uint32_t *sizes;
    bool lends;
    stream_bug bug;
} setting;

static struct {
    uint64_t ends[SLOTS_MAX];
    js_stream_tx tx;
    js_stream_rx rx[READERS_MAX];
    uint64_t taken[READERS_MAX];
    uint32_t taken_back;
} side;

static uint8_t memory[MEMORY_BYTES] __attribute__((aligned(4096)));

static uint32_t frame_bytes(uint32_t i)
{
    return setting.sizes[i];
}

static void setup(void)
{
    js_stream_layout layout = { .reader_count = setting.readers,
                                .slots = setting.slots,
                                .payload_bytes = RING_BYTES,
                                .sequence_start = setting.start };
    JS_TEST_REQUIRE(js_stream_bytes(&layout) <= sizeof(memory));
    memset(memory, 0, sizeof(memory));
    memset(&side, 0, sizeof(side));
    js_stream_open_tx(&side.tx, memory, &layout, side.ends, js_frame_route(0, 1, 0));
    for (uint32_t i = 0; i < setting.readers; i++) {
        js_stream_open_rx(&side.rx[i], memory, &layout, i);
    }
    if (setting.bug == BUG_IGNORE_READER) {
        side.tx.reader_count = 1;
    }
}

/* Writes a payload in two halves, so that others may run when it is half done. */
static void producer_fill(uint8_t *to, uint32_t bytes, uint32_t i)
{
    memset(to, (int)(i + 1), bytes / 2);
    js_model_point();
    memset(to + bytes / 2, (int)(i + 1), bytes - bytes / 2);
}

/* What the reader of a lent frame writes over it. */
static uint8_t answer(uint32_t i)
{
    return (uint8_t)(0x80u + i);
}

/* Takes one lent frame back if it is there. */
static bool producer_take_back(void)
{
    uint32_t i = side.taken_back;
    uint32_t bytes = frame_bytes(i);
    js_stream_tx *tx = &side.tx;
    if (tx->lent_count == 0) {
        return false;
    }
    uint8_t *at = js_stream_given_back(tx, bytes);
    if (setting.bug == BUG_TAKE_EARLY && at == NULL) {
        js_stream_line *line = &tx->lines[tx->lent_first & tx->mask];
        bool is_inline = bytes <= JS_STREAM_INLINE_BYTES;
        at = is_inline ? line->payload.bytes : tx->payload + line->payload.offset;
    }
    if (at == NULL) {
        return false;
    }
    js_model_point();
    for (uint32_t k = 0; k < bytes; k++) {
        JS_MODEL_CHECK(at[k] == answer(i));
    }
    js_stream_take_back(tx);
    side.taken_back++;
    return true;
}

static bool producer_reserve(uint32_t bytes, uint8_t **out)
{
    *out = NULL;
    if (setting.bug == BUG_REUSE_LENT && side.tx.lent_count != 0) {
        uint32_t lent = side.tx.lent_count;
        side.tx.lent_count = 0;
        js_stream_refresh(&side.tx);
        side.tx.lent_count = lent;
    }
    if (bytes <= JS_STREAM_INLINE_BYTES) {
        return js_stream_has_slot(&side.tx);
    }
    if (setting.bug == BUG_IGNORE_BYTES) {
        side.tx.tail = side.tx.head;
    }
    *out = js_stream_reserve(&side.tx, bytes);
    return *out != NULL;
}

static void body_producer(void)
{
    for (uint32_t i = 0; i < setting.frames; i++) {
        uint32_t bytes = frame_bytes(i);
        uint64_t body = js_frame_body(bytes, 0, i);
        uint8_t *to;
        js_model_poll();
        while (!producer_reserve(bytes, &to)) {
            if (!producer_take_back()) {
                js_model_wait();
            }
            js_model_poll();
        }
        if (setting.lends) {
            js_stream_lend(&side.tx);
        }
        js_model_note("publishes frame", i);
        if (bytes <= JS_STREAM_INLINE_BYTES) {
            uint8_t payload[JS_STREAM_INLINE_BYTES];
            memset(payload, (int)(i + 1), sizeof(payload));
            js_stream_publish_inline(&side.tx, payload, bytes, side.tx.route, body);
        } else if (setting.bug == BUG_PUBLISH_EARLY) {
            js_stream_publish(&side.tx, bytes, side.tx.route, body);
            producer_fill(to, bytes, i);
        } else {
            producer_fill(to, bytes, i);
            js_stream_publish(&side.tx, bytes, side.tx.route, body);
        }
    }
    while (setting.lends && side.taken_back < setting.frames) {
        js_model_poll();
        if (!producer_take_back()) {
            js_model_wait();
        }
    }
}

static void reader_check(const js_stream_line *line, const uint8_t *payload, uint32_t i)
{
    uint32_t bytes = frame_bytes(i);
    JS_MODEL_CHECK(line->route == side.tx.route);
    JS_MODEL_CHECK(line->body == js_frame_body(bytes, 0, i));
    for (uint32_t k = 0; k < bytes; k++) {
        JS_MODEL_CHECK(payload[k] == i + 1);
    }
}

static void body_reader(uint32_t reader)
{
    js_stream_rx *rx = &side.rx[reader];
    for (uint32_t i = 0; i < setting.frames; i++) {
        js_stream_line *line;
        js_model_poll();
        while ((line = js_stream_peek(rx)) == NULL) {
            js_model_wait();
            js_model_poll();
        }
        js_model_note("reads frame", i);
        uint8_t *payload = js_stream_payload(rx, line, frame_bytes(i));
        JS_MODEL_CHECK(payload != NULL);
        if (setting.bug == BUG_RELEASE_EARLY) {
            js_stream_release(rx);
        }
        reader_check(line, payload, i);
        js_model_point(); /* it stays whole for as long as it is not released */
        reader_check(line, payload, i);
        if (setting.lends) {
            memset(payload, answer(i), frame_bytes(i));
        }
        if (setting.bug != BUG_RELEASE_EARLY) {
            js_stream_release(rx);
        }
        side.taken[reader]++;
    }
}

static void body(uint32_t thread)
{
    if (thread == 0) {
        body_producer();
    } else {
        body_reader(thread - 1);
    }
}

static void finish(void)
{
    for (uint32_t i = 0; i < setting.readers; i++) {
        JS_MODEL_CHECK(side.taken[i] == setting.frames);
        JS_MODEL_CHECK(side.rx[i].psn == side.tx.psn);
        JS_MODEL_CHECK(side.tx.readers[i].consumed == setting.frames);
    }
    JS_MODEL_CHECK(side.tx.psn == setting.start + setting.frames);
}

static void explore(const char *name, bool merge, js_model_report *out)
{
    size_t lines = setting.readers + setting.slots;
    js_model model = {
        .name = name,
        .thread_count = 1 + setting.readers,
        .merge = merge,
        .setup = setup,
        .body = body,
        .finish = finish,
        .regions = { { .at = &side, .bytes = sizeof(side) },
                     { .at = memory, .bytes = lines * JS_CACHE_LINE },
                     { .at = memory + 4096, .bytes = RING_BYTES } },
    };
    js_model_explore(&model, out);
    if (out->found && setting.bug == BUG_NONE) {
        fprintf(stderr, "%s\n%s", out->text, out->trace);
    }
}

static const uint32_t sizes_inline[FRAMES_MAX] = { 8, 0, 40, 1, 8, 3, 0, 40 };
/* Two fill the ring; some skip its end; some find room in bytes later than in lines. */
static const uint32_t sizes_payload[FRAMES_MAX] = { 128, 64, 128, 64, 41, 128, 100, 128 };
static const uint32_t sizes_mixed[FRAMES_MAX] = { 128, 8, 100, 0, 128, 40, 64, 128 };

typedef struct stream_case {
    const char *name;
    uint32_t readers;
    uint32_t slots;
    uint32_t frames;
    const uint32_t *sizes;
    bool merge;
    stream_bug bug;
    bool lends;
} stream_case;

static void stream_explore(const stream_case *c, js_model_report *report)
{
    setting.readers = c->readers;
    setting.slots = c->slots;
    setting.frames = c->frames;
    setting.sizes = c->sizes;
    setting.bug = c->bug;
    setting.lends = c->lends;
    setting.start = 0u - c->slots; /* numbers wrap after the first lap */
    explore(c->name, c->merge, report);
}

static void test_all_interleavings(void)
{
    static const stream_case cases[] = {
        { "1 reader, 2 lines, inline", 1, 2, 4, sizes_inline, false, BUG_NONE, false },
        { "1 reader, 2 lines, payload", 1, 2, 3, sizes_payload, false, BUG_NONE, false },
        { "1 reader, 2 lines, inline", 1, 2, 8, sizes_inline, true, BUG_NONE, false },
        { "1 reader, 2 lines, mixed", 1, 2, 8, sizes_mixed, true, BUG_NONE, false },
        { "1 reader, 4 lines, payload", 1, 4, 8, sizes_payload, true, BUG_NONE, false },
        { "2 readers, 2 lines, inline", 2, 2, 8, sizes_inline, true, BUG_NONE, false },
        { "2 readers, 2 lines, mixed", 2, 2, 8, sizes_mixed, true, BUG_NONE, false },
        { "2 readers, 4 lines, payload", 2, 4, 8, sizes_payload, true, BUG_NONE, false },
        { "2 readers, 4 lines, mixed", 2, 4, 8, sizes_mixed, true, BUG_NONE, false },
        { "3 readers, 2 lines, mixed", 3, 2, 5, sizes_mixed, true, BUG_NONE, false },
        { "lent, 2 lines, inline", 1, 2, 6, sizes_inline, true, BUG_NONE, true },
        { "lent, 2 lines, payload", 1, 2, 6, sizes_payload, true, BUG_NONE, true },
        { "lent, 4 lines, mixed", 1, 4, 8, sizes_mixed, true, BUG_NONE, true },
    };
    static js_model_report report;
    for (size_t i = 0; i < JS_ARRAY_LEN(cases); i++) {
        stream_explore(&cases[i], &report);
        JS_TEST_CHECK(!report.found);
        JS_TEST_CHECK(report.complete > 0);
    }
}

static void test_seeded_bugs_are_found(void)
{
    static const stream_case cases[] = {
        { "bug: published early", 1, 4, 5, sizes_payload, true, BUG_PUBLISH_EARLY, false },
        { "bug: released early", 1, 2, 5, sizes_inline, true, BUG_RELEASE_EARLY, false },
        { "bug: a reader ignored", 2, 2, 5, sizes_inline, true, BUG_IGNORE_READER, false },
        { "bug: bytes ignored", 1, 4, 5, sizes_payload, true, BUG_IGNORE_BYTES, false },
        { "bug: answered late", 1, 4, 5, sizes_payload, true, BUG_RELEASE_EARLY, true },
        { "bug: taken back early", 1, 2, 5, sizes_inline, true, BUG_TAKE_EARLY, true },
        { "bug: lent memory used anew", 1, 4, 5, sizes_payload, true, BUG_REUSE_LENT, true },
    };
    static js_model_report report;
    for (size_t i = 0; i < JS_ARRAY_LEN(cases); i++) {
        stream_explore(&cases[i], &report);
        JS_TEST_CHECK(report.found);
        JS_TEST_CHECK(strstr(report.trace, "publishes frame 0") != NULL);
    }
}

JS_TEST_MAIN(JS_TEST(test_all_interleavings), JS_TEST(test_seeded_bugs_are_found))
