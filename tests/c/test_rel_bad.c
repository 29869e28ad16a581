/* What a connection refuses, forgives and gives up: frames of others, replays, impossible numbers,
 * windows that close, PSNs that wrap, ends of every kind. */
#include "js_rel_state.h"
#include "js_test_rel.h"

#define MS JS_TEST_REL_MS

/* A frame to a side that is right in all that does not concern its opcode. */
static js_wire_frame bad_frame(const js_test_pair *pair, uint32_t side, uint8_t opcode)
{
    const js_rel *rel = pair->sides[side].rel;
    return (js_wire_frame){
        .opcode = opcode,
        .dcid = rel->local_dcid,
        .epoch = rel->local_epoch,
        .psn = rel->rcv_nxt,
        .ack = (uint16_t)rel->una,
        .credit = (uint16_t)(rel->una + 32),
        .key = rel->config.local_key,
        .mtu = JS_TEST_REL_MTU,
        .trigger = rel->una - 1,
    };
}

/* Hands it over; refused frames change nothing but a counter. */
static js_wire_reason bad_give(js_test_pair *pair, uint32_t side, const js_wire_frame *frame)
{
    js_rel *rel = pair->sides[side].rel;
    js_rel *before = aligned_alloc(JS_CACHE_LINE, js_rel_bytes());
    JS_TEST_REQUIRE(before != NULL);
    memcpy(before, rel, js_rel_bytes());
    js_wire_reason reason = js_rel_rx(rel, pair->now_ns, frame);
    if (reason != JS_WIRE_OK) {
        before->stats.refused[reason]++;
        JS_TEST_CHECK(memcmp(before, rel, js_rel_bytes()) == 0);
    }
    free(before);
    return reason;
}

static void test_foreign_frames(void)
{
    static const uint8_t opcodes[] = { JS_WIRE_SEND,  JS_WIRE_ACK,       JS_WIRE_PROBE,
                                       JS_WIRE_HELLO, JS_WIRE_HELLO_ACK, JS_WIRE_PROBE_ACK,
                                       JS_WIRE_BYE,   JS_WIRE_BYE_ACK,   JS_WIRE_RESET };
    js_test_pair *pair = js_test_pair_open();
    for (uint32_t i = 0; i < JS_ARRAY_LEN(opcodes); i++) {
        js_wire_frame frame = bad_frame(pair, 0, opcodes[i]);
        frame.dcid++;
        JS_TEST_EQ_U64(bad_give(pair, 0, &frame), JS_WIRE_STALE);
        frame = bad_frame(pair, 0, opcodes[i]);
        frame.epoch--;
        JS_TEST_EQ_U64(bad_give(pair, 0, &frame), JS_WIRE_STALE);
        if (opcodes[i] > JS_WIRE_ACK) {
            frame = bad_frame(pair, 0, opcodes[i]);
            frame.key ^= 1;
            JS_TEST_EQ_U64(bad_give(pair, 0, &frame), JS_WIRE_KEY);
            frame = bad_frame(pair, 0, opcodes[i]);
            frame.psn += 1000;
            JS_TEST_EQ_U64(bad_give(pair, 0, &frame), JS_WIRE_WINDOW);
        }
    }
    js_test_settle(pair, 1000);
    JS_TEST_EQ_U64(js_rel_get_state(pair->sides[0].rel), JS_REL_OPEN);
    js_test_pair_free(pair);
}

static void test_replayed_control(void)
{
    static const uint8_t opcodes[] = { JS_WIRE_HELLO, JS_WIRE_HELLO_ACK, JS_WIRE_PROBE_ACK,
                                       JS_WIRE_BYE_ACK, JS_WIRE_PROBE };
    js_test_pair *pair = js_test_pair_open();
    for (uint32_t i = 0; i < 10 * JS_ARRAY_LEN(opcodes); i++) {
        js_wire_frame frame = bad_frame(pair, 0, opcodes[i % JS_ARRAY_LEN(opcodes)]);
        frame.psn = 77;
        frame.mtu = 150;
        JS_TEST_EQ_U64(bad_give(pair, 0, &frame), JS_WIRE_OK);
        JS_TEST_CHECK(js_test_post(pair, 0));
        js_test_settle(pair, 1000);
    }
    JS_TEST_EQ_U64(js_rel_get_state(pair->sides[0].rel), JS_REL_OPEN);
    JS_TEST_EQ_U64(pair->sides[1].delivered, 50);
    JS_TEST_EQ_U64(pair->sides[0].rel->mtu_bytes, JS_TEST_REL_MTU);
    js_test_pair_free(pair);
}

