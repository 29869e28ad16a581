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
                uint32_t padding = packets[i].bytes - sizes[got]; /* there may be a little */
                JS_TEST_CHECK(packets[i].bytes <= pair->link[0]->mtu_bytes);
                JS_TEST_CHECK(padding <= packets[i].bytes / 4);
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

/* Frames to several peers and from them, in turn. */
static void test_three_ends(void)
{
    enum {
        ENDS = 3
    };
    js_link *ends[ENDS];
    js_link_address addresses[ENDS];
    uint32_t peers[ENDS][ENDS];
    js_link_packet packets[16];
    for (uint32_t i = 0; i < ENDS; i++) {
        JS_TEST_EQ_I64(js_link_open(&udp, &ends[i]), JS_OK);
        js_link_get_address(ends[i], &addresses[i]);
    }
    for (uint32_t i = 0; i < ENDS; i++) {
        for (uint32_t j = 0; j < ENDS; j++) {
            JS_TEST_EQ_I64(js_link_add_peer(ends[i], &addresses[j], &peers[i][j]), JS_OK);
        }
        for (uint32_t round = 0; round < 4; round++) {
            uint32_t to = (i + 1 + round % 2) % ENDS;
            uint8_t *frame = js_link_begin(ends[i], peers[i][to]);
            js_test_frame_fill(frame, 100, i, &addresses[to]);
            js_link_commit(ends[i], peers[i][to], 100);
        }
        js_link_flush(ends[i]);
    }
    for (uint32_t i = 0; i < ENDS; i++) {
        uint32_t from[ENDS] = { 0 };
        for (uint32_t got = 0; got < 4;) {
            uint32_t came = js_test_await(ends[i], packets, JS_ARRAY_LEN(packets));
            JS_TEST_REQUIRE(came > 0);
            for (uint32_t k = 0; k < came; k++, got++) {
                uint32_t source = packets[k].frame[8] % ENDS;
                JS_TEST_CHECK(js_test_frame_is(&packets[k], 100, source, &addresses[i]));
                from[source]++;
            }
            js_link_release(ends[i]);
        }
        JS_TEST_EQ_U64(from[(i + 1) % ENDS], 2);
        JS_TEST_EQ_U64(from[(i + 2) % ENDS], 2);
    }
    for (uint32_t i = 0; i < ENDS; i++) {
        js_link_close(ends[i]);
    }
}

/* Frames stay as they are until they are released, however many calls they came by; with all slots
 * taken nothing is received. */
static void test_frames_stay(void)
{
    enum {
        FRAMES = 40
    };
    js_test_pair pair;
    js_link_packet packets[FRAMES];
    js_link_address to;
    uint32_t held = 0;
    js_test_pair_open(&pair, &udp, &udp);
    js_link_get_address(pair.link[1], &to);
    for (uint32_t i = 0; i < FRAMES; i++) {
        JS_TEST_CHECK(js_test_send(&pair, 0, 200, i));
        js_link_flush(pair.link[0]);
    }
    held = js_test_await(pair.link[1], packets, 3);
    for (uint32_t calls = 1; calls < FRAMES; calls++) {
        held += js_link_receive(pair.link[1], packets + held, 3);
    }
    JS_TEST_CHECK(held > 0 && held < FRAMES);
    for (uint32_t i = 0; i < held; i++) {
        JS_TEST_CHECK(js_test_frame_is(&packets[i], 200, i, &to));
    }
    js_link_release(pair.link[1]);
    for (uint32_t i = held; i < FRAMES; i++) {
        JS_TEST_EQ_U64(js_test_await(pair.link[1], packets, 1), 1);
        JS_TEST_CHECK(js_test_frame_is(&packets[0], 200, i, &to));
        js_link_release(pair.link[1]);
    }
    js_test_pair_close(&pair);
}

/* Datagrams of strangers, of any length: each comes as one packet of just its length, or is lost,
 * and what follows them arrives. */
