/* Loading a plan: from validated bytes to operations that point at their streams. */
#include "js_exec.h"

#include "js_dtype.h"
#include "js_status.h"

#include <stdlib.h>

static js_stream_rx *exec_source_stream(js_link_shm *link, const js_plan_source *source)
{
    switch (source->place) {
    case JS_PLACE_ALL:
        return &link->all_rx[source->peer];
    case JS_PLACE_PEER:
        return &link->peer_rx[source->peer];
    default:
        return NULL;
    }
}

static uint8_t exec_refer(uint32_t flags)
{
    if ((flags & JS_PLAN_REFER) == 0) {
        return JS_EXEC_REFER_NEVER;
    }
    return (flags & JS_PLAN_REFER_IN_PLACE) != 0 ? JS_EXEC_REFER_ALWAYS : JS_EXEC_REFER_APART;
}

static uint8_t exec_scale(const js_call *call, uint32_t is_partial)
{
    uint32_t bytes = js_dtype_bytes(call->dtype);
    uint32_t partial_bytes = js_dtype_partial_bytes(call->dtype, call->redop);
    return (uint8_t)(is_partial ? partial_bytes / bytes : 1u);
}

static js_reduce_fn exec_fold_of(const js_call *call, uint32_t flags)
{
    if ((flags & JS_PLAN_PARTIAL_TARGET) != 0) {
        return js_reduce_pick_partial(call->dtype, call->redop);
    }
    return (flags & JS_PLAN_PARTIAL_SOURCES) != 0 ? js_reduce_pick_final(call->dtype, call->redop)
                                                  : js_reduce_pick(call->dtype, call->redop);
}

/* The smallest power of two, of at least a line, that holds a frame. */
static uint64_t exec_window_bytes(uint64_t frame_bytes)
{
    uint64_t bytes = JS_CACHE_LINE;
    while (bytes < frame_bytes) {
        bytes *= 2;
    }
    return bytes;
}

static void exec_decode_op(js_link_shm *link, const js_plan_view *view, const js_plan_op *from,
                           js_exec_plan *plan, js_exec_op *op)
{
    uint64_t chunk = plan->call.chunk_bytes;
    uint64_t steps = (from->bytes + chunk - 1) / chunk;
    *op = (js_exec_op){
        .steps = steps ? (uint32_t)steps : 1,
        .source_count = from->source_count,
        .sources = plan->sources + from->source_first,
        .bytes = from->bytes,
        .target_offset = from->target_offset,
        .after_count = from->after_count,
        .opcode = from->opcode,
        .target_buffer = from->target_buffer,
        .is_all = from->place == JS_PLACE_ALL,
        .lends = (from->flags & JS_PLAN_LEND) != 0,
        .refer = exec_refer(from->flags),
        .peer = from->peer,
        .source_scale = exec_scale(&plan->call, from->flags & JS_PLAN_PARTIAL_SOURCES),
        .target_scale = exec_scale(&plan->call, from->flags & JS_PLAN_PARTIAL_TARGET),
        .fold = exec_fold_of(&plan->call, from->flags),
    };
    if (from->opcode == JS_OP_SEND) {
        op->window_bytes = exec_window_bytes(js_min_u64(op->bytes, chunk));
        op->tx = op->is_all ? &link->all_tx : &link->peer_tx[from->peer];
    }
    if (plan->call.parts >> JS_PARTS_SHIFT == JS_PARTS_SPLITS) {
        /* Only the two ranks know: a receiver that awaits another number finds out at once. */
        op->pair = (uint32_t)(from->bytes / plan->element_bytes);
    }
    for (uint32_t i = 0; i < from->after_count; i++) {
        op->after_op[i] = from->after_op[i];
        op->after_mode[i] = from->after_mode[i];
    }
    for (uint32_t i = 0; i < from->source_count; i++) {
        const js_plan_source *source = &view->sources[from->source_first + i];
        op->sources[i] = (js_exec_source){
            .rx = exec_source_stream(link, source),
            .tx = source->place == JS_PLACE_LENT ? &link->peer_tx[source->peer] : NULL,
            .offset = source->offset,
            .peer = source->peer,
            .buffer = source->buffer,
        };
    }
    plan->total_bytes += from->bytes * op->source_scale;
    plan->can_refer |= op->refer != JS_EXEC_REFER_NEVER && op->bytes >= plan->refer_bytes;
    plan->may_relay |= plan->call.algo != JS_ALGO_DIRECT && plan->call.world > 2 &&
                       (op->lends || op->bytes >= plan->refer_bytes);
}

/* Groups the operations by lane, keeping their order. */
static void exec_decode_lanes(const js_plan_view *view, js_exec_plan *plan)
{
    js_exec_op **at = plan->order;
    for (uint32_t lane = 0; lane < plan->lane_count; lane++) {
        plan->lanes[lane].first = at;
        for (uint32_t i = 0; i < plan->op_count; i++) {
            if (view->ops[i].lane == lane) {
                *at++ = &plan->ops[i];
            }
        }
        plan->lanes[lane].end = at;
    }
}

