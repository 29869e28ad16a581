/* js_link_trace: the file is pcapng, holds every frame with its direction, headers that an analyser
 * accepts, and is readable before the link is closed. The link within is one in memory. */
#include "js_clock.h"
#include "js_link_decorators.h"
#include "js_test.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#define FRAMES_MAX 512
#define FILE_BYTES_MAX (4u << 20)

/* --- a link whose frames come back ---------------------------------------------------------- */
typedef struct memory_link {
    js_link link;
    bool *is_closed;
    uint32_t sent;
    uint32_t taken;
    uint32_t bytes[FRAMES_MAX];
    uint8_t frames[FRAMES_MAX][2048];
} memory_link;

static int32_t memory_add_peer(js_link *link, const js_link_address *address, uint32_t *out_peer)
{
    (void)address;
    *out_peer = (uint32_t)link->stats.system_calls++;
    return JS_OK;
}

static uint8_t *memory_begin(js_link *link, uint32_t peer)
{
    memory_link *memory = (memory_link *)(void *)link;
    (void)peer;
    return memory->sent < FRAMES_MAX ? memory->frames[memory->sent] : NULL;
}

static void memory_commit(js_link *link, uint32_t peer, uint32_t bytes)
{
    memory_link *memory = (memory_link *)(void *)link;
    (void)peer;
    memory->bytes[memory->sent++] = bytes;
}

static void memory_nothing(js_link *link)
{
    (void)link;
}

static uint32_t memory_receive(js_link *link, js_link_packet *packets, uint32_t max)
{
    memory_link *memory = (memory_link *)(void *)link;
    uint32_t count = 0;
    for (; count < max && memory->taken < memory->sent; memory->taken++) {
        packets[count].frame = memory->frames[memory->taken];
        packets[count++].bytes = memory->bytes[memory->taken];
    }
    return count;
}

static int32_t memory_wait_fd(js_link *link)
{
    (void)link;
    return 77;
}

static void memory_close(js_link *link)
{
    memory_link *memory = (memory_link *)(void *)link;
    *memory->is_closed = true;
    free(memory);
}

static js_link *memory_open(uint8_t kind, bool is_ipv6, bool *is_closed)
{
    static const js_link_ops ops = {
        .name = "memory",
        .add_peer = memory_add_peer,
        .begin = memory_begin,
        .commit = memory_commit,
        .flush = memory_nothing,
        .receive = memory_receive,
        .release = memory_nothing,
        .wait_fd = memory_wait_fd,
        .close = memory_close,
    };
    memory_link *memory = calloc(1, sizeof(*memory));
    JS_TEST_REQUIRE(memory != NULL);
    memory->is_closed = is_closed;
    *is_closed = false;
    memory->link.ops = &ops;
    memory->link.mtu_bytes = 2048;
    memory->link.address.kind = kind;
    memory->link.address.is_ipv6 = is_ipv6;
    memory->link.address.port = 4000;
    memory->link.address.ethertype = 0x88b5;
    memcpy(memory->link.address.ip, "\x7f\x00\x00\x01\xaa\xbb", 6);
    memcpy(memory->link.address.mac, "\x02\x01\x01\x01\x01\x01", 6);
    memcpy(memory->link.address.interface, "mem0", 5);
    memcpy(memory->link.name, "memory 1", 9);
    return &memory->link;
}

static js_link_address peer_address(uint8_t kind)
{
    js_link_address peer = { .kind = kind, .port = 5000, .ethertype = 0x88b5 };
    memcpy(peer.ip, "\x0a\x01\x02\x03\xcc\xdd", 6);
    memcpy(peer.mac, "\x02\x02\x02\x02\x02\x02", 6);
    return peer;
}

/* --- reading -------------------------------------------------------------------------------- */
typedef struct capture {
    uint32_t sections;
    uint32_t interfaces;
    uint32_t link_type;
    uint32_t packets;
    uint32_t statistics;
    uint64_t left_out;
    uint64_t received;
    struct {
        uint64_t wall_ns;
        uint32_t bytes;
        uint32_t direction;
        const uint8_t *data;
    } packet[FRAMES_MAX];
} capture;

