/* Fuzzes a connection with scripts of what can happen to it: chunks posted, frames that come, late,
 * twice, never or made up, time that passes, everything that its owner can call.
 *
 * The first byte of an input says what kind of world it is: bit 0, someone knows the connection's
 * numbers and key and forges frames; then the connection has to stay in its bounds, whatever they
 * say. If not, frames are made up too, but without those: they must be refused and change nothing,
 * everything is delivered as it was sent, and comes through when the script is over.
 * Then 4 bytes a step: what, and three arguments. */
#include "js_fuzz.h"
#include "js_rel_state.h"
#include "js_test_rel.h"

#define STEPS_MAX 400u
#define CHUNKS_MAX 400u

static uint64_t fuzz_delivered;
static uint64_t fuzz_refused;

/* What holds for a connection by itself. */
static void fuzz_check(const js_rel *rel)
{
    uint32_t flight = rel->nxt - rel->una;
    JS_TEST_REQUIRE(flight <= rel->window);
    JS_TEST_REQUIRE((rel->sacked & ~js_rel_low_bits(flight)) == 0 && (rel->sacked & 1) == 0);
    JS_TEST_REQUIRE((rel->lost & ~js_rel_low_bits(flight)) == 0 && (rel->lost & rel->sacked) == 0);
    JS_TEST_REQUIRE((rel->received & 1) == 0);
    JS_TEST_REQUIRE(rel->promised - rel->rcv_nxt <= JS_REL_WINDOW_MAX);
    JS_TEST_REQUIRE(rel->chunk_end - rel->chunk_first <= JS_REL_CHUNKS_MAX);
    JS_TEST_REQUIRE(rel->open_done_bytes <= JS_REL_CHUNK_BYTES_MAX);
    for (uint32_t i = 0; i < JS_WIRE_CHANNELS; i++) {
        JS_TEST_REQUIRE(!js_rel_before(rel->chunks_posted[i], rel->peer_consumed[i]));
    }
}

/* A frame that nobody sent, near the numbers that the side expects. */
static void fuzz_make_up(const js_rel *rel, const uint8_t *step, js_wire_frame *out)
{
    static const uint8_t opcodes[] = { JS_WIRE_SEND,      JS_WIRE_PUT,       JS_WIRE_ACK,
                                       JS_WIRE_PROBE,     JS_WIRE_PROBE_ACK, JS_WIRE_HELLO,
                                       JS_WIRE_HELLO_ACK, JS_WIRE_BYE,       JS_WIRE_BYE_ACK,
                                       JS_WIRE_RESET };
    static const uint8_t payload[JS_TEST_REL_MTU];
    uint64_t random = (uint64_t)step[1] | (uint64_t)step[2] << 8 | (uint64_t)step[3] << 16;
    uint32_t kind = (uint32_t)(js_fuzz_random(&random) % 16);
    *out = (js_wire_frame){ .opcode = opcodes[step[1] % JS_ARRAY_LEN(opcodes)] };
    out->dcid = rel->local_dcid;
    out->epoch = rel->local_epoch;
    out->psn = rel->rcv_nxt + step[2] - 128u;
    out->ack = (uint16_t)(rel->una + step[3] % 8 - 2);
    out->credit = (uint16_t)(out->ack + js_fuzz_random(&random) % 140);
    out->payload = payload;
    out->key = rel->config.local_key;
    out->mtu = (uint16_t)(js_fuzz_random(&random) % 1500);
    if (out->opcode == JS_WIRE_ACK) {
        out->trigger = rel->una + step[3] % 8 - 2;
        out->sack[0] = js_fuzz_random(&random) >> (kind * 4);
        out->sack[1] = kind == 0 ? js_fuzz_random(&random) : 0;
        out->delay = (uint16_t)(js_fuzz_random(&random) >> kind);
        out->consumed[0] = (uint16_t)(rel->peer_consumed[0] + kind % 3);
        out->consumed[1] = (uint16_t)(rel->peer_consumed[1] - kind % 2);
    } else if (js_wire_is_data(out->opcode)) {
        out->channel = kind % 2;
        out->flags = (uint8_t)(js_fuzz_random(&random) & 0x1b);
        out->bytes = (uint16_t)(js_fuzz_random(&random) % 41);
        if (out->opcode == JS_WIRE_PUT) {
            out->flags |= kind % 4 == 1 ? JS_WIRE_FLAG_MORE : 0;
            out->bytes += 1;
            out->total_bytes = 41 + (uint32_t)(js_fuzz_random(&random) % 100);
            out->offset = kind == 3 ? UINT32_MAX - kind : kind == 4 ? JS_TEST_REL_RING - 20 : 64;
        }
    }
}