static void test_impossible_acknowledgements(void)
{
    js_test_pair *pair = js_test_pair_open();
    js_rel *rel = pair->sides[0].rel;
    for (uint32_t i = 0; i < 4; i++) {
        (void)js_test_post(pair, 0);
    }
    (void)js_test_send(pair, 0); /* four frames or more are in flight */
    uint32_t flight = rel->nxt - rel->una;

    js_wire_frame frame = bad_frame(pair, 0, JS_WIRE_ACK);
    frame.ack = (uint16_t)(rel->nxt + 1);
    JS_TEST_EQ_U64(bad_give(pair, 0, &frame), JS_WIRE_WINDOW);
    frame = bad_frame(pair, 0, JS_WIRE_ACK);
    frame.trigger = rel->nxt;
    JS_TEST_EQ_U64(bad_give(pair, 0, &frame), JS_WIRE_WINDOW);
    frame = bad_frame(pair, 0, JS_WIRE_ACK);
    frame.sack[0] = 1ull << (flight - 1);
    JS_TEST_EQ_U64(bad_give(pair, 0, &frame), JS_WIRE_WINDOW);
    frame = bad_frame(pair, 0, JS_WIRE_ACK);
    frame.credit = (uint16_t)(rel->una + JS_REL_WINDOW_MAX + 1);
    JS_TEST_EQ_U64(bad_give(pair, 0, &frame), JS_WIRE_WINDOW);
    frame = bad_frame(pair, 0, JS_WIRE_ACK);
    frame.consumed[0] = 3; /* of channel 0 two have been sent */
    JS_TEST_EQ_U64(bad_give(pair, 0, &frame), JS_WIRE_WINDOW);
    frame = bad_frame(pair, 0, JS_WIRE_SEND);
    frame.ack = (uint16_t)(rel->nxt + 1);
    JS_TEST_EQ_U64(bad_give(pair, 0, &frame), JS_WIRE_WINDOW);
    frame = bad_frame(pair, 0, JS_WIRE_SEND);
    frame.psn = rel->promised;
    JS_TEST_EQ_U64(bad_give(pair, 0, &frame), JS_WIRE_WINDOW);
    /* What has been said to have come cannot be what is waited for. */
    frame = bad_frame(pair, 0, JS_WIRE_ACK);
    frame.sack[0] = 1;
    JS_TEST_EQ_U64(bad_give(pair, 0, &frame), JS_WIRE_OK);
    frame = bad_frame(pair, 0, JS_WIRE_ACK);
    frame.ack = (uint16_t)(rel->una + 1);
    JS_TEST_EQ_U64(bad_give(pair, 0, &frame), JS_WIRE_WINDOW);
    js_test_pair_free(pair);
}

static void test_places(void)
{
    js_test_pair *pair = js_test_pair_open();
    js_wire_frame frame = bad_frame(pair, 0, JS_WIRE_PUT);
    static const uint8_t payload[64];
    frame.payload = payload;
    frame.bytes = 60;
    frame.total_bytes = 60;
    frame.offset = JS_TEST_REL_RING - 59;
    JS_TEST_EQ_U64(bad_give(pair, 0, &frame), JS_WIRE_PLACE);
    frame.offset = UINT32_MAX - 10;
    JS_TEST_EQ_U64(bad_give(pair, 0, &frame), JS_WIRE_PLACE);
    frame.offset = 0;
    frame.total_bytes = JS_REL_CHUNK_BYTES_MAX + 1;
    JS_TEST_EQ_U64(bad_give(pair, 0, &frame), JS_WIRE_PLACE);
    frame.total_bytes = 60;
    pair->sides[0].refuses_places = true;
    JS_TEST_EQ_U64(bad_give(pair, 0, &frame), JS_WIRE_PLACE);
    /* Parts that do not fit each other: the peer is broken. */
    pair->sides[0].refuses_places = false;
    frame.total_bytes = 200;
    frame.flags = JS_WIRE_FLAG_MORE;
    JS_TEST_EQ_U64(bad_give(pair, 0, &frame), JS_WIRE_OK);
    frame.psn++;
    frame.offset = 61;
    JS_TEST_EQ_U64(bad_give(pair, 0, &frame), JS_WIRE_OK);
    JS_TEST_EQ_U64(js_rel_get_error(pair->sides[0].rel), JS_REL_BROKEN);
    JS_TEST_EQ_U64(js_test_send(pair, 0), 1);
    JS_TEST_EQ_U64(js_test_opcode(pair, 1, 0), JS_WIRE_RESET);
    js_test_pair_free(pair);
}