static char path[64];
static uint8_t file_bytes[FILE_BYTES_MAX];

static uint32_t word(const uint8_t *at)
{
    uint32_t value = 0;
    memcpy(&value, at, sizeof(value));
    return value;
}

/* The value of an option, which has to be there. */
static const uint8_t *option(const uint8_t *at, const uint8_t *end, uint32_t code)
{
    while ((word(at) & 0xffff) != code) {
        JS_TEST_REQUIRE(at + 4 < end && word(at) != 0);
        at += 4 + (((word(at) >> 16) + 3) & ~3u);
    }
    return at + 4;
}

static void read_packet(capture *out, const uint8_t *at, const uint8_t *end)
{
    JS_TEST_REQUIRE(out->packets < FRAMES_MAX);
    uint32_t bytes = word(at + 20);
    const uint8_t *flags = option(at + 28 + ((bytes + 3) & ~3u), end, 2);
    JS_TEST_EQ_U64(word(at + 8), 0); /* interface */
    JS_TEST_EQ_U64(word(at + 24), bytes);
    out->packet[out->packets].wall_ns = (uint64_t)word(at + 12) << 32 | word(at + 16);
    out->packet[out->packets].bytes = bytes;
    out->packet[out->packets].direction = word(flags);
    out->packet[out->packets++].data = at + 28;
}

/* Reads the whole file; every block has its length at both ends. */
static void read_capture(capture *out)
{
    *out = (capture){ 0 };
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    JS_TEST_REQUIRE(fd >= 0);
    ssize_t got = read(fd, file_bytes, sizeof(file_bytes));
    close(fd);
    JS_TEST_REQUIRE(got > 0 && (size_t)got < sizeof(file_bytes));
    uint32_t total = (uint32_t)got;
    for (uint32_t at = 0; at < total; at += word(file_bytes + at + 4)) {
        const uint8_t *block = file_bytes + at;
        uint32_t bytes = word(block + 4);
        JS_TEST_REQUIRE(bytes >= 12 && bytes % 4 == 0 && bytes <= total - at);
        const uint8_t *end = block + bytes - 4;
        JS_TEST_REQUIRE(word(end) == bytes);
        if (word(block) == 0x0a0d0d0a) {
            JS_TEST_EQ_U64(word(block + 8), 0x1a2b3c4d);
            out->sections++;
        } else if (word(block) == 1) {
            JS_TEST_EQ_U64(*option(block + 16, end, 9), 9);
            JS_TEST_CHECK(memcmp(option(block + 16, end, 2), "mem0", 4) == 0);
            JS_TEST_CHECK(memcmp(option(block + 16, end, 3), "memory 1", 8) == 0);
            out->link_type = word(block + 8);
            out->interfaces++;
        } else if (word(block) == 5) {
            memcpy(&out->received, option(block + 20, end, 4), 8);
            memcpy(&out->left_out, option(block + 20, end, 5), 8);
            out->statistics++;
        } else {
            JS_TEST_EQ_U64(word(block), 6);
            read_packet(out, block, end);
        }
    }
    JS_TEST_EQ_U64(out->sections, 1);
    JS_TEST_EQ_U64(out->interfaces, 1);
}

static js_link *traced(js_link *inner, const char *options)
{
    char text[128];
    js_link *link = NULL;
    snprintf(text, sizeof(text), "%s%s", path, options);
    JS_TEST_REQUIRE(js_link_trace_wrap(inner, text, &link) == JS_OK);
    return link;
}

static void send_frames(js_link *link, uint32_t peer, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        uint8_t *frame = js_link_begin(link, peer);
        JS_TEST_REQUIRE(frame != NULL);
        memset(frame, (int)(i + 1), 2048);
        js_link_commit(link, peer, 20 + i);
    }
    js_link_flush(link);
}