/* Hands it over; `knows` the connection's numbers and key, or one of them is wrong. */
static void fuzz_forge(js_test_pair *pair, uint32_t side, const uint8_t *step, bool knows)
{
    static uint8_t before[64 * 1024];
    js_rel *rel = pair->sides[side].rel;
    js_wire_frame frame;
    js_test_frame bytes;
    fuzz_make_up(rel, step, &frame);
    if (!knows) {
        uint32_t wrong = step[3] % 3; /* besides the key, which data and ACK do not have */
        if (wrong == 0) {
            frame.dcid++;
        } else if (wrong == 1 || frame.opcode <= JS_WIRE_ACK) {
            frame.epoch++;
        }
        frame.key ^= 1ull << step[2] % 64;
    }
    bytes.bytes = js_wire_encode(&frame, 0, bytes.data);
    JS_TEST_REQUIRE(js_rel_bytes() <= sizeof(before));
    memcpy(before, rel, js_rel_bytes());
    js_wire_reason reason = js_test_give(pair, side, &bytes);
    JS_TEST_REQUIRE(knows || reason != JS_WIRE_OK);
    if (reason != JS_WIRE_OK && js_rel_get_state(rel) != JS_REL_FAILED) {
        fuzz_refused++;
        size_t stats = offsetof(js_rel, stats);
        size_t after = stats + sizeof(js_rel_stats);
        JS_TEST_REQUIRE(memcmp(before, rel, stats) == 0);
        JS_TEST_REQUIRE(memcmp(before + after, (uint8_t *)rel + after, js_rel_bytes() - after) ==
                        0);
    }
}

/* One frame of those on their way to a side. */
static void fuzz_move(js_test_pair *pair, uint32_t side, uint32_t what, uint32_t which)
{
    js_test_wire *wire = &pair->sides[side].in;
    if (wire->count == 0) {
        return;
    }
    if (what == 0) {
        (void)js_test_give(pair, side, &wire->frames[which % wire->count]);
        return;
    }
    js_test_frame frame = js_test_take(pair, side, which % wire->count);
    if (what == 1) {
        (void)js_test_give(pair, side, &frame);
    }
}

static void fuzz_step(js_test_pair *pair, const uint8_t *step, bool knows)
{
    uint32_t side = step[0] >> 7;
    js_test_side *own = &pair->sides[side];
    switch (step[0] & 15) {
    case 0:
    case 1:
        for (uint32_t i = 0; i < step[1] % 8u + 1 && own->posted < CHUNKS_MAX; i++) {
            (void)js_test_post(pair, side);
        }
        break;
    case 2:
    case 3:
        if (own->pair->sides[1 - side].in.count < JS_TEST_REL_QUEUE / 2) {
            (void)js_test_send(pair, side);
        }
        break;
    case 4:
    case 5:
    case 6:
        fuzz_move(pair, side, step[1] % 4, step[2]);
        break;
    case 7:
        js_test_receive(pair, side);
        break;
    case 8:
    case 9:
        pair->now_ns += (uint64_t)step[2] << (step[1] % 24);
        break;
    case 10:
    case 11:
        fuzz_forge(pair, side, step, knows);
        break;
    case 12:
        js_rel_set_share(own->rel, step[1]);
        break;
    case 13:
        js_rel_set_consumed(own->rel, 0, (own->delivered + 1) / 2, step[1]);
        js_rel_set_consumed(own->rel, 1, own->delivered / 2, step[2]);
        break;
    case 14:
        js_rel_ask(own->rel);
        js_rel_set_note(own->rel, step, 4);
        break;
    default:
        if (knows && step[1] == 0) {
            js_rel_abort(own->rel, step, 4);
        } else if (knows && step[1] == 1) {
            js_rel_close(own->rel, pair->now_ns);
        } else {
            js_rel_resume(own->rel, pair->now_ns);
        }
        break;
    }
}

