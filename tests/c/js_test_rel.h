/* Two connections back to back, for the tests of rel: every frame between them passes through the
 * codec and lies in a queue where a test can look at it, drop, repeat or reorder it. Time is a
 * number that the test moves. What is sent follows from its number, so the receiver checks it. */
#ifndef JS_TEST_REL_H
#define JS_TEST_REL_H

#include "js_rel.h"
#include "js_test.h"

#define JS_TEST_REL_MTU 256u
#define JS_TEST_REL_RING (1u << 20)
#define JS_TEST_REL_QUEUE 1024u
#define JS_TEST_REL_MS 1000000u

typedef struct js_test_frame {
    uint32_t bytes;
    uint8_t data[JS_TEST_REL_MTU];
} js_test_frame;

/* Frames on their way to one side. */
typedef struct js_test_wire {
    js_test_frame frames[JS_TEST_REL_QUEUE];
    uint32_t count;
} js_test_wire;

typedef struct js_test_side {
    js_rel *rel;
    js_test_wire in; /* frames to this side */
    struct js_test_pair *pair;
    uint32_t posted;     /* chunks */
    uint32_t delivered;  /* of the peer */
    uint32_t position;   /* in the ring */
    uint32_t notes[256]; /* by opcode */
    uint32_t note_value;
    bool refuses_places;
    bool is_fooled; /* what it gets may be anything */
    uint8_t source[JS_TEST_REL_RING];
    uint8_t ring[JS_TEST_REL_RING];
} js_test_side;

typedef struct js_test_pair {
    js_test_side sides[2];
    uint64_t now_ns;
} js_test_pair;

/* Bytes of chunk number n: now short, now of several frames. */
static inline uint32_t js_test_rel_size(uint32_t n)
{
    static const uint32_t sizes[] = { 8, 40, 0, 41, 700, 1, 220, 221, 24, 8, 8, 1000 };
    return sizes[n % (sizeof(sizes) / sizeof(sizes[0]))];
}

static inline uint8_t js_test_rel_byte(uint32_t n, uint32_t at)
{
    return (uint8_t)(n * 31u + at * 7u + (at >> 8) + 5u);
}

/* Where chunk n lies in the ring, if the one before ended at *position. */
static inline uint32_t js_test_rel_place(uint32_t *position, uint32_t bytes)
{
    uint32_t at = *position % JS_TEST_REL_RING;
    if (at + bytes > JS_TEST_REL_RING) {
        at = 0;
    }
    *position = at + ((bytes + 63u) & ~63u);
    return at;
}

static bool js_test_rel_on_place(void *context, uint32_t channel, uint32_t offset,
                                 const uint8_t *payload, uint32_t bytes)
{
    js_test_side *side = context;
    (void)channel;
    if (side->refuses_places || offset + bytes > JS_TEST_REL_RING) {
        return false;
    }
    memcpy(side->ring + offset, payload, bytes);
    return true;
}

static void js_test_rel_on_deliver(void *context, const js_rel_chunk *chunk)
{
    js_test_side *side = context;
    uint32_t n = side->delivered++;
    uint32_t bytes = js_test_rel_size(n);
    JS_TEST_REQUIRE(chunk->payload != NULL || chunk->offset + chunk->bytes <= JS_TEST_REL_RING);
    const uint8_t *payload = chunk->payload != NULL ? chunk->payload : side->ring + chunk->offset;
    bool is_right = chunk->bytes == bytes && chunk->imm == n && chunk->channel == n % 2 &&
                    chunk->fragment == (uint16_t)(n * 3) && chunk->flags == n % 4;
    for (uint32_t i = 0; is_right && i < bytes; i++) {
        is_right = payload[i] == js_test_rel_byte(n, i);
    }
    JS_TEST_CHECK(is_right || side->is_fooled); /* as sent, in order, once */
}

static void js_test_rel_on_note(void *context, uint8_t opcode, const uint8_t *note, uint32_t bytes)
{
    js_test_side *side = context;
    side->notes[opcode]++;
    if (bytes == sizeof(side->note_value)) {
        memcpy(&side->note_value, note, sizeof(side->note_value));
    }
}

static inline js_rel_config js_test_rel_config(uint32_t side)
{
    return (js_rel_config){
        .local_dcid = (uint16_t)(10 + side),
        .local_epoch = (uint16_t)(100 + side),
        .remote_dcid = (uint16_t)(11 - side),
        .remote_epoch = (uint16_t)(101 - side),
        .local_key = 1000 + side,
        .remote_key = 1001 - side,
        .send_psn = side == 0 ? 5 : 77,
        .receive_psn = side == 0 ? 77 : 5,
        .mtu_bytes = JS_TEST_REL_MTU,
        .window = 32,
        .ring_bytes = { JS_TEST_REL_RING, JS_TEST_REL_RING },
        .rto_min_ns = 5 * JS_TEST_REL_MS,
        .rto_max_ns = 100 * JS_TEST_REL_MS,
        .ack_delay_ns = 20000,
        .give_up_ns = 1000 * JS_TEST_REL_MS,
    };
}

static inline js_rel *js_test_rel_new(const js_rel_config *config, void *context)
{
    js_rel_sink sink = { js_test_rel_on_place, js_test_rel_on_deliver, js_test_rel_on_note,
                         context };
    js_rel *rel = aligned_alloc(JS_CACHE_LINE, js_rel_bytes());
    JS_TEST_REQUIRE(rel != NULL);
    js_rel_init(rel, config, &sink);
    return rel;
}