static void receive_frames(js_link *link, uint32_t count)
{
    js_link_packet packets[8];
    for (uint32_t got = 0; got < count;) {
        uint32_t now = js_link_receive(link, packets, 8);
        JS_TEST_REQUIRE(now > 0);
        got += now;
        js_link_release(link);
    }
}

/* --- tests ---------------------------------------------------------------------------------- */
static void check_headers(const capture *got, uint32_t header_bytes, const uint8_t *outbound,
                          const uint8_t *inbound)
{
    JS_TEST_EQ_U64(got->packets, 10);
    for (uint32_t i = 0; i < got->packets; i++) {
        uint32_t bytes = 20 + i % 5;
        const uint8_t *data = got->packet[i].data;
        JS_TEST_EQ_U64(got->packet[i].bytes, header_bytes + bytes);
        JS_TEST_EQ_U64(got->packet[i].direction, i < 5 ? 2 : 1);
        for (uint32_t k = 0; k < bytes; k++) {
            JS_TEST_EQ_U64(data[header_bytes + k], i % 5 + 1);
        }
        JS_TEST_CHECK(i == 0 || got->packet[i].wall_ns >= got->packet[i - 1].wall_ns);
        JS_TEST_CHECK(memcmp(data, i < 5 ? outbound : inbound, header_bytes) == 0 || i % 5 != 0);
    }
    JS_TEST_EQ_U64(got->statistics, 1);
    JS_TEST_EQ_U64(got->received, 10);
    JS_TEST_EQ_U64(got->left_out, 0);
}

static void exchange(uint8_t kind, bool is_ipv6, capture *out)
{
    bool is_closed = false;
    uint32_t peer = UINT32_MAX;
    js_link_address address = peer_address(kind);
    uint64_t before_ns = js_clock_wall_ns();
    js_link *link = traced(memory_open(kind, is_ipv6, &is_closed), "");
    JS_TEST_EQ_U64(link->mtu_bytes, 2048);
    JS_TEST_EQ_I64(js_link_wait_fd(link), 77);
    JS_TEST_EQ_I64(js_link_add_peer(link, &address, &peer), JS_OK);
    send_frames(link, peer, 5);
    receive_frames(link, 5);
    link->ops->close(link);
    JS_TEST_CHECK(is_closed);
    read_capture(out);
    /* Clocks of a host that is being set may differ by a little. */
    JS_TEST_CHECK(out->packet[0].wall_ns + 1000000000u > before_ns);
    JS_TEST_CHECK(out->packet[9].wall_ns < js_clock_wall_ns() + 1000000000u);
}

static void test_ethernet(void)
{
    static capture got;
    exchange(JS_LINK_PACKET, false, &got);
    JS_TEST_EQ_U64(got.link_type, 1);
    check_headers(&got, 14, (const uint8_t *)"\2\2\2\2\2\2\2\1\1\1\1\1\x88\xb5",
                  (const uint8_t *)"\2\1\1\1\1\1\2\2\2\2\2\2\x88\xb5");
}

static void test_udp(void)
{
    static capture got;
    exchange(JS_LINK_UDP, false, &got);
    JS_TEST_EQ_U64(got.link_type, 101);
    /* 48 bytes in all. The words of the header sum up to 1 50 46; carried 50 47, inverted
     * af b8. */
    static const uint8_t outbound[28] = {
        0x45, 0,    0,    48,   0,  0,  0x40, 0, 64, 17, 0xaf, 0xb8, /* */
        127,  0,    0,    1,    10, 1,  2,    3,                     /* */
        0x0f, 0xa0, 0x13, 0x88, 0,  28, 0,    0,
    };
    uint8_t inbound[28];
    memcpy(inbound, outbound, sizeof(inbound));
    memcpy(inbound + 12, outbound + 16, 4);
    memcpy(inbound + 16, outbound + 12, 4);
    memcpy(inbound + 20, outbound + 22, 2);
    memcpy(inbound + 22, outbound + 20, 2);
    check_headers(&got, 28, outbound, inbound);
}

