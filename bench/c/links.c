/*
 * A link beside its floor: ping-pong and one-way stream, through js_link and through hand-written
 * sockets, in turns, so that both meet the same machine. One process is one end; links.py starts
 * two, in two network namespaces, and tells each the other's address.
 *
 * Usage: links udp|packet|xdp 0|1 PLACE FLOOR_PLACE FRAME_BYTES ROUND_TRIPS STREAM_BYTES
 * PLACE is an IP address or the name of an interface; the floor of xdp needs one of its own.
 * Prints its address as a line of hex digits, reads the other's, and end 0 prints one line of JSON
 * per measurement.
 */
#include "js_clock.h"
#include "js_link.h"
#include "link_floor.h"

enum {
    LINKS_TURNS = 5, /* of each method, alternating */
    LINKS_WINDOW = 96,
    LINKS_ACK_EVERY = 16,
    LINKS_FRAME_BYTES_MIN = 20,
    LINKS_LIMIT_S = 120,
    LINKS_PATIENCE_NS = 2000000000,
    LINKS_BURST = 64,
};

/* What a frame begins with; dcid and epoch where the filter of the link wants them. */
typedef struct {
    uint32_t phase;
    uint16_t dcid;
    uint16_t epoch;
    uint32_t number;
    uint32_t is_last;
} links_frame;

typedef struct {
    js_link_address link;
    js_floor_address floor;
} links_address;

/* One end, by one of the two methods. */
typedef struct {
    js_floor_link *floor; /* NULL: by the link */
    js_link *link;
    uint32_t peer;
    links_frame frame;
    js_link_packet packets[LINKS_BURST];
    uint32_t packet_count;
    uint32_t packet_next;
} links_end;

static uint64_t *links_samples;
static const js_clock_scale *links_scale;

/* --- frames, by either method --------------------------------------------------------------- */

static void links_send(links_end *end, uint32_t bytes, uint32_t count)
{
    if (end->floor != NULL) {
        for (uint32_t i = 0; i < count; i++) {
            uint8_t *frame = end->floor->frame[i];
            frame = frame != NULL ? frame : end->floor->frame[0] + (size_t)i * bytes;
            memcpy(frame, &end->frame, sizeof(end->frame));
            end->frame.number++;
        }
        end->floor->send(end->floor, bytes, count);
        return;
    }
    for (uint32_t i = 0; i < count; i++) {
        uint8_t *frame = js_link_begin(end->link, end->peer);
        link_floor_require(frame != NULL, "the link is full");
        memcpy(frame, &end->frame, sizeof(end->frame));
        end->frame.number++;
        js_link_commit(end->link, end->peer, bytes);
    }
    js_link_flush(end->link);
}

/* The next frame of this phase, if there is one; the content is copied, all of it stays in place
 * until the next call. */
static bool links_take(links_end *end, links_frame *out)
{
    const uint8_t *frame;
    if (end->floor != NULL) {
        uint32_t bytes;
        frame = end->floor->take(end->floor, &bytes);
        if (frame == NULL) {
            return false;
        }
    } else {
        if (end->packet_next == end->packet_count) {
            if (end->packet_count != 0) {
                js_link_release(end->link);
            }
            end->packet_next = 0;
            end->packet_count = js_link_receive(end->link, end->packets, LINKS_BURST);
            if (end->packet_count == 0) {
                return false;
            }
        }
        frame = end->packets[end->packet_next++].frame;
    }
    memcpy(out, frame, sizeof(*out));
    return out->phase == end->frame.phase;
}

/* --- ping-pong ------------------------------------------------------------------------------ */

static void links_ping(links_end *end, uint32_t bytes, uint32_t count, uint64_t *samples)
{
    links_frame answer;
    for (uint32_t i = 0; i < count; i++) {
        uint64_t begin = js_clock_ticks();
        end->frame.is_last = i + 1 == count;
        end->frame.number = i;
        links_send(end, bytes, 1);
        uint64_t patience = 0;
        while (!links_take(end, &answer) || answer.number != i) {
            if (++patience % (1 << 26) == 0) { /* lost: ask again */
                end->frame.number = i;
                links_send(end, bytes, 1);
            }
        }
        samples[i] = js_clock_ticks() - begin;
    }
}

