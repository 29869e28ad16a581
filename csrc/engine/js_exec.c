/* Executing a plan. */
#include "js_exec.h"

#include "js_clock.h"
#include "js_frame.h"

#include <string.h>

#define EXEC_LOOKS 32u /* for a frame that is not there, in a row */

JS_INLINE uint32_t exec_step_bytes(const js_exec_plan *plan, const js_exec_op *op)
{
    uint64_t left = op->bytes - (uint64_t)op->step * plan->call.chunk_bytes;
    return left < plan->call.chunk_bytes ? (uint32_t)left : plan->call.chunk_bytes;
}

/* An address in a buffer. By integers: the buffers of a barrier are NULL. */
JS_INLINE uint8_t *exec_address(const js_exec *exec, uint8_t buffer, uint64_t offset)
{
    return (uint8_t *)((uintptr_t)exec->buffers[buffer] + offset);
}

static bool exec_is_in_place(const js_exec *exec)
{
    uintptr_t input = (uintptr_t)exec->buffers[JS_PLAN_INPUT];
    uintptr_t output = (uintptr_t)exec->buffers[JS_PLAN_OUTPUT];
    return input < output + exec->plan->output_bytes && output < input + exec->plan->input_bytes;
}

/* Which SENDs of this launch publish by reference: large ones of memory in the segment that stays
 * as it is. */
static void exec_choose_referring(js_exec *exec)
{
    js_exec_plan *plan = exec->plan;
    uint8_t needed = exec_is_in_place(exec) ? JS_EXEC_REFER_ALWAYS : JS_EXEC_REFER_APART;
    for (uint32_t i = 0; i < plan->op_count; i++) {
        js_exec_op *op = &plan->ops[i];
        op->refers = false;
        if (op->refer >= needed && op->bytes >= plan->refer_bytes) {
            const js_exec_source *source = op->sources;
            const uint8_t *from = exec_address(exec, source->buffer, source->offset);
            op->refers = js_stream_can_refer(op->tx, from, op->bytes);
            op->refer_psn = op->tx->psn;
            exec->referring_count += op->refers;
        }
    }
}

void js_exec_start(js_exec *exec, js_exec_plan *plan, const void *input, void *output,
                   uint64_t sequence)
{
    *exec = (js_exec){
        .plan = plan,
        .buffers = { (uint8_t *)(uintptr_t)input, output, plan->scratch },
        .imm = plan->fingerprint ^ ((uint32_t)sequence * 0x9e3779b1u),
    };
    for (uint32_t i = 0; i < plan->op_count; i++) {
        plan->ops[i].step = 0;
        plan->ops[i].ready = 0;
    }
    if (plan->can_refer) {
        exec_choose_referring(exec);
    }
    for (uint32_t lane = 0; lane < plan->lane_count; lane++) {
        plan->lanes[lane].cursor = plan->lanes[lane].first;
        if (plan->lanes[lane].first != plan->lanes[lane].end) {
            plan->active[exec->active_count++] = &plan->lanes[lane];
        }
    }
}

/* Have the operations that must come first got far enough? */
JS_INLINE bool exec_may_start(const js_exec_plan *plan, const js_exec_op *op)
{
    for (uint32_t i = 0; i < op->after_count; i++) {
        const js_exec_op *first = &plan->ops[op->after_op[i]];
        bool chunk_ok = op->after_mode[i] == JS_PLAN_AFTER_CHUNK && first->step > op->step;
        if (!chunk_ok && first->step != first->steps) {
            return false;
        }
    }
    return true;
}

/* What a step of a SEND publishes. */
typedef struct exec_frame {
    const uint8_t *from;
    uint32_t bytes;
    uint64_t route;
    uint64_t body;
} exec_frame;

JS_INLINE exec_frame exec_frame_of(const js_exec *exec, const js_exec_op *op)
{
    const js_exec_source *source = op->sources;
    uint32_t bytes = exec_step_bytes(exec->plan, op) * op->source_scale;
    uint64_t local = (uint64_t)op->step * exec->plan->call.chunk_bytes * op->source_scale;
    uint32_t flags = (op->step == 0 ? JS_FRAME_FLAG_SOM : 0u) |
                     (op->step + 1 == op->steps ? JS_FRAME_FLAG_EOM : 0u);
    return (exec_frame){
        .from = exec_address(exec, source->buffer, source->offset + local),
        .bytes = bytes,
        .route = js_frame_with_flags(op->tx->route, flags),
        .body = js_frame_body(bytes, op->step, exec->imm ^ op->pair),
    };
}

