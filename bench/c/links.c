/*
 * A link beside its floor, and the full stack over it: ping-pong and one-way stream through
 * hand-written sockets, through js_link, and by messages and puts of a queue pair, in turns, so
 * that all meet the same machine. One process is one end; links.py starts two, in two network
 * namespaces, and tells each the other's address.
 *
 * Usage: links KIND 0|1 CORE PLACE FLOOR_PLACE STACK_PLACE FRAME_BYTES ROUND_TRIPS STREAM_BYTES
 *              METHODS BYTES...
 * KIND: shm, udp, packet or xdp. PLACE is an IP address or the name of an interface; xdp needs one
 * for each. METHODS: a bit for each of links_names. BYTES: of ping-pong; 0: a full frame. Prints
 * its address as a line of hex digits, reads the other's, and end 0 prints one line of JSON per
 * measurement.
 */
#include "js_clock.h"
#include "js_link.h"
#include "link_floor.h"
#include "links_stack.h"

#include <sched.h>

enum {
    LINKS_TURNS = 5,  /* of each method, alternating */
    LINKS_WARM = 200, /* round trips before those that count */
    LINKS_WINDOW = 96,
    LINKS_ACK_EVERY = 16,
    LINKS_FRAME_BYTES_MIN = 20,
    LINKS_LIMIT_S = 120,
    LINKS_PATIENCE_NS = 2000000000,
    LINKS_BURST = 64,
    LINKS_SHM_FRAME_BYTES = 8192,
};

enum {
    LINKS_FLOOR,
    LINKS_LINK,
    LINKS_STACK, /* messages */
    LINKS_PUT,
    LINKS_METHODS,
};
static const char *const links_names[LINKS_METHODS] = { "floor", "link", "stack", "put" };

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
    links_stack_address stack;
} links_address;

/* One end, by one of the methods. */
typedef struct {
    links_stack *stack;   /* NULL: by the floor or the link */
    bool puts;            /* by the stack */
    js_floor_link *floor; /* NULL: by the link */
    js_link *link;        /* NULL, and nothing else: there is no such method */
    bool is_wanted;
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
    if (end->stack != NULL) {
        links_stack_ping(end->stack, end->puts, bytes, count, LINKS_WARM, samples);
        return;
    }
    bytes = bytes < LINKS_FRAME_BYTES_MIN ? LINKS_FRAME_BYTES_MIN : bytes;
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
        if (i >= LINKS_WARM) {
            samples[i - LINKS_WARM] = js_clock_ticks() - begin;
        }
    }
}