static void test_hostile_datagrams(void)
{
    static const uint32_t sizes[] = { 0, 1, 3, 19, 20, 1472, 9000, 65507 };
    static uint8_t junk[65507];
    js_test_pair pair;
    js_link_packet packets[8];
    js_link_address to;
    js_test_pair_open(&pair, &udp, &udp);
    js_link_get_address(pair.link[1], &to);
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(to.port) };
    memcpy(&address.sin_addr, to.ip, 4);
    for (uint32_t i = 0; i < JS_ARRAY_LEN(sizes); i++) {
        memset(junk, (int)i, sizeof(junk));
        JS_TEST_EQ_I64(sendto(fd, junk, sizes[i], 0,
                              (const struct sockaddr *)(const void *)&address, sizeof(address)),
                       sizes[i]);
        JS_TEST_EQ_U64(js_test_await(pair.link[1], packets, 8), 1);
        JS_TEST_EQ_U64(packets[0].bytes, sizes[i]);
        JS_TEST_CHECK(memcmp(packets[0].frame, junk, sizes[i]) == 0);
        js_link_release(pair.link[1]);
    }
    close(fd);
    JS_TEST_CHECK(js_test_send(&pair, 0, 64, 1));
    js_link_flush(pair.link[0]);
    JS_TEST_EQ_U64(js_test_await(pair.link[1], packets, 8), 1);
    JS_TEST_CHECK(js_test_frame_is(&packets[0], 64, 1, &to));
    js_test_pair_close(&pair);
}

/* Nobody listens at the peer's address any more, then someone does again: frames to it are lost
 * without harm to anything else. */
static void test_peer_gone(void)
{
    js_test_pair pair;
    js_link_packet packet;
    js_link_address gone;
    js_link_stats stats;
    js_test_pair_open(&pair, &udp, &udp);
    js_link_get_address(pair.link[1], &gone);
    js_link_close(pair.link[1]);
    for (uint32_t i = 0; i < 20; i++) {
        uint8_t *frame = js_link_begin(pair.link[0], pair.peer[0]);
        memset(frame, 0, 64);
        js_link_commit(pair.link[0], pair.peer[0], 64);
        js_link_flush(pair.link[0]);
        JS_TEST_EQ_U64(js_link_receive(pair.link[0], &packet, 1), 0);
    }
    js_link_get_stats(pair.link[0], &stats);
    JS_TEST_EQ_U64(stats.frames_sent, 20);
    js_link_config again = udp;
    again.port = gone.port;
    JS_TEST_REQUIRE(js_link_open(&again, &pair.link[1]) == JS_OK);
    JS_TEST_CHECK(js_test_send(&pair, 0, 64, 7));
    js_link_flush(pair.link[0]);
    JS_TEST_EQ_U64(js_test_await(pair.link[1], &packet, 1), 1);
    js_test_pair_close(&pair);
}

/* More than the receiver's buffer holds: what is lost is counted, later frames arrive. */
static void test_buffer_full(void)
{
    js_link_config small = udp;
    js_test_pair pair;
    js_link_packet packets[64];
    js_link_stats stats;
    uint32_t sent = 0;
    uint32_t got = 0;
    uint32_t came;
    small.buffer_frames = 8;
    js_test_pair_open(&pair, &udp, &small);
    JS_TEST_CHECK(pair.link[1]->buffer_frames >= 4);
    while (sent < 1000) {
        while (sent < 1000 && js_test_send(&pair, 0, 8000, sent)) {
            sent++;
        }
        js_link_flush(pair.link[0]);
    }
    while ((came = js_link_receive(pair.link[1], packets, 64)) > 0) {
        got += came;
        js_link_release(pair.link[1]);
    }
    js_link_get_stats(pair.link[1], &stats);
    JS_TEST_CHECK(got >= 4 && got < 1000);
    JS_TEST_CHECK(stats.receive_drops > 0);
    JS_TEST_CHECK(js_test_send(&pair, 0, 64, 7));
    js_link_flush(pair.link[0]);
    JS_TEST_EQ_U64(js_test_await(pair.link[1], packets, 64), 1);
    js_test_pair_close(&pair);
}

