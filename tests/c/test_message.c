/* js_message: two ranks in one thread; tags, unexpected and long messages, cancel, flush. */
#include "js_frame.h"
#include "js_message.h"
#include "js_seg.h"
#include "js_status.h"
#include "js_test.h"

#define SLOTS 8u
#define DONE_MAX 64u

typedef struct message_side {
    js_link_shm link;
    js_message m;
    js_message_done done[DONE_MAX];
    uint32_t done_count;
} message_side;

typedef struct message_world {
    js_seg *seg;
    message_side sides[2];
} message_world;

static message_world w;

static void message_note(void *context, const js_message_done *done)
{
    message_side *side = context;
    JS_TEST_REQUIRE(side->done_count < DONE_MAX);
    side->done[side->done_count++] = *done;
}

static void message_open(void)
{
    js_seg_config config = { .world = 2, .stream_slots = 4, .sequence_start = UINT32_MAX - 9 };
    memset(&w, 0, sizeof(w));
    JS_TEST_REQUIRE(js_seg_create(&config, &w.seg) == JS_OK);
    for (uint32_t i = 0; i < 2; i++) {
        message_side *side = &w.sides[i];
        JS_TEST_REQUIRE(js_link_shm_open(&side->link, &w.seg->world_area, i, NULL) == JS_OK);
        js_message_sink sink = { message_note, side };
        JS_TEST_REQUIRE(js_message_init(&side->m, &side->link, i, 2, SLOTS, sink) == JS_OK);
    }
}

static void message_close(void)
{
    for (uint32_t i = 0; i < 2; i++) {
        js_message_fini(&w.sides[i].m);
        js_link_shm_close(&w.sides[i].link);
    }
    js_seg_detach(w.seg);
}

static void message_send(uint32_t from, const void *at, uint64_t bytes, uint32_t tag, uint64_t id)
{
    js_sqe entry = { .opcode = JS_SQ_SEND,
                     .peer = (uint16_t)(1 - from),
                     .wr_id = id,
                     .source_addr = (uintptr_t)at,
                     .bytes = bytes,
                     .tag = tag };
    JS_TEST_CHECK(js_message_post_send(&w.sides[from].m, &entry));
}

static void message_receive(uint32_t rank, void *at, uint64_t bytes, uint32_t tag, uint64_t id)
{
    js_rqe entry = { .peer = (uint16_t)(1 - rank),
                     .wr_id = id,
                     .target_addr = (uintptr_t)at,
                     .bytes = bytes,
                     .tag = tag };
    JS_TEST_CHECK(js_message_post_receive(&w.sides[rank].m, &entry));
}

static int32_t message_step(uint32_t rank)
{
    message_side *side = &w.sides[rank];
    return js_message_progress(&side->m);
}

static void message_run(void)
{
    int32_t progress = 1;
    while (progress != 0) {
        progress = message_step(0) + message_step(1);
        JS_TEST_REQUIRE(progress >= 0);
    }
}

static void message_expect(uint32_t rank, uint32_t index, uint64_t wr_id, uint64_t bytes,
                           int32_t status)
{
    const message_side *side = &w.sides[rank];
    JS_TEST_REQUIRE(index < side->done_count);
    JS_TEST_EQ_U64(side->done[index].wr_id, wr_id);
    JS_TEST_EQ_U64(side->done[index].bytes, bytes);
    JS_TEST_EQ_I64(side->done[index].status, status);
    JS_TEST_EQ_U64(side->done[index].peer, 1 - rank);
}

static void message_fill(uint8_t *bytes, uint64_t count, uint32_t seed)
{
    for (uint64_t i = 0; i < count; i++) {
        bytes[i] = (uint8_t)(i * 31 + (i >> 8) + seed);
    }
}