static void links_pong(links_end *end, uint32_t bytes, uint32_t count)
{
    links_frame ask = { .is_last = 0 };
    if (end->stack != NULL) {
        links_stack_pong(end->stack, end->puts, bytes, count);
        return;
    }
    bytes = bytes < LINKS_FRAME_BYTES_MIN ? LINKS_FRAME_BYTES_MIN : bytes;
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

static bool links_is_there(const links_end *end)
{
    return end->is_wanted && (end->stack != NULL || end->floor != NULL || end->link != NULL);
}

static void links_ping_pong(links_end *ends, uint32_t role, uint32_t bytes, uint32_t count)
{
    size_t all = (size_t)LINKS_TURNS * count;
    for (uint32_t turn = 0; turn < LINKS_METHODS * LINKS_TURNS; turn++) {
        uint32_t method = turn % LINKS_METHODS;
        links_end *end = &ends[method];
        end->frame.phase++;
        if (!links_is_there(end)) {
            continue;
        }
        if (role == 0) {
            links_ping(end, bytes, count + LINKS_WARM,
                       links_samples + method * all + turn / LINKS_METHODS * (size_t)count);
        } else {
            links_pong(end, bytes, count + LINKS_WARM);
        }
    }
    for (uint32_t method = 0; method < LINKS_METHODS && role == 0; method++) {
        if (!links_is_there(&ends[method])) {
            continue;
        }
        uint64_t *samples = links_samples + method * all;
        qsort(samples, all, sizeof(samples[0]), links_order);
        printf("{\"what\": \"pingpong\", \"method\": \"%s\", \"bytes\": %u, \"p50_us\": %.3f, "
               "\"p99_us\": %.3f, \"p999_us\": %.3f}\n",
               links_names[method], bytes, links_us(samples[all / 2]),
               links_us(samples[all * 99 / 100]), links_us(samples[all * 999 / 1000]));
    }
}

/* One turn of a stream; how long it took. The stack's goes in messages, the others in frames. */
static uint64_t links_stream_turn(links_end *end, uint32_t role, uint32_t bytes, uint64_t total)
{
    uint32_t count = (uint32_t)(total / (end->stack != NULL ? LINKS_STACK_MESSAGE_BYTES : bytes));
    uint64_t begin = js_clock_ticks();
    if (end->stack != NULL && role == 0) {
        links_stack_stream(end->stack, end->puts, count);
    } else if (end->stack != NULL) {
        links_stack_sink(end->stack, end->puts, count);
    } else if (role == 0) {
        links_stream(end, bytes, count);
    } else {
        return links_sink(end, count);
    }
    return js_clock_ticks() - begin;
}

/* The best of the turns: what else runs on the machine can only make one slower. */
static void links_streams(links_end *ends, uint32_t role, uint32_t bytes, uint64_t total)
{
    uint64_t best[LINKS_METHODS];
    memset(best, 0xff, sizeof(best));
    for (uint32_t turn = 0; turn < LINKS_METHODS * LINKS_TURNS; turn++) {
        uint32_t method = turn % LINKS_METHODS;
        links_end *end = &ends[method];
        end->frame.phase++;
        if (links_is_there(end)) {
            uint64_t ticks = links_stream_turn(end, role, bytes, total);
            best[method] = ticks < best[method] ? ticks : best[method];
        }
    }
    for (uint32_t method = 0; method < LINKS_METHODS && role == 0; method++) {
        if (links_is_there(&ends[method])) {
            uint32_t part = method < LINKS_STACK ? bytes : LINKS_STACK_MESSAGE_BYTES;
            double ns = (double)js_clock_span_ns(links_scale, best[method]);
            printf("{\"what\": \"stream\", \"method\": \"%s\", \"bytes\": %u, "
                   "\"gb_per_s\": %.3f}\n",
                   links_names[method], part, (double)(total / part * part) / ns);
        }
    }
}

/* --- setting up ----------------------------------------------------------------------------- */

static js_floor_link *links_open_floor(uint32_t kind, const char *where)
{
    if (kind == LINKS_STACK_SHM) {
        return link_floor_shm();
    }
    if (kind == JS_LINK_UDP) {
        return link_floor_udp(where);
    }
    return kind == JS_LINK_PACKET ? link_floor_packet(where) : link_floor_xdp(where);
}

static js_link_config links_config(uint32_t kind, const char *where, uint32_t mtu_bytes)
{
    js_link_config config = { .kind = kind, .mtu_bytes = mtu_bytes };
    if (kind == JS_LINK_UDP) {
        snprintf(config.ip, sizeof(config.ip), "%s", where);
    } else {
        snprintf(config.interface, sizeof(config.interface), "%s", where);
    }
    return config;
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
    if (strcmp(name, "shm") == 0) {
        return LINKS_STACK_SHM;
    }
    for (uint32_t kind = 1; js_link_kind_name(kind) != NULL; kind++) {
        if (strcmp(js_link_kind_name(kind), name) == 0) {
            return kind;
        }
    }
    link_floor_require(false, name);
    return 0;
}

typedef struct {
    uint32_t kind;
    uint32_t role;
    uint32_t core;
    const char *place;
    const char *floor_place;
    const char *stack_place;
    uint32_t mtu_bytes;
    uint32_t round_trips;
    uint64_t stream_bytes;
    uint32_t methods;
} links_options;

/* Opens all methods, and tells the other end; returns the bytes of the longest frame. */
static uint32_t links_open(const links_options *o, links_end *ends)
{
    links_address own = { 0 };
    links_address peer = { 0 };
    links_end *link = &ends[LINKS_LINK];
    js_link_config config = links_config(o->kind, o->place, o->mtu_bytes);
    js_link_config of_stack = links_config(o->kind, o->stack_place, o->mtu_bytes);
    ends[LINKS_FLOOR].floor = links_open_floor(o->kind, o->floor_place);
    own.floor = ends[LINKS_FLOOR].floor->own;
    own.link.mtu_bytes = LINKS_SHM_FRAME_BYTES;
    if (o->kind != LINKS_STACK_SHM) {
        link_floor_require(js_link_open(&config, &link->link) == JS_OK, js_last_error()->text);
        js_link_get_address(link->link, &own.link);
    }
    ends[LINKS_STACK].stack = links_stack_open(o->kind, o->role, &of_stack, &own.stack);
    ends[LINKS_PUT].stack = ends[LINKS_STACK].stack;
    ends[LINKS_PUT].puts = true;
    links_exchange(&own, &peer);
    ends[LINKS_FLOOR].floor->peer = peer.floor;
    ends[LINKS_FLOOR].floor->connect(ends[LINKS_FLOOR].floor);
    if (link->link != NULL) {
        link_floor_require(js_link_add_peer(link->link, &peer.link, &link->peer) == JS_OK, "peer");
    }
    links_stack_connect(ends[LINKS_STACK].stack, &peer.stack);
    links_stack_warm(ends[LINKS_STACK].stack);
    for (uint32_t i = 0; i < LINKS_METHODS; i++) {
        ends[i].frame.dcid = peer.link.dcid;
        ends[i].frame.epoch = peer.link.epoch;
        ends[i].is_wanted = (o->methods >> i & 1) != 0;
    }
    return own.link.mtu_bytes < FLOOR_FRAME_BYTES_MAX - 64 ? own.link.mtu_bytes
                                                           : FLOOR_FRAME_BYTES_MAX - 64;
}

/* What the connection has done besides carrying data. */
static void links_print_counters(links_stack *stack)
{
    static const char *const names[] = { "chunks_sent", "frames_sent", "acks_sent",
                                         "probes",      "retransmits", "timeouts" };
    printf("{\"what\": \"counters\", \"method\": \"stack\"");
    for (uint32_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        printf(", \"%s\": %lld", names[i], (long long)links_stack_counter(stack, names[i]));
    }
    printf("}\n");
}

/* On one core each, so that no scheduler moves the ends in the middle of a turn. */
static void links_pin(uint32_t core)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(core, &set);
    (void)sched_setaffinity(0, sizeof(set), &set);
}

