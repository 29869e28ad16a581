/* A connection that nothing disturbs, and one whose frames are lost, repeated and reordered. */
#include "js_test_rel.h"

#define MS JS_TEST_REL_MS

/* Posts from both sides as room comes until each has posted `count` chunks. */
static void rel_exchange(js_test_pair *pair, uint32_t count)
{
    for (uint32_t round = 0; round < 100 * count + 1000; round++) {
        bool all_posted = true;
        for (uint32_t side = 0; side < 2; side++) {
            while (pair->sides[side].posted < count && js_test_post(pair, side)) {
            }
            all_posted = all_posted && pair->sides[side].posted == count;
        }
        js_test_settle(pair, 10000);
        if (all_posted && js_rel_is_quiet(pair->sides[0].rel) &&
            js_rel_is_quiet(pair->sides[1].rel)) {
            break;
        }
        pair->now_ns += 20000;
    }
    JS_TEST_EQ_U64(pair->sides[0].delivered, count);
    JS_TEST_EQ_U64(pair->sides[1].delivered, count);
}

static void test_handshake(void)
{
    js_rel_config a = js_test_rel_config(0);
    js_rel_config b = js_test_rel_config(1);
    b.mtu_bytes = 200;
    js_test_pair *pair = js_test_pair_new(&a, &b);
    js_rel_open(pair->sides[0].rel, pair->now_ns, 256);
    JS_TEST_EQ_U64(js_rel_get_state(pair->sides[0].rel), JS_REL_OPENING);
    JS_TEST_EQ_U64(js_test_send(pair, 0), 1);
    JS_TEST_EQ_U64(pair->sides[1].in.frames[0].bytes, 256);
    /* Not open on the other side yet: refused, and repeated later. */
    js_test_frame hello = js_test_take(pair, 1, 0);
    JS_TEST_EQ_U64(js_test_give(pair, 1, &hello), JS_WIRE_STALE);
    js_rel_open(pair->sides[1].rel, pair->now_ns, 200);
    js_test_settle(pair, 10000);
    JS_TEST_EQ_U64(js_rel_get_state(pair->sides[0].rel), JS_REL_OPENING);
    js_test_run(pair, 10000, 20 * MS);
    JS_TEST_EQ_U64(js_rel_get_state(pair->sides[0].rel), JS_REL_OPEN);
    JS_TEST_EQ_U64(js_rel_get_state(pair->sides[1].rel), JS_REL_OPEN);
    rel_exchange(pair,
                 100); /* in frames of 200 bytes: js_test_send would not know, the peer does */
    js_test_pair_free(pair);
}

/* Runs until the two are open, on a way that loses frames of more than so many bytes. */
static void rel_open_over(js_test_pair *pair, uint32_t to_0, uint32_t to_1, uint64_t span_ns)
{
    const uint32_t carries[2] = { to_0, to_1 };
    uint64_t end_ns = pair->now_ns + span_ns;
    for (uint32_t i = 0; i < 2; i++) {
        js_rel_open(pair->sides[i].rel, pair->now_ns, JS_TEST_REL_MTU);
    }
    while (pair->now_ns < end_ns) {
        for (uint32_t i = 0; i < 2; i++) {
            (void)js_test_send(pair, i);
        }
        pair->now_ns += 10000;
        for (uint32_t i = 0; i < 2; i++) {
            for (uint32_t k = 0; k < pair->sides[i].in.count; k++) {
                const js_test_frame *frame = &pair->sides[i].in.frames[k];
                (void)(frame->bytes <= carries[i] ? js_test_give(pair, i, frame) : JS_WIRE_OK);
            }
            pair->sides[i].in.count = 0;
        }
    }
}

/* Each direction has the longest size that gets through; chunks are cut to it. */
static void test_path_search(void)
{
    static const uint16_t lesser[] = { 220, 200, 150, 128 };
    static const struct {
        uint32_t carries;
        uint32_t found; /* 0: none */
    } paths[] = {
        { 256, 256 }, { 255, 220 }, { 220, 220 }, { 149, 128 }, { 128, 128 }, { 127, 0 }
    };
    for (uint32_t i = 0; i < JS_ARRAY_LEN(paths); i++) {
        js_rel_config a = js_test_rel_config(0);
        js_rel_config b = js_test_rel_config(1);
        memcpy(a.lesser_bytes, lesser, sizeof(lesser));
        memcpy(b.lesser_bytes, lesser, sizeof(lesser));
        js_test_pair *pair = js_test_pair_new(&a, &b);
        rel_open_over(pair, JS_TEST_REL_MTU, paths[i].carries, 1000 * MS);
        js_rel *rel = pair->sides[0].rel;
        if (paths[i].found == 0) {
            JS_TEST_EQ_U64(js_rel_get_state(rel), JS_REL_OPENING);
        } else {
            JS_TEST_EQ_U64(js_rel_get_state(rel), JS_REL_OPEN);
            JS_TEST_EQ_U64(js_rel_get_state(pair->sides[1].rel), JS_REL_OPEN);
            JS_TEST_EQ_U64(js_rel_frame_bytes(rel), paths[i].found);
            JS_TEST_EQ_U64(js_rel_frame_bytes(pair->sides[1].rel), JS_TEST_REL_MTU);
            rel_exchange(pair, 100);
            JS_TEST_EQ_U64(js_rel_get_stats(rel)->retransmits, 0);
        }
        js_test_pair_free(pair);
    }
}