static void test_sizes(void)
{
    static const uint32_t sizes[] = { 0, 1, 40, 41, 64, 16384, 16385, 16424, 32768, 100000 };
    static uint8_t from[100000];
    static uint8_t to[100000];
    message_open();
    for (uint32_t i = 0; i < JS_ARRAY_LEN(sizes); i++) {
        uint32_t bytes = sizes[i];
        message_fill(from, bytes, i);
        memset(to, 0, sizeof(to));
        message_send(0, bytes ? from : NULL, bytes, i, 10 + i);
        message_receive(1, bytes ? to : NULL, bytes, i, 20 + i);
        message_run();
        JS_TEST_EQ_U64(w.sides[0].done_count, i + 1);
        JS_TEST_EQ_U64(w.sides[1].done_count, i + 1);
        message_expect(0, i, 10 + i, bytes, JS_OK);
        message_expect(1, i, 20 + i, bytes, JS_OK);
        JS_TEST_CHECK(w.sides[0].done[i].is_send && !w.sides[1].done[i].is_send);
        JS_TEST_CHECK(memcmp(from, to, sizeof(to)) == 0 || bytes < sizeof(to));
        JS_TEST_CHECK(memcmp(from, to, bytes) == 0);
    }
    JS_TEST_EQ_U64(w.sides[0].m.outstanding + w.sides[1].m.outstanding, 0);
    JS_TEST_EQ_U64(w.sides[1].m.unexpected, 0);
    message_close();
}

/* Messages that stand in the way are put aside; each receive gets the oldest of its tag. */
static void test_tags_out_of_order(void)
{
    static const uint32_t sent[] = { 5, 6, 5, 7 };
    uint32_t got[4] = { 0 };
    message_open();
    for (uint32_t i = 0; i < 4; i++) {
        message_send(0, &sent[i], 4, sent[i], i);
    }
    message_run();
    JS_TEST_EQ_U64(w.sides[1].done_count, 0);
    message_receive(1, &got[3], 4, 7, 103);
    message_run();
    message_expect(1, 0, 103, 4, JS_OK);
    JS_TEST_EQ_U64(w.sides[1].m.unexpected, 3);
    message_receive(1, &got[1], 4, 6, 101);
    message_receive(1, &got[0], 4, 5, 100);
    message_receive(1, &got[2], 4, 5, 102);
    message_run();
    for (uint32_t i = 0; i < 4; i++) {
        JS_TEST_EQ_U64(got[i], sent[i]);
    }
    uint32_t place_100 = 0;
    uint32_t place_102 = 0;
    for (uint32_t i = 0; i < w.sides[1].done_count; i++) {
        place_100 = w.sides[1].done[i].wr_id == 100 ? i : place_100;
        place_102 = w.sides[1].done[i].wr_id == 102 ? i : place_102;
    }
    JS_TEST_EQ_U64(w.sides[1].done_count, 4);
    JS_TEST_CHECK(place_100 < place_102);
    message_close();
}

/* Same tag: first sent, first received, also when some were put aside and some were not. */
static void test_order_within_a_tag(void)
{
    uint32_t values[6];
    uint32_t got[6] = { 0 };
    uint32_t other = 0;
    message_open();
    for (uint32_t i = 0; i < 6; i++) {
        values[i] = 1000 + i;
        message_send(0, &values[i], 4, i == 3 ? 9 : 1, i);
    }
    message_receive(1, &other, 4, 9, 50);
    message_run();
    JS_TEST_EQ_U64(other, 1003);
    for (uint32_t i = 0; i < 5; i++) {
        message_receive(1, &got[i], 4, 1, 60 + i);
        if (i == 1) {
            message_run();
        }
    }
    message_run();
    static const uint32_t want[] = { 1000, 1001, 1002, 1004, 1005 };
    JS_TEST_CHECK(memcmp(got, want, sizeof(want)) == 0);
    message_close();
}

