/* One run: virtual time goes from event to event, a frame that comes or a process that wakes,
 * until everything is delivered and both sides are closed. */
#include "js_sim.h"

#include "js_status.h"

#include <stdlib.h>
#include <string.h>

#define SIM_EVENTS_MAX 100000000u

uint64_t js_sim_random(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

bool js_sim_chance(js_sim *sim, uint32_t ppm)
{
    return ppm != 0 && js_sim_random(&sim->random) % 1000000 < ppm;
}

uint64_t js_sim_below(js_sim *sim, uint64_t below)
{
    return below == 0 ? 0 : js_sim_random(&sim->random) % below;
}

bool js_sim_is_healed(const js_sim *sim)
{
    return sim->config.heal_us != 0 && sim->now_ns >= sim->config.heal_us * 1000ull;
}

void js_sim_fail(js_sim *sim, const js_sim_side *side, int32_t verdict)
{
    if (sim->result->verdict == JS_SIM_OK) {
        sim->result->verdict = verdict;
        sim->result->violator = side->index;
        sim->result->time_ns = sim->now_ns;
    }
}

/* --- setting up ------------------------------------------------------------------------------- */
static bool sim_is_valid(const js_sim_config *config)
{
    return config->messages != 0 && config->messages <= JS_SIM_MESSAGES_MAX &&
           config->message_chunks != 0 && config->message_chunks <= 4096 &&
           config->chunk_bytes <= JS_REL_CHUNK_BYTES_MAX && config->window != 0 &&
           config->window <= JS_REL_WINDOW_MAX && config->share != 0 &&
           config->share <= JS_REL_WINDOW_MAX && config->mtu_bytes >= JS_REL_MTU_MIN &&
           config->mtu_bytes <= 16384 && config->ring_slots != 0 && config->ring_slots <= 4096 &&
           config->ring_bytes % 64 == 0 && config->ring_bytes >= 2 * config->chunk_bytes + 128 &&
           config->ring_bytes <= 1u << 26 && config->buffer_frames != 0 &&
           config->buffer_frames <= JS_SIM_FRAMES && config->rto_min_us != 0 &&
           config->rto_max_us >= config->rto_min_us && config->limit_us != 0 &&
           (config->carries_bytes[0] == 0) == (config->carries_bytes[1] == 0) &&
           config->drift_ppm >= -1000 && config->drift_ppm <= 1000;
}

static const uint16_t sim_lesser_bytes[] = { 1500, 1280, 576, 300, 200, JS_REL_MTU_MIN };

static js_rel *sim_new_rel(const js_sim *sim, js_sim_side *side)
{
    const js_sim_config *config = &sim->config;
    uint16_t own = (uint16_t)side->index;
    uint16_t peer = (uint16_t)(1 - own);
    js_rel_config rel_config = {
        .local_dcid = (uint16_t)(300 + own),
        .local_epoch = (uint16_t)(config->seed + own),
        .remote_dcid = (uint16_t)(300 + peer),
        .remote_epoch = (uint16_t)(config->seed + peer),
        .local_key = config->seed * 2 + own,
        .remote_key = config->seed * 2 + peer,
        .send_psn = config->first_psn + own * 1000u,
        .receive_psn = config->first_psn + peer * 1000u,
        .mtu_bytes = config->mtu_bytes,
        .window = config->window,
        .ring_bytes = { config->ring_bytes, 0 },
        .rto_min_ns = config->rto_min_us * 1000ull,
        .rto_max_ns = config->rto_max_us * 1000ull,
        .ack_delay_ns = config->ack_delay_us * 1000ull,
        .give_up_ns = JS_REL_NEVER / 4,
    };
    if (config->carries_bytes[0] != 0) {
        memcpy(rel_config.lesser_bytes, sim_lesser_bytes, sizeof(sim_lesser_bytes));
    }
    js_rel_sink sink = { js_sim_on_place, js_sim_on_deliver, NULL, side };
    side->before = aligned_alloc(JS_CACHE_LINE, js_rel_bytes());
    js_rel *rel = aligned_alloc(JS_CACHE_LINE, js_rel_bytes());
    if (rel != NULL) {
        js_rel_init(rel, &rel_config, &sink);
        js_rel_set_share(rel, config->share);
        side->promised = rel->promised;
    }
    return rel;
}

static bool sim_start_side(js_sim *sim, uint32_t index)
{
    const js_sim_config *config = &sim->config;
    js_sim_side *side = &sim->sides[index];
    side->sim = sim;
    side->index = index;
    side->rel = sim_new_rel(sim, side);
    side->source = calloc(1, config->ring_bytes);
    side->ring = calloc(1, config->ring_bytes);
    side->posted = calloc(config->ring_slots, sizeof(*side->posted));
    side->delivered = calloc(config->ring_slots, sizeof(*side->delivered));
    side->wanted_ns = calloc(config->messages, sizeof(*side->wanted_ns));
    side->took_ns = sim->took_ns + (size_t)index * config->messages;
    side->history = calloc(JS_SIM_HISTORY, config->mtu_bytes);
    side->next_stall_ns = js_sim_below(sim, 2000ull * config->stall_every_us);
    side->partition_ns = js_sim_below(sim, 2000ull * config->partition_every_us);
    side->resumes = js_sim_below(sim, 2) == 0;
    return side->rel != NULL && side->before != NULL && side->source != NULL &&
           side->ring != NULL && side->posted != NULL && side->delivered != NULL &&
           side->wanted_ns != NULL && side->history != NULL;
}

static js_sim *sim_new(const js_sim_config *config, js_sim_result *result)
{
    js_sim *sim = calloc(1, sizeof(*sim));
    if (sim == NULL) {
        return NULL;
    }
    sim->config = *config;
    sim->result = result;
    sim->random = config->seed;
    sim->now_ns = 1;
    sim->chunks = config->messages * config->message_chunks;
    sim->frames = calloc(JS_SIM_FRAMES, sizeof(*sim->frames));
    sim->frame_bytes = malloc((size_t)JS_SIM_FRAMES * config->mtu_bytes);
    sim->scratch = malloc(config->mtu_bytes);
    sim->took_ns = calloc(2 * (size_t)config->messages, sizeof(*sim->took_ns));
    for (uint32_t i = 0; i < JS_SIM_FRAMES; i++) {
        sim->spare[sim->spare_count++] = i;
    }
    for (uint32_t i = 0; i < sizeof(sim->pattern); i++) {
        sim->pattern[i] = (uint8_t)((i % JS_SIM_PATTERN) * 2654435761u >> 24);
    }
    return sim;
}

static void sim_free(js_sim *sim)
{
    if (sim == NULL) {
        return;
    }
    for (uint32_t i = 0; i < 2; i++) {
        js_sim_side *side = &sim->sides[i];
        free(side->rel);
        free(side->before);
        free(side->source);
        free(side->ring);
        free(side->posted);
        free(side->delivered);
        free(side->wanted_ns);
        free(side->history);
    }
    free(sim->frames);
    free(sim->frame_bytes);
    free(sim->scratch);
    free(sim->took_ns);
    free(sim);
}

/* --- running ---------------------------------------------------------------------------------- */
/* A frame comes to the side that it is for; false: none comes before `until_ns`. */
static bool sim_take_arrival(js_sim *sim, uint64_t until_ns)
{
    if (sim->heap_count == 0 || sim->frames[sim->heap[0]].arrival_ns > until_ns) {
        return false;
    }
    uint32_t frame = js_sim_arrive(sim);
    js_sim_side *side = &sim->sides[sim->frames[frame].side];
    sim->now_ns = js_max_u64(sim->now_ns, sim->frames[frame].arrival_ns);
    if (side->inbox_count >= sim->config.buffer_frames) {
        sim->result->network_drops++;
        js_sim_give_back(sim, frame);
        return true;
    }
    side->inbox[side->inbox_count++] = frame;
    side->wake_ns = js_min_u64(side->wake_ns, js_max_u64(sim->now_ns, side->stalled_until_ns));
    return true;
}

static void sim_step(js_sim *sim)
{
    js_sim_side *next =
        sim->sides[1].wake_ns < sim->sides[0].wake_ns ? &sim->sides[1] : &sim->sides[0];
    if (sim_take_arrival(sim, next->wake_ns)) {
        return;
    }
    sim->now_ns = js_max_u64(sim->now_ns, next->wake_ns);
    js_sim_run_side(sim, next);
    js_sim_check(sim);
}

static bool sim_is_closed(const js_sim *sim)
{
    return js_rel_get_state(sim->sides[0].rel) == JS_REL_CLOSED &&
           js_rel_get_state(sim->sides[1].rel) == JS_REL_CLOSED;
}

static void sim_close(js_sim *sim)
{
    sim->result->time_ns = sim->now_ns;
    for (uint32_t i = 0; i < 2; i++) {
        js_sim_side *side = &sim->sides[i];
        js_rel_close(side->rel, js_sim_clock(sim, side));
        side->wake_ns = sim->now_ns;
    }
}

static void sim_run(js_sim *sim)
{
    uint64_t limit_ns = (sim->config.heal_us + (uint64_t)sim->config.limit_us) * 1000;
    bool is_closing = false;
    for (uint32_t i = 0; i < 2; i++) {
        js_rel_open(sim->sides[i].rel, js_sim_clock(sim, &sim->sides[i]), sim->config.mtu_bytes);
        sim->sides[i].wake_ns = sim->now_ns;
    }
    for (uint32_t event = 0; sim->result->verdict == JS_SIM_OK; event++) {
        sim_step(sim);
        if (!is_closing && js_sim_has_all(sim)) {
            is_closing = true;
            sim_close(sim);
            limit_ns = js_max_u64(limit_ns, sim->now_ns + sim->config.limit_us * 1000ull);
        }
        if (is_closing && sim_is_closed(sim)) {
            sim->result->close_ns = sim->now_ns;
            return;
        }
        if (sim->now_ns > limit_ns || event > SIM_EVENTS_MAX) {
            js_sim_fail(sim, &sim->sides[0], is_closing ? JS_SIM_UNCLOSED : JS_SIM_STUCK);
        }
    }
}

/* --- what it was ------------------------------------------------------------------------------ */
static int sim_compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a;
    uint64_t y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static void sim_report(js_sim *sim)
{
    js_sim_result *result = sim->result;
    uint32_t count = 2 * sim->config.messages;
    uint64_t *took_ns = sim->took_ns;
    qsort(took_ns, count, sizeof(*took_ns), sim_compare);
    result->p50_ns = took_ns[count / 2];
    result->p999_ns = took_ns[(uint64_t)count * 999 / 1000];
    result->max_ns = took_ns[count - 1];
    for (uint32_t i = 0; i < 2; i++) {
        const js_rel_stats *stats = js_rel_get_stats(sim->sides[i].rel);
        result->frames_sent += stats->frames_sent;
        result->bytes_sent += stats->bytes_sent;
        result->acks_sent += stats->acks_sent;
        result->retransmits += stats->retransmits;
        result->spurious += stats->spurious;
        result->timeouts += stats->timeouts;
        result->probes += stats->probes;
        result->duplicates += stats->duplicates;
    }
}

int32_t js_sim_run(const js_sim_config *config, js_sim_result *out)
{
    memset(out, 0, sizeof(*out));
    if (!sim_is_valid(config)) {
        return JS_FAIL(JS_ERR_INVALID, "a configuration of the simulator out of range");
    }
    js_sim *sim = sim_new(config, out);
    bool is_started = sim != NULL && sim->frames != NULL && sim->frame_bytes != NULL &&
                      sim->scratch != NULL && sim->took_ns != NULL && sim_start_side(sim, 0) &&
                      sim_start_side(sim, 1);
    if (is_started) {
        sim_run(sim);
        sim_report(sim);
    }
    sim_free(sim);
    return is_started ? JS_OK : JS_FAIL(JS_ERR_NO_MEMORY, "no memory for a simulation");
}

const char *js_sim_verdict_name(int32_t verdict)
{
    static const char *const names[] = {
        "ok",       "order",   "payload", "place", "window", "credit", "sack",     "consumed",
        "accepted", "touched", "refused", "spin",  "lost",   "stuck",  "unclosed",
    };
    return verdict >= 0 && (size_t)verdict < JS_ARRAY_LEN(names) ? names[verdict] : NULL;
}
