/* Faults on purpose: what the text means, that the seed decides, and that no frame is made up. */
#include "js_test_link.h"

enum {
    FRAMES = 20000,
    FRAME_BYTES = 64
};

static void test_texts(void)
{
    static const char *const good[] = { "drop=0.01,dup=0.005,reorder=0.01,corrupt=0.001,seed=7",
                                        "delay_us=50",
                                        "drop=1",
                                        "drop=0.000000001",
                                        "stall=0.001,stall_us=500",
                                        "cut=0,mtu=1400,seed=18446744073709551615" };
    static const char *const bad[] = { "drop",
                                       "drop=",
                                       "drop=1.1",
                                       "drop=2",
                                       "drop=-0.1",
                                       "drop=0.1,",
                                       ",drop=0.1",
                                       "drop=0.1;dup=0.1",
                                       "drop=0.1,drop=0.1",
                                       "drop=0.0000000001",
                                       "drop=.5",
                                       "drop=0.1x",
                                       "drops=0.1",
                                       "delay_us=50.5",
                                       "delay_us=99999999999",
                                       "stall_us=0",
                                       "mtu=0",
                                       "seed=18446744073709551616",
                                       "seed 7",
                                       "=" };
    js_link *link = NULL;
    js_link_config config = { .kind = JS_LINK_UDP };
    for (size_t i = 0; i < JS_ARRAY_LEN(good); i++) {
        config.fault = good[i];
        JS_TEST_EQ_I64(js_link_open(&config, &link), JS_OK);
        js_link_close(link);
    }
    for (size_t i = 0; i < JS_ARRAY_LEN(bad); i++) {
        config.fault = bad[i];
        JS_TEST_EQ_I64(js_link_open(&config, &link), JS_ERR_INVALID);
        JS_TEST_CHECK(strstr(js_last_error()->text, "faults: ") != NULL);
    }
}

typedef struct outcome {
    uint32_t came;
    uint32_t lost;
    uint32_t twice;
    uint32_t changed;
    uint32_t overtaken;
    uint64_t digest; /* of what came, in order */
} outcome;

static void count_frame(const js_link_packet *packet, const js_link_address *to, uint8_t *times,
                        outcome *out)
{
    static uint32_t last;
    uint32_t number;
    out->came++;
    memcpy(&number, packet->frame + 8, sizeof(number));
    for (uint32_t i = 0; i < packet->bytes; i++) {
        out->digest = (out->digest ^ packet->frame[i]) * 0x100000001b3u;
    }
    if (number >= FRAMES || !js_test_frame_is(packet, FRAME_BYTES, number, to)) {
        out->changed++;
        return;
    }
    last = out->came == 1 ? 0 : last;
    out->overtaken += number < last;
    last = number;
    times[number]++;
}

/* Sends FRAMES frames through the faults and sees what becomes of them. The identity of the
 * receiver is left out of the digest: it differs from run to run. */
static outcome run_faults(const char *fault)
{
    static uint8_t times[FRAMES];
    js_link_config faulty = { .kind = JS_LINK_UDP, .fault = fault };
    js_link_config sound = { .kind = JS_LINK_UDP };
    js_link_address to = { 0 };
    js_test_pair pair;
    js_link_packet packets[64];
    outcome out = { 0 };
    memset(times, 0, sizeof(times));
    js_test_pair_open(&pair, &faulty, &sound);
    for (uint32_t sent = 0; sent < FRAMES;) {
        for (uint32_t i = 0; i < 40 && sent < FRAMES; i++, sent++) {
            uint8_t *frame = js_link_begin(pair.link[0], pair.peer[0]);
            JS_TEST_REQUIRE(frame != NULL);
            js_test_frame_fill(frame, FRAME_BYTES, sent, &to);
            js_link_commit(pair.link[0], pair.peer[0], FRAME_BYTES);
        }
        js_link_flush(pair.link[0]);
        uint32_t count;
        while ((count = js_link_receive(pair.link[1], packets, 64)) > 0) {
            for (uint32_t i = 0; i < count; i++) {
                count_frame(&packets[i], &to, times, &out);
            }
            js_link_release(pair.link[1]);
        }
    }
    /* What is held back goes when the link is used after its time. */
    uint64_t until = js_clock_ns() + 20000000;
    for (bool is_last = false; !is_last;) {
        is_last = js_clock_ns() > until;
        js_link_flush(pair.link[0]);
        uint32_t count;
        while ((count = js_link_receive(pair.link[1], packets, 64)) > 0) {
            for (uint32_t i = 0; i < count; i++) {
                count_frame(&packets[i], &to, times, &out);
            }
            js_link_release(pair.link[1]);
        }
    }
    for (uint32_t i = 0; i < FRAMES; i++) {
        out.lost += times[i] == 0;
        out.twice += times[i] == 2;
        JS_TEST_CHECK(times[i] <= 2);
    }
    js_test_pair_close(&pair);
    return out;
}