/* A long message is being put aside when its receive is posted: it goes on into the receive. */
static void test_receive_posted_in_the_middle(void)
{
    static uint8_t from[200000];
    static uint8_t to[200000];
    uint8_t byte = 1;
    uint8_t got = 0;
    message_open();
    message_fill(from, sizeof(from), 3);
    message_send(0, from, sizeof(from), 1, 1);
    message_send(0, &byte, 1, 2, 2);
    message_receive(1, &got, 1, 2, 12);
    for (uint32_t i = 0; i < 5; i++) {
        message_step(0);
        message_step(1);
    }
    JS_TEST_EQ_U64(w.sides[1].m.unexpected, 1);
    JS_TEST_CHECK(w.sides[1].m.peers[0].arriving != NULL);
    message_receive(1, to, sizeof(to), 1, 11);
    message_run();
    JS_TEST_EQ_U64(w.sides[1].done_count, 2);
    message_expect(1, 0, 11, sizeof(from), JS_OK);
    message_expect(1, 1, 12, 1, JS_OK);
    JS_TEST_CHECK(memcmp(from, to, sizeof(to)) == 0 && got == 1);
    message_close();
}

/* Nobody has asked for anything: the message holds its sender back instead of filling memory. */
static void test_unasked_message_stays_in_the_stream(void)
{
    static uint8_t from[200000];
    message_open();
    message_send(0, from, sizeof(from), 1, 1);
    message_run();
    JS_TEST_EQ_U64(w.sides[0].done_count, 0); /* held back: nobody wants it */
    JS_TEST_EQ_U64(w.sides[1].m.consumed, 0);
    JS_TEST_CHECK(w.sides[0].m.bytes_sent <= 128u << 10);
    message_close();
}

static void test_truncation(void)
{
    static uint8_t from[50000];
    static uint8_t to[50000];
    static const uint32_t rooms[] = { 0, 1, 39, 16384, 20000, 49999 };
    message_open();
    message_fill(from, sizeof(from), 1);
    for (uint32_t i = 0; i < JS_ARRAY_LEN(rooms); i++) {
        memset(to, 0xaa, sizeof(to));
        message_send(0, from, sizeof(from), 4, i);
        if (i % 2 != 0) { /* by way of a buffer */
            message_receive(1, NULL, 0, 5, 90);
            message_run();
            JS_TEST_CHECK(js_message_cancel(&w.sides[1].m, 90));
        }
        message_receive(1, to, rooms[i], 4, 10 + i);
        message_run();
        message_expect(0, i, i, sizeof(from), JS_OK);
        message_expect(1, i, 10 + i, sizeof(from), JS_ERR_TRUNCATED);
        JS_TEST_CHECK(memcmp(from, to, rooms[i]) == 0);
        JS_TEST_EQ_U64(to[rooms[i]], 0xaa);
    }
    message_close();
}

static void test_to_itself(void)
{
    uint32_t value = 77;
    uint32_t got = 0;
    message_open();
    js_sqe send = { .opcode = JS_SQ_SEND, .peer = 0, .source_addr = (uintptr_t)&value, .bytes = 4 };
    js_rqe receive = { .peer = 0, .target_addr = (uintptr_t)&got, .bytes = 4, .wr_id = 2 };
    JS_TEST_CHECK(js_message_post_send(&w.sides[0].m, &send));
    JS_TEST_CHECK(js_message_post_receive(&w.sides[0].m, &receive));
    message_run();
    JS_TEST_EQ_U64(got, 77);
    JS_TEST_EQ_U64(w.sides[0].done_count, 2);
    message_close();
}

