/* The network: frames lost, repeated, reordered, corrupted, forged, replayed, held up by a line of
 * limited rate with a queue in front, and cut off for a while in one direction or in both. */
#include "js_sim.h"

#include <string.h>

uint8_t *js_sim_bytes_of(js_sim *sim, uint32_t frame)
{
    return sim->frame_bytes + (size_t)frame * sim->config.mtu_bytes;
}

static bool network_is_earlier(const js_sim *sim, uint32_t a, uint32_t b)
{
    const js_sim_frame *x = &sim->frames[a];
    const js_sim_frame *y = &sim->frames[b];
    return x->arrival_ns != y->arrival_ns ? x->arrival_ns < y->arrival_ns : x->order < y->order;
}

static void network_swap(js_sim *sim, uint32_t i, uint32_t j)
{
    uint32_t frame = sim->heap[i];
    sim->heap[i] = sim->heap[j];
    sim->heap[j] = frame;
}

uint32_t js_sim_arrive(js_sim *sim)
{
    uint32_t first = sim->heap[0];
    sim->heap[0] = sim->heap[--sim->heap_count];
    for (uint32_t at = 0;;) {
        uint32_t least = at;
        for (uint32_t child = 2 * at + 1; child <= 2 * at + 2; child++) {
            if (child < sim->heap_count &&
                network_is_earlier(sim, sim->heap[child], sim->heap[least])) {
                least = child;
            }
        }
        if (least == at) {
            return first;
        }
        network_swap(sim, at, least);
        at = least;
    }
}

void js_sim_give_back(js_sim *sim, uint32_t frame)
{
    sim->spare[sim->spare_count++] = frame;
}

/* Puts a copy of a frame on its way. */
static void network_push(js_sim *sim, const js_sim_side *from, const uint8_t *data, uint32_t bytes,
                         uint64_t arrival_ns, uint8_t marks)
{
    if (sim->spare_count == 0) {
        sim->result->network_drops++;
        return;
    }
    uint32_t frame = sim->spare[--sim->spare_count];
    memcpy(js_sim_bytes_of(sim, frame), data, bytes);
    sim->frames[frame] =
        (js_sim_frame){ arrival_ns, sim->order++, bytes, (uint8_t)(1 - from->index), marks };
    uint32_t at = sim->heap_count++;
    sim->heap[at] = frame;
    while (at != 0 && network_is_earlier(sim, sim->heap[at], sim->heap[(at - 1) / 2])) {
        network_swap(sim, at, (at - 1) / 2);
        at = (at - 1) / 2;
    }
}

static bool network_is_cut(js_sim *sim, js_sim_side *from)
{
    const js_sim_config *config = &sim->config;
    if (config->partition_us == 0 || (config->partition_ways & (1u << from->index)) == 0) {
        return false;
    }
    uint64_t lasts_ns = config->partition_us * 1000ull;
    while (sim->now_ns >= from->partition_ns + lasts_ns) {
        from->partition_ns +=
            lasts_ns + 1 + js_sim_below(sim, 2000ull * config->partition_every_us);
    }
    return sim->now_ns >= from->partition_ns;
}

/* When the last bit of a frame leaves; JS_SIM_NEVER: the queue is full. */
static uint64_t network_depart(js_sim *sim, js_sim_side *from, uint32_t bytes)
{
    if (sim->config.rate_mbps == 0) {
        return sim->now_ns;
    }
    uint64_t frame_ns =
        8000ull * (bytes + 38) / sim->config.rate_mbps; /* with what Ethernet adds */
    uint64_t full_ns = 8000ull * (sim->config.mtu_bytes + 38) / sim->config.rate_mbps;
    uint64_t start_ns = js_max_u64(sim->now_ns, from->free_ns);
    if (start_ns - sim->now_ns > full_ns * sim->config.queue_frames) {
        sim->result->network_drops++;
        return JS_SIM_NEVER;
    }
    from->free_ns = start_ns + frame_ns;
    return from->free_ns;
}

static uint64_t network_arrival(js_sim *sim, js_sim_side *from, uint64_t depart_ns, bool in_order)
{
    const js_sim_config *config = &sim->config;
    uint64_t arrival_ns = depart_ns + config->delay_ns + js_sim_below(sim, config->jitter_ns);
    if (!in_order) {
        return arrival_ns + js_sim_below(sim, 7ull * config->delay_ns + 1);
    }
    from->last_arrival_ns = js_max_u64(from->last_arrival_ns, arrival_ns);
    return from->last_arrival_ns;
}

