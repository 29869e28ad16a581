/* Opening the streams of one rank. */
#include "js_link_shm.h"

#include "js_frame.h"
#include "js_status.h"

#include <stdlib.h>
#include <sys/mman.h>

/* Above this, pages are left to be touched by use: a large world would spend seconds here. */
#define LINK_PREFAULT_BYTES_MAX (128u << 20)

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif

void js_link_shm_close(js_link_shm *link)
{
    free(link->peer_tx);
    free(link->message_tx);
    free(link->all_rx);
    free(link->peer_rx);
    free(link->message_rx);
    free(link->ends);
    free(link->distances);
    free(link->far_count);
    free(link->readers);
    *link = (js_link_shm){ 0 };
}

static int32_t link_allocate(js_link_shm *link, const js_area *area)
{
    size_t world = area->config.world;
    size_t senders = 1 + 2 * world;
    link->peer_tx = calloc(world, sizeof(*link->peer_tx));
    link->message_tx = calloc(world, sizeof(*link->message_tx));
    link->all_rx = calloc(world, sizeof(*link->all_rx));
    link->peer_rx = calloc(world, sizeof(*link->peer_rx));
    link->message_rx = calloc(world, sizeof(*link->message_rx));
    link->ends = calloc(senders * area->config.stream_slots, sizeof(*link->ends));
    link->distances = calloc(world, sizeof(*link->distances));
    link->far_count = calloc(1, sizeof(*link->far_count));
    link->readers = calloc(world, sizeof(*link->readers));
    if (!link->peer_tx || !link->message_tx || !link->all_rx || !link->peer_rx ||
        !link->message_rx || !link->ends || !link->distances || !link->far_count ||
        !link->readers) {
        js_link_shm_close(link);
        return JS_FAIL(JS_ERR_NO_MEMORY, "no memory for the streams of %zu ranks", world);
    }
    return JS_OK;
}

/* A stream's layout with the segment in which its references point. */
static js_stream_layout link_layout(const js_area *area, const js_stream_layout *layout)
{
    js_stream_layout result = *layout;
    result.segment = area->base;
    result.segment_bytes = area->segment_bytes;
    return result;
}

static bool link_is_local(const uint16_t *hosts, uint32_t a, uint32_t b)
{
    return hosts == NULL || hosts[a] == hosts[b];
}

/* Reader number of rank `reader` in the stream of `source` to all of its host. */
static uint32_t link_reader(const uint16_t *hosts, uint32_t source, uint32_t reader)
{
    uint32_t number = 0;
    for (uint32_t rank = 0; rank < reader; rank++) {
        number += rank != source && link_is_local(hosts, rank, source);
    }
    return number;
}

/* Who writes to a peer asks how far it is; whoever reads from it finds out. */
static void link_open_distances(js_link_shm *link, uint32_t world, uint32_t rank,
                                const uint16_t *hosts)
{
    bool is_learned = js_distance_is_learned();
    link->all_tx.far_count = link->far_count;
    for (uint32_t peer = 0; peer < world; peer++) {
        if (peer == rank || !link_is_local(hosts, rank, peer)) {
            continue;
        }
        js_distance *distance = &link->distances[peer];
        js_distance_open(distance, link->far_count);
        link->peer_tx[peer].far_count = &distance->is_far;
        link->message_tx[peer].far_count = &distance->is_far;
        if (is_learned) {
            link->all_rx[peer].distance = distance;
            link->peer_rx[peer].distance = distance;
            link->message_rx[peer].distance = distance;
        }
    }
}

int32_t js_link_shm_open(js_link_shm *link, const js_area *area, uint32_t rank,
                         const uint16_t *hosts)
{
    *link = (js_link_shm){ 0 };
    JS_TRY(link_allocate(link, area));
    uint32_t reader_count = 0;
    uint32_t slots = area->config.stream_slots;
    uint64_t *ends = link->ends;
    uint64_t collective = js_frame_route(JS_FRAME_CHANNEL_COLLECTIVE, (uint16_t)rank, 0);
    uint64_t message = js_frame_route(JS_FRAME_CHANNEL_MESSAGE, (uint16_t)rank, 0);
    js_stream_layout all = link_layout(area, &area->all_layout);
    js_stream_layout one = link_layout(area, &area->peer_layout);
    js_stream_layout mail = link_layout(area, &area->message_layout);
    js_stream_open_tx(&link->all_tx, js_area_all_stream(area, rank), &all, ends, collective);
    for (uint32_t peer = 0; peer < area->config.world; peer++) {
        ends += slots;
        js_stream_open_tx(&link->peer_tx[peer], js_area_peer_stream(area, rank, peer), &one, ends,
                          collective);
        ends += slots;
        js_stream_open_tx(&link->message_tx[peer], js_area_message_stream(area, rank, peer), &mail,
                          ends, message);
        js_stream_open_rx(&link->peer_rx[peer], js_area_peer_stream(area, peer, rank), &one, 0);
        js_stream_open_rx(&link->message_rx[peer], js_area_message_stream(area, peer, rank), &mail,
                          0);
        if (!link_is_local(hosts, rank, peer)) {
            link->peer_tx[peer].segment_bytes = 0;
            link->message_tx[peer].segment_bytes = 0;
        } else if (peer != rank) {
            js_stream_open_rx(&link->all_rx[peer], js_area_all_stream(area, peer), &all,
                              link_reader(hosts, peer, rank));
            link->readers[reader_count++] = (uint16_t)peer;
        }
    }
    link->all_tx.reader_count = reader_count;
    link_open_distances(link, area->config.world, rank, hosts);
    return JS_OK;
}

void js_link_shm_prefault(const js_area *area, uint32_t rank)
{
    uint64_t all_bytes = js_stream_bytes(&area->all_layout);
    uint64_t peer_bytes = js_stream_bytes(&area->peer_layout);
    if (area->config.world * (all_bytes + 2 * peer_bytes) > LINK_PREFAULT_BYTES_MAX) {
        return;
    }
    for (uint32_t peer = 0; peer < area->config.world; peer++) {
        int advice = peer == rank ? MADV_POPULATE_WRITE : MADV_POPULATE_READ;
        (void)madvise(js_area_all_stream(area, peer), all_bytes, advice);
        (void)madvise(js_area_peer_stream(area, rank, peer), peer_bytes, MADV_POPULATE_WRITE);
        (void)madvise(js_area_peer_stream(area, peer, rank), peer_bytes, MADV_POPULATE_READ);
    }
}
