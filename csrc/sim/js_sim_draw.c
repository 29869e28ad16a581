/* Configurations drawn by a seed: every kind of fault, alone and together, small windows and large
 * ones, PSNs about to wrap; after some time the network heals. */
#include "js_sim.h"

static uint32_t draw_below(uint64_t *state, uint32_t below)
{
    return (uint32_t)(js_sim_random(state) % below);
}

/* One of the values. */
#define DRAW_ONE(state, values) ((values)[draw_below((state), (uint32_t)JS_ARRAY_LEN(values))])

static void draw_faults(uint64_t *state, js_sim_config *out)
{
    static const uint32_t rates_ppm[] = { 0, 0, 1000, 10000, 50000, 300000 };
    out->loss_ppm = DRAW_ONE(state, rates_ppm);
    out->duplicate_ppm = DRAW_ONE(state, rates_ppm);
    out->reorder_ppm = DRAW_ONE(state, rates_ppm);
    out->corrupt_ppm = DRAW_ONE(state, rates_ppm);
    out->forge_ppm = DRAW_ONE(state, rates_ppm) / 4;
    out->replay_ppm = DRAW_ONE(state, rates_ppm);
    if (draw_below(state, 4) == 0) {
        out->stall_us = 1 + draw_below(state, 20000);
        out->stall_every_us = 100 + draw_below(state, 20000);
    }
    if (draw_below(state, 4) == 0) {
        out->partition_us = 1 + draw_below(state, 30000);
        out->partition_every_us = 100 + draw_below(state, 50000);
        out->partition_ways = 1 + draw_below(state, 3);
    }
}

/* A path that does not carry what both ends take. */
static void draw_path(uint64_t *state, js_sim_config *out)
{
    if (draw_below(state, 4) == 0) {
        out->carries_bytes[0] = JS_REL_MTU_MIN + draw_below(state, 1500);
        out->carries_bytes[1] = JS_REL_MTU_MIN + draw_below(state, 1500);
    }
}

void js_sim_draw(uint64_t seed, js_sim_config *out)
{
    static const uint32_t windows[] = { 1, 2, 3, 7, 16, 64, 127, 128 };
    static const uint32_t chunk_bytes[] = { 8, 40, 41, 300, 1500, 5000 };
    static const uint32_t mtus[] = { 128, 200, 576, 1500 };
    static const uint32_t delays_ns[] = { 200, 1000, 5000, 50000, 1000000 };
    static const uint32_t buffers[] = { 2, 16, 128, 1024 };
    uint64_t random = seed;
    uint64_t *state = &random;
    *out = (js_sim_config){ .seed = seed };
    out->messages = 1 + draw_below(state, 60);
    out->message_chunks = 1 + draw_below(state, 4);
    out->chunk_bytes = DRAW_ONE(state, chunk_bytes);
    out->is_exchange = draw_below(state, 2);
    out->is_varied = draw_below(state, 4) != 0;
    out->window = DRAW_ONE(state, windows);
    out->share = DRAW_ONE(state, windows);
    out->mtu_bytes = DRAW_ONE(state, mtus);
    out->ring_slots = 1u << draw_below(state, 8);
    out->ring_bytes = 1u << (14 + draw_below(state, 4));
    out->first_psn = draw_below(state, 2) == 0 ? (uint32_t)js_sim_random(state)
                                               : UINT32_MAX - draw_below(state, 1200);
    out->delay_ns = DRAW_ONE(state, delays_ns);
    out->jitter_ns = draw_below(state, 2) * draw_below(state, 2 * out->delay_ns);
    out->rate_mbps = draw_below(state, 3) == 0 ? 100 + draw_below(state, 100000) : 0;
    out->queue_frames = 1 + draw_below(state, 200);
    out->buffer_frames = DRAW_ONE(state, buffers);
    out->drift_ppm = (int32_t)draw_below(state, 401) - 200;
    out->rto_min_us = 100 + draw_below(state, 5000);
    out->rto_max_us = 100000;
    out->ack_delay_us = draw_below(state, 50);
    draw_faults(state, out);
    out->heal_us = 2000 + draw_below(state, 100000);
    draw_path(state, out);
    /* A window of one frame over a long way takes this long, with time to spare. */
    uint32_t frame_bytes = out->carries_bytes[0] != 0 ? JS_REL_MTU_MIN : out->mtu_bytes;
    uint32_t frames = out->chunk_bytes / (frame_bytes - 36) + 1;
    uint32_t trips = out->messages * out->message_chunks * frames;
    uint32_t trip_us = out->delay_ns / 1000 + 50;
    if (out->share > out->buffer_frames) {
        trip_us += out->rto_min_us; /* most of every burst is lost: more promised than there is */
    }
    out->limit_us = 3000000 + 8 * trips * trip_us;
}
