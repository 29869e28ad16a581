/* Links over AF_XDP on a virtual cable. Loading the program takes the rights of the host's root. */
#include "js_test_link.h"
#include "js_test_net.h"

#define ENTER(mtu_bytes)                                                                           \
    do {                                                                                           \
        const char *reason = js_test_net_enter(mtu_bytes, true);                                   \
        js_link *probe = NULL;                                                                     \
        if (reason == NULL && js_link_open(&xdp0, &probe) != JS_OK) {                              \
            reason = js_last_error()->text;                                                        \
        }                                                                                          \
        js_link_close(probe);                                                                      \
        if (reason != NULL) {                                                                      \
            JS_TEST_SKIP(reason);                                                                  \
        }                                                                                          \
    } while (0)

static const js_link_config xdp0 = { .kind = JS_LINK_XDP, .interface = "js0" };
static const js_link_config xdp1 = { .kind = JS_LINK_XDP, .interface = "js1" };
static const js_link_config packet1 = { .kind = JS_LINK_PACKET, .interface = "js1" };

/* Frames of all sizes in bursts both ways, many times round the rings. */
static void exchange(const js_link_config *first, const js_link_config *second, uint32_t mtu_bytes)
{
    js_test_pair pair;
    js_link_packet packets[16];
    js_test_pair_open(&pair, first, second);
    for (uint32_t round = 0; round < 200; round++) {
        uint32_t from = round & 1;
        js_link_address to;
        js_link_get_address(pair.link[1 - from], &to);
        for (uint32_t i = 0; i < 40; i++) {
            JS_TEST_CHECK(js_test_send(&pair, from, mtu_bytes - (round * 7 + i) % 400, i));
        }
        js_link_flush(pair.link[from]);
        for (uint32_t got = 0; got < 40;) {
            uint32_t came = js_test_await(pair.link[1 - from], packets, JS_ARRAY_LEN(packets));
            JS_TEST_REQUIRE(came > 0);
            for (uint32_t i = 0; i < came; i++, got++) {
                uint32_t bytes = mtu_bytes - (round * 7 + got) % 400;
                JS_TEST_CHECK(js_test_frame_is(&packets[i], bytes, got, &to));
            }
        }
        js_link_release(pair.link[1 - from]);
    }
    js_test_pair_close(&pair);
}

static void test_exchange(void)
{
    ENTER(1500);
    exchange(&xdp0, &xdp1, 1500);
}

static void test_with_a_packet_link(void)
{
    ENTER(1500);
    exchange(&xdp0, &packet1, 1500);
}

static void test_large_frames(void)
{
    ENTER(3500);
    exchange(&xdp0, &xdp1, 3500);
}

/* Receiving more than there is memory for loses frames, is counted, and goes on afterwards. */
static void test_buffers_full(void)
{
    ENTER(1500);
    js_link_config small = xdp1;
    js_test_pair pair;
    js_link_packet packets[256];
    js_link_stats stats;
    small.buffer_frames = 64;
    js_test_pair_open(&pair, &xdp0, &small);
    for (uint32_t round = 0; round < 3; round++) {
        for (uint32_t i = 0; i < 100; i++) {
            JS_TEST_CHECK(js_test_send(&pair, 0, 100, i));
        }
        js_link_flush(pair.link[0]);
        uint32_t got = 0;
        while (got < 64) {
            uint32_t came = js_test_await(pair.link[1], packets + got, 256 - got);
            JS_TEST_REQUIRE(came > 0);
            got += came;
        }
        JS_TEST_EQ_U64(got, 64);
        js_link_release(pair.link[1]);
    }
    js_link_get_stats(pair.link[1], &stats);
    JS_TEST_CHECK(stats.receive_drops >= 3 * 36);
    js_test_pair_close(&pair);
}

static void test_one_per_interface(void)
{
    ENTER(1500);
    js_link *first = NULL;
    js_link *second = NULL;
    JS_TEST_REQUIRE(js_link_open(&xdp0, &first) == JS_OK);
    JS_TEST_EQ_I64(js_link_open(&xdp0, &second), JS_ERR_SYSTEM);
    JS_TEST_CHECK(strstr(js_last_error()->text, "js0 has an XDP program already") != NULL);
    js_link_close(first);
    JS_TEST_EQ_I64(js_link_open(&xdp0, &second), JS_OK); /* nothing has stayed behind */
    js_link_close(second);
}

/* Packet links stand beside the xdp link of an interface: each gets its own frames. */
static void test_packet_links_beside_it(void)
{
    ENTER(1500);
    const js_link_config packet0 = { .kind = JS_LINK_PACKET, .interface = "js0" };
    js_test_pair pairs[3];
    js_link_packet packets[16];
    js_test_pair_open(&pairs[0], &xdp0, &packet1);
    js_test_pair_open(&pairs[1], &packet0, &packet1);
    js_test_pair_open(&pairs[2], &packet0, &xdp1);
    for (uint32_t round = 0; round < 12; round++) {
        uint32_t from = round & 1;
        for (uint32_t i = 0; i < JS_ARRAY_LEN(pairs); i++) {
            JS_TEST_CHECK(js_test_send(&pairs[i], from, 100 + i, round));
            js_link_flush(pairs[i].link[from]);
        }
        for (uint32_t i = 0; i < JS_ARRAY_LEN(pairs); i++) {
            js_link *to = pairs[i].link[1 - from];
            js_link_address address;
            js_link_get_address(to, &address);
            JS_TEST_REQUIRE(js_test_await(to, packets, JS_ARRAY_LEN(packets)) == 1);
            JS_TEST_CHECK(js_test_frame_is(&packets[0], 100 + i, round, &address));
            js_link_release(to);
        }
    }
    for (uint32_t i = 0; i < JS_ARRAY_LEN(pairs); i++) {
        js_test_pair_close(&pairs[i]);
    }
}

JS_TEST_MAIN(JS_TEST(test_exchange), JS_TEST(test_with_a_packet_link), JS_TEST(test_large_frames),
             JS_TEST(test_buffers_full), JS_TEST(test_one_per_interface),
             JS_TEST(test_packet_links_beside_it))
