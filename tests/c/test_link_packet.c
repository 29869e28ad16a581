/* Links of raw Ethernet frames, over a virtual cable in a namespace of the test's own. */
#include "js_link_interface.h"
#include "js_test_link.h"
#include "js_test_net.h"

#include <arpa/inet.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <sys/socket.h>

#define ENTER(mtu_bytes)                                                                           \
    do {                                                                                           \
        const char *reason = js_test_net_enter(mtu_bytes, false);                                  \
        if (reason != NULL) {                                                                      \
            JS_TEST_SKIP(reason);                                                                  \
        }                                                                                          \
    } while (0)

static const js_link_config packet0 = { .kind = JS_LINK_PACKET, .interface = "js0" };
static const js_link_config packet1 = { .kind = JS_LINK_PACKET, .interface = "js1" };

static void test_one_frame_each_way(void)
{
    ENTER(1500);
    js_test_pair pair;
    js_link_packet packet;
    js_link_stats stats;
    js_test_pair_open(&pair, &packet0, &packet1);
    JS_TEST_EQ_U64(pair.link[0]->mtu_bytes, 1500);
    for (uint32_t number = 0; number < 5000; number++) { /* several times round the ring */
        uint32_t from = number & 1;
        uint32_t bytes = 20 + number % 1400;
        js_link_address to;
        js_link_get_address(pair.link[1 - from], &to);
        JS_TEST_CHECK(js_test_send(&pair, from, bytes, number));
        js_link_flush(pair.link[from]);
        JS_TEST_EQ_U64(js_test_await(pair.link[1 - from], &packet, 1), 1);
        JS_TEST_CHECK(js_test_frame_is(&packet, bytes, number, &to));
        js_link_release(pair.link[1 - from]);
    }
    js_link_get_stats(pair.link[0], &stats);
    JS_TEST_EQ_U64(stats.frames_sent, 2500);
    JS_TEST_EQ_U64(stats.frames_received, 2500);
    JS_TEST_EQ_U64(stats.send_drops + stats.receive_drops, 0);
    js_test_pair_close(&pair);
}

/* Bursts of full frames, released late, in rings that come round. */
static void send_bursts(uint32_t mtu_bytes)
{
    js_link_config small0 = packet0;
    js_link_config small1 = packet1;
    js_test_pair pair;
    js_link_packet packets[16];
    js_link_address to;
    small0.buffer_frames = 64;
    small1.buffer_frames = 64;
    js_test_pair_open(&pair, &small0, &small1);
    JS_TEST_EQ_U64(pair.link[0]->mtu_bytes, mtu_bytes);
    JS_TEST_EQ_U64(pair.link[0]->buffer_frames, 64);
    js_link_get_address(pair.link[1], &to);
    for (uint32_t got = 0; got < 1000;) {
        uint32_t sent = got;
        while (sent < got + 50) {
            JS_TEST_CHECK(js_test_send(&pair, 0, mtu_bytes - sent % 3, sent));
            sent++;
        }
        js_link_flush(pair.link[0]);
        while (got < sent) {
            uint32_t came = js_test_await(pair.link[1], packets, JS_ARRAY_LEN(packets));
            JS_TEST_REQUIRE(came > 0);
            for (uint32_t i = 0; i < came; i++, got++) {
                JS_TEST_EQ_U64(packets[i].bytes, mtu_bytes - got % 3);
                JS_TEST_CHECK(js_test_frame_is(&packets[i], mtu_bytes - got % 3, got, &to));
            }
        }
        js_link_release(pair.link[1]);
    }
    js_test_pair_close(&pair);
}

static void test_bursts(void)
{
    ENTER(1500);
    send_bursts(1500);
}

static void test_jumbo_frames(void)
{
    ENTER(9000);
    send_bursts(9000);
}

/* The kernel may hand over frames a little after they were sent. */
static void await_drops(js_link *link, uint64_t count)
{
    js_link_stats stats;
    uint64_t until = js_clock_ns() + JS_TEST_LINK_WAIT_NS;
    do {
        js_link_get_stats(link, &stats);
    } while (stats.receive_drops < count && js_clock_ns() < until);
    JS_TEST_EQ_U64(stats.receive_drops, count);
}

/* What does not fit the ring is lost and counted; what comes after it arrives. */
static void test_ring_full(void)
{
    ENTER(1500);
    js_link_config small1 = packet1;
    js_test_pair pair;
    js_link_packet packets[256];
    small1.buffer_frames = 64;
    js_test_pair_open(&pair, &packet0, &small1);
    for (uint32_t round = 0; round < 3; round++) {
        for (uint32_t number = 0; number < 100; number++) {
            if (!js_test_send(&pair, 0, 100, number)) {
                js_link_flush(pair.link[0]);
                JS_TEST_CHECK(js_test_send(&pair, 0, 100, number));
            }
        }
        js_link_flush(pair.link[0]);
        uint32_t got = 0;
        while (got < 64) {
            uint32_t came =
                js_test_await(pair.link[1], packets + got, (uint32_t)JS_ARRAY_LEN(packets) - got);
            JS_TEST_REQUIRE(came > 0);
            got += came;
        }
        await_drops(pair.link[1], (round + 1) * 36);
        JS_TEST_EQ_U64(got, 64);
        JS_TEST_EQ_U64(js_link_receive(pair.link[1], packets, 1), 0);
        js_link_release(pair.link[1]);
    }
    js_test_pair_close(&pair);
}

