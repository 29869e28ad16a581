/* Executing a plan. */
#include "js_exec.h"

#include "js_clock.h"
#include "js_frame.h"

#include <string.h>

/* Below this, reading the clock would cost more than what it measures. */
#define EXEC_TIMED_BYTES 1024u

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
    for (uint32_t lane = 0; lane < plan->lane_count; lane++) {
        plan->lanes[lane].cursor = 0;
        if (plan->lanes[lane].count != 0) {
            plan->active[exec->active_count++] = (uint16_t)lane;
        }
    }
}

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

static bool exec_send(js_exec *exec, js_exec_op *op)
{
    const js_exec_plan *plan = exec->plan;
    const js_exec_source *source = op->sources;
    uint32_t bytes = exec_step_bytes(plan, op);
    uint64_t local = (uint64_t)op->step * plan->call.chunk_bytes;
    const uint8_t *from = exec_address(exec, source->buffer, source->offset + local);
    uint32_t flags = (op->step == 0 ? JS_FRAME_FLAG_SOM : 0u) |
                     (op->step + 1 == op->steps ? JS_FRAME_FLAG_EOM : 0u);
    uint64_t route = js_frame_with_flags(op->tx->route, flags);
    uint64_t body = js_frame_body(bytes, op->step, exec->imm ^ op->pair);
    if (bytes <= JS_STREAM_INLINE_BYTES) {
        if (!js_stream_has_slot(op->tx)) {
            return false;
        }
        js_stream_publish_inline(op->tx, from, bytes, route, body);
    } else {
        uint8_t *to = js_stream_reserve(op->tx, bytes);
        if (to == NULL) {
            return false;
        }
        uint64_t start = bytes >= EXEC_TIMED_BYTES ? js_clock_ticks() : 0;
        memcpy(to, from, bytes);
        js_stream_publish(op->tx, bytes, route, body);
        exec->copy_ticks += start ? js_clock_ticks() - start : 0;
    }
    exec->published++;
    exec->bytes_sent += bytes;
    exec->bytes_done += bytes;
    return true;
}

/* Finds the sources of the present step. False: not all there, or a foreign frame. */
JS_INLINE bool exec_gather(js_exec *exec, js_exec_op *op, uint32_t bytes)
{
    uint64_t body = js_frame_body(bytes, op->step, exec->imm ^ op->pair);
    uint64_t local = (uint64_t)op->step * exec->plan->call.chunk_bytes;
    bool heard = false;
    for (; op->ready < op->source_count; op->ready++) {
        js_exec_source *source = &op->sources[op->ready];
        if (source->rx == NULL) {
            source->at = exec_address(exec, source->buffer, source->offset + local);
            continue;
        }
        const js_stream_line *line = js_stream_peek(source->rx);
        if (line == NULL) {
            if (heard && exec->first_ticks == 0) {
                exec->first_ticks = js_clock_ticks();
            }
            return false;
        }
        source->at = js_stream_payload(source->rx, line, bytes);
        if (JS_UNLIKELY(line->body != body || source->at == NULL)) {
            exec->foreign_peer = source->peer + 1u;
            exec->foreign_imm = js_frame_imm(line->body);
            exec->foreign_op = (uint32_t)(op - exec->plan->ops);
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
        }
    }
    op->ready = 0;
    exec->bytes_done += bytes;
}

static bool exec_reduce(js_exec *exec, js_exec_op *op)
{
    js_exec_plan *plan = exec->plan;
    uint32_t bytes = exec_step_bytes(plan, op);
    if (!exec_gather(exec, op, bytes)) {
        return false;
    }
    uint64_t local = (uint64_t)op->step * plan->call.chunk_bytes;
    uint8_t *to = exec_address(exec, op->target_buffer, op->target_offset + local);
    for (uint32_t i = 0; i < op->source_count; i++) {
        plan->pointers[i] = op->sources[i].at;
    }
    uint64_t start = bytes >= EXEC_TIMED_BYTES ? js_clock_ticks() : 0;
    plan->fold(to, plan->pointers, op->source_count, bytes / plan->element_bytes, plan->divisor);
    exec->reduce_ticks += start ? js_clock_ticks() - start : 0;
    exec_release(exec, op, bytes);
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
    if (bytes != 0 && to != op->sources[0].at) { /* equal: an in-place call */
        uint64_t start = bytes >= EXEC_TIMED_BYTES ? js_clock_ticks() : 0;
        memcpy(to, op->sources[0].at, bytes);
        exec->copy_ticks += start ? js_clock_ticks() - start : 0;
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
        return exec_send(exec, op);
    case JS_OP_REDUCE:
        return exec_reduce(exec, op);
    default:
        return exec_copy(exec, op);
    }
}

js_exec_outcome js_exec_step(js_exec *exec, uint32_t *progress)
{
    js_exec_plan *plan = exec->plan;
    for (uint32_t i = 0; i < exec->active_count;) {
        js_exec_lane *lane = &plan->lanes[plan->active[i]];
        js_exec_op *op = &plan->ops[plan->order[lane->first + lane->cursor]];
        if (!exec_run(exec, op)) {
            if (JS_UNLIKELY(exec->foreign_peer != 0)) {
                return JS_EXEC_FOREIGN;
            }
            i++;
            continue;
        }
        (*progress)++;
        op->step++;
        if (op->step == op->steps && ++lane->cursor == lane->count) {
            plan->active[i] = plan->active[--exec->active_count];
            continue; /* the last lane has taken this place */
        }
        i++;
    }
    return exec->active_count == 0 ? JS_EXEC_DONE : JS_EXEC_RUNNING;
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
static uint32_t exec_slow_reader(const js_exec_op *op, uint32_t self)
{
    if (!op->is_all) {
        return op->peer;
    }
    uint32_t reader = js_stream_slowest(op->tx);
    return reader < self ? reader : reader + 1;
}

void js_exec_find_missing(const js_exec *exec, uint32_t self, js_exec_missing *out)
{
    const js_exec_plan *plan = exec->plan;
    *out = (js_exec_missing){ 0 };
    for (uint32_t i = 0; plan != NULL && i < exec->active_count; i++) {
        const js_exec_lane *lane = &plan->lanes[plan->active[i]];
        uint32_t index = plan->order[lane->first + lane->cursor];
        const js_exec_op *op = &plan->ops[index];
        if (!exec_may_start(plan, op)) {
            continue;
        }
        if (op->opcode == JS_OP_SEND) {
            exec_add_missing(out, exec_slow_reader(op, self), index);
        }
        for (uint32_t s = op->ready; s < op->source_count; s++) {
            const js_exec_source *source = &op->sources[s];
            if (source->rx != NULL && js_stream_peek(source->rx) == NULL) {
                exec_add_missing(out, source->peer, index);
            }
        }
    }
}
