/* The shared-memory link: frames between the ranks of one host, published once, read in place.
 *
 * A link carries the streams of one communicator for one rank:
 *   all      to all other ranks, one frame read by every one of them
 *   peer     to one rank, for collectives
 *   message  to one rank, for send and receive
 * The engine sees only streams. Between hosts they are mirrored (engine/js_mirror.h): a link of
 * another kind (js_link.h) moves the same frames between a stream here and its copy there. */
#ifndef JS_LINK_SHM_H
#define JS_LINK_SHM_H

#include "js_area.h"
#include "js_stream.h"

typedef struct js_link_shm {
    js_stream_tx all_tx;
    js_stream_tx *peer_tx;    /* [world], also to itself */
    js_stream_tx *message_tx; /* [world] */
    js_stream_rx *all_rx;     /* [world], by source; its own is not opened */
    js_stream_rx *peer_rx;
    js_stream_rx *message_rx;
    uint64_t *ends;         /* private words of all senders */
    js_distance *distances; /* [world], by peer */
    uint32_t *far_count;    /* how many of these are far */
    uint16_t *readers;      /* [world]: rank of each reader of all_tx */
} js_link_shm;

/* Opens all streams of `rank` in the area. hosts[r] is the host of rank r, NULL: all are on one. To
 * and from ranks of other hosts there are no streams to all, and none goes by reference: another
 * copy of the stream lies there. Returns JS_OK or JS_ERR_NO_MEMORY. */
int32_t js_link_shm_open(js_link_shm *link, const js_area *area, uint32_t rank,
                         const uint16_t *hosts);
void js_link_shm_close(js_link_shm *link);
/* Touches the pages that this rank writes and reads in collectives, so that no operation meets a
 * page fault. Best effort. */
void js_link_shm_prefault(const js_area *area, uint32_t rank);

#endif