/* The sum over pseudo header, header and data, its checksum included, is all ones. */
static void test_udp_over_ipv6(void)
{
    static capture got;
    exchange(JS_LINK_UDP, true, &got);
    JS_TEST_EQ_U64(got.link_type, 101);
    JS_TEST_EQ_U64(got.packets, 10);
    for (uint32_t i = 0; i < got.packets; i++) {
        const uint8_t *data = got.packet[i].data;
        uint32_t length = (uint32_t)data[4] << 8 | data[5];
        JS_TEST_EQ_U64(length, 8 + 20 + i % 5);
        JS_TEST_EQ_U64(data[0], 0x60);
        JS_TEST_EQ_U64(data[6], 17);
        JS_TEST_EQ_U64(got.packet[i].bytes, 40 + length);
        uint64_t sum = 17 + length;
        for (uint32_t at = 8; at < 40 + length; at++) {
            sum += (at & 1) != 0 ? data[at] : (uint32_t)data[at] << 8;
        }
        JS_TEST_EQ_U64(sum % 0xffff, 0);
    }
}

static void test_source_is_unknown_among_several(void)
{
    static capture got;
    bool is_closed = false;
    uint32_t peer = 0;
    js_link_address address = peer_address(JS_LINK_PACKET);
    js_link *link = traced(memory_open(JS_LINK_PACKET, false, &is_closed), "");
    JS_TEST_EQ_I64(js_link_add_peer(link, &address, &peer), JS_OK);
    address.mac[5] = 9;
    JS_TEST_EQ_I64(js_link_add_peer(link, &address, &peer), JS_OK);
    send_frames(link, peer, 1);
    receive_frames(link, 1);
    link->ops->close(link);
    read_capture(&got);
    JS_TEST_CHECK(memcmp(got.packet[0].data, "\2\2\2\2\2\11", 6) == 0);
    JS_TEST_CHECK(memcmp(got.packet[1].data, "\2\1\1\1\1\1\0\0\0\0\0\0", 12) == 0);
}

/* What a process leaves that dies: a look at the link a millisecond later is enough. */
static void test_readable_while_open(void)
{
    static capture got;
    bool is_closed = false;
    uint32_t peer = 0;
    js_link_packet packet;
    js_link_address address = peer_address(JS_LINK_UDP);
    js_link *link = traced(memory_open(JS_LINK_UDP, false, &is_closed), "");
    read_capture(&got);
    JS_TEST_EQ_U64(got.packets, 0);
    JS_TEST_EQ_I64(js_link_add_peer(link, &address, &peer), JS_OK);
    send_frames(link, peer, 3);
    receive_frames(link, 3);
    usleep(2000);
    JS_TEST_EQ_U64(js_link_receive(link, &packet, 1), 0);
    read_capture(&got);
    JS_TEST_EQ_U64(got.packets, 6);
    JS_TEST_EQ_U64(got.statistics, 0);
    link->ops->close(link);
}

static void test_limit(void)
{
    static capture got;
    bool is_closed = false;
    uint32_t peer = 0;
    struct stat facts;
    js_link_address address = peer_address(JS_LINK_UDP);
    js_link *link = traced(memory_open(JS_LINK_UDP, false, &is_closed), "?limit_mib=1");
    JS_TEST_EQ_I64(js_link_add_peer(link, &address, &peer), JS_OK);
    memory_link *inner = (memory_link *)(void *)link->inner;
    for (uint32_t i = 0; i < 800; i++) {
        inner->sent = 0;
        JS_TEST_REQUIRE(js_link_begin(link, peer) != NULL);
        js_link_commit(link, peer, 2000);
    }
    link->ops->close(link);
    JS_TEST_REQUIRE(stat(path, &facts) == 0);
    JS_TEST_CHECK(facts.st_size <= 1 << 20 && facts.st_size > (1 << 20) - 5000);
    JS_TEST_EQ_U64(facts.st_mode & 0777, 0600);
    /* More packets than the reader keeps: only the sizes count here. */
    JS_TEST_CHECK((size_t)facts.st_size / 2080 < FRAMES_MAX);
    read_capture(&got);
    JS_TEST_EQ_U64(got.received, 800);
    JS_TEST_EQ_U64(got.left_out, 800 - got.packets);
    JS_TEST_CHECK(got.left_out > 200);
}