static void exec_count_sent(js_exec *exec, uint32_t bytes)
{
    exec->published++;
    exec->bytes_sent += bytes;
    exec->bytes_done += bytes;
}

JS_INLINE void exec_copy_bytes(js_exec *exec, uint8_t *to, const uint8_t *from, uint32_t bytes)
{
    uint64_t start = bytes >= JS_EXEC_TIMED_BYTES ? js_clock_ticks() : 0;
    memcpy(to, from, bytes);
    exec->copy_ticks += start ? js_clock_ticks() - start : 0;
}

/* Copies a frame to where js_stream_reserve said. */
JS_INLINE void exec_fill(js_exec *exec, uint8_t *to, const js_stream_tx *tx,
                         const exec_frame *frame)
{
    uint64_t start = frame->bytes >= JS_EXEC_TIMED_BYTES ? js_clock_ticks() : 0;
    exec->streamed += js_stream_fill(tx, to, frame->from, frame->bytes);
    exec->copy_ticks += start ? js_clock_ticks() - start : 0;
}

static bool exec_send(js_exec *exec, js_exec_op *op)
{
    js_stream_tx *tx = op->tx;
    if (JS_UNLIKELY(tx->lent_count != 0 || !js_stream_set_window(tx, tx->payload_bytes))) {
        return false; /* frames that were lent are still on their way */
    }
    exec_frame frame = exec_frame_of(exec, op);
    if (frame.bytes <= JS_STREAM_INLINE_BYTES) {
        if (!js_stream_has_slot(tx)) {
            return false;
        }
        js_stream_publish_inline(tx, frame.from, frame.bytes, frame.route, frame.body);
    } else if (op->refers) {
        if (!js_stream_has_slot(tx)) {
            return false;
        }
        js_stream_publish_ref(tx, frame.from, frame.route, frame.body);
        op->refer_psn = tx->psn;
        exec->referred++;
    } else {
        uint8_t *to = js_stream_reserve(tx, frame.bytes);
        if (to == NULL) {
            return false;
        }
        exec_fill(exec, to, tx, &frame);
        js_stream_publish(tx, frame.bytes, frame.route, frame.body);
    }
    exec_count_sent(exec, frame.bytes);
    return true;
}

/* Sends a frame that comes back rewritten. Where the result will be wanted in the segment, the
 * frame is that place itself and nothing is copied in place; else it is the beginning of the ring,
 * for each chunk and in every launch, so that the same lines go there and back. */
static bool exec_lend(js_exec *exec, js_exec_op *op)
{
    js_stream_tx *tx = op->tx;
    if (op->step == 0 && !js_stream_change_window(tx, op->window_bytes)) {
        return false; /* frames that were not lent are still on their way */
    }
    if (!js_stream_has_slot(tx)) {
        return false;
    }
    exec_frame frame = exec_frame_of(exec, op);
    uint64_t local = (uint64_t)op->step * exec->plan->call.chunk_bytes;
    uint8_t *back = exec_address(exec, op->target_buffer, op->target_offset + local);
    if (frame.bytes <= JS_STREAM_INLINE_BYTES) {
        js_stream_lend(tx);
        js_stream_publish_inline(tx, frame.from, frame.bytes, frame.route, frame.body);
    } else if (js_stream_can_refer(tx, back, frame.bytes)) {
        if (back != frame.from) {
            exec_copy_bytes(exec, back, frame.from, frame.bytes);
        }
        js_stream_lend(tx);
        js_stream_publish_ref(tx, back, frame.route, frame.body);
        exec->referred++;
    } else {
        uint8_t *to = js_stream_reserve(tx, frame.bytes);
        if (to == NULL) {
            return false;
        }
        exec_copy_bytes(exec, to, frame.from, frame.bytes);
        js_stream_lend(tx);
        js_stream_publish(tx, frame.bytes, frame.route, frame.body);
    }
    exec_count_sent(exec, frame.bytes);
    return true;
}

/* Takes the frame that a source awaits. False: it is not there, or it is a foreign one. */
JS_INLINE bool exec_take_frame(js_exec *exec, const js_exec_op *op, js_exec_source *source,
                               uint32_t bytes)
{
    uint64_t body = js_frame_body(bytes, op->step, exec->imm ^ op->pair);
    js_stream_line *line = js_stream_peek(source->rx);
    if (line == NULL) {
        return false;
    }
    source->at = js_stream_payload(source->rx, line, bytes);
    exec->has_read_ref |= (line->route & JS_STREAM_BY_REF) != 0;
    if (JS_UNLIKELY(line->body != body || source->at == NULL)) {
        exec->foreign_peer = source->peer + 1u;
        exec->foreign_imm = js_frame_imm(line->body);
        exec->foreign_op = (uint32_t)(op - exec->plan->ops);
        return false;
    }
    return true;
}

