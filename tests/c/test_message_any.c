/* js_message: three ranks in one thread; any source, any tag, probes, and random traffic checked
 * against the rules of matching. */
#include "js_message.h"
#include "js_seg.h"
#include "js_status.h"
#include "js_test.h"

#define RANKS 3u
#define SLOTS 64u
#define ITEMS_MAX 400u
#define ANY_TAG JS_RQ_TAG_ANY
#define BYTES_MAX 60000u

typedef struct any_world {
    js_seg *seg;
    js_link_shm links[RANKS];
    js_message m[RANKS];
    js_message_done done[ITEMS_MAX]; /* receives of rank 0 */
    uint32_t done_count;
} any_world;

static any_world w;
static uint8_t any_bytes[BYTES_MAX];

static void any_note(void *context, const js_message_done *done)
{
    if (context == &w.m[0] && !done->is_send) {
        JS_TEST_REQUIRE(w.done_count < ITEMS_MAX);
        w.done[w.done_count++] = *done;
    }
}

static void any_open(void)
{
    js_seg_config config = { .world = RANKS, .stream_slots = 4, .sequence_start = 1000 };
    memset(&w, 0, sizeof(w));
    JS_TEST_REQUIRE(js_seg_create(&config, &w.seg) == JS_OK);
    for (uint32_t i = 0; i < RANKS; i++) {
        js_message_sink sink = { any_note, &w.m[i] };
        JS_TEST_REQUIRE(js_link_shm_open(&w.links[i], &w.seg->world_area, i, NULL) == JS_OK);
        JS_TEST_REQUIRE(js_message_init(&w.m[i], &w.links[i], i, RANKS, SLOTS, sink) == JS_OK);
    }
}

static void any_close(void)
{
    for (uint32_t i = 0; i < RANKS; i++) {
        js_message_fini(&w.m[i]);
        js_link_shm_close(&w.links[i]);
    }
    js_seg_detach(w.seg);
}

static bool any_send(uint32_t from, uint64_t bytes, uint32_t tag)
{
    js_sqe entry = { .peer = 0, .source_addr = (uintptr_t)any_bytes, .bytes = bytes, .tag = tag };
    return js_message_post_send(&w.m[from], &entry);
}

/* Rank 0 receives, at most SLOTS at a time. */
static bool any_receive(uint16_t peer, uint32_t tag, uint64_t flags, uint64_t wr_id)
{
    static uint8_t to[BYTES_MAX];
    js_rqe entry = { .peer = peer, .tag = tag, .wr_id = wr_id };
    entry.target_addr = (uintptr_t)to;
    entry.bytes = flags | BYTES_MAX;
    return js_message_post_receive(&w.m[0], &entry);
}

static void any_step(uint32_t rank)
{
    JS_TEST_REQUIRE(js_message_progress(&w.m[rank]) >= 0);
}

static void any_run(void)
{
    int32_t progress = 1;
    while (progress != 0) {
        progress = 0;
        for (uint32_t i = 0; i < RANKS; i++) {
            int32_t moved = js_message_progress(&w.m[i]);
            JS_TEST_REQUIRE(moved >= 0);
            progress += moved;
        }
    }
}

static void any_expect(uint32_t index, uint64_t wr_id, uint32_t peer, uint32_t tag, uint64_t bytes)
{
    JS_TEST_REQUIRE(index < w.done_count);
    JS_TEST_EQ_U64(w.done[index].wr_id, wr_id);
    JS_TEST_EQ_U64(w.done[index].peer, peer);
    JS_TEST_EQ_U64(w.done[index].tag, tag);
    JS_TEST_EQ_U64(w.done[index].bytes, bytes);
    JS_TEST_EQ_I64(w.done[index].status, JS_OK);
}

/* The oldest receive that fits gets the message, whichever list it stands in. */
static void test_oldest_receive_first(void)
{
    any_open();
    JS_TEST_CHECK(any_receive(JS_PEER_ANY, 7, 0, 1));
    JS_TEST_CHECK(any_receive(2, 7, 0, 2));
    JS_TEST_CHECK(any_receive(JS_PEER_ANY, 0, ANY_TAG, 3));
    JS_TEST_CHECK(any_receive(2, 0, ANY_TAG, 4));
    JS_TEST_CHECK(any_send(2, 10, 7));
    JS_TEST_CHECK(any_send(2, 11, 7));
    JS_TEST_CHECK(any_send(2, 12, 7));
    JS_TEST_CHECK(any_send(2, 50000, UINT32_MAX));
    any_run();
    for (uint32_t i = 0; i < 3; i++) {
        any_expect(i, i + 1, 2, 7, 10 + i);
    }
    any_expect(3, 4, 2, UINT32_MAX, 50000);
    JS_TEST_EQ_U64(w.m[0].outstanding, 0);
    any_close();
}