static void test_both_ways_at_once(void)
{
    static uint8_t from[2][90000];
    static uint8_t to[2][90000];
    message_open();
    for (uint32_t i = 0; i < 2; i++) {
        message_fill(from[i], sizeof(from[i]), i);
        message_send(i, from[i], sizeof(from[i]), 1, 1);
        message_receive(i, to[i], sizeof(to[i]), 1, 2);
    }
    message_run();
    JS_TEST_CHECK(memcmp(from[0], to[1], sizeof(to[1])) == 0);
    JS_TEST_CHECK(memcmp(from[1], to[0], sizeof(to[0])) == 0);
    JS_TEST_EQ_U64(w.sides[0].m.consumed, w.sides[1].m.published);
    JS_TEST_EQ_U64(w.sides[0].m.bytes_received, sizeof(to[0]));
    message_close();
}

static void test_pools_run_out(void)
{
    uint8_t byte = 0;
    js_sqe send = { .opcode = JS_SQ_SEND, .peer = 1, .source_addr = (uintptr_t)&byte, .bytes = 1 };
    js_rqe receive = { .peer = 0, .target_addr = (uintptr_t)&byte, .bytes = 1 };
    message_open();
    for (uint32_t round = 0; round < 3; round++) {
        for (uint32_t i = 0; i < SLOTS; i++) {
            JS_TEST_CHECK(js_message_post_send(&w.sides[0].m, &send));
            JS_TEST_CHECK(js_message_post_receive(&w.sides[1].m, &receive));
        }
        JS_TEST_CHECK(!js_message_post_send(&w.sides[0].m, &send));
        JS_TEST_CHECK(!js_message_post_receive(&w.sides[1].m, &receive));
        JS_TEST_EQ_U64(w.sides[0].m.outstanding, SLOTS);
        message_run();
        JS_TEST_EQ_U64(w.sides[0].m.outstanding, 0);
        JS_TEST_EQ_U64(w.sides[0].done_count, (round + 1) * SLOTS);
    }
    message_close();
}

static void test_cancel(void)
{
    static uint8_t from[70000];
    static uint8_t to[70000];
    message_open();
    message_receive(1, to, 1, 1, 11);
    message_receive(1, to, 1, 2, 12);
    message_receive(1, to, 1, 3, 13);
    JS_TEST_EQ_U64(js_message_find_peer(&w.sides[1].m, 12), 0);
    JS_TEST_CHECK(js_message_cancel(&w.sides[1].m, 12)); /* the middle */
    JS_TEST_CHECK(!js_message_cancel(&w.sides[1].m, 12));
    JS_TEST_CHECK(js_message_cancel(&w.sides[1].m, 13)); /* the last */
    JS_TEST_CHECK(js_message_cancel(&w.sides[1].m, 11)); /* the only */
    JS_TEST_EQ_U64(js_message_find_peer(&w.sides[1].m, 12), JS_MESSAGE_NONE);
    JS_TEST_EQ_U64(w.sides[1].m.outstanding, 0);

    message_send(0, from, sizeof(from), 4, 1);
    message_receive(1, to, sizeof(to), 4, 14);
    message_step(0);
    message_step(1); /* the first part is there */
    JS_TEST_CHECK(!js_message_cancel(&w.sides[1].m, 14));
    message_run();
    message_expect(1, 0, 14, sizeof(from), JS_OK);
    JS_TEST_CHECK(!js_message_cancel(&w.sides[1].m, 14));
    message_close();
}

static void test_flush(void)
{
    static uint8_t from[300000];
    uint8_t got = 0;
    message_open();
    message_send(0, from, sizeof(from), 1, 1);
    message_send(0, from, 1, 2, 2);
    message_receive(0, &got, 1, 1, 3);
    message_step(0);
    JS_TEST_EQ_U64(js_message_find_peer(&w.sides[0].m, 2), 1);
    js_message_flush(&w.sides[0].m, JS_ERR_PEER_DEAD);
    JS_TEST_EQ_U64(w.sides[0].done_count, 3);
    for (uint32_t i = 0; i < 3; i++) {
        JS_TEST_EQ_I64(w.sides[0].done[i].status, JS_ERR_PEER_DEAD);
    }
    message_expect(0, 0, 1, 16384, JS_ERR_PEER_DEAD); /* bytes: what had left */
    JS_TEST_EQ_U64(w.sides[0].m.outstanding, 0);

    /* The other side: a part has been put aside, a part has been received. */
    message_receive(1, &got, 1, 9, 4);
    message_step(1);
    JS_TEST_EQ_U64(w.sides[1].m.unexpected, 1);
    js_message_flush(&w.sides[1].m, JS_ERR_ABORTED);
    JS_TEST_EQ_U64(w.sides[1].done_count, 1);
    message_close();
}

