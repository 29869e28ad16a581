/* Validation of plan bytes, which are not trusted, and the checked view of a valid plan. */
#ifndef JS_PLAN_CHECK_H
#define JS_PLAN_CHECK_H

#include "js_base.h"

#include <jetstream/js_api.h>

/* A validated plan inside the caller's bytes. */
typedef struct js_plan_view {
    const js_plan_header *header;
    const js_plan_op *ops;
    const js_plan_source *sources;
} js_plan_view;

/* Checks everything that execution relies on: sizes, versions, ranges inside their buffers, ranks,
 * lanes, chunking, and that the edges between operations have no cycle. That the ranks' plans fit
 * together is proved by the verifier in Python before a plan gets here.
 * bytes: aligned to 8. Returns JS_ERR_PLAN with a text naming the operation. */
JS_MUST_CHECK int32_t js_plan_check(const void *bytes, size_t size_bytes, uint32_t rank,
                                    uint32_t world, js_plan_view *out);

/* Identifies a call: equal on all ranks if and only if they made the same call (32-bit hash). */
uint32_t js_plan_fingerprint(const js_call *call);

#endif