/* The tag that is written in a receive of any tag means nothing, and no real tag means any. */
static void test_every_tag_is_a_tag(void)
{
    static const uint32_t tags[] = { 0, 1, 0xffff, INT32_MAX, UINT32_MAX };
    any_open();
    for (uint32_t i = 0; i < JS_ARRAY_LEN(tags); i++) {
        JS_TEST_CHECK(any_receive(1, tags[i], 0, i));
        JS_TEST_CHECK(any_send(1, 1, ~tags[i]));
        any_run();
        JS_TEST_EQ_U64(w.done_count, 2 * i);
        JS_TEST_CHECK(any_send(1, 2, tags[i]));
        any_run();
        any_expect(2 * i, i, 1, tags[i], 2);
        JS_TEST_CHECK(any_receive(JS_PEER_ANY, tags[i], ANY_TAG, 50));
        any_expect(2 * i + 1, 50, 1, ~tags[i], 1); /* from a buffer: at once */
    }
    JS_TEST_EQ_U64(w.m[0].early_count, 0);
    any_close();
}

/* Senders with much to say are heard in turns, out of streams as well as out of buffers. */
static void test_sources_in_turns(void)
{
    for (uint32_t is_early = 0; is_early < 2; is_early++) {
        uint32_t seen[RANKS] = { 0 };
        any_open();
        for (uint32_t i = 0; i < 10; i++) {
            for (uint32_t rank = 0; rank < RANKS; rank++) {
                JS_TEST_CHECK(any_send(rank, 4, 1));
            }
        }
        if (is_early) {
            JS_TEST_CHECK(any_receive(JS_PEER_ANY, 2, 0, 99));
            any_run();
            JS_TEST_EQ_U64(w.m[0].early_count, 30);
        }
        for (uint32_t i = 0; i < 30; i++) {
            JS_TEST_CHECK(any_receive(JS_PEER_ANY, 1, 0, i));
            any_run();
            JS_TEST_REQUIRE(w.done_count == i + 1);
            seen[w.done[i].peer]++;
            if (i % RANKS == RANKS - 1) {
                for (uint32_t rank = 0; rank < RANKS; rank++) {
                    JS_TEST_EQ_U64(seen[rank], i / RANKS + 1);
                }
            }
        }
        any_close();
    }
}

/* A probe tells of a message and leaves it, in the stream or in a buffer. */
static void test_probe(void)
{
    any_open();
    JS_TEST_CHECK(any_receive(JS_PEER_ANY, 5, JS_RQ_PROBE, 1));
    any_run();
    JS_TEST_EQ_U64(js_message_find_peer(&w.m[0], 1), JS_PEER_ANY);
    JS_TEST_CHECK(any_send(1, 3, 4)); /* in the way */
    JS_TEST_CHECK(any_send(1, BYTES_MAX, 5));
    any_run();
    any_expect(0, 1, 1, 5, BYTES_MAX); /* its length is known before its bytes are here */
    JS_TEST_EQ_U64(w.m[0].early_count, 1);
    JS_TEST_EQ_U64(w.m[0].outstanding, 0);
    JS_TEST_CHECK(any_receive(1, 0, JS_RQ_PROBE | ANY_TAG, 2));
    any_expect(1, 2, 1, 4, 3);
    JS_TEST_CHECK(any_receive(1, 4, JS_RQ_PROBE, 3));
    any_expect(2, 3, 1, 4, 3);
    JS_TEST_CHECK(any_receive(1, 0, ANY_TAG, 4));
    any_expect(3, 4, 1, 4, 3);
    JS_TEST_CHECK(any_receive(2, 5, JS_RQ_PROBE, 5)); /* of another source: none */
    JS_TEST_CHECK(any_receive(1, 5, 0, 6));
    any_run();
    any_expect(4, 6, 1, 5, BYTES_MAX);
    JS_TEST_CHECK(js_message_cancel(&w.m[0], 5));
    JS_TEST_CHECK(!js_message_cancel(&w.m[0], 5));
    JS_TEST_EQ_U64(w.m[0].outstanding, 0);
    any_close();
}