static inline js_test_pair *js_test_pair_new(const js_rel_config *a, const js_rel_config *b)
{
    js_test_pair *pair = calloc(1, sizeof(*pair));
    JS_TEST_REQUIRE(pair != NULL);
    pair->now_ns = 1000 * JS_TEST_REL_MS;
    for (uint32_t i = 0; i < 2; i++) {
        pair->sides[i].pair = pair;
        pair->sides[i].rel = js_test_rel_new(i == 0 ? a : b, &pair->sides[i]);
    }
    return pair;
}

static inline void js_test_pair_free(js_test_pair *pair)
{
    free(pair->sides[0].rel);
    free(pair->sides[1].rel);
    free(pair);
}

/* Lets a side send all that it has to send now; returns how many frames. */
static inline uint32_t js_test_send(js_test_pair *pair, uint32_t side)
{
    js_test_wire *wire = &pair->sides[1 - side].in;
    uint32_t count = 0;
    while (wire->count < JS_TEST_REL_QUEUE) {
        js_test_frame *frame = &wire->frames[wire->count];
        frame->bytes = js_rel_tx(pair->sides[side].rel, pair->now_ns, frame->data);
        JS_TEST_REQUIRE(frame->bytes <= JS_TEST_REL_MTU);
        if (frame->bytes == 0) {
            break;
        }
        wire->count++;
        count++;
    }
    return count;
}

/* Hands one frame to a side. */
static inline js_wire_reason js_test_give(js_test_pair *pair, uint32_t side,
                                          const js_test_frame *frame)
{
    js_wire_frame decoded;
    js_wire_reason reason = js_wire_decode(frame->data, frame->bytes, &decoded);
    JS_TEST_EQ_U64(reason, JS_WIRE_OK);
    return js_rel_rx(pair->sides[side].rel, pair->now_ns, &decoded);
}

/* Takes frame `index` off the queue of a side. */
static inline js_test_frame js_test_take(js_test_pair *pair, uint32_t side, uint32_t index)
{
    js_test_wire *wire = &pair->sides[side].in;
    JS_TEST_REQUIRE(index < wire->count);
    js_test_frame frame = wire->frames[index];
    wire->count--;
    memmove(&wire->frames[index], &wire->frames[index + 1],
            (wire->count - index) * sizeof(wire->frames[0]));
    return frame;
}

/* Hands over all frames to a side. */
static inline void js_test_receive(js_test_pair *pair, uint32_t side)
{
    js_test_wire *wire = &pair->sides[side].in;
    for (uint32_t i = 0; i < wire->count; i++) {
        (void)js_test_give(pair, side, &wire->frames[i]);
    }
    wire->count = 0;
}

static inline uint8_t js_test_opcode(const js_test_pair *pair, uint32_t side, uint32_t index)
{
    return pair->sides[side].in.frames[index].data[1];
}

/* Frames go back and forth, `delay_ns` each way, until nothing moves. */
static inline void js_test_settle(js_test_pair *pair, uint64_t delay_ns)
{
    bool is_settled = false;
    for (uint32_t round = 0; round < 1000 && !is_settled; round++) {
        uint32_t count = pair->sides[0].in.count + pair->sides[1].in.count + js_test_send(pair, 0) +
                         js_test_send(pair, 1);
        is_settled = count == 0;
        pair->now_ns += is_settled ? 0 : delay_ns;
        js_test_receive(pair, 0);
        js_test_receive(pair, 1);
    }
    JS_TEST_CHECK(is_settled);
}

/* As long, and time goes on to the next deadline when nothing moves, for at most `span_ns`. */
static inline void js_test_run(js_test_pair *pair, uint64_t delay_ns, uint64_t span_ns)
{
    uint64_t end_ns = pair->now_ns + span_ns;
    while (pair->now_ns < end_ns) {
        js_test_settle(pair, delay_ns);
        uint64_t next =
            js_min_u64(js_rel_deadline(pair->sides[0].rel), js_rel_deadline(pair->sides[1].rel));
        pair->now_ns = js_max_u64(pair->now_ns + 1000, js_min_u64(next, end_ns));
    }
}

static inline bool js_test_post(js_test_pair *pair, uint32_t side)
{
    js_test_side *own = &pair->sides[side];
    uint32_t n = own->posted;
    uint32_t bytes = js_test_rel_size(n);
    uint32_t position = own->position;
    uint32_t offset = js_test_rel_place(&position, bytes);
    for (uint32_t i = 0; i < bytes; i++) {
        own->source[offset + i] = js_test_rel_byte(n, i);
    }
    js_rel_chunk chunk = { own->source + offset, bytes,           offset, n, (uint16_t)(n * 3),
                           (uint8_t)(n % 2),     (uint8_t)(n % 4) };
    if (!js_rel_post(own->rel, &chunk)) {
        return false;
    }
    own->posted++;
    own->position = position;
    return true;
}

static inline void js_test_open(js_test_pair *pair)
{
    js_rel_open(pair->sides[0].rel, pair->now_ns, JS_TEST_REL_MTU);
    js_rel_open(pair->sides[1].rel, pair->now_ns, JS_TEST_REL_MTU);
    js_test_settle(pair, 10000);
    JS_TEST_EQ_U64(js_rel_get_state(pair->sides[0].rel), JS_REL_OPEN);
    JS_TEST_EQ_U64(js_rel_get_state(pair->sides[1].rel), JS_REL_OPEN);
}

static inline js_test_pair *js_test_pair_open(void)
{
    js_rel_config a = js_test_rel_config(0);
    js_rel_config b = js_test_rel_config(1);
    js_test_pair *pair = js_test_pair_new(&a, &b);
    js_test_open(pair);
    return pair;
}

#endif
