/* Validation of plans. */
#include "js_plan_check.h"

#include "js_dtype.h"
#include "js_status.h"

#define JS_OP(name, value, mnemonic, low, high) { value, low, high, mnemonic },
static const struct {
    uint8_t opcode;
    uint16_t sources_min;
    uint16_t sources_max;
    const char *mnemonic;
} plan_ops[] = {
#include <jetstream/js_op.def>
};
#undef JS_OP

static int32_t plan_check_header(const js_plan_header *header, size_t size_bytes, uint32_t rank,
                                 uint32_t world)
{
    if (header->magic != JS_PLAN_MAGIC || header->version != JS_PLAN_VERSION ||
        header->header_bytes != sizeof(*header)) {
        return JS_FAIL(JS_ERR_PLAN, "not a plan of version %d", JS_PLAN_VERSION);
    }
    if (header->op_count > JS_PLAN_OPS_MAX || header->source_count > JS_PLAN_SOURCES_MAX ||
        header->lane_count > JS_PLAN_LANES_MAX) {
        return JS_FAIL(JS_ERR_PLAN, "%u operations, %u sources, %u lanes: at most %d, %d, %d",
                       header->op_count, header->source_count, header->lane_count, JS_PLAN_OPS_MAX,
                       JS_PLAN_SOURCES_MAX, JS_PLAN_LANES_MAX);
    }
    size_t expected = sizeof(*header) + header->op_count * sizeof(js_plan_op) +
                      header->source_count * sizeof(js_plan_source);
    if (header->total_bytes != size_bytes || expected != size_bytes) {
        return JS_FAIL(JS_ERR_PLAN, "%zu bytes given, the header says %u and needs %zu", size_bytes,
                       header->total_bytes, expected);
    }
    const js_call *call = &header->call;
    if (header->rank != rank || call->world != world || call->root >= world) {
        return JS_FAIL(JS_ERR_PLAN, "plan for rank %u of %u, root %u; this is rank %u of %u",
                       header->rank, call->world, call->root, rank, world);
    }
    if (!js_dtype_has(call->dtype, call->redop) || header->divisor == 0) {
        return JS_FAIL(JS_ERR_PLAN, "dtype %u, operation %u, divisor %u", call->dtype, call->redop,
                       header->divisor);
    }
    if (call->chunk_bytes == 0 || call->chunk_bytes > JS_PLAN_CHUNK_BYTES_MAX ||
        call->chunk_bytes % JS_PLAN_CHUNK_ALIGN != 0) {
        return JS_FAIL(JS_ERR_PLAN, "chunks of %u bytes: a multiple of %d up to %d is needed",
                       call->chunk_bytes, JS_PLAN_CHUNK_ALIGN, JS_PLAN_CHUNK_BYTES_MAX);
    }
    /* Steps are counted in 32 bits; and no size computed from these wraps. */
    uint64_t most = (uint64_t)UINT32_MAX * call->chunk_bytes;
    if (header->input_bytes > most || header->output_bytes > most || header->scratch_bytes > most) {
        return JS_FAIL(JS_ERR_PLAN, "buffers of more than %llu bytes", (unsigned long long)most);
    }
    return JS_OK;
}

/* Bytes of partial folds, or of elements where `flag` is not set. */
static uint64_t plan_bytes(const js_plan_header *header, const js_plan_op *op, uint32_t flag)
{
    const js_call *call = &header->call;
    uint32_t scale = (op->flags & flag) == 0 ? 1
                                             : js_dtype_partial_bytes(call->dtype, call->redop) /
                                                   js_dtype_bytes(call->dtype);
    return op->bytes * scale;
}

static bool plan_range_fits(const js_plan_header *header, uint8_t buffer, uint64_t offset,
                            uint64_t bytes)
{
    uint64_t room;
    switch (buffer) {
    case JS_PLAN_INPUT:
        room = header->input_bytes;
        break;
    case JS_PLAN_OUTPUT:
        room = header->output_bytes;
        break;
    case JS_PLAN_SCRATCH:
        room = header->scratch_bytes;
        break;
    default:
        return false;
    }
    return offset <= room && bytes <= room - offset;
}

/* Copying and folding allow the target to be a source of the same size, but not to overlap one
 * otherwise. */
static bool plan_overlaps(const js_plan_header *header, const js_plan_op *op,
                          const js_plan_source *source)
{
    uint64_t low = js_min_u64(op->target_offset, source->offset);
    uint64_t distance = js_max_u64(op->target_offset, source->offset) - low;
    uint64_t read = plan_bytes(header, op, JS_PLAN_PARTIAL_SOURCES);
    uint64_t written = plan_bytes(header, op, JS_PLAN_PARTIAL_TARGET);
    bool has_target = op->opcode != JS_OP_SEND || (op->flags & JS_PLAN_LEND) != 0;
    bool is_same = distance == 0 && read == written;
    return has_target && op->target_buffer == source->buffer && !is_same &&
           distance < (low == source->offset ? read : written);
}