/* What an older receive will get is not seen by a probe. */
static void test_probe_behind_a_receive(void)
{
    any_open();
    JS_TEST_CHECK(any_receive(JS_PEER_ANY, 0, ANY_TAG, 1));
    JS_TEST_CHECK(any_receive(1, 8, JS_RQ_PROBE, 2));
    JS_TEST_CHECK(any_send(1, 20, 8));
    any_run();
    JS_TEST_EQ_U64(w.done_count, 1);
    any_expect(0, 1, 1, 8, 20);
    JS_TEST_CHECK(any_send(1, 21, 8));
    any_run();
    any_expect(1, 2, 1, 8, 21);
    any_close();
}

static void test_any_is_flushed(void)
{
    any_open();
    JS_TEST_CHECK(any_receive(JS_PEER_ANY, 1, 0, 1));
    JS_TEST_CHECK(any_receive(JS_PEER_ANY, 2, JS_RQ_PROBE, 2));
    JS_TEST_CHECK(any_receive(JS_PEER_ANY, 3, 0, 3));
    JS_TEST_CHECK(any_send(1, BYTES_MAX, 1));
    for (uint32_t i = 0; i < 3; i++) {
        any_step(1);
        any_step(0);
    }
    JS_TEST_EQ_U64(js_message_find_peer(&w.m[0], 1), 1); /* it is being filled */
    JS_TEST_CHECK(!js_message_cancel(&w.m[0], 1));
    JS_TEST_EQ_U64(js_message_find_peer(&w.m[0], 3), JS_PEER_ANY);
    js_message_flush(&w.m[0], JS_ERR_PEER_DEAD);
    JS_TEST_EQ_U64(w.done_count, 3);
    for (uint32_t i = 0; i < 3; i++) {
        JS_TEST_EQ_I64(w.done[i].status, JS_ERR_PEER_DEAD);
    }
    JS_TEST_EQ_U64(w.m[0].outstanding, 0);
    any_close();
}

/* --- random traffic -------------------------------------------------------------------------- */

typedef struct traffic_message {
    uint32_t source;
    uint32_t tag;
    uint64_t bytes;   /* different for each message: its name */
    uint32_t receive; /* that got it, or ITEMS_MAX */
} traffic_message;

typedef struct traffic_receive {
    uint16_t peer;
    uint32_t tag;
    uint64_t flags;
    uint32_t message; /* that it got, or ITEMS_MAX */
} traffic_receive;

typedef struct traffic {
    uint64_t random;
    traffic_message messages[ITEMS_MAX]; /* in the order of sending */
    traffic_receive receives[ITEMS_MAX]; /* in the order of posting */
    uint32_t message_count;
    uint32_t receive_count;
    uint32_t seen; /* completions looked at */
} traffic;

static uint32_t traffic_below(traffic *t, uint32_t limit)
{
    t->random = t->random * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(t->random >> 33) % limit;
}

static bool traffic_fits(const traffic_receive *receive, const traffic_message *message)
{
    bool is_source = receive->peer == JS_PEER_ANY || receive->peer == message->source;
    return is_source && ((receive->flags & ANY_TAG) != 0 || receive->tag == message->tag);
}

static void traffic_send(traffic *t)
{
    uint32_t large = traffic_below(t, 6) == 0 ? 20000 : 0;
    traffic_message *message = &t->messages[t->message_count];
    *message = (traffic_message){
        .source = traffic_below(t, RANKS),
        .tag = traffic_below(t, 3),
        .bytes = large + t->message_count,
        .receive = ITEMS_MAX,
    };
    t->message_count += any_send(message->source, message->bytes, message->tag);
}

static void traffic_receive_one(traffic *t, bool is_all)
{
    traffic_receive *receive = &t->receives[t->receive_count];
    uint32_t peer = traffic_below(t, RANKS + 2);
    *receive = (traffic_receive){
        .peer = (uint16_t)(peer < RANKS && !is_all ? peer : JS_PEER_ANY),
        .tag = traffic_below(t, 3),
        .flags = is_all || traffic_below(t, 3) == 0 ? ANY_TAG : 0,
        .message = ITEMS_MAX,
    };
    t->receive_count += any_receive(receive->peer, receive->tag, receive->flags, t->receive_count);
}

