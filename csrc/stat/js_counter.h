/* Counters: one cell per rank and counter in the segment, one writer each. */
#ifndef JS_COUNTER_H
#define JS_COUNTER_H

#include "js_atomic.h"

#include <jetstream/js_api.h>

/* Only the owner adds, so no read-modify-write instruction is needed. */
JS_INLINE void js_counter_add(uint64_t *cells, uint32_t counter, uint64_t amount)
{
    js_store_rlx_u64(&cells[counter], js_load_rlx_u64(&cells[counter]) + amount);
}

uint32_t js_counter_count(void);

#endif