static void test_exchange(void)
{
    js_test_pair *pair = js_test_pair_open();
    rel_exchange(pair, 500);
    const js_rel_stats *stats = js_rel_get_stats(pair->sides[0].rel);
    JS_TEST_EQ_U64(stats->retransmits, 0);
    JS_TEST_EQ_U64(stats->timeouts, 0);
    JS_TEST_EQ_U64(stats->duplicates, 0);
    JS_TEST_EQ_U64(stats->chunks_sent, 500);
    JS_TEST_EQ_U64(stats->chunks_received, 500);
    JS_TEST_CHECK(stats->srtt_ns >= 10000 && stats->srtt_ns <= 60000);
    js_test_pair_free(pair);
}

static uint32_t rel_random(uint64_t *state, uint32_t below)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*state >> 33) % below;
}

/* Hands a side what is on its way, in any order; drops one of `drop`, repeats one of `repeat`. */
static void rel_receive_badly(js_test_pair *pair, uint32_t side, uint64_t *state, uint32_t drop,
                              uint32_t repeat)
{
    while (pair->sides[side].in.count != 0) {
        uint32_t near = (uint32_t)js_min_u64(pair->sides[side].in.count, 6);
        js_test_frame frame = js_test_take(pair, side, rel_random(state, near));
        if (rel_random(state, drop) == 0) {
            continue;
        }
        (void)js_test_give(pair, side, &frame);
        if (rel_random(state, repeat) == 0) {
            (void)js_test_give(pair, side, &frame);
        }
    }
}

/* Hands the next `count` frames to a side, which answers; the answers come back, or get lost. */
static void rel_pass(js_test_pair *pair, uint32_t side, uint32_t count, bool is_answered)
{
    pair->now_ns += 10000;
    for (uint32_t i = 0; i < count; i++) {
        js_test_frame frame = js_test_take(pair, side, 0);
        (void)js_test_give(pair, side, &frame);
    }
    JS_TEST_CHECK(js_test_send(pair, side) > 0);
    pair->now_ns += 10000;
    if (is_answered) {
        js_test_receive(pair, 1 - side);
    }
    pair->sides[1 - side].in.count = 0;
}

/* An acknowledgement on data does not tell what has come behind a gap. If the ACK that did has been
 * lost, only what is missing is repeated, once another has told. */
static void test_lost_ack(void)
{
    js_test_pair *pair = js_test_pair_open();
    const js_rel_stats *stats = js_rel_get_stats(pair->sides[0].rel);
    for (uint32_t i = 0; i < 5; i++) {
        JS_TEST_CHECK(js_test_post(pair, 0));
    }
    JS_TEST_EQ_U64(js_test_send(pair, 0), 8);
    (void)js_test_take(pair, 1, 5); /* lost: the sixth and the second */
    (void)js_test_take(pair, 1, 1);
    rel_pass(pair, 1, 4, true);
    rel_pass(pair, 1, 2, false);
    JS_TEST_EQ_U64(js_test_send(pair, 0), 1);
    JS_TEST_EQ_U64(stats->retransmits, 1);
    rel_pass(pair, 1, 1, false);
    JS_TEST_CHECK(js_test_post(pair, 1));
    rel_pass(pair, 1, 0, true); /* data: all before the sixth have come */
    (void)js_test_send(pair, 0);
    JS_TEST_EQ_U64(stats->retransmits, 1);
    js_test_run(pair, 10000, 20 * MS);
    JS_TEST_EQ_U64(stats->retransmits, 2);
    JS_TEST_EQ_U64(js_rel_get_stats(pair->sides[1].rel)->duplicates, 0);
    JS_TEST_EQ_U64(pair->sides[1].delivered, 5);
    js_test_pair_free(pair);
}