/* Two traces of the same name are two files; the first one is emptied when it is free again. */
static void test_file_in_use(void)
{
    char second_path[80];
    struct stat facts;
    bool is_closed[2];
    snprintf(second_path, sizeof(second_path), "%s.2", path);
    js_link *first = traced(memory_open(JS_LINK_UDP, false, &is_closed[0]), "");
    js_link *second = traced(memory_open(JS_LINK_UDP, false, &is_closed[1]), "");
    js_link_address address = peer_address(JS_LINK_UDP);
    uint32_t peer = 0;
    JS_TEST_EQ_I64(js_link_add_peer(first, &address, &peer), JS_OK);
    send_frames(first, peer, 5);
    JS_TEST_EQ_I64(stat(second_path, &facts), 0);
    second->ops->close(second);
    first->ops->close(first);
    static capture got;
    read_capture(&got);
    JS_TEST_EQ_U64(got.packets, 5);
    JS_TEST_EQ_I64(unlink(second_path), 0);
    first = traced(memory_open(JS_LINK_UDP, false, &is_closed[0]), "");
    first->ops->close(first);
    read_capture(&got);
    JS_TEST_EQ_U64(got.packets, 0);
    JS_TEST_CHECK(stat(second_path, &facts) != 0);
}

static void test_refused(void)
{
    static const char *const bad[] = { "",
                                       "?limit_mib=1",
                                       "/nowhere/at/all",
                                       "x?limit_mib=",
                                       "x?limit_mib=0",
                                       "x?limit_mib=-1",
                                       "x?limit_mib=9x",
                                       "x?limit_mib=99999999999999999999" };
    bool is_closed = false;
    js_link *inner = memory_open(JS_LINK_UDP, false, &is_closed);
    for (uint32_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        js_link *link = NULL;
        JS_TEST_CHECK(js_link_trace_wrap(inner, bad[i], &link) < 0);
        JS_TEST_CHECK(link == NULL && !is_closed);
    }
    inner->ops->close(inner);
}

static void test_full_disk(void)
{
    bool is_closed = false;
    js_link *link = NULL;
    js_link *inner = memory_open(JS_LINK_UDP, false, &is_closed);
    if (access("/dev/full", W_OK) != 0) {
        inner->ops->close(inner);
        JS_TEST_SKIP("no /dev/full here");
    }
    JS_TEST_EQ_I64(js_link_trace_wrap(inner, "/dev/full", &link), JS_ERR_SYSTEM);
    JS_TEST_CHECK(strstr(js_last_error()->text, "/dev/full") != NULL);
    inner->ops->close(inner);
}

int main(int argc, char **argv)
{
    static const struct js_test tests[] = {
        JS_TEST(test_ethernet),
        JS_TEST(test_udp),
        JS_TEST(test_udp_over_ipv6),
        JS_TEST(test_source_is_unknown_among_several),
        JS_TEST(test_readable_while_open),
        JS_TEST(test_limit),
        JS_TEST(test_file_in_use),
        JS_TEST(test_refused),
        JS_TEST(test_full_disk),
    };
    snprintf(path, sizeof(path), "/tmp/jetstream-trace-XXXXXX");
    int fd = mkstemp(path);
    JS_TEST_REQUIRE(fd >= 0);
    close(fd);
    int status = js_test_main(tests, sizeof(tests) / sizeof(tests[0]), argc, argv);
    unlink(path);
    return status;
}