/* Nothing is lost any more: what was posted comes through. */
static void fuzz_finish(js_test_pair *pair)
{
    for (uint32_t round = 0; round < 2000; round++) {
        js_test_receive(pair, 0);
        js_test_receive(pair, 1);
        (void)js_test_send(pair, 0);
        (void)js_test_send(pair, 1);
        bool is_quiet = js_rel_is_quiet(pair->sides[0].rel) && js_rel_is_quiet(pair->sides[1].rel);
        if (is_quiet && pair->sides[0].in.count + pair->sides[1].in.count == 0) {
            break;
        }
        pair->now_ns += 1000 * (round + 1);
    }
    JS_TEST_REQUIRE(pair->sides[0].delivered == pair->sides[1].posted);
    JS_TEST_REQUIRE(pair->sides[1].delivered == pair->sides[0].posted);
    JS_TEST_REQUIRE(js_test_failures() == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 5) {
        return 0;
    }
    bool knows = (data[0] & 1) != 0;
    js_rel_config a = js_test_rel_config(0);
    js_rel_config b = js_test_rel_config(1);
    a.window = b.window = 1u << (data[0] >> 1 & 7);
    a.send_psn = b.receive_psn = UINT32_MAX - (data[0] >> 4);
    a.give_up_ns = b.give_up_ns = JS_REL_NEVER / 4;
    js_test_pair *pair = js_test_pair_new(&a, &b);
    pair->sides[0].is_fooled = pair->sides[1].is_fooled = knows;
    js_rel_open(pair->sides[0].rel, pair->now_ns, JS_TEST_REL_MTU);
    js_rel_open(pair->sides[1].rel, pair->now_ns, JS_TEST_REL_MTU);
    size_t steps = js_min_u64((size - 1) / 4, STEPS_MAX);
    for (size_t i = 0; i < steps; i++) {
        fuzz_step(pair, data + 1 + 4 * i, knows);
        fuzz_check(pair->sides[0].rel);
        fuzz_check(pair->sides[1].rel);
    }
    if (!knows) {
        fuzz_finish(pair);
    }
    fuzz_delivered += pair->sides[0].delivered + pair->sides[1].delivered;
    js_test_pair_free(pair);
    return 0;
}

#if !defined(JS_FUZZ)
int main(int argc, char **argv)
{
    js_fuzz_arguments arguments = js_fuzz_parse(argc, argv, 3000);
    uint64_t random = arguments.seed;
    uint8_t script[1 + 4 * STEPS_MAX];
    uint64_t kept = js_fuzz_corpus("rel");
    for (uint64_t i = 0; i < arguments.count; i++) {
        size_t size = 1 + 4 * (js_fuzz_random(&random) % STEPS_MAX);
        for (size_t k = 0; k < size; k++) {
            script[k] = (uint8_t)js_fuzz_random(&random);
        }
        js_fuzz_input(&arguments, i, script, size);
    }
    printf("%" PRIu64 " kept and %" PRIu64 " made scripts, %" PRIu64 " chunks delivered, %" PRIu64
           " frames refused\n",
           kept, arguments.count, fuzz_delivered, fuzz_refused);
    return fuzz_delivered != 0 && fuzz_refused != 0 ? 0 : JS_TEST_EXIT_FAIL;
}
#endif
