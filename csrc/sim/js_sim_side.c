/* A process of the simulation: it runs when a frame comes or a timer is due, unless it is stalled,
 * keeps what it sends in a ring until it is consumed, and reads what it gets, at times late. */
#include "js_sim.h"

#include <string.h>

#define SIDE_READ_NS 500u      /* until a process that has left something unread reads on */
#define SIDE_FRAMES_MAX 20000u /* more than these at a time are no end */

uint64_t js_sim_clock(const js_sim *sim, const js_sim_side *side)
{
    if (side->index == 0) {
        return sim->now_ns;
    }
    int64_t drift = (int64_t)(sim->now_ns / 1000) * sim->config.drift_ppm / 1000;
    return 77777777777u + sim->now_ns + (uint64_t)drift;
}

/* The virtual time at which the clock of a side shows at least `clock_ns`. */
static uint64_t side_time_of(const js_sim *sim, const js_sim_side *side, uint64_t clock_ns)
{
    uint64_t shown_ns = js_sim_clock(sim, side);
    if (clock_ns <= shown_ns) {
        return sim->now_ns;
    }
    uint64_t wait_ns = clock_ns - shown_ns;
    if (side->index == 0) {
        return sim->now_ns + wait_ns;
    }
    int64_t drift = (int64_t)(wait_ns / 1000) * sim->config.drift_ppm / 1000;
    return sim->now_ns + wait_ns - (uint64_t)drift + 2;
}

static uint32_t side_mix(uint64_t seed, uint32_t side, uint32_t n)
{
    uint64_t state = seed ^ ((uint64_t)side << 32 | n) * 0x9e3779b97f4a7c15u;
    return (uint32_t)js_sim_random(&state);
}

static uint32_t side_size(const js_sim *sim, uint32_t side, uint32_t n)
{
    uint32_t most = sim->config.chunk_bytes;
    if (sim->config.is_varied == 0) {
        return most;
    }
    uint32_t mix = side_mix(sim->config.seed, side, n);
    return (mix & 3) != 0 ? (mix >> 2) % 48 % (most + 1) : (mix >> 2) % (most + 1);
}

/* What chunk n of a side contains. */
static const uint8_t *side_content(const js_sim *sim, uint32_t side, uint32_t n)
{
    return sim->pattern + side_mix(sim->config.seed + 1, side, n) % JS_SIM_PATTERN;
}

/* --- reading ------------------------------------------------------------ */
bool js_sim_on_place(void *context, uint32_t channel, uint32_t offset, const uint8_t *payload,
                     uint32_t bytes)
{
    js_sim_side *side = context;
    const js_sim_config *config = &side->sim->config;
    if (channel != 0 || (uint64_t)offset + bytes > config->ring_bytes) {
        js_sim_fail(side->sim, side, JS_SIM_PLACE);
        return false;
    }
    for (uint32_t n = side->read_count; n != side->delivered_count; n++) {
        const js_sim_piece *piece = &side->delivered[n % config->ring_slots];
        if (piece->bytes > JS_WIRE_INLINE_BYTES && piece->offset < offset + bytes &&
            offset < piece->offset + piece->bytes) {
            js_sim_fail(side->sim, side, JS_SIM_PLACE);
        }
    }
    memcpy(side->ring + offset, payload, bytes);
    return true;
}

void js_sim_on_deliver(void *context, const js_rel_chunk *chunk)
{
    js_sim_side *side = context;
    js_sim *sim = side->sim;
    uint32_t n = side->delivered_count;
    uint32_t bytes = side_size(sim, 1 - side->index, n);
    if (chunk->imm != n || chunk->bytes != bytes || chunk->fragment != (uint16_t)n ||
        chunk->channel != 0 || n - side->read_count >= sim->config.ring_slots) {
        js_sim_fail(sim, side, JS_SIM_ORDER);
        return;
    }
    js_sim_piece *piece = &side->delivered[n % sim->config.ring_slots];
    piece->bytes = bytes;
    piece->offset = chunk->offset;
    if (chunk->payload != NULL && bytes != 0) {
        memcpy(piece->inline_bytes, chunk->payload, bytes);
    }
    side->delivered_count++;
}

/* Reads some of what has come; returns whether it has left something. */
static bool side_read(js_sim *sim, js_sim_side *side)
{
    const js_sim_config *config = &sim->config;
    while (side->read_count != side->delivered_count) {
        if (config->is_varied != 0 && js_sim_below(sim, 8) == 0) {
            break;
        }
        uint32_t n = side->read_count;
        const js_sim_piece *piece = &side->delivered[n % config->ring_slots];
        const uint8_t *bytes =
            piece->bytes > JS_WIRE_INLINE_BYTES ? side->ring + piece->offset : piece->inline_bytes;
        if (memcmp(bytes, side_content(sim, 1 - side->index, n), piece->bytes) != 0) {
            js_sim_fail(sim, side, JS_SIM_PAYLOAD);
        }
        side->read_count++;
        if (side->read_count % config->message_chunks == 0) {
            uint32_t message = n / config->message_chunks;
            side->took_ns[message] = sim->now_ns - sim->sides[1 - side->index].wanted_ns[message];
        }
    }
    js_rel_set_consumed(side->rel, 0, side->read_count, (config->ring_slots + 3) / 4);
    return side->read_count != side->delivered_count;
}