static void test_ipv6(void)
{
    js_link_config ipv6 = { .kind = JS_LINK_UDP, .ip = "::1" };
    js_link *probe = NULL;
    js_test_pair pair;
    js_link_packet packet;
    js_link_address to;
    if (js_link_open(&ipv6, &probe) != JS_OK) {
        JS_TEST_SKIP("no IPv6 on the loopback interface");
    }
    js_link_close(probe);
    js_test_pair_open(&pair, &ipv6, &ipv6);
    js_link_get_address(pair.link[1], &to);
    JS_TEST_CHECK(js_test_send(&pair, 0, 64, 7));
    js_link_flush(pair.link[0]);
    JS_TEST_EQ_U64(js_test_await(pair.link[1], &packet, 1), 1);
    JS_TEST_CHECK(js_test_frame_is(&packet, 64, 7, &to));
    JS_TEST_CHECK(strstr(js_link_name(pair.link[1]), "udp [::1]:") != NULL);
    JS_TEST_REQUIRE(js_link_open(&udp, &probe) == JS_OK);
    uint32_t peer;
    JS_TEST_EQ_I64(js_link_add_peer(probe, &to, &peer), JS_ERR_INVALID);
    js_link_close(probe);
    js_test_pair_close(&pair);
}

static void expect_error(js_link_config config, const char *text)
{
    js_link *link = NULL;
    int32_t got = js_link_open(&config, &link);
    JS_TEST_CHECK(got < 0);
    if (got == JS_OK) {
        js_link_close(link);
    } else if (strstr(js_last_error()->text, text) == NULL) {
        JS_TEST_EQ_STR(js_last_error()->text, text);
    }
}

static void test_errors(void)
{
    js_link *link = NULL;
    js_link_address address;
    expect_error((js_link_config){ .kind = 0 }, "no kind of link with the number 0");
    expect_error((js_link_config){ .kind = 77 }, "no kind of link with the number 77");
    expect_error((js_link_config){ .kind = JS_LINK_UDP, .ip = "localhost" }, "not an IP address");
    expect_error((js_link_config){ .kind = JS_LINK_UDP, .ip = "0.0.0.0" }, "cannot send to");
    expect_error((js_link_config){ .kind = JS_LINK_UDP, .ip = "::" }, "cannot send to");
    expect_error((js_link_config){ .kind = JS_LINK_UDP, .ip = "192.0.2.254" },
                 "no network interface of this host has the address 192.0.2.254");
    expect_error((js_link_config){ .kind = JS_LINK_UDP, .interface = "nothere0" },
                 "no network interface 'nothere0'");
    expect_error((js_link_config){ .kind = JS_LINK_UDP, .ip = "127.0.0.1", .interface = "x" },
                 "the address 127.0.0.1 is on interface lo, not on x");
    expect_error((js_link_config){ .kind = JS_LINK_UDP, .mtu_bytes = 65508 }, "do not fit lo");
    expect_error((js_link_config){ .kind = JS_LINK_UDP, .mtu_bytes = 511 }, "too small");
    JS_TEST_REQUIRE(js_link_open(&udp, &link) == JS_OK);
    js_link_get_address(link, &address);
    expect_error((js_link_config){ .kind = JS_LINK_UDP, .port = address.port },
                 "cannot bind 127.0.0.1:");
    JS_TEST_CHECK(address.dcid != 0 && address.dcid % 256 == 0 && address.key != 0);
    JS_TEST_EQ_STR(address.interface, "lo");
    JS_TEST_EQ_U64((uint64_t)js_link_interface_mtu("lo") >= address.mtu_bytes, 1);
    JS_TEST_EQ_I64(js_link_interface_mtu("nothere0"), JS_ERR_INVALID);
    js_link_close(link);
    js_link_close(NULL);
}

static void test_choice(void)
{
    js_link_choice choice;
    JS_TEST_EQ_I64(js_link_choose("127.0.0.1", "127.0.0.2", &choice), JS_OK);
    JS_TEST_EQ_U64(choice.kind, JS_LINK_UDP);
    JS_TEST_EQ_STR(choice.why, "udp: 127.0.0.1 is on the loopback interface");
    JS_TEST_EQ_I64(js_link_choose("192.0.2.254", "127.0.0.1", &choice), JS_ERR_INVALID);
    JS_TEST_EQ_I64(js_link_choose("127.0.0.1", "here", &choice), JS_ERR_INVALID);
    JS_TEST_EQ_I64(js_link_choose("127.0.0.1", "::1", &choice), JS_ERR_INVALID);
}

JS_TEST_MAIN(JS_TEST(test_one_frame_each_way), JS_TEST(test_bursts), JS_TEST(test_three_ends),
             JS_TEST(test_frames_stay), JS_TEST(test_hostile_datagrams), JS_TEST(test_peer_gone),
             JS_TEST(test_buffer_full), JS_TEST(test_ipv6), JS_TEST(test_errors),
             JS_TEST(test_choice))