/* A packet socket to send anything from js0. */
static int open_raw(void)
{
    int fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
    struct sockaddr_ll address = { .sll_family = AF_PACKET,
                                   .sll_ifindex = (int)if_nametoindex("js0") };
    JS_TEST_REQUIRE(fd >= 0);
    JS_TEST_EQ_I64(bind(fd, (const struct sockaddr *)(const void *)&address, sizeof(address)), 0);
    return fd;
}

/* Frames for others, of any length and content, do not reach the link; those for it do, even if
 * they are nonsense: what they mean is the codec's business. */
static void test_foreign_frames(void)
{
    ENTER(1500);
    js_test_pair pair;
    js_link_packet packets[8];
    js_link_address to;
    uint8_t raw[ETH_HLEN + 1500];
    uint32_t seed = 5;
    js_test_pair_open(&pair, &packet0, &packet1);
    js_link_get_address(pair.link[1], &to);
    int fd = open_raw();
    for (uint32_t i = 0; i < 3000; i++) {
        for (size_t j = 0; j < sizeof(raw); j++) {
            seed = seed * 1664525u + 1013904223u;
            raw[j] = (uint8_t)(seed >> 24);
        }
        uint16_t protocol = htons(i % 4 == 3 ? ETH_P_IP : to.ethertype);
        uint16_t stale = (uint16_t)(to.epoch + 1);
        memcpy(raw, to.mac, sizeof(to.mac));
        memcpy(raw + 12, &protocol, 2);
        memcpy(raw + ETH_HLEN + 4, &to.dcid, 2);
        memcpy(raw + ETH_HLEN + 6, i % 4 == 0 ? &stale : &to.epoch, 2);
        raw[ETH_HLEN + 5] ^= (uint8_t)(i % 4 == 1);
        size_t bytes = i % 4 == 2 ? ETH_HLEN + i % 8 : ETH_HLEN + i % 1500;
        JS_TEST_CHECK(send(fd, raw, bytes, 0) == (ssize_t)bytes);
    }
    JS_TEST_EQ_U64(js_link_receive(pair.link[1], packets, 8), 0);
    raw[ETH_HLEN + 5] = (uint8_t)(to.dcid >> 8);
    uint16_t protocol = htons(to.ethertype);
    memcpy(raw + 12, &protocol, 2);
    memcpy(raw + ETH_HLEN + 6, &to.epoch, 2);
    JS_TEST_EQ_I64(send(fd, raw, ETH_HLEN + 8, 0), ETH_HLEN + 8);
    JS_TEST_EQ_U64(js_test_await(pair.link[1], packets, 8), 1);
    JS_TEST_EQ_U64(packets[0].bytes, 8);
    close(fd);
    js_test_pair_close(&pair);
}

/* Two endpoints on one interface: each gets its own frames. */
static void test_many_on_an_interface(void)
{
    ENTER(1500);
    js_test_pair pairs[4];
    js_link_packet packets[8];
    for (uint32_t i = 0; i < 4; i++) {
        js_test_pair_open(&pairs[i], &packet0, &packet1);
    }
    for (uint32_t i = 0; i < 4; i++) {
        JS_TEST_CHECK(js_test_send(&pairs[i], 0, 60, i));
        js_link_flush(pairs[i].link[0]);
    }
    for (uint32_t i = 0; i < 4; i++) {
        js_link_address to;
        js_link_get_address(pairs[i].link[1], &to);
        JS_TEST_EQ_U64(js_test_await(pairs[i].link[1], packets, 8), 1);
        JS_TEST_CHECK(js_test_frame_is(&packets[0], 60, i, &to));
        js_link_release(pairs[i].link[1]);
    }
    for (uint32_t i = 0; i < 4; i++) {
        js_test_pair_close(&pairs[i]);
    }
}