/* Looks for a missing frame a little longer, where there is nothing else to do in the plan: it is
 * seen sooner than by going round. */
static bool exec_linger(js_exec *exec, const js_exec_op *op, js_exec_source *source, uint32_t bytes)
{
    if (exec->idle_ticks == 0) {
        exec->idle_ticks = js_clock_ticks();
    }
    if (exec->active_count != 1 || !exec->may_linger) {
        return false;
    }
    for (uint32_t i = 0; i < EXEC_LOOKS && exec->foreign_peer == 0; i++) {
        if (exec_take_frame(exec, op, source, bytes)) {
            return true;
        }
    }
    return false;
}

/* Finds the sources of the present step, of `bytes` each. False: not all there, or a foreign
 * frame. */
JS_INLINE bool exec_gather(js_exec *exec, js_exec_op *op, uint32_t bytes)
{
    uint64_t local = (uint64_t)op->step * exec->plan->call.chunk_bytes * op->source_scale;
    bool heard = false;
    for (; op->ready < op->source_count; op->ready++) {
        js_exec_source *source = &op->sources[op->ready];
        bool is_there = true;
        if (source->rx != NULL) {
            is_there =
                exec_take_frame(exec, op, source, bytes) || exec_linger(exec, op, source, bytes);
        } else if (source->tx != NULL) {
            source->at = js_stream_given_back(source->tx, bytes);
            is_there = source->at != NULL;
        } else {
            source->at = exec_address(exec, source->buffer, source->offset + local);
            continue;
        }
        if (!is_there) {
            if (heard && exec->first_ticks == 0) {
                exec->first_ticks = js_clock_ticks();
            }
            return false;
        }
        exec->last_peer = source->peer;
        heard = true;
    }
    if (heard) {
        exec->arrived_ticks = js_clock_ticks();
        exec->first_ticks = exec->first_ticks ? exec->first_ticks : exec->arrived_ticks;
    }
    return true;
}

static void exec_release(js_exec *exec, js_exec_op *op, uint32_t bytes)
{
    for (uint32_t i = 0; i < op->source_count; i++) {
        if (op->sources[i].rx != NULL) {
            js_stream_release(op->sources[i].rx);
            exec->consumed++;
            exec->bytes_received += bytes;
        } else if (op->sources[i].tx != NULL) {
            js_stream_take_back(op->sources[i].tx);
            exec->bytes_received += bytes;
        }
    }
    op->ready = 0;
    exec->bytes_done += bytes;
}

/* Folds a step of so many bytes of elements, in one pass into its target and over the frames that
 * are to be given back. */
static void exec_fold(js_exec *exec, const js_exec_op *op, uint8_t *to, uint32_t bytes)
{
    js_exec_plan *plan = exec->plan;
    uint32_t target_count = 0;
    plan->targets[target_count++] = to;
    for (uint32_t i = 0; i < op->source_count; i++) {
        plan->pointers[i] = op->sources[i].at;
        if (op->lends && op->sources[i].rx != NULL) {
            plan->targets[target_count++] = op->sources[i].at;
        }
    }
    op->fold(&(js_reduce_args){ .targets = plan->targets,
                                .sources = plan->pointers,
                                .target_count = target_count,
                                .source_count = op->source_count,
                                .element_count = bytes / plan->element_bytes,
                                .divisor = plan->divisor });
}

static bool exec_reduce(js_exec *exec, js_exec_op *op)
{
    uint32_t bytes = exec_step_bytes(exec->plan, op);
    if (!exec_gather(exec, op, bytes * op->source_scale)) {
        return false;
    }
    uint64_t local = (uint64_t)op->step * exec->plan->call.chunk_bytes * op->target_scale;
    uint8_t *to = exec_address(exec, op->target_buffer, op->target_offset + local);
    uint64_t start = bytes >= JS_EXEC_TIMED_BYTES ? js_clock_ticks() : 0;
    exec_fold(exec, op, to, bytes);
    exec->reduce_ticks += start ? js_clock_ticks() - start : 0;
    exec_release(exec, op, bytes * op->source_scale);
    return true;
}

