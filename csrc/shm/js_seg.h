/* The segment: the one shared memory of a job on a host, a memfd without a name.
 *
 * It begins with a header page that is validated before anything else is believed, then one line
 * per rank with its liveness, then the area of the world communicator (js_area.h), then one
 * symmetric heap per rank (js_heap.h). It is mapped at a multiple of 2 MiB. */
#ifndef JS_SEG_H
#define JS_SEG_H

#include "js_area.h"
#include "js_clock.h"

#include <jetstream/js_api.h>

#define JS_SEG_MAGIC 0x3147455354454aull /* "JETSEG1" */

typedef struct js_seg_header {
    uint64_t magic; /* written last by the creator */
    uint32_t abi_version;
    uint32_t header_bytes;
    char build_id[JS_BUILD_ID_BYTES];
    uint64_t total_bytes;
    js_seg_config config;
    js_clock_scale clock;
} js_seg_header;

/* Liveness of one rank. */
typedef struct js_seg_rank {
    uint32_t state; /* enum js_peer_state; W: owner, or the rank that saw it die (cas) */
    uint32_t pid;   /* W: owner */
    uint32_t reserved[14];
} JS_ALIGNED(JS_CACHE_LINE) js_seg_rank;

struct js_seg {
    uint8_t *base;
    uint64_t total_bytes;
    uint64_t heaps_offset;
    int fd;
    uint32_t refs; /* holders in this process: the handle, open heaps */
    js_area world_area;
};

js_seg_header *js_seg_get_header(const js_seg *seg);
js_seg_rank *js_seg_get_rank(const js_seg *seg, uint32_t rank);
/* Where the heap of a rank begins; it has config.heap_bytes. */
uint64_t js_seg_heap_offset(const js_seg *seg, uint32_t rank);
/* One holder more: js_seg_detach unmaps with the last. */
void js_seg_retain(js_seg *seg);

#endif
