/* Calls with the arrays of an interpreter: from two object addresses to a launched plan.
 *
 * Between `comm.all_reduce(x)` and the first store, most of the time goes into asking x, through
 * the interpreter, for what lies in its first 80 bytes. Here they are read in place. */
#include "js_base.h"

#include <jetstream/js_api.h>

#define ARRAY_C_CONTIGUOUS 0x0001
#define ARRAY_ALIGNED 0x0100
#define ARRAY_WRITEABLE 0x0400
#define TABLE_WAYS 4u

/* The head of a NumPy array in CPython: PyArrayObject_fields, which the inline accessors of
 * NumPy's C interface read too, so that it cannot change for modules that are compiled already.
 * The caller has compared it with an array that he knows (js_array_look). */
typedef struct array_head {
    intptr_t reference_count;
    uintptr_t type;
    uintptr_t data;
    int32_t dimension_count;
    const intptr_t *dimensions;
    const intptr_t *strides;
    uintptr_t base;
    uintptr_t dtype;
    int32_t flags;
} array_head;

static const array_head *array_at(uintptr_t object)
{
    return (const array_head *)object;
}

static uint64_t array_count(const array_head *array)
{
    uint64_t count = 1;
    for (int32_t i = 0; i < array->dimension_count; i++) {
        count *= (uint64_t)array->dimensions[i];
    }
    return count;
}

void js_array_look(uintptr_t object, js_array_seen *out)
{
    const array_head *array = array_at(object);
    out->type = array->type;
    out->data = array->data;
    out->dtype = array->dtype;
    out->count = array_count(array);
    out->is_contiguous = (array->flags & ARRAY_C_CONTIGUOUS) != 0;
    out->is_aligned = (array->flags & ARRAY_ALIGNED) != 0;
    out->is_writeable = (array->flags & ARRAY_WRITEABLE) != 0;
}

/* What is divided among the ranks must be divisible by its rows, not only by its elements. */
static uint64_t array_rows(const js_call_table *table, const array_head *array)
{
    return table->is_by_rows && array->dimension_count > 0 ? (uint64_t)array->dimensions[0] : 0;
}

/* The first entry of the set in which a call has its place. */
static uint32_t table_set(uintptr_t dtype, uint64_t count)
{
    uint64_t mixed = ((uint64_t)dtype >> 4) + count * 0x9e3779b97f4a7c15u;
    return (uint32_t)(mixed >> 32) & (JS_CALL_TABLE_ENTRIES - 1) & ~(TABLE_WAYS - 1);
}

/* Two pieces of memory that are one or have nothing in common; the rest is for the caller. */
static bool is_apart(uintptr_t a, uint64_t a_bytes, uintptr_t b, uint64_t b_bytes)
{
    return a + a_bytes <= b || b + b_bytes <= a || (a == b && a_bytes == b_bytes);
}

/* The entry of a call with these arrays; NULL if it is not known, or not a plain one. */
static const js_array_entry *table_find(const js_call_table *table, const array_head *from,
                                        const array_head *to)
{
    const int32_t readable = ARRAY_C_CONTIGUOUS | ARRAY_ALIGNED;
    const int32_t writable = readable | ARRAY_WRITEABLE;

    /* Every object begins with its type; what follows is read of arrays only. */
    if (from->type != table->array_type || to->type != table->array_type ||
        (from->flags & readable) != readable || (to->flags & writable) != writable) {
        return NULL;
    }
    uint64_t source_count = array_count(from);
    uint64_t target_count = from == to ? source_count : array_count(to);
    uint64_t source_rows = array_rows(table, from);
    const js_array_entry *set = &table->entries[table_set(from->dtype, source_count)];
    for (uint32_t i = 0; i < TABLE_WAYS; i++) {
        const js_array_entry *entry = &set[i];
        if (entry->source_dtype == from->dtype && entry->source_count == source_count &&
            entry->target_dtype == to->dtype && entry->target_count == target_count &&
            entry->source_rows == source_rows) {
            bool is_plain =
                is_apart(from->data, entry->source_bytes, to->data, entry->target_bytes);
            return is_plain ? entry : NULL;
        }
    }
    return NULL;
}