/* Starts both ways near a wrap, with 16-bit numbers that wrap many times. */
static void test_wraps(void)
{
    static const uint32_t starts[] = { UINT32_MAX - 2, UINT32_MAX - 70, 65533, 0, 0x7ffffffe };
    for (uint32_t k = 0; k < JS_ARRAY_LEN(starts); k++) {
        js_rel_config a = js_test_rel_config(0);
        js_rel_config b = js_test_rel_config(1);
        a.send_psn = b.receive_psn = starts[k];
        a.receive_psn = b.send_psn = starts[JS_ARRAY_LEN(starts) - 1 - k];
        js_test_pair *pair = js_test_pair_new(&a, &b);
        js_test_open(pair);
        for (uint32_t i = 0; i < 70000 / (k == 0 ? 1 : 100); i++) {
            if (i % 4 != 0) {
                JS_TEST_CHECK(js_test_post(pair, 0));
            } else {
                (void)js_test_post(pair, 1);
            }
            js_test_settle(pair, 1000);
            for (uint32_t side = 0; side < 2; side++) {
                js_test_side *own = &pair->sides[side];
                js_rel_set_consumed(own->rel, 0, (own->delivered + 1) / 2, 100);
                js_rel_set_consumed(own->rel, 1, own->delivered / 2, 100);
            }
        }
        JS_TEST_EQ_U64(pair->sides[1].delivered, pair->sides[0].posted);
        JS_TEST_EQ_U64(pair->sides[0].delivered, pair->sides[1].posted);
        uint32_t told = js_rel_consumed(pair->sides[0].rel, 0);
        JS_TEST_CHECK(told + 300 > pair->sides[0].posted / 2);
        js_test_pair_free(pair);
    }
}

/* The peer reads nothing new: its limit holds the sender, and opens again without a timer. */
static void test_credit(void)
{
    js_rel_config a = js_test_rel_config(0);
    js_rel_config b = js_test_rel_config(1);
    js_test_pair *pair = js_test_pair_new(&a, &b);
    js_rel_set_share(pair->sides[1].rel, 3);
    js_test_open(pair);
    for (uint32_t i = 0; i < 4; i++) {
        (void)js_test_post(pair, 0);
    }
    JS_TEST_EQ_U64(js_test_send(pair, 0), 3);
    JS_TEST_EQ_U64(js_test_send(pair, 0), 0);
    JS_TEST_EQ_U64(js_rel_get_stats(pair->sides[0].rel)->credit_stalls, 1);
    uint32_t limit = pair->sides[0].rel->limit;
    js_rel_set_share(pair->sides[1].rel, 1); /* not taken back */
    js_test_settle(pair, 1000);
    JS_TEST_EQ_U64(pair->sides[1].delivered, 4);
    JS_TEST_CHECK(!js_rel_before(pair->sides[0].rel->limit, limit));
    JS_TEST_EQ_U64(js_rel_get_stats(pair->sides[0].rel)->timeouts, 0);
    js_test_pair_free(pair);
}

/* Every single frame of a transfer is lost once, each time another one. */
static void test_loss_of_each_frame(void)
{
    uint32_t losses = 0;
    for (uint32_t victim = 0; victim < 60; victim++) {
        js_rel_config a = js_test_rel_config(0);
        js_rel_config b = js_test_rel_config(1);
        js_test_pair *pair = js_test_pair_new(&a, &b);
        js_rel_open(pair->sides[0].rel, pair->now_ns, JS_TEST_REL_MTU);
        js_rel_open(pair->sides[1].rel, pair->now_ns, JS_TEST_REL_MTU);
        uint32_t number = 0;
        for (uint32_t round = 0; round < 200; round++) {
            (void)(pair->sides[0].posted < 8 && js_test_post(pair, 0));
            for (uint32_t side = 0; side < 2; side++) {
                (void)js_test_send(pair, side);
                for (uint32_t i = 0; i < pair->sides[1 - side].in.count; i++) {
                    if (number++ == victim) {
                        (void)js_test_take(pair, 1 - side, i);
                        losses++;
                    }
                }
            }
            pair->now_ns += 100000;
            js_test_receive(pair, 0);
            js_test_receive(pair, 1);
            if (round == 150) {
                js_rel_close(pair->sides[0].rel, pair->now_ns);
                js_rel_close(pair->sides[1].rel, pair->now_ns);
            }
        }
        JS_TEST_EQ_U64(pair->sides[1].delivered, 8);
        JS_TEST_EQ_U64(js_rel_get_state(pair->sides[0].rel), JS_REL_CLOSED);
        JS_TEST_EQ_U64(js_rel_get_state(pair->sides[1].rel), JS_REL_CLOSED);
        js_test_pair_free(pair);
    }
    JS_TEST_CHECK(losses > 20);
}