static int32_t exec_allocate(js_exec_plan *plan, const js_plan_header *header)
{
    size_t sources = header->source_count + 1; /* never zero: malloc(0) may be NULL */
    plan->ops = calloc(header->op_count + 1, sizeof(*plan->ops));
    plan->sources = calloc(sources, sizeof(*plan->sources));
    plan->lanes = calloc(header->lane_count + 1, sizeof(*plan->lanes));
    plan->order = calloc(header->op_count + 1, sizeof(js_exec_op *));
    plan->active = calloc(header->lane_count + 1, sizeof(js_exec_lane *));
    plan->pointers = calloc(sources, sizeof(*plan->pointers));
    plan->targets = calloc(sources, sizeof(*plan->targets));
    plan->scratch = calloc(1, header->scratch_bytes + JS_CACHE_LINE);
    if (!plan->ops || !plan->sources || !plan->lanes || !plan->order || !plan->active ||
        !plan->pointers || !plan->targets || !plan->scratch) {
        return JS_FAIL(JS_ERR_NO_MEMORY, "no memory for a plan with %llu bytes of scratch",
                       (unsigned long long)header->scratch_bytes);
    }
    return JS_OK;
}

/* Between hosts there are no streams to all, nothing is lent, and a frame's length has 16 bits. */
static int32_t exec_check_hosts(const js_link_shm *link, const js_plan_view *view,
                                const js_plan_op *op, uint32_t self)
{
    bool sends = op->opcode == JS_OP_SEND && op->place == JS_PLACE_PEER;
    bool is_remote = sends && op->peer != self && link->all_rx[op->peer].lines == NULL;
    const js_call *call = &view->header->call;
    uint32_t scale = exec_scale(call, op->flags & JS_PLAN_PARTIAL_SOURCES);
    bool is_long = js_min_u64(op->bytes, call->chunk_bytes) * scale > UINT16_MAX;
    if (is_remote && ((op->flags & JS_PLAN_LEND) != 0 || is_long)) {
        return JS_FAIL(JS_ERR_PLAN,
                       "to rank %u, of another host, nothing can be lent, nor sent "
                       "in chunks above %u bytes",
                       op->peer, UINT16_MAX);
    }
    for (uint32_t i = 0; i < op->source_count; i++) {
        const js_plan_source *source = &view->sources[op->source_first + i];
        if (source->place == JS_PLACE_ALL && link->all_rx[source->peer].lines == NULL) {
            return JS_FAIL(JS_ERR_PLAN, "the stream of rank %u to all does not leave its host",
                           source->peer);
        }
        bool gives_back = op->opcode == JS_OP_REDUCE && (op->flags & JS_PLAN_LEND) != 0;
        if (gives_back && source->place == JS_PLACE_PEER &&
            link->all_rx[source->peer].lines == NULL) {
            return JS_FAIL(JS_ERR_PLAN, "frames of rank %u, of another host, are not lent",
                           source->peer);
        }
    }
    return JS_OK;
}

int32_t js_exec_load(js_link_shm *link, const void *bytes, size_t size_bytes, uint32_t rank,
                     uint32_t world, js_exec_plan **out)
{
    js_plan_view view;
    JS_TRY(js_plan_check(bytes, size_bytes, rank, world, &view));
    js_exec_plan *plan = calloc(1, sizeof(*plan));
    if (plan == NULL) {
        return JS_FAIL(JS_ERR_NO_MEMORY, "no memory for a plan");
    }
    int32_t result = exec_allocate(plan, view.header);
    if (result != JS_OK) {
        js_exec_unload(plan);
        return result;
    }
    plan->call = view.header->call;
    plan->fingerprint = js_plan_fingerprint(&plan->call);
    plan->op_count = view.header->op_count;
    plan->lane_count = view.header->lane_count;
    plan->divisor = view.header->divisor;
    plan->element_bytes = js_dtype_bytes(plan->call.dtype);
    plan->input_bytes = view.header->input_bytes;
    plan->output_bytes = view.header->output_bytes;
    plan->refer_bytes = view.header->refer_bytes;
    plan->readers = link->readers;
    for (uint32_t i = 0; i < plan->op_count && result == JS_OK; i++) {
        result = exec_check_hosts(link, &view, &view.ops[i], rank);
    }
    if (result != JS_OK) {
        js_exec_unload(plan);
        return result;
    }
    for (uint32_t i = 0; i < plan->op_count; i++) {
        exec_decode_op(link, &view, &view.ops[i], plan, &plan->ops[i]);
    }
    plan->is_brief = plan->total_bytes < JS_EXEC_TIMED_BYTES;
    exec_decode_lanes(&view, plan);
    *out = plan;
    return JS_OK;
}

bool js_exec_is_aligned(const js_exec_plan *plan, uint64_t input, uint64_t output)
{
    uint64_t mask = (plan->element_bytes < 8 ? plan->element_bytes : 8) - 1;
    return ((plan->input_bytes != 0 ? input : 0) & mask) == 0 &&
           ((plan->output_bytes != 0 ? output : 0) & mask) == 0;
}

void js_exec_unload(js_exec_plan *plan)
{
    if (plan == NULL) {
        return;
    }
    free(plan->ops);
    free(plan->sources);
    free(plan->lanes);
    free(plan->order);
    free(plan->active);
    free(plan->pointers);
    free(plan->targets);
    free(plan->scratch);
    free(plan);
}