static bool exec_copy(js_exec *exec, js_exec_op *op)
{
    uint32_t bytes = exec_step_bytes(exec->plan, op);
    if (!exec_gather(exec, op, bytes)) {
        return false;
    }
    uint64_t local = (uint64_t)op->step * exec->plan->call.chunk_bytes;
    uint8_t *to = exec_address(exec, op->target_buffer, op->target_offset + local);
    if (bytes != 0 && to != op->sources[0].at) { /* equal: an in-place call, or lent in place */
        exec_copy_bytes(exec, to, op->sources[0].at, bytes);
    }
    exec_release(exec, op, bytes);
    return true;
}

/* One step of one operation; false if it cannot go on now. */
JS_INLINE bool exec_run(js_exec *exec, js_exec_op *op)
{
    if (!exec_may_start(exec->plan, op)) {
        return false;
    }
    switch (op->opcode) {
    case JS_OP_SEND:
        return op->lends ? exec_lend(exec, op) : exec_send(exec, op);
    case JS_OP_REDUCE:
        return exec_reduce(exec, op);
    default:
        return exec_copy(exec, op);
    }
}

/* Has everything been read that this rank published by reference? Before that the caller must not
 * have its buffers back. */
static bool exec_is_drained(js_exec *exec)
{
    const js_exec_plan *plan = exec->plan;
    for (; exec->drained_count < plan->op_count; exec->drained_count++) {
        const js_exec_op *op = &plan->ops[exec->drained_count];
        if (op->refers && !js_stream_is_consumed(op->tx, op->refer_psn)) {
            return false;
        }
    }
    return true;
}

js_exec_outcome js_exec_step(js_exec *exec, uint32_t *progress)
{
    js_exec_plan *plan = exec->plan;
    for (uint32_t i = 0; i < exec->active_count;) {
        js_exec_lane *lane = plan->active[i];
        js_exec_op *op = *lane->cursor;
        if (!exec_run(exec, op)) {
            if (JS_UNLIKELY(exec->foreign_peer != 0)) {
                return JS_EXEC_FOREIGN;
            }
            i++;
            continue;
        }
        (*progress)++;
        op->step++;
        if (op->step == op->steps && ++lane->cursor == lane->end) {
            plan->active[i] = plan->active[--exec->active_count];
            continue; /* the last lane has taken this place */
        }
        i++;
    }
    if (exec->active_count != 0) {
        return JS_EXEC_RUNNING;
    }
    bool is_done = JS_LIKELY(exec->referring_count == 0) || exec_is_drained(exec);
    return is_done ? JS_EXEC_DONE : JS_EXEC_RUNNING;
}

static void exec_add_missing(js_exec_missing *out, uint32_t rank, uint32_t op_index)
{
    if (rank < 64 && (out->mask >> rank & 1) != 0) {
        return; /* two lanes wait for the same rank */
    }
    if (out->count == 0 || rank < out->first) {
        out->first = rank;
        out->op_index = op_index;
    }
    out->count++;
    if (rank < 64) {
        out->mask |= 1ull << rank;
    }
}

/* The reader that keeps a full stream from going on. */
static uint32_t exec_slow_reader(const js_exec_plan *plan, const js_exec_op *op)
{
    return op->is_all ? plan->readers[js_stream_slowest(op->tx)] : op->peer;
}

void js_exec_find_missing(const js_exec *exec, js_exec_missing *out)
{
    const js_exec_plan *plan = exec->plan;
    *out = (js_exec_missing){ 0 };
    if (plan != NULL && exec->active_count == 0 && exec->referring_count != 0 &&
        exec->drained_count < plan->op_count) {
        const js_exec_op *op = &plan->ops[exec->drained_count];
        exec_add_missing(out, exec_slow_reader(plan, op), exec->drained_count);
    }
    for (uint32_t i = 0; plan != NULL && i < exec->active_count; i++) {
        const js_exec_op *op = *plan->active[i]->cursor;
        uint32_t index = (uint32_t)(op - plan->ops);
        if (!exec_may_start(plan, op)) {
            continue;
        }
        if (op->opcode == JS_OP_SEND) {
            exec_add_missing(out, exec_slow_reader(plan, op), index);
        }
        for (uint32_t s = op->ready; s < op->source_count; s++) {
            const js_exec_source *source = &op->sources[s];
            bool is_awaited = (source->rx != NULL && js_stream_peek(source->rx) == NULL) ||
                              (source->tx != NULL && js_stream_given_back(source->tx, 0) == NULL);
            if (is_awaited) {
                exec_add_missing(out, source->peer, index);
            }
        }
    }
}