/* Enters new completions into the books. */
static void traffic_note(traffic *t)
{
    for (; t->seen < w.done_count; t->seen++) {
        const js_message_done *done = &w.done[t->seen];
        traffic_receive *receive = &t->receives[done->wr_id];
        uint32_t name = (uint32_t)(done->bytes % 20000);
        JS_TEST_REQUIRE(name < t->message_count && t->messages[name].bytes == done->bytes);
        traffic_message *message = &t->messages[name];
        JS_TEST_CHECK(message->receive == ITEMS_MAX && receive->message == ITEMS_MAX);
        JS_TEST_CHECK(traffic_fits(receive, message));
        JS_TEST_EQ_U64(done->peer, message->source);
        JS_TEST_EQ_U64(done->tag, message->tag);
        JS_TEST_EQ_I64(done->status, JS_OK);
        message->receive = (uint32_t)done->wr_id;
        receive->message = name;
    }
}

/* No message was overtaken by a later one of its source, and no receive by a later one. */
static void traffic_check_order(const traffic *t)
{
    for (uint32_t i = 0; i < t->message_count; i++) {
        for (uint32_t k = i + 1; k < t->message_count; k++) {
            const traffic_message *first = &t->messages[i];
            const traffic_message *second = &t->messages[k];
            if (first->source == second->source && second->receive != ITEMS_MAX &&
                traffic_fits(&t->receives[second->receive], first)) {
                JS_TEST_CHECK(first->receive < second->receive);
            }
        }
    }
    for (uint32_t i = 0; i < t->receive_count; i++) {
        for (uint32_t k = i + 1; k < t->receive_count; k++) {
            const traffic_receive *second = &t->receives[k];
            if (second->message != ITEMS_MAX && t->receives[i].message == ITEMS_MAX) {
                JS_TEST_CHECK(!traffic_fits(&t->receives[i], &t->messages[second->message]));
            }
        }
    }
}

static void traffic_check_rest(const traffic *t)
{
    for (uint32_t i = 0; i < t->receive_count; i++) {
        for (uint32_t k = 0; k < t->message_count && t->receives[i].message == ITEMS_MAX; k++) {
            bool is_left = t->messages[k].receive == ITEMS_MAX;
            JS_TEST_CHECK(!is_left || !traffic_fits(&t->receives[i], &t->messages[k]));
        }
    }
}

static void test_random_traffic(void)
{
    static traffic t;
    for (uint64_t seed = 1; seed <= 300; seed++) {
        uint32_t bias = (uint32_t)(seed % 5);
        memset(&t, 0, sizeof(t));
        t.random = seed;
        any_open();
        for (uint32_t i = 0; i < 300; i++) {
            uint32_t what = traffic_below(&t, 8 + bias);
            if (what < 2 && t.message_count < 100) {
                traffic_send(&t);
            } else if (what < 4 && t.receive_count < 100) {
                traffic_receive_one(&t, false);
            } else {
                any_step(traffic_below(&t, RANKS));
            }
            traffic_note(&t);
        }
        any_run();
        traffic_note(&t);
        traffic_check_order(&t);
        traffic_check_rest(&t);
        for (uint32_t i = 0; i < t.receive_count; i++) { /* what is left, to the last message */
            JS_TEST_EQ_U64(js_message_cancel(&w.m[0], i), t.receives[i].message == ITEMS_MAX);
        }
        while (t.seen < t.message_count) {
            traffic_receive_one(&t, true);
            any_run();
            traffic_note(&t);
        }
        JS_TEST_EQ_U64(w.m[0].outstanding + w.m[0].early_count, 0);
        any_close();
        JS_TEST_REQUIRE(js_test_failures() == 0);
    }
}

JS_TEST_MAIN(JS_TEST(test_oldest_receive_first), JS_TEST(test_every_tag_is_a_tag),
             JS_TEST(test_sources_in_turns), JS_TEST(test_probe),
             JS_TEST(test_probe_behind_a_receive), JS_TEST(test_any_is_flushed),
             JS_TEST(test_random_traffic))
