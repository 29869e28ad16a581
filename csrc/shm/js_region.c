/* Regions that peers may write to. */
#include "js_region.h"

#include "js_status.h"

#include <sys/random.h>

static uint32_t region_new_key(uint32_t slot, uint32_t previous)
{
    uint32_t key = 0;
    if (getrandom(&key, sizeof(key), GRND_NONBLOCK) != (ssize_t)sizeof(key)) {
        key = previous + 1 + slot; /* never seen: the pool is ready long before */
    }
    key = (key & ~(JS_AREA_REGIONS - 1)) | slot;
    return key < JS_AREA_REGIONS ? key + JS_AREA_REGIONS : key; /* zero means none */
}

int32_t js_region_add(const js_area *area, uint32_t rank, uint64_t offset, uint64_t bytes,
                      uint32_t *out_key)
{
    js_area_port *port = js_area_get_port(area, rank);
    for (uint32_t i = 0; i < JS_AREA_REGIONS; i++) {
        js_area_region *region = &port->regions[i];
        if (js_load_acq_u32(&region->key) == 0) {
            js_store_rlx_u64(&region->offset, offset);
            js_store_rlx_u64(&region->bytes, bytes);
            *out_key = region_new_key(i, region->last_key);
            region->last_key = *out_key;
            js_store_rel_u32(&region->key, *out_key);
            return JS_OK;
        }
    }
    return JS_FAIL(JS_ERR_FULL, "%u regions are open to other ranks: close some", JS_AREA_REGIONS);
}

void js_region_remove(const js_area *area, uint32_t rank, uint32_t key)
{
    js_area_region *region = &js_area_get_port(area, rank)->regions[key & (JS_AREA_REGIONS - 1)];
    (void)js_cas_seq_u32(&region->key, key, 0);
}

bool js_region_is_written(const js_area *area, uint32_t rank, uint32_t peer)
{
    return js_load_seq_u32(&js_area_get_port(area, peer)->putting) == rank + 1;
}

uint8_t *js_region_begin(const js_area *area, uint32_t rank, const js_region_target *target,
                         int32_t *out_status)
{
    /* The exchange orders "I write" before the look at the key; the owner clears the key and then
     * looks who writes. */
    (void)js_swap_seq_u32(&js_area_get_port(area, rank)->putting, target->peer + 1);
    js_area_port *port = js_area_get_port(area, target->peer);
    js_area_region *region = &port->regions[target->key & (JS_AREA_REGIONS - 1)];
    uint64_t offset = 0;
    *out_status = JS_OK;
    if (target->key == 0 || js_load_seq_u32(&region->key) != target->key) {
        *out_status = JS_ERR_ACCESS;
    } else {
        offset = js_load_acq_u64(&region->offset);
        uint64_t bytes = js_load_acq_u64(&region->bytes);
        bool fits = target->bytes <= bytes && target->offset <= bytes - target->bytes;
        /* What a peer has written into its slot is not believed either. */
        bool is_inside = bytes <= area->segment_bytes && offset <= area->segment_bytes - bytes;
        *out_status = fits && is_inside ? JS_OK : JS_ERR_BOUNDS;
        if (js_load_rlx_u32(&region->key) != target->key) {
            *out_status =
                JS_ERR_ACCESS; /* the owner has given up waiting and used the slot again */
        }
    }
    if (*out_status != JS_OK) {
        js_region_end(area, rank);
        return NULL;
    }
    return area->base + offset + target->offset;
}

void js_region_end(const js_area *area, uint32_t rank)
{
    js_store_rel_u32(&js_area_get_port(area, rank)->putting, 0);
}
