/* Links over UDP on the loopback interface: what is sent arrives, whatever else arrives too. */
#include "js_test_link.h"

#include <arpa/inet.h>
#include <sys/socket.h>
#include <unistd.h>

static const js_link_config udp = { .kind = JS_LINK_UDP };

static void test_one_frame_each_way(void)
{
    js_test_pair pair;
    js_link_packet packet;
    js_link_stats stats;
    js_test_pair_open(&pair, &udp, &udp);
    for (uint32_t number = 0; number < 20; number++) {
        uint32_t from = number & 1;
        js_link_address to;
        js_link_get_address(pair.link[1 - from], &to);
        JS_TEST_CHECK(js_test_send(&pair, from, 20 + number, number));
        js_link_flush(pair.link[from]);
        JS_TEST_EQ_U64(js_test_await(pair.link[1 - from], &packet, 1), 1);
        JS_TEST_EQ_U64(packet.bytes, 20 + number);
        JS_TEST_CHECK(js_test_frame_is(&packet, 20 + number, number, &to));
        js_link_release(pair.link[1 - from]);
    }
    js_link_get_stats(pair.link[0], &stats);
    JS_TEST_EQ_U64(stats.frames_sent, 10);
    JS_TEST_EQ_U64(stats.frames_received, 10);
    JS_TEST_EQ_U64(stats.send_drops + stats.receive_drops, 0);
    js_test_pair_close(&pair);
}

/* Frames of mixed sizes, as many as fit before a flush: all come, each as it was. */
static void send_and_check(js_test_pair *pair, const uint32_t *sizes, uint32_t count)
{
    js_link_packet packets[7];
    js_link_address to;
    uint32_t sent = 0;
    uint32_t got = 0;
    js_link_get_address(pair->link[1], &to);
    while (got < count) {
        while (sent < count && js_test_send(pair, 0, sizes[sent], sent)) {
            sent++;
        }
        js_link_flush(pair->link[0]);
        while (got < sent) {
            uint32_t came = js_test_await(pair->link[1], packets, JS_ARRAY_LEN(packets));
            JS_TEST_REQUIRE(came > 0);
            for (uint32_t i = 0; i < came; i++, got++) {
                JS_TEST_EQ_U64(packets[i].bytes, sizes[got]);
                JS_TEST_CHECK(js_test_frame_is(&packets[i], sizes[got], got, &to));
            }
            js_link_release(pair->link[1]);
        }
    }
}

static void test_bursts(void)
{
    js_test_pair pair;
    uint32_t sizes[400];
    uint32_t seed = 1;
    js_test_pair_open(&pair, &udp, &udp);
    uint32_t mtu = pair.link[0]->mtu_bytes;
    for (uint32_t i = 0; i < JS_ARRAY_LEN(sizes); i++) {
        seed = seed * 1664525u + 1013904223u;
        sizes[i] = (seed >> 30) != 0 ? mtu : 16 + (seed >> 8) % (mtu - 16);
    }
    send_and_check(&pair, sizes, JS_ARRAY_LEN(sizes));
    for (uint32_t i = 0; i < JS_ARRAY_LEN(sizes); i++) {
        sizes[i] = i % 5 == 0 ? 44 : 1400;
    }
    send_and_check(&pair, sizes, JS_ARRAY_LEN(sizes));
    js_test_pair_close(&pair);
}

JS_TEST_MAIN(JS_TEST(test_one_frame_each_way), JS_TEST(test_bursts))
