/* Votes on how far a peer is. */
#include "js_distance.h"

#include "js_atomic.h"
#include "js_clock.h"
#include "js_copy.h"

#include <jetstream/js_api.h>

static uint32_t distance_cores = JS_CORES_LEARNED;

void js_cores_force(uint32_t cores)
{
    js_store_rlx_u32(&distance_cores, cores);
}

bool js_distance_is_learned(void)
{
    return JS_COPY_HAS_STREAMING && js_load_rlx_u32(&distance_cores) == JS_CORES_LEARNED;
}

void js_distance_open(js_distance *distance, uint32_t *far_count)
{
    bool is_far = js_load_rlx_u32(&distance_cores) == JS_CORES_FAR;
    *distance = (js_distance){
        .is_far = is_far,
        .far_ticks = js_clock_ns_to_ticks(js_clock_calibrate(), JS_DISTANCE_FAR_NS),
        .far_count = far_count,
    };
    *far_count += is_far;
}

void js_distance_vote(js_distance *distance, uint64_t ticks)
{
    if (ticks >= distance->far_ticks) {
        distance->votes += distance->votes < JS_DISTANCE_VOTES;
    } else {
        distance->votes -= distance->votes > 0;
    }
    if (distance->votes == JS_DISTANCE_VOTES && distance->is_far == 0) {
        distance->is_far = 1;
        *distance->far_count += 1;
    } else if (distance->votes == 0 && distance->is_far != 0) {
        distance->is_far = 0;
        *distance->far_count -= 1;
    }
}