/* Changes one to three bits, which the CRC sees for certain. */
static void network_corrupt(js_sim *sim, uint8_t *data, uint32_t bytes)
{
    uint32_t first = (uint32_t)js_sim_below(sim, 8ull * bytes);
    uint32_t count = 1 + (uint32_t)js_sim_below(sim, 3);
    for (uint32_t i = 0; i < count; i++) {
        uint32_t bit = (first + i * 13) % (8 * bytes);
        data[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
}

/* A copy that belongs to another connection, or that someone made without knowing the key. */
static void network_forge(js_sim *sim, const js_sim_side *from, uint64_t arrival_ns, uint32_t bytes)
{
    js_wire_frame frame;
    uint8_t copy[JS_WIRE_CONTROL_BYTES + JS_WIRE_NOTE_BYTES_MAX + JS_WIRE_CRC_BYTES];
    if (js_wire_decode(sim->scratch, bytes, &frame) != JS_WIRE_OK ||
        js_wire_size(&frame) > sizeof(copy)) {
        return;
    }
    switch (js_sim_below(sim, 4)) {
    case 0:
        frame.dcid++;
        break;
    case 1:
        frame.epoch--;
        break;
    case 2:
        frame.opcode = JS_WIRE_RESET;
        frame.bytes = 0;
        frame.flags = 0;
        frame.channel = 0;
        frame.mtu = 1500;
        frame.key = js_sim_random(&sim->random);
        break;
    default:
        frame.opcode = JS_WIRE_HELLO;
        frame.bytes = 0;
        frame.flags = 0;
        frame.channel = 0;
        frame.mtu = 200;
        frame.key = js_sim_random(&sim->random);
        break;
    }
    network_push(sim, from, copy, js_wire_encode(&frame, 0, copy), arrival_ns, JS_SIM_FORGED);
}

/* Remembers the frame, and now and then sends one that it remembers. */
static void network_replay(js_sim *sim, js_sim_side *from, uint64_t arrival_ns, uint32_t bytes)
{
    uint32_t mtu = sim->config.mtu_bytes;
    if (sim->config.replay_ppm == 0) {
        return;
    }
    if (from->history_count != 0 && js_sim_chance(sim, sim->config.replay_ppm)) {
        uint32_t at = (uint32_t)js_sim_below(sim, from->history_count);
        network_push(sim, from, from->history + (size_t)at * mtu, from->history_bytes[at],
                     arrival_ns, JS_SIM_REPLAYED);
    }
    uint32_t slot = from->history_count;
    if (slot == JS_SIM_HISTORY) {
        slot = (uint32_t)js_sim_below(sim, JS_SIM_HISTORY);
    } else {
        from->history_count++;
    }
    memcpy(from->history + (size_t)slot * mtu, sim->scratch, bytes);
    from->history_bytes[slot] = bytes;
}

void js_sim_send(js_sim *sim, js_sim_side *from, uint32_t bytes)
{
    const js_sim_config *config = &sim->config;
    uint32_t carries = config->carries_bytes[from->index];
    uint64_t depart_ns = network_depart(sim, from, bytes);
    if (depart_ns == JS_SIM_NEVER || (carries != 0 && bytes > carries)) {
        return;
    }
    if (js_sim_is_healed(sim)) {
        uint64_t arrival_ns = network_arrival(sim, from, depart_ns, true);
        network_push(sim, from, sim->scratch, bytes, arrival_ns, 0);
        return;
    }
    bool is_cut = network_is_cut(sim, from);
    bool in_order = !js_sim_chance(sim, config->reorder_ppm);
    uint64_t arrival_ns = network_arrival(sim, from, depart_ns, in_order);
    if (js_sim_chance(sim, config->forge_ppm)) {
        network_forge(sim, from, arrival_ns, bytes);
    }
    network_replay(sim, from, arrival_ns, bytes);
    if (is_cut || js_sim_chance(sim, config->loss_ppm)) {
        return;
    }
    if (js_sim_chance(sim, config->duplicate_ppm)) {
        network_push(sim, from, sim->scratch, bytes, network_arrival(sim, from, depart_ns, false),
                     0);
    }
    uint8_t marks = 0;
    if (js_sim_chance(sim, config->corrupt_ppm)) {
        network_corrupt(sim, sim->scratch, bytes);
        marks = JS_SIM_CORRUPT;
    }
    network_push(sim, from, sim->scratch, bytes, arrival_ns, marks);
}