/* Frames that no sender makes end in an error, before anything is stored. */
static void test_malformed_frames(void)
{
    uint8_t bytes[JS_STREAM_INLINE_BYTES] = { 0 };
    for (uint32_t kind = 0; kind < 8; kind++) {
        uint8_t got[64];
        uint64_t total = 20;
        message_open();
        js_stream_tx *tx = &w.sides[0].link.message_tx[1];
        uint64_t first = js_frame_with_flags(tx->route, JS_FRAME_FLAG_SOM);
        message_receive(1, got, sizeof(got), 0, 1);
        uint64_t last = js_frame_with_flags(tx->route, JS_FRAME_FLAG_EOM);
        if (kind >= 3) { /* a long message begins as it should */
            js_stream_publish_inline(tx, &total, 8, first, js_frame_body(8, 0, 0));
            JS_TEST_EQ_I64(message_step(1), 1);
        }
        switch (kind) {
        case 0: /* goes on without having begun */
            js_stream_publish_inline(tx, bytes, 8, tx->route, js_frame_body(8, 1, 0));
            break;
        case 1: /* a length of another size */
            js_stream_publish_inline(tx, bytes, 9, first, js_frame_body(9, 0, 0));
            break;
        case 2: { /* points outside of the ring */
            js_stream_line *line = &tx->lines[tx->psn & tx->mask];
            js_stream_publish_inline(tx, bytes, 8, first, js_frame_body(50, 0, 0));
            line->payload.offset = 1ull << 40;
            break;
        }
        case 3: /* begins twice */
            js_stream_publish_inline(tx, &total, 8, first, js_frame_body(8, 0, 0));
            break;
        case 4: /* ends too early */
            js_stream_publish_inline(tx, bytes, 19, last, js_frame_body(19, 1, 0));
            break;
        case 5: /* too long */
            js_stream_publish_inline(tx, bytes, 21, last, js_frame_body(21, 1, 0));
            break;
        case 6: /* does not end */
            js_stream_publish_inline(tx, bytes, 20, tx->route, js_frame_body(20, 1, 0));
            break;
        default: /* a frame of nothing in the middle, then too much */
            js_stream_publish_inline(tx, bytes, 0, tx->route, js_frame_body(0, 1, 0));
            JS_TEST_EQ_I64(message_step(1), 1);
            js_stream_publish_inline(tx, bytes, 40, tx->route, js_frame_body(40, 2, 0));
            break;
        }
        JS_TEST_EQ_I64(message_step(1), JS_ERR_PROTOCOL);
        JS_TEST_EQ_U64(w.sides[1].done_count, 0);
        message_close();
    }
}

/* Memory of the segment that no message stream lies in. */
static uint8_t *message_segment_memory(uint32_t seed)
{
    uint8_t *memory = (uint8_t *)js_area_all_stream(&w.seg->world_area, 0) + 64;
    message_fill(memory, 1u << 20, seed);
    return memory;
}

/* What lies in the segment is not copied from 64 KiB on, and arrives the same; the send is complete
 * when it has been received, and in its turn. */