static int32_t plan_check_source(const js_plan_view *view, uint32_t index, const js_plan_op *op,
                                 const js_plan_source *source)
{
    const js_plan_header *header = view->header;
    switch (source->place) {
    case JS_PLACE_BUFFER:
        if (!plan_range_fits(header, source->buffer, source->offset,
                             plan_bytes(header, op, JS_PLAN_PARTIAL_SOURCES))) {
            return JS_FAIL(JS_ERR_PLAN, "operation %u reads outside of buffer %u", index,
                           source->buffer);
        }
        if ((op->flags & JS_PLAN_PARTIAL_SOURCES) != 0 &&
            (source->buffer != JS_PLAN_SCRATCH || source->offset % JS_PLAN_PARTIAL_ALIGN != 0)) {
            return JS_FAIL(JS_ERR_PLAN, "operation %u takes partial folds from where none are",
                           index);
        }
        if (plan_overlaps(header, op, source)) {
            return JS_FAIL(JS_ERR_PLAN, "operation %u writes over a part of what it reads", index);
        }
        return JS_OK;
    case JS_PLACE_ALL:
    case JS_PLACE_PEER:
        if (op->opcode == JS_OP_SEND || source->peer >= header->call.world ||
            source->peer == header->rank) {
            return JS_FAIL(JS_ERR_PLAN, "operation %u cannot take its source from rank %u", index,
                           source->peer);
        }
        if ((op->flags & JS_PLAN_LEND) != 0 && source->place != JS_PLACE_PEER) {
            return JS_FAIL(JS_ERR_PLAN, "operation %u cannot give back a frame sent to all", index);
        }
        return JS_OK;
    case JS_PLACE_LENT:
        if (op->opcode != JS_OP_COPY || source->peer >= header->call.world ||
            source->peer == header->rank) {
            return JS_FAIL(JS_ERR_PLAN, "operation %u cannot take a frame back from rank %u", index,
                           source->peer);
        }
        return JS_OK;
    default:
        return JS_FAIL(JS_ERR_PLAN, "operation %u has an unknown source %u", index, source->place);
    }
}

/* What an operation with flags of partial folds must be; nothing without them. */
static int32_t plan_check_partial(const js_plan_header *header, uint32_t index,
                                  const js_plan_op *op, uint32_t flags)
{
    if (flags == 0) {
        return JS_OK;
    }
    uint32_t bytes = js_dtype_partial_bytes(header->call.dtype, header->call.redop);
    bool is_known =
        op->opcode == JS_OP_REDUCE || (op->opcode == JS_OP_SEND && op->place == JS_PLACE_PEER &&
                                       flags == JS_PLAN_PARTIAL_SOURCES);
    if (!is_known || flags == (JS_PLAN_PARTIAL_TARGET | JS_PLAN_PARTIAL_SOURCES) || bytes == 0) {
        return JS_FAIL(JS_ERR_PLAN, "operation %u cannot be done on partial folds", index);
    }
    if (flags == JS_PLAN_PARTIAL_TARGET &&
        (op->target_buffer != JS_PLAN_SCRATCH || op->target_offset % JS_PLAN_PARTIAL_ALIGN != 0)) {
        return JS_FAIL(JS_ERR_PLAN, "operation %u puts partial folds where they do not belong",
                       index);
    }
    uint64_t chunk = js_min_u64(op->bytes, header->call.chunk_bytes);
    if (chunk * bytes / js_dtype_bytes(header->call.dtype) > JS_PLAN_CHUNK_BYTES_MAX) {
        return JS_FAIL(JS_ERR_PLAN, "operation %u has partial folds of more than %d bytes a chunk",
                       index, JS_PLAN_CHUNK_BYTES_MAX);
    }
    return JS_OK;
}