/* The interface goes down and comes back: frames are lost and counted, later ones arrive. */
static void test_interface_down(void)
{
    ENTER(1500);
    js_test_pair pair;
    js_link_packet packet;
    js_link_stats stats;
    js_test_pair_open(&pair, &packet0, &packet1);
    JS_TEST_CHECK(js_test_net_run("ip link set js0 down"));
    for (uint32_t i = 0; i < 2; i++) {
        JS_TEST_CHECK(js_test_send(&pair, 0, 60, i));
        JS_TEST_CHECK(js_test_send(&pair, 0, 60, i));
        js_link_flush(pair.link[0]);
        JS_TEST_CHECK(js_test_send(&pair, 0, 60, i));
        js_link_flush(pair.link[0]);
    }
    js_link_get_stats(pair.link[0], &stats);
    JS_TEST_EQ_U64(stats.send_drops, 6);
    JS_TEST_CHECK(js_test_net_run("ip link set js0 up"));
    uint32_t came = 0;
    for (uint64_t until = js_clock_ns() + JS_TEST_LINK_WAIT_NS;
         came == 0 && js_clock_ns() < until;) {
        JS_TEST_CHECK(js_test_send(&pair, 0, 60, 9));
        js_link_flush(pair.link[0]);
        came = js_link_receive(pair.link[1], &packet, 1);
    }
    JS_TEST_EQ_U64(came, 1);
    js_test_pair_close(&pair);
}

static void expect_error(const js_link_config *config, int32_t status, const char *text)
{
    js_link *link = NULL;
    int32_t got = js_link_open(config, &link);
    JS_TEST_EQ_I64(got, status);
    if (got == JS_OK) {
        js_link_close(link);
    } else if (strstr(js_last_error()->text, text) == NULL) {
        JS_TEST_EQ_STR(js_last_error()->text, text);
    }
}

static void test_errors(void)
{
    ENTER(1500);
    js_link_config config = { .kind = JS_LINK_PACKET };
    expect_error(&config, JS_ERR_INVALID, "name of a network interface is needed");
    snprintf(config.interface, sizeof(config.interface), "nothere0");
    expect_error(&config, JS_ERR_INVALID, "no network interface 'nothere0'");
    config = packet0;
    config.mtu_bytes = 1501;
    expect_error(&config, JS_ERR_INVALID, "1501 bytes do not fit js0, which takes 1500");
    config.mtu_bytes = 100;
    expect_error(&config, JS_ERR_INVALID, "too small");
    config = packet0;
    config.ethertype = 1500;
    expect_error(&config, JS_ERR_INVALID, "no EtherType");
    memset(config.interface, 'x', sizeof(config.interface));
    expect_error(&config, JS_ERR_INVALID, "too long");
    JS_TEST_CHECK(js_test_net_run("ip link set js0 down"));
    expect_error(&packet0, JS_ERR_INVALID, "'js0' is down");
    JS_TEST_CHECK(js_test_net_run("ip link set js0 up"));
}

static void expect_choice(const char *peer, uint32_t kind, const char *why)
{
    js_link_choice choice;
    JS_TEST_EQ_I64(js_link_choose("10.9.0.1", peer, &choice), JS_OK);
    JS_TEST_EQ_U64(choice.kind, kind);
    JS_TEST_EQ_STR(choice.interface, "js0");
    JS_TEST_EQ_STR(choice.why, why);
}

static void test_choice(void)
{
    ENTER(1500);
    JS_TEST_CHECK(js_test_net_run("ip addr replace 10.9.0.1/24 dev js0"));
    expect_choice("10.9.0.2", JS_LINK_UDP,
                  "udp: js0 takes 1500 bytes, and raw frames go one by one "
                  "(if messages are short, ask for packet)");
    JS_TEST_CHECK(js_test_net_run("ip link set js0 mtu 9000"));
    expect_choice("10.9.0.2", JS_LINK_PACKET, "packet: 10.9.0.2 is on the segment of js0");
    JS_TEST_CHECK(js_test_net_run("ip link set js0 mtu 1500"));
    expect_choice("10.9.1.2", JS_LINK_UDP,
                  "udp: 10.9.1.2 is beyond a router, seen from 10.9.0.1 on js0");
}

/* Of this namespace, whatever devices sysfs shows. */
static void test_driver(void)
{
    ENTER(1500);
    js_link_interface found;
    JS_TEST_EQ_I64(js_link_interface_find("js0", &found), JS_OK);
    JS_TEST_EQ_STR(found.driver, "veth");
    JS_TEST_CHECK(!found.is_adapter);
    JS_TEST_EQ_I64(js_link_interface_find("lo", &found), JS_OK);
    JS_TEST_CHECK(!found.is_adapter);
}

/* Last: it gives up what it may do. */
static void test_no_permission(void)
{
    ENTER(1500);
    JS_TEST_CHECK(unshare(CLONE_NEWUSER) == 0); /* no rights over the network of the outer one */
    expect_error(&packet0, JS_ERR_SYSTEM, "js0 need CAP_NET_RAW");
    expect_choice("10.9.0.2", JS_LINK_UDP,
                  "udp: raw frames on js0 are not permitted: Operation not permitted");
}

JS_TEST_MAIN(JS_TEST(test_one_frame_each_way), JS_TEST(test_bursts), JS_TEST(test_jumbo_frames),
             JS_TEST(test_ring_full), JS_TEST(test_foreign_frames),
             JS_TEST(test_many_on_an_interface), JS_TEST(test_interface_down), JS_TEST(test_errors),
             JS_TEST(test_choice), JS_TEST(test_driver), JS_TEST(test_no_permission))
