/* Memory that a rank's peers may write to without it: named by a key, with bounds.
 *
 * The owner writes what a region is into a slot of its port (js_area.h) and last the key; the key
 * holds the slot's number and random bits, so that one kept too long fits nothing. Who wants to
 * write says so in its own port, looks the region up, writes and says that it has done. So the
 * owner can take a region back: it clears the key, then waits until nobody writes any more. */
#ifndef JS_REGION_H
#define JS_REGION_H

#include "js_area.h"

/* Where a write goes. */
typedef struct js_region_target {
    uint32_t peer;
    uint32_t key;
    uint64_t offset; /* in the region */
    uint64_t bytes;
} js_region_target;

/* Opens `bytes` at `offset` of the segment, memory of `rank`, to its peers. JS_ERR_FULL: there are
 * JS_AREA_REGIONS already. One thread at a time. */
JS_MUST_CHECK int32_t js_region_add(const js_area *area, uint32_t rank, uint64_t offset,
                                    uint64_t bytes, uint32_t *out_key);
/* Closes it, unless that has been done before. */
void js_region_remove(const js_area *area, uint32_t rank, uint32_t key);
/* Is `peer` in the middle of a write to memory of `rank`? */
bool js_region_is_written(const js_area *area, uint32_t rank, uint32_t peer);

/* From here until js_region_end the memory stays where it is. `rank` is the caller's. Returns its
 * address, or NULL with *out_status: JS_ERR_ACCESS, no region of the peer has this key;
 * JS_ERR_BOUNDS. */
uint8_t *js_region_begin(const js_area *area, uint32_t rank, const js_region_target *target,
                         int32_t *out_status);
void js_region_end(const js_area *area, uint32_t rank);

#endif
