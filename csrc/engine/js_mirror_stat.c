/* What a connection with a rank on another host counts, for whoever watches. */
#include "js_comm.h"
#include "js_mirror.h"
#include "js_status.h"

#include <stddef.h>

typedef struct mirror_counter {
    const char *name;
    size_t offset; /* in js_rel_stats */
} mirror_counter;

#define MIRROR_ROW(field) { #field, offsetof(js_rel_stats, field) },
#define MIRROR_REFUSED(name, reason)                                                               \
    {                                                                                              \
        "refused_" name, offsetof(js_rel_stats, refused) + (reason) * sizeof(uint64_t)             \
    }

static const mirror_counter mirror_counters[] = {
    JS_REL_COUNTERS(MIRROR_ROW) MIRROR_REFUSED("stale", JS_WIRE_STALE),
    MIRROR_REFUSED("key", JS_WIRE_KEY),
    MIRROR_REFUSED("window", JS_WIRE_WINDOW),
    MIRROR_REFUSED("place", JS_WIRE_PLACE),
    { "srtt_ns", offsetof(js_rel_stats, srtt_ns) },
    { "rttvar_ns", offsetof(js_rel_stats, rttvar_ns) },
    { "rtt_min_ns", offsetof(js_rel_stats, rtt_min_ns) },
    { "frame_bytes", offsetof(js_rel_stats, frame_bytes) },
};

static const struct {
    const char *name;
    uint32_t per_mille;
} mirror_quantiles[] = { { "rtt_p50_ns", 500 }, { "rtt_p99_ns", 990 }, { "rtt_p999_ns", 999 } };

/* Upper end of the bin that holds the quantile; 0: no round trip was measured. */
static uint64_t mirror_quantile(const js_rel_stats *stats, uint32_t per_mille)
{
    uint64_t total = 0;
    for (uint32_t i = 0; i < JS_ARRAY_LEN(stats->rtt_histogram); i++) {
        total += stats->rtt_histogram[i];
    }
    uint64_t seen = 0;
    for (uint32_t i = 0; i < JS_ARRAY_LEN(stats->rtt_histogram); i++) {
        seen += stats->rtt_histogram[i];
        if (total != 0 && seen * 1000 >= total * per_mille) {
            return 2ull << i;
        }
    }
    return 0;
}

static uint64_t mirror_retransmits(const js_mirror *mirror)
{
    uint64_t total = 0;
    for (uint32_t i = 0; i < mirror->peer_count; i++) {
        total += js_rel_get_stats(mirror->peers[i].rel)->retransmits;
    }
    return total;
}

bool js_mirror_has_repeated(js_comm *comm)
{
    uint64_t total = mirror_retransmits(comm->mirror);
    bool has_repeated = total != comm->mirror->repeated;
    comm->mirror->repeated = total;
    return has_repeated;
}

uint16_t js_mirror_take_retransmits(js_comm *comm)
{
    js_mirror *mirror = comm->mirror;
    uint64_t total = mirror_retransmits(mirror);
    uint64_t more = js_min_u64(total - mirror->retransmits, UINT16_MAX);
    mirror->retransmits = total;
    return (uint16_t)more;
}

const char *js_peer_counter_name(uint32_t index)
{
    uint32_t count = JS_ARRAY_LEN(mirror_counters);
    if (index < count) {
        return mirror_counters[index].name;
    }
    index -= count;
    return index < JS_ARRAY_LEN(mirror_quantiles) ? mirror_quantiles[index].name : NULL;
}

int32_t js_comm_peer_counters(js_comm *comm, uint32_t rank, uint64_t *out, uint32_t capacity)
{
    if (rank >= comm->world || !js_mirror_is_remote(comm, rank)) {
        return JS_FAIL(JS_ERR_INVALID, "rank %u is not on another host", rank);
    }
    JS_TRY(js_comm_enter(comm));
    const js_mirror_peer *peer = &comm->mirror->peers[comm->mirror->index[rank] - 1];
    const js_rel_stats *stats = js_rel_get_stats(peer->rel);
    uint32_t count = JS_ARRAY_LEN(mirror_counters);
    for (uint32_t i = 0; i < count && i < capacity; i++) {
        out[i] =
            *(const uint64_t *)(const void *)((const uint8_t *)stats + mirror_counters[i].offset);
    }
    for (uint32_t i = 0; i < JS_ARRAY_LEN(mirror_quantiles) && count + i < capacity; i++) {
        out[count + i] = mirror_quantile(stats, mirror_quantiles[i].per_mille);
    }
    return js_comm_leave(comm, JS_OK);
}