static void links_pong(links_end *end, uint32_t bytes)
{
    links_frame ask = { .is_last = 0 };
    while (ask.is_last == 0) {
        if (links_take(end, &ask)) {
            end->frame.number = ask.number;
            links_send(end, bytes, 1);
        } else {
            ask.is_last = 0;
        }
    }
}

/* --- stream --------------------------------------------------------------------------------- */

/* Sends `count` frames, at most LINKS_WINDOW ahead of what the other end says to have; one that is
 * lost is not repeated, but skipped when nothing happens any more. */
static void links_stream(links_end *end, uint32_t bytes, uint32_t count)
{
    uint32_t sent = 0;
    uint32_t done = 0;
    uint64_t patience = js_clock_ns_to_ticks(links_scale, LINKS_PATIENCE_NS);
    uint64_t last = js_clock_ticks();
    links_frame ack;
    while (done < count) {
        uint32_t room = LINKS_WINDOW - (sent - done);
        uint32_t burst = count - sent < FLOOR_BATCH ? count - sent : FLOOR_BATCH;
        if (burst > 0 && room >= burst) {
            end->frame.number = sent;
            end->frame.is_last = sent + burst == count;
            links_send(end, bytes, burst);
            sent += burst;
        }
        while (links_take(end, &ack)) {
            done = ack.number;
            last = js_clock_ticks();
        }
        if (js_clock_ticks() - last > patience) {
            fprintf(stderr, "links: frames of a stream were lost\n");
            exit(1);
        }
    }
}

/* Counts frames and answers with their number; the time from the first to the last one. */
static uint64_t links_sink(links_end *end, uint32_t count)
{
    uint32_t got = 0;
    uint64_t first = 0;
    links_frame frame;
    while (got < count) {
        if (!links_take(end, &frame)) {
            continue;
        }
        first = got == 0 ? js_clock_ticks() : first;
        got++;
        if (got % LINKS_ACK_EVERY == 0 || got == count) {
            end->frame.number = got;
            links_send(end, LINKS_FRAME_BYTES_MIN, 1);
        }
    }
    return js_clock_ticks() - first;
}

/* --- the schedule --------------------------------------------------------------------------- */