static void test_rates(void)
{
    outcome out = run_faults("drop=0.05,dup=0.02,corrupt=0.01,seed=3");
    JS_TEST_CHECK(out.changed > 120 && out.changed < 300);
    JS_TEST_CHECK(out.twice > 300 && out.twice < 500);
    JS_TEST_CHECK(out.lost - out.changed > 800 && out.lost - out.changed < 1200);
    JS_TEST_EQ_U64(out.overtaken, 0);
}

static void test_the_seed_decides(void)
{
    outcome first = run_faults("drop=0.05,dup=0.02,corrupt=0.01,seed=3");
    outcome again = run_faults("drop=0.05,dup=0.02,corrupt=0.01,seed=3");
    outcome other = run_faults("drop=0.05,dup=0.02,corrupt=0.01,seed=4");
    JS_TEST_EQ_U64(first.digest, again.digest);
    JS_TEST_CHECK(first.digest != other.digest);
}

static void test_order_and_time(void)
{
    outcome out = run_faults("reorder=0.02");
    JS_TEST_EQ_U64(out.lost + out.changed + out.twice, 0);
    JS_TEST_CHECK(out.overtaken > 200);
    out = run_faults("delay_us=100");
    JS_TEST_EQ_U64(out.lost + out.changed + out.twice + out.overtaken, 0);
    out = run_faults("stall=0.001,stall_us=300");
    JS_TEST_EQ_U64(out.lost + out.changed + out.twice + out.overtaken, 0);
}

static void test_cut_and_black_hole(void)
{
    outcome out = run_faults("cut=100");
    JS_TEST_EQ_U64(out.came, 100);
    out = run_faults("mtu=63");
    JS_TEST_EQ_U64(out.came, 0);
    out = run_faults("mtu=64");
    JS_TEST_EQ_U64(out.came, FRAMES);
}

/* The descriptor becomes readable when a frame is due that is held back. */
static void test_held_frames_wake(void)
{
    js_link_config faulty = { .kind = JS_LINK_UDP, .fault = "delay_us=100000" };
    js_link_config sound = { .kind = JS_LINK_UDP };
    js_link_packet packet;
    js_test_pair pair;
    js_test_pair_open(&pair, &faulty, &sound);
    JS_TEST_CHECK(js_test_send(&pair, 0, FRAME_BYTES, 0));
    js_link_flush(pair.link[0]);
    JS_TEST_EQ_U64(js_link_receive(pair.link[1], &packet, 1), 0);
    uint64_t until = js_clock_ns() + JS_TEST_LINK_WAIT_NS;
    uint32_t came = 0;
    while (came == 0 && js_clock_ns() < until) {
        struct pollfd readable = { .fd = js_link_wait_fd(pair.link[0]), .events = POLLIN };
        JS_TEST_EQ_I64(poll(&readable, 1, 30000), 1);
        JS_TEST_EQ_U64(js_link_receive(pair.link[0], &packet, 1), 0);
        came = js_link_receive(pair.link[1], &packet, 1);
    }
    JS_TEST_EQ_U64(came, 1);
    struct pollfd readable = { .fd = js_link_wait_fd(pair.link[0]), .events = POLLIN };
    JS_TEST_EQ_I64(poll(&readable, 1, 0), 0);
    js_test_pair_close(&pair);
}

JS_TEST_MAIN(JS_TEST(test_texts), JS_TEST(test_rates), JS_TEST(test_the_seed_decides),
             JS_TEST(test_order_and_time), JS_TEST(test_cut_and_black_hole),
             JS_TEST(test_held_frames_wake))