int32_t js_comm_refused(js_comm *comm, uint64_t *out, uint32_t capacity)
{
    if (comm->mirror == NULL) {
        return JS_FAIL(JS_ERR_INVALID, "there are no ranks on other hosts");
    }
    JS_TRY(js_comm_enter(comm));
    for (uint32_t i = 0; i < JS_WIRE_REASONS && i < capacity; i++) {
        out[i] = comm->mirror->refused[i];
    }
    return js_comm_leave(comm, JS_OK);
}

int32_t js_comm_frame_bytes(js_comm *comm, uint32_t rank)
{
    if (rank >= comm->world) {
        return JS_FAIL(JS_ERR_INVALID, "there is no rank %u", rank);
    }
    JS_TRY(js_comm_enter(comm));
    const js_mirror_peer *peer = js_mirror_find(comm, rank);
    uint32_t bytes = peer != NULL ? js_rel_frame_bytes(peer->rel) : 0;
    (void)js_comm_leave(comm, JS_OK);
    return (int32_t)bytes;
}

/* The link, for whoever is inside; else an error. */
static int32_t mirror_get_link(js_comm *comm, js_link **out)
{
    if (comm->mirror == NULL) {
        return JS_FAIL(JS_ERR_INVALID, "there are no ranks on other hosts");
    }
    *out = comm->mirror->link;
    return JS_OK;
}

/* The longest frame that gets to all peers, of this rail if it is not JS_LINK_RAILS_MAX. */
static uint64_t mirror_frame_bytes(const js_mirror *mirror, uint32_t rail, uint64_t most_bytes)
{
    for (uint32_t i = 0; i < mirror->peer_count; i++) {
        const js_mirror_peer *peer = &mirror->peers[i];
        if (rail == JS_LINK_RAILS_MAX || peer->link_peer % mirror->link->rails == rail) {
            most_bytes = js_min_u64(most_bytes, js_rel_frame_bytes(peer->rel));
        }
    }
    return most_bytes;
}

uint32_t js_comm_rails(js_comm *comm)
{
    if (js_comm_enter(comm) != JS_OK) {
        return 0;
    }
    uint32_t rails = comm->mirror != NULL ? comm->mirror->link->rails : 0;
    (void)js_comm_leave(comm, JS_OK);
    return rails;
}

const char *js_comm_way(js_comm *comm, uint32_t rank)
{
    if (rank >= comm->world || js_comm_enter(comm) != JS_OK) {
        return NULL;
    }
    const js_mirror_peer *peer = js_mirror_find(comm, rank);
    const char *name = NULL;
    if (peer != NULL) {
        js_link *link = comm->mirror->link;
        name = js_link_name(js_link_get_rail(link, peer->link_peer % link->rails));
    }
    (void)js_comm_leave(comm, JS_OK);
    return name;
}

static int32_t mirror_get_rail_stats(js_comm *comm, uint32_t rail, js_link_stats *out,
                                     const char **out_name)
{
    js_link *link = NULL;
    JS_TRY(mirror_get_link(comm, &link));
    js_link *found = js_link_get_rail(link, rail);
    if (found == NULL) {
        return JS_FAIL(JS_ERR_INVALID, "there is no link with the number %u", rail);
    }
    js_link_get_stats(found, out);
    out->frame_bytes = mirror_frame_bytes(comm->mirror, rail, out->frame_bytes);
    *out_name = js_link_name(found);
    return JS_OK;
}

int32_t js_comm_rail_stats(js_comm *comm, uint32_t rail, js_link_stats *out, const char **out_name)
{
    JS_TRY(js_comm_enter(comm));
    return js_comm_leave(comm, mirror_get_rail_stats(comm, rail, out, out_name));
}

static int32_t mirror_get_stats(js_comm *comm, js_link_stats *out)
{
    js_link *link = NULL;
    JS_TRY(mirror_get_link(comm, &link));
    js_link_get_stats(link, out);
    out->frame_bytes = mirror_frame_bytes(comm->mirror, JS_LINK_RAILS_MAX, out->frame_bytes);
    return JS_OK;
}

int32_t js_comm_link_stats(js_comm *comm, js_link_stats *out)
{
    JS_TRY(js_comm_enter(comm));
    return js_comm_leave(comm, mirror_get_stats(comm, out));
}