int main(int argc, char **argv)
{
    static links_end ends[LINKS_METHODS];
    if (argc < 12) {
        fprintf(stderr, "usage: links KIND 0|1 CORE PLACE FLOOR_PLACE STACK_PLACE FRAME_BYTES "
                        "ROUND_TRIPS STREAM_BYTES METHODS BYTES...\n");
        return 2;
    }
    links_options options = {
        .kind = links_kind(argv[1]),
        .role = (uint32_t)atoi(argv[2]),
        .core = (uint32_t)atoi(argv[3]),
        .place = argv[4],
        .floor_place = argv[5],
        .stack_place = argv[6],
        .mtu_bytes = (uint32_t)atoi(argv[7]),
        .round_trips = (uint32_t)atoi(argv[8]),
        .stream_bytes = strtoull(argv[9], NULL, 10),
        .methods = (uint32_t)atoi(argv[10]),
    };
    alarm(LINKS_LIMIT_S);
    links_pin(options.core);
    links_scale = js_clock_calibrate();
    links_samples =
        calloc((size_t)LINKS_METHODS * LINKS_TURNS * options.round_trips, sizeof(links_samples[0]));
    uint32_t full = links_open(&options, ends);
    for (int i = 11; i < argc; i++) {
        uint32_t bytes = (uint32_t)atoi(argv[i]);
        if (bytes > full) {
            fprintf(stderr, "links: %u bytes: a frame takes %u\n", bytes, full);
            return 1;
        }
        links_ping_pong(ends, options.role, bytes == 0 ? full : bytes, options.round_trips);
    }
    if (options.stream_bytes != 0) {
        links_streams(ends, options.role, full, options.stream_bytes);
    }
    if (options.role == 0) {
        links_print_counters(ends[LINKS_STACK].stack);
    }
    links_stack_close(ends[LINKS_STACK].stack);
    if (ends[LINKS_LINK].link != NULL) {
        js_link_close(ends[LINKS_LINK].link);
    }
    return 0;
}