/* --- sending ------------------------------------------------------------ */
/* The peer has read them: their room is free. The bytes are overwritten, so that a repeat would
 * show. */
static void side_free(js_sim *sim, js_sim_side *side)
{
    uint32_t consumed = js_rel_consumed(side->rel, 0);
    while (side->freed_count != consumed && side->freed_count != side->posted_count) {
        const js_sim_piece *piece = &side->posted[side->freed_count % sim->config.ring_slots];
        memset(side->source + piece->offset, 0xee, piece->bytes);
        side->source_tail += piece->span;
        side->freed_count++;
    }
    if (side->freed_count == side->posted_count) {
        side->source_tail = side->source_head;
    }
}

/* Room for a chunk in the ring; false: there is none now. */
static bool side_reserve(const js_sim *sim, js_sim_side *side, js_sim_piece *piece)
{
    uint64_t bytes = piece->bytes;
    uint64_t ring = sim->config.ring_bytes;
    uint64_t at = side->source_head % ring;
    uint64_t skip = at + bytes <= ring ? 0 : ring - at;
    piece->span = (uint32_t)(skip + js_round_up(bytes, 64));
    piece->offset = (uint32_t)((side->source_head + skip) % ring);
    if (side->source_head + piece->span - side->source_tail > ring) {
        return false;
    }
    side->source_head += piece->span;
    return true;
}

static void side_post(js_sim *sim, js_sim_side *side)
{
    const js_sim_config *config = &sim->config;
    while (side->posted_count != sim->chunks &&
           side->posted_count - side->freed_count < config->ring_slots) {
        uint32_t n = side->posted_count;
        uint32_t message = n / config->message_chunks;
        if (config->is_exchange != 0 && side->read_count / config->message_chunks < message) {
            return;
        }
        if (n % config->message_chunks == 0 && side->wanted_ns[message] == 0) {
            side->wanted_ns[message] = sim->now_ns;
        }
        uint32_t bytes = side_size(sim, side->index, n);
        js_sim_piece piece = { .bytes = bytes };
        if (!side_reserve(sim, side, &piece)) {
            return;
        }
        js_rel_chunk chunk = { .payload = side->source + piece.offset,
                               .bytes = bytes,
                               .offset = bytes > JS_WIRE_INLINE_BYTES ? piece.offset : 0,
                               .imm = n,
                               .fragment = (uint16_t)n };
        if (!js_rel_post(side->rel, &chunk)) {
            side->source_head -= piece.span;
            return;
        }
        memcpy(side->source + piece.offset, side_content(sim, side->index, n), bytes);
        side->posted[n % config->ring_slots] = piece;
        side->posted_count++;
    }
}

bool js_sim_has_all(const js_sim *sim)
{
    return sim->sides[0].read_count == sim->chunks && sim->sides[1].read_count == sim->chunks &&
           js_rel_is_quiet(sim->sides[0].rel) && js_rel_is_quiet(sim->sides[1].rel);
}

/* --- running ------------------------------------------------------------ */
static bool side_is_stalled(js_sim *sim, js_sim_side *side)
{
    const js_sim_config *config = &sim->config;
    if (config->stall_us == 0 || js_sim_is_healed(sim)) {
        return false;
    }
    uint64_t lasts_ns = config->stall_us * 1000ull;
    while (sim->now_ns >= side->next_stall_ns + lasts_ns) {
        side->next_stall_ns += lasts_ns + 1 + js_sim_below(sim, 2000ull * config->stall_every_us);
    }
    if (sim->now_ns < side->next_stall_ns) {
        return false;
    }
    side->stalled_until_ns = side->next_stall_ns + lasts_ns;
    return true;
}

void js_sim_run_side(js_sim *sim, js_sim_side *side)
{
    if (side_is_stalled(sim, side)) {
        side->wake_ns = side->stalled_until_ns;
        return;
    }
    uint64_t clock_ns = js_sim_clock(sim, side);
    if (side->stalled_until_ns != 0) {
        side->stalled_until_ns = 0;
        if (side->resumes) {
            js_rel_resume(side->rel, clock_ns);
        }
    }
    for (uint32_t i = 0; i < side->inbox_count; i++) {
        js_sim_hand_over(sim, side, side->inbox[i]);
        js_sim_give_back(sim, side->inbox[i]);
    }
    side->inbox_count = 0;
    bool has_left = side_read(sim, side);
    side_free(sim, side);
    side_post(sim, side);
    uint32_t count = 0;
    uint32_t bytes = js_rel_tx(side->rel, clock_ns, sim->scratch);
    while (bytes != 0 && count++ < SIDE_FRAMES_MAX) {
        js_sim_send(sim, side, bytes);
        side_post(sim, side);
        bytes = js_rel_tx(side->rel, clock_ns, sim->scratch);
    }
    uint64_t deadline_ns = js_rel_deadline(side->rel);
    if (bytes != 0 || deadline_ns <= clock_ns) {
        js_sim_fail(sim, side, JS_SIM_SPIN);
    }
    side->wake_ns =
        deadline_ns == JS_REL_NEVER ? JS_SIM_NEVER : side_time_of(sim, side, deadline_ns);
    if (has_left) {
        side->wake_ns = js_min_u64(side->wake_ns, sim->now_ns + SIDE_READ_NS);
    }
    side->wake_ns = js_max_u64(side->wake_ns, sim->now_ns + 1);
}