static int links_order(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a;
    uint64_t y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static double links_us(uint64_t round_trip_ticks)
{
    return (double)js_clock_span_ns(links_scale, round_trip_ticks) / 2000.0;
}

static void links_ping_pong(links_end ends[2], uint32_t role, uint32_t bytes, uint32_t count)
{
    for (uint32_t turn = 0; turn < 2 * LINKS_TURNS; turn++) {
        links_end *end = &ends[turn % 2];
        end->frame.phase++;
        if (role == 0) {
            links_ping(end, bytes, count,
                       links_samples + (turn % 2 * LINKS_TURNS + turn / 2) * (size_t)count);
        } else {
            links_pong(end, bytes);
        }
    }
    for (uint32_t method = 0; method < 2 && role == 0; method++) {
        size_t all = (size_t)LINKS_TURNS * count;
        uint64_t *samples = links_samples + method * all;
        qsort(samples, all, sizeof(samples[0]), links_order);
        printf("{\"what\": \"pingpong\", \"method\": \"%s\", \"bytes\": %u, \"p50_us\": %.3f, "
               "\"p99_us\": %.3f, \"p999_us\": %.3f}\n",
               method == 0 ? "floor" : "link", bytes, links_us(samples[all / 2]),
               links_us(samples[all * 99 / 100]), links_us(samples[all * 999 / 1000]));
    }
}

/* The best of the turns: what else runs on the machine can only make one slower. */
static void links_streams(links_end ends[2], uint32_t role, uint32_t bytes, uint64_t total)
{
    uint64_t best[2] = { UINT64_MAX, UINT64_MAX };
    uint32_t count = (uint32_t)(total / bytes);
    for (uint32_t turn = 0; turn < 2 * LINKS_TURNS; turn++) {
        links_end *end = &ends[turn % 2];
        uint64_t ticks = 0;
        end->frame.phase++;
        if (role == 0) {
            uint64_t begin = js_clock_ticks();
            links_stream(end, bytes, count);
            ticks = js_clock_ticks() - begin;
        } else {
            ticks = links_sink(end, count);
        }
        best[turn % 2] = ticks < best[turn % 2] ? ticks : best[turn % 2];
    }
    for (uint32_t method = 0; method < 2 && role == 0; method++) {
        double ns = (double)js_clock_span_ns(links_scale, best[method]);
        printf("{\"what\": \"stream\", \"method\": \"%s\", \"bytes\": %u, \"gb_per_s\": %.3f}\n",
               method == 0 ? "floor" : "link", bytes, (double)bytes * count / ns);
    }
}

/* --- setting up ----------------------------------------------------------------------------- */

static js_floor_link *links_open_floor(uint32_t kind, const char *where)
{
    if (kind == JS_LINK_UDP) {
        return link_floor_udp(where);
    }
    return kind == JS_LINK_PACKET ? link_floor_packet(where) : link_floor_xdp(where);
}

static js_link *links_open_link(uint32_t kind, const char *where, uint32_t mtu_bytes)
{
    js_link_config config = { .kind = kind, .mtu_bytes = mtu_bytes };
    js_link *link = NULL;
    if (kind == JS_LINK_UDP) {
        snprintf(config.ip, sizeof(config.ip), "%s", where);
    } else {
        snprintf(config.interface, sizeof(config.interface), "%s", where);
    }
    if (js_link_open(&config, &link) != JS_OK) {
        fprintf(stderr, "links: %s\n", js_last_error()->text);
        exit(1);
    }
    return link;
}

/* Prints the own address, reads the other's. */
static void links_exchange(const links_address *own, links_address *peer)
{
    const uint8_t *bytes = (const uint8_t *)own;
    uint8_t *target = (uint8_t *)peer;
    for (size_t i = 0; i < sizeof(*own); i++) {
        printf("%02x", bytes[i]);
    }
    printf("\n");
    fflush(stdout);
    for (size_t i = 0; i < sizeof(*peer); i++) {
        unsigned value;
        link_floor_require(scanf("%2x", &value) == 1, "address of the other end");
        target[i] = (uint8_t)value;
    }
}

static uint32_t links_kind(const char *name)
{
    for (uint32_t kind = 1; js_link_kind_name(kind) != NULL; kind++) {
        if (strcmp(js_link_kind_name(kind), name) == 0) {
            return kind;
        }
    }
    link_floor_require(false, name);
    return 0;
}

int main(int argc, char **argv)
{
    static const uint32_t ping_bytes[] = { 64, 1024 };
    links_end ends[2] = { { 0 }, { 0 } };
    links_address own = { 0 };
    links_address peer = { 0 };
    if (argc != 8) {
        fprintf(stderr,
                "usage: links KIND 0|1 PLACE FLOOR_PLACE FRAME_BYTES ROUND_TRIPS STREAM_BYTES\n");
        return 2;
    }
    alarm(LINKS_LIMIT_S);
    uint32_t kind = links_kind(argv[1]);
    uint32_t role = (uint32_t)atoi(argv[2]);
    uint32_t count = (uint32_t)atoi(argv[6]);
    links_scale = js_clock_calibrate();
    links_samples = calloc((size_t)2 * LINKS_TURNS * count, sizeof(links_samples[0]));
    ends[0].floor = links_open_floor(kind, argv[4]);
    ends[1].link = links_open_link(kind, argv[3], (uint32_t)atoi(argv[5]));
    js_link_get_address(ends[1].link, &own.link);
    own.floor = ends[0].floor->own;
    links_exchange(&own, &peer);
    ends[0].floor->peer = peer.floor;
    ends[0].floor->connect(ends[0].floor);
    link_floor_require(js_link_add_peer(ends[1].link, &peer.link, &ends[1].peer) == JS_OK, "peer");
    for (uint32_t i = 0; i < 2; i++) {
        ends[i].frame.dcid = peer.link.dcid;
        ends[i].frame.epoch = peer.link.epoch;
    }
    uint32_t full = own.link.mtu_bytes < FLOOR_FRAME_BYTES_MAX - 64 ? own.link.mtu_bytes
                                                                    : FLOOR_FRAME_BYTES_MAX - 64;
    for (uint32_t i = 0; i < sizeof(ping_bytes) / sizeof(ping_bytes[0]); i++) {
        links_ping_pong(ends, role, ping_bytes[i], count);
    }
    links_ping_pong(ends, role, full, count);
    links_streams(ends, role, full, strtoull(argv[7], NULL, 10));
    js_link_close(ends[1].link);
    return 0;
}