int32_t js_array_call(const js_call_table *table, uintptr_t source, uintptr_t target)
{
    const array_head *from = array_at(source);
    const array_head *to = target != 0 ? array_at(target) : from;
    const js_array_entry *entry = table_find(table, from, to);
    if (entry == NULL) {
        return JS_CALL_MISS;
    }
    if (JS_UNLIKELY(table->comm == NULL)) {
        return JS_ERR_CLOSED;
    }
    return js_comm_call(table->comm, entry->plan_id, (const void *)from->data, (void *)to->data,
                        table->timeout_ns);
}

int32_t js_array_launch(const js_call_table *table, uintptr_t source, uintptr_t target,
                        uint64_t *out_wr_id)
{
    const array_head *from = array_at(source);
    const array_head *to = array_at(target);
    const js_array_entry *entry = table_find(table, from, to);
    if (entry == NULL) {
        return JS_CALL_MISS;
    }
    if (JS_UNLIKELY(table->comm == NULL)) {
        return JS_ERR_CLOSED;
    }
    return js_comm_launch(table->comm, entry->plan_id, (const void *)from->data, (void *)to->data,
                          out_wr_id);
}

uint32_t js_array_remember(js_call_table *table, uintptr_t source, uintptr_t target,
                           uint32_t itemsize_bytes, uint32_t plan_id)
{
    const array_head *from = array_at(source);
    const array_head *to = array_at(target);
    uint64_t source_count = array_count(from);
    uint64_t target_count = array_count(to);
    uint32_t set = table_set(from->dtype, source_count);
    uint32_t place = set + table->remembered++ % TABLE_WAYS;
    for (uint32_t i = set + TABLE_WAYS; i-- > set;) {
        place = table->entries[i].source_dtype == 0 ? i : place;
    }
    table->entries[place] = (js_array_entry){
        .source_dtype = from->dtype,
        .target_dtype = to->dtype,
        .source_count = source_count,
        .target_count = target_count,
        .source_rows = array_rows(table, from),
        .source_bytes = source_count * itemsize_bytes,
        .target_bytes = target_count * itemsize_bytes,
        .plan_id = plan_id,
    };
    return place;
}

/* Bytes of an array that can be sent, or received into with the flags wanted; false: it is not a
 * plain one. */
static bool mail_bytes(const js_mail *mail, const array_head *array, int32_t flags,
                       uint64_t *out_bytes)
{
    if (array->type != mail->array_type || (array->flags & flags) != flags) {
        return false;
    }
    for (uint32_t i = 0; i < mail->dtype_count; i++) {
        if (mail->dtypes[i] == array->dtype) {
            *out_bytes = array_count(array) * mail->itemsize_bytes[i];
            return true;
        }
    }
    return false;
}

int32_t js_array_send(js_mail *mail, uintptr_t source, uint64_t address)
{
    const array_head *array = array_at(source);
    uint64_t bytes = 0;
    if (!mail_bytes(mail, array, ARRAY_C_CONTIGUOUS, &bytes)) {
        return JS_CALL_MISS;
    }
    if (JS_UNLIKELY(mail->comm == NULL)) {
        return JS_ERR_CLOSED;
    }
    return js_comm_send_wait(mail->comm, (const void *)array->data, bytes, address,
                             mail->timeout_ns, &mail->cqe);
}

int32_t js_array_receive(js_mail *mail, uintptr_t target, uint64_t address, uint64_t flags)
{
    const int32_t writable = ARRAY_C_CONTIGUOUS | ARRAY_ALIGNED | ARRAY_WRITEABLE;
    const array_head *array = array_at(target);
    uint64_t bytes = 0;
    if (!mail_bytes(mail, array, writable, &bytes)) {
        return JS_CALL_MISS;
    }
    if (JS_UNLIKELY(mail->comm == NULL)) {
        return JS_ERR_CLOSED;
    }
    int32_t status = js_comm_receive_wait(mail->comm, (void *)array->data, bytes | flags, address,
                                          mail->timeout_ns, &mail->cqe);
    return status == JS_OK && mail->cqe.bytes != bytes ? JS_CALL_SHORT : status;
}

int32_t js_persistent_call(const js_persistent *call)
{
    if (JS_UNLIKELY(call->comm == NULL)) {
        return JS_ERR_CLOSED;
    }
    return js_comm_call(call->comm, call->plan_id, call->input, call->output, call->timeout_ns);
}

int32_t js_graph_call(const js_persistent *call)
{
    if (JS_UNLIKELY(call->comm == NULL)) {
        return JS_ERR_CLOSED;
    }
    return js_comm_call_graph(call->comm, call->plan_id, call->timeout_ns);
}