static void test_close(void)
{
    js_test_pair *pair = js_test_pair_open();
    uint32_t value = 0xabcd;
    js_rel_set_note(pair->sides[0].rel, &value, sizeof(value));
    for (uint32_t i = 0; i < 12; i++) {
        (void)js_test_post(pair, 0);
    }
    js_rel_close(pair->sides[0].rel, pair->now_ns);
    JS_TEST_CHECK(!js_test_post(pair, 0));
    js_test_settle(pair, 1000);
    JS_TEST_EQ_U64(pair->sides[1].delivered, 12);
    JS_TEST_EQ_U64(js_rel_get_state(pair->sides[0].rel), JS_REL_CLOSED);
    JS_TEST_EQ_U64(pair->sides[1].notes[JS_WIRE_BYE], 1);
    JS_TEST_EQ_U64(pair->sides[1].note_value, value);
    /* What the other side still sends is taken and acknowledged. */
    JS_TEST_EQ_U64(js_rel_get_state(pair->sides[1].rel), JS_REL_OPEN);
    JS_TEST_CHECK(js_test_post(pair, 1));
    js_test_run(pair, 1000, 2 * MS);
    JS_TEST_EQ_U64(pair->sides[0].delivered, 1);
    js_rel_close(pair->sides[1].rel, pair->now_ns);
    js_test_settle(pair, 1000);
    JS_TEST_EQ_U64(js_rel_get_state(pair->sides[1].rel), JS_REL_CLOSED);
    js_test_pair_free(pair);

    pair = js_test_pair_open(); /* nobody answers: everything came, so it ends all the same */
    js_rel_close(pair->sides[0].rel, pair->now_ns);
    for (uint32_t i = 0; i < 100; i++) {
        (void)js_test_send(pair, 0);
        pair->sides[1].in.count = 0;
        pair->now_ns += 50 * MS;
    }
    JS_TEST_EQ_U64(js_rel_get_state(pair->sides[0].rel), JS_REL_CLOSED);
    js_test_pair_free(pair);
}

static void test_abort(void)
{
    js_test_pair *pair = js_test_pair_open();
    uint32_t value = 0x1234;
    js_rel_abort(pair->sides[0].rel, &value, sizeof(value));
    JS_TEST_EQ_U64(js_rel_get_state(pair->sides[0].rel), JS_REL_FAILED);
    JS_TEST_EQ_U64(js_test_send(pair, 0), 1);
    pair->sides[1].in.count = 0; /* lost, but every frame of the peer brings another */
    JS_TEST_CHECK(js_test_post(pair, 1));
    js_test_settle(pair, 1000);
    JS_TEST_EQ_U64(js_rel_get_error(pair->sides[1].rel), JS_REL_RESET);
    JS_TEST_EQ_U64(pair->sides[1].note_value, value);
    JS_TEST_EQ_U64(js_test_send(pair, 1), 0);
    JS_TEST_CHECK(!js_test_post(pair, 1));
    js_test_pair_free(pair);
}