/* The answer to a probe counts with the ACK behind it, not with one that was on its way before. */
static void test_lost_answer(void)
{
    js_test_pair *pair = js_test_pair_open();
    const js_rel_stats *stats = js_rel_get_stats(pair->sides[0].rel);
    js_test_wire *back = &pair->sides[0].in;
    for (uint32_t i = 0; i < 5; i++) {
        JS_TEST_CHECK(js_test_post(pair, 0));
    }
    JS_TEST_EQ_U64(js_test_send(pair, 0), 8);
    for (uint32_t i = 0; i < 8; i++) {
        js_test_frame frame = js_test_take(pair, 1, 0);
        (void)js_test_give(pair, 1, &frame);
        if (i == 3) {
            pair->now_ns += 20000; /* an acknowledgement is due, and late */
            JS_TEST_EQ_U64(js_test_send(pair, 1), 1);
        }
    }
    js_test_frame late = js_test_take(pair, 0, 0);
    JS_TEST_CHECK(js_test_send(pair, 1) > 0);
    back->count = 0; /* the one for the others gets lost */
    pair->now_ns = js_rel_deadline(pair->sides[0].rel);
    JS_TEST_EQ_U64(js_test_send(pair, 0), 1);
    JS_TEST_EQ_U64(js_test_opcode(pair, 1, 0), JS_WIRE_PROBE);
    pair->now_ns += 10000;
    (void)js_test_give(pair, 0, &late);
    js_test_receive(pair, 1);
    JS_TEST_EQ_U64(js_test_send(pair, 1), 2);
    JS_TEST_EQ_U64(js_test_opcode(pair, 0, 0), JS_WIRE_PROBE_ACK);
    back->count = 1; /* so does that beside the answer */
    pair->now_ns += 30000;
    js_test_receive(pair, 0);
    (void)js_test_send(pair, 0);
    JS_TEST_EQ_U64(stats->retransmits, 0);
    js_test_run(pair, 10000, 20 * MS);
    JS_TEST_EQ_U64(stats->retransmits, 0);
    JS_TEST_EQ_U64(js_rel_get_stats(pair->sides[1].rel)->duplicates, 0);
    JS_TEST_EQ_U64(pair->sides[1].delivered, 5);
    JS_TEST_CHECK(js_rel_is_quiet(pair->sides[0].rel));
    js_test_pair_free(pair);
}

static void test_bad_network(void)
{
    for (uint32_t seed = 0; seed < 60; seed++) {
        uint64_t state = seed;
        js_rel_config a = js_test_rel_config(0);
        js_rel_config b = js_test_rel_config(1);
        a.send_psn = b.receive_psn = UINT32_MAX - seed;
        a.window = seed % 3 == 0 ? 2 : 32;
        js_test_pair *pair = js_test_pair_new(&a, &b);
        js_rel_open(pair->sides[0].rel, pair->now_ns, 256);
        js_rel_open(pair->sides[1].rel, pair->now_ns, 256);
        js_rel_set_share(pair->sides[1].rel, 1 + seed % 7 * 5);
        const uint32_t count = 200;
        bool is_quiet = false;
        for (uint32_t round = 0; round < 40000 && !is_quiet; round++) {
            is_quiet = true;
            for (uint32_t side = 0; side < 2; side++) {
                while (pair->sides[side].posted < count && js_test_post(pair, side)) {
                }
                is_quiet = is_quiet && pair->sides[side].posted == count &&
                           js_rel_is_quiet(pair->sides[side].rel);
                (void)js_test_send(pair, side);
            }
            pair->now_ns += 10000;
            if (pair->sides[0].in.count + pair->sides[1].in.count == 0) {
                uint64_t next = js_min_u64(js_rel_deadline(pair->sides[0].rel),
                                           js_rel_deadline(pair->sides[1].rel));
                pair->now_ns = js_max_u64(pair->now_ns, next != JS_REL_NEVER ? next : 0);
            }
            rel_receive_badly(pair, 0, &state, 4 + seed % 20, 10);
            rel_receive_badly(pair, 1, &state, 4 + seed % 20, 10);
        }
        JS_TEST_CHECK(is_quiet);
        JS_TEST_EQ_U64(pair->sides[0].delivered, count);
        JS_TEST_EQ_U64(pair->sides[1].delivered, count);
        js_test_pair_free(pair);
    }
}

JS_TEST_MAIN(JS_TEST(test_handshake), JS_TEST(test_path_search), JS_TEST(test_exchange),
             JS_TEST(test_lost_ack), JS_TEST(test_lost_answer), JS_TEST(test_bad_network))