static void test_by_reference(void)
{
    static const uint32_t sizes[] = { 65535, 65536, 98324, 262144 + 1 };
    static uint8_t to[1u << 20];
    uint8_t small = 7;
    message_open();
    uint8_t *from = message_segment_memory(5);
    for (uint32_t i = 0; i < JS_ARRAY_LEN(sizes); i++) {
        uint32_t referred = i == 0 ? 0 : (sizes[i] - 41) / 32768 + 1;
        message_send(0, from, sizes[i], 1, 10 + i);
        message_send(0, &small, 1, 2, 20 + i);
        message_receive(1, to, sizes[i], 1, 30 + i);
        w.sides[0].m.referred = 0;
        while (message_step(0) > 0) { /* as far as it gets alone */
        }
        JS_TEST_EQ_U64(w.sides[0].done_count, 2 * i);
        JS_TEST_EQ_U64(js_message_send_is_referring(&w.sides[0].m), i != 0);
        message_run();
        message_receive(1, to + sizes[i], 1, 2, 40 + i);
        message_run();
        JS_TEST_EQ_U64(w.sides[0].m.referred, referred);
        JS_TEST_CHECK(memcmp(from, to, sizes[i]) == 0 && to[sizes[i]] == 7);
        message_expect(0, 2 * i, 10 + i, sizes[i], JS_OK);
        message_expect(0, 2 * i + 1, 20 + i, 1, JS_OK);
        JS_TEST_EQ_U64(w.sides[1].done[2 * i].was_referred, i != 0);
        JS_TEST_CHECK(!w.sides[1].done[2 * i + 1].was_referred);
        JS_TEST_CHECK(!js_message_send_is_referring(&w.sides[0].m));
    }
    message_close();
}

/* One that fits the stream as a whole: sent, but not complete before somebody has taken it. */
static void test_reference_that_waits(void)
{
    static uint8_t to[65536];
    uint32_t value = 0;
    message_open();
    uint8_t *from = message_segment_memory(6);
    message_send(0, from, sizeof(to), 1, 1);
    message_run();
    JS_TEST_EQ_U64(w.sides[0].m.referred, 2);
    JS_TEST_EQ_U64(w.sides[0].done_count, 0);
    JS_TEST_EQ_U64(js_message_find_peer(&w.sides[0].m, 1), 1);
    message_receive(1, &value, 4, 2, 2); /* puts it aside: that is having taken it */
    message_run();
    JS_TEST_EQ_U64(w.sides[1].m.unexpected, 1);
    message_expect(0, 0, 1, sizeof(to), JS_OK);
    memset(from, 0, sizeof(to));
    message_receive(1, to, sizeof(to), 1, 3);
    message_expect(1, 0, 3, sizeof(to), JS_OK);
    JS_TEST_CHECK(w.sides[1].done[0].was_referred);
    message_fill(from, sizeof(to), 6);
    JS_TEST_CHECK(memcmp(from, to, sizeof(to)) == 0);
    JS_TEST_CHECK(js_message_cancel(&w.sides[1].m, 2));
    message_send(0, from, sizeof(to), 1, 4);
    message_send(0, from, 1u << 20, 1, 5);
    message_run();
    JS_TEST_CHECK(js_message_send_is_referring(&w.sides[0].m));
    js_message_flush(&w.sides[0].m, JS_ERR_FLUSHED);
    JS_TEST_EQ_U64(w.sides[0].done_count, 3);
    JS_TEST_CHECK(!js_message_send_is_referring(&w.sides[0].m));
    message_close();
}

JS_TEST_MAIN(JS_TEST(test_sizes), JS_TEST(test_tags_out_of_order), JS_TEST(test_order_within_a_tag),
             JS_TEST(test_receive_posted_in_the_middle),
             JS_TEST(test_unasked_message_stays_in_the_stream), JS_TEST(test_truncation),
             JS_TEST(test_to_itself), JS_TEST(test_both_ways_at_once), JS_TEST(test_pools_run_out),
             JS_TEST(test_cancel), JS_TEST(test_flush), JS_TEST(test_malformed_frames),
             JS_TEST(test_by_reference), JS_TEST(test_reference_that_waits))