static void test_give_up(void)
{
    js_test_pair *pair = js_test_pair_open();
    pair->now_ns += 100000 * MS; /* idle for long: nothing is awaited, nobody is missed */
    js_test_settle(pair, 1000);
    JS_TEST_CHECK(js_test_post(pair, 0));
    uint64_t start_ns = pair->now_ns;
    while (js_rel_get_state(pair->sides[0].rel) == JS_REL_OPEN) {
        (void)js_test_send(pair, 0);
        pair->sides[1].in.count = 0;
        uint64_t next_ns = js_min_u64(js_rel_deadline(pair->sides[0].rel), pair->now_ns + 500 * MS);
        pair->now_ns = js_max_u64(pair->now_ns + 1, next_ns);
        JS_TEST_REQUIRE(pair->now_ns - start_ns < 2000 * MS);
    }
    JS_TEST_EQ_U64(js_rel_get_error(pair->sides[0].rel), JS_REL_LOST);
    JS_TEST_CHECK(js_rel_get_stats(pair->sides[0].rel)->timeouts >= 3);
    js_test_pair_free(pair);

    pair = js_test_pair_open(); /* a question is awaited as well */
    js_rel_ask(pair->sides[0].rel);
    for (uint32_t i = 0; i < 30; i++) {
        (void)js_test_send(pair, 0);
        pair->now_ns += 50 * MS;
    }
    JS_TEST_EQ_U64(js_rel_get_error(pair->sides[0].rel), JS_REL_LOST);
    js_test_pair_free(pair);
}

/* This side did not run: that is not the peer's silence. */
static void test_resume(void)
{
    js_test_pair *pair = js_test_pair_open();
    JS_TEST_CHECK(js_test_post(pair, 0));
    (void)js_test_send(pair, 0);
    js_test_receive(pair, 1);
    (void)js_test_send(pair, 1);
    pair->now_ns += 5000 * MS;
    js_rel_resume(pair->sides[0].rel, pair->now_ns);
    (void)js_test_send(pair, 0);
    JS_TEST_EQ_U64(js_rel_get_state(pair->sides[0].rel), JS_REL_OPEN);
    JS_TEST_EQ_U64(js_rel_get_stats(pair->sides[0].rel)->timeouts, 0);
    js_test_settle(pair, 1000);
    JS_TEST_CHECK(js_rel_is_quiet(pair->sides[0].rel));
    /* Nor does it say anything about the round trip. */
    JS_TEST_CHECK(js_rel_get_stats(pair->sides[0].rel)->srtt_ns < 10 * MS);
    js_test_pair_free(pair);
}

static void test_ask(void)
{
    js_test_pair *pair = js_test_pair_open();
    uint32_t values[2] = { 11, 22 };
    js_rel_set_note(pair->sides[0].rel, &values[0], sizeof(values[0]));
    js_rel_set_note(pair->sides[1].rel, &values[1], sizeof(values[1]));
    js_rel_ask(pair->sides[0].rel);
    (void)js_test_send(pair, 0);
    pair->sides[1].in.count = 0; /* lost, and asked again */
    js_test_run(pair, 1000, 20 * MS);
    JS_TEST_EQ_U64(pair->sides[1].notes[JS_WIRE_PROBE], 1);
    JS_TEST_EQ_U64(pair->sides[0].notes[JS_WIRE_PROBE_ACK], 1);
    JS_TEST_EQ_U64(pair->sides[0].note_value, 22);
    JS_TEST_EQ_U64(pair->sides[1].note_value, 11);
    js_test_pair_free(pair);
}

/* What has been consumed is told though the ACK that told it first is lost. */
static void test_consumed(void)
{
    js_test_pair *pair = js_test_pair_open();
    (void)js_test_post(pair, 0);
    js_test_run(pair, 1000, MS);
    js_rel_set_consumed(pair->sides[1].rel, 0, 1, 1);
    JS_TEST_EQ_U64(js_test_send(pair, 1), 1);
    JS_TEST_EQ_U64(js_test_opcode(pair, 0, 0), JS_WIRE_ACK);
    pair->sides[0].in.count = 0;
    JS_TEST_EQ_U64(js_rel_consumed(pair->sides[0].rel, 0), 0);
    js_test_run(pair, 1000, 100 * MS);
    JS_TEST_EQ_U64(js_rel_consumed(pair->sides[0].rel, 0), 1);
    JS_TEST_EQ_U64(js_rel_deadline(pair->sides[0].rel), JS_REL_NEVER);
    js_test_pair_free(pair);
}

JS_TEST_MAIN(JS_TEST(test_foreign_frames), JS_TEST(test_replayed_control),
             JS_TEST(test_impossible_acknowledgements), JS_TEST(test_places), JS_TEST(test_wraps),
             JS_TEST(test_credit), JS_TEST(test_loss_of_each_frame), JS_TEST(test_close),
             JS_TEST(test_abort), JS_TEST(test_give_up), JS_TEST(test_resume), JS_TEST(test_ask),
             JS_TEST(test_consumed))