static int32_t plan_check_target(const js_plan_header *header, uint32_t index, const js_plan_op *op)
{
    bool lends = (op->flags & JS_PLAN_LEND) != 0;
    uint32_t refers = op->flags & (JS_PLAN_REFER | JS_PLAN_REFER_IN_PLACE);
    bool may_refer = op->opcode == JS_OP_SEND && !lends && refers != JS_PLAN_REFER_IN_PLACE;
    uint32_t partial = op->flags & (JS_PLAN_PARTIAL_TARGET | JS_PLAN_PARTIAL_SOURCES);
    if ((op->flags & ~(JS_PLAN_LEND | refers | partial)) != 0 ||
        (lends && op->opcode == JS_OP_COPY) || (refers != 0 && !may_refer) ||
        (partial != 0 && (lends || refers != 0))) {
        return JS_FAIL(JS_ERR_PLAN, "operation %u has the flags %#x", index, op->flags);
    }
    JS_TRY(plan_check_partial(header, index, op, partial));
    if (op->opcode != JS_OP_SEND || lends) {
        if (op->target_buffer == JS_PLAN_INPUT ||
            !plan_range_fits(header, op->target_buffer, op->target_offset,
                             plan_bytes(header, op, JS_PLAN_PARTIAL_TARGET))) {
            return JS_FAIL(JS_ERR_PLAN, "operation %u writes outside of buffer %u", index,
                           op->target_buffer);
        }
    }
    if (op->opcode != JS_OP_SEND) {
        return JS_OK;
    }
    bool to_all = op->place == JS_PLACE_ALL && header->call.world > 1 && !lends;
    bool to_peer =
        op->place == JS_PLACE_PEER && op->peer < header->call.world && op->peer != header->rank;
    if (!to_all && !to_peer) {
        return JS_FAIL(JS_ERR_PLAN, "operation %u cannot send to rank %u", index, op->peer);
    }
    return JS_OK;
}

static int32_t plan_check_op(const js_plan_view *view, uint32_t index)
{
    const js_plan_header *header = view->header;
    const js_plan_op *op = &view->ops[index];
    uint32_t kind = (uint32_t)op->opcode - 1;
    if (kind >= JS_ARRAY_LEN(plan_ops) || plan_ops[kind].opcode != op->opcode) {
        return JS_FAIL(JS_ERR_PLAN, "operation %u has the unknown opcode %u", index, op->opcode);
    }
    if (op->source_count < plan_ops[kind].sources_min ||
        op->source_count > plan_ops[kind].sources_max || op->source_first > header->source_count ||
        op->source_count > header->source_count - op->source_first) {
        return JS_FAIL(JS_ERR_PLAN, "operation %u (%s) with %u sources from %u", index,
                       plan_ops[kind].mnemonic, op->source_count, op->source_first);
    }
    if (op->lane >= header->lane_count || op->after_count > JS_PLAN_AFTER_MAX) {
        return JS_FAIL(JS_ERR_PLAN, "operation %u: lane %u, %u edges", index, op->lane,
                       op->after_count);
    }
    if (op->opcode == JS_OP_REDUCE && op->bytes % js_dtype_bytes(header->call.dtype) != 0) {
        return JS_FAIL(JS_ERR_PLAN, "operation %u reduces a part of an element", index);
    }
    JS_TRY(plan_check_target(header, index, op));
    for (uint32_t i = 0; i < op->source_count; i++) {
        JS_TRY(plan_check_source(view, index, op, &view->sources[op->source_first + i]));
    }
    for (uint32_t i = 0; i < op->after_count; i++) {
        /* Edges point backwards in the list, and lanes run in list order: so no cycle exists. */
        if (op->after_op[i] >= index || op->after_mode[i] > JS_PLAN_AFTER_DONE) {
            return JS_FAIL(JS_ERR_PLAN, "operation %u: edge %u after operation %u", index, i,
                           op->after_op[i]);
        }
    }
    return JS_OK;
}

int32_t js_plan_check(const void *bytes, size_t size_bytes, uint32_t rank, uint32_t world,
                      js_plan_view *out)
{
    if (size_bytes < sizeof(js_plan_header) || (uintptr_t)bytes % 8 != 0) {
        return JS_FAIL(JS_ERR_PLAN, "%zu bytes are too few for a plan", size_bytes);
    }
    js_plan_view view = { .header = bytes };
    JS_TRY(plan_check_header(view.header, size_bytes, rank, world));
    view.ops = (const js_plan_op *)(const void *)(view.header + 1);
    view.sources = (const js_plan_source *)(const void *)(view.ops + view.header->op_count);
    for (uint32_t i = 0; i < view.header->op_count; i++) {
        JS_TRY(plan_check_op(&view, i));
    }
    *out = view;
    return JS_OK;
}

uint32_t js_plan_fingerprint(const js_call *call)
{
    /* FNV-1a, 64 bits folded to 32 (Fowler, Noll, Vo; RFC 9923). */
    const uint8_t *bytes = (const uint8_t *)call;
    uint64_t hash = 0xcbf29ce484222325u;
    for (size_t i = 0; i < sizeof(*call); i++) {
        hash = (hash ^ bytes[i]) * 0x100000001b3u;
    }
    return (uint32_t)(hash ^ (hash >> 32));
}
