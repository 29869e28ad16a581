/* Calls with the arrays of an interpreter: from two object addresses to a launched plan.
 *
 * Between `comm.all_reduce(x)` and the first store, most of the time goes into asking x, through
 * the interpreter, for what lies in its first 80 bytes. Here they are read in place. */
#include "js_base.h"

#include <jetstream/js_api.h>

#define ARRAY_C_CONTIGUOUS 0x0001
#define ARRAY_ALIGNED 0x0100
#define ARRAY_WRITEABLE 0x0400
#define ARRAY_READABLE (ARRAY_C_CONTIGUOUS | ARRAY_ALIGNED)
#define ARRAY_WRITABLE (ARRAY_READABLE | ARRAY_WRITEABLE)
#define TENSOR_NEAR_DIMENSIONS 5u
#define TENSOR_DTYPE_MASK 0xffffu
#define TENSOR_CONTIGUOUS (1ull << 40)
/* Besides that one: its memory or its shape are to be asked for in another way. */
#define TENSOR_FLAGS (0x7ffc03ull << 40)
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

static uint64_t array_rows(const array_head *array)
{
    return array->dimension_count > 0 ? (uint64_t)array->dimensions[0] : 0;
}

void js_array_look(uintptr_t object, js_array_seen *out)
{
    const array_head *array = array_at(object);
    out->type = array->type;
    out->data = array->data;
    out->dtype = array->dtype;
    out->count = array_count(array);
    out->rows = array_rows(array);
    out->is_contiguous = (array->flags & ARRAY_C_CONTIGUOUS) != 0;
    out->is_aligned = (array->flags & ARRAY_ALIGNED) != 0;
    out->is_writeable = (array->flags & ARRAY_WRITEABLE) != 0;
}

/* A tensor of torch in CPython, as of torch 2.13. No part of a binary interface, so the caller
 * finds out first whether it holds (js_tensor_look). The object is a THPVariable, its head a
 * TensorImpl (c10/core/TensorImpl.h), the owner of its memory a StorageImpl
 * (c10/core/StorageImpl.h). */
typedef struct tensor_storage {
    uintptr_t virtual_functions;
    uint64_t reference_counts;
    uintptr_t data;
    uintptr_t context[3]; /* of the memory, its destructor, device */
    uint64_t size_bytes;
    uint8_t size_is_apart;
    uint8_t is_resizable;
    uint8_t is_received;
    uint8_t is_checked; /* asking for the memory does something: a copy on write, an error */
} tensor_storage;

typedef struct tensor_head {
    uintptr_t virtual_functions;
    uint64_t reference_counts;
    const tensor_storage *storage;
    uintptr_t autograd;
    uintptr_t extra;
    uintptr_t version;
    uintptr_t object;
    uint64_t dimension_count;
    union {
        int64_t near[2 * TENSOR_NEAR_DIMENSIONS]; /* sizes, then strides */
        const int64_t *far;
    } sizes;
    int64_t offset; /* elements */
    uint64_t count;
    uint64_t properties; /* dtype: 16 bits, device: 24, flags: 24 */
    uint64_t key_set;
} tensor_head;

typedef struct tensor_object {
    intptr_t reference_count;
    uintptr_t type;
    const tensor_head *head;
} tensor_object;

/* What a call has to know of an array or a tensor. */
typedef struct array_view {
    uintptr_t data;
    uintptr_t dtype;
    uint64_t count;
    uint64_t rows; /* length of the first axis */
} array_view;

/* The tensor has memory like an array: torch itself would ask nobody for its shape and address. */
static bool tensor_view(const js_tensor_layout *layout, uintptr_t object, array_view *out)
{
    const tensor_object *tensor = (const tensor_object *)object;
    if (layout == NULL || (tensor->type != layout->types[0] && tensor->type != layout->types[1])) {
        return false;
    }
    const tensor_head *head = tensor->head;
    uint64_t number = head->properties & TENSOR_DTYPE_MASK;
    if ((head->properties & TENSOR_FLAGS) != TENSOR_CONTIGUOUS || number >= JS_TENSOR_DTYPES ||
        (head->key_set != layout->key_sets[0] && head->key_set != layout->key_sets[1])) {
        return false;
    }
    const tensor_storage *storage = head->storage;
    uint64_t itemsize_bytes = layout->itemsize_bytes[number];
    uint64_t alignment = itemsize_bytes < sizeof(uint64_t) ? itemsize_bytes : sizeof(uint64_t);
    if (storage == NULL || storage->is_checked != 0 || itemsize_bytes == 0) {
        return false;
    }
    /* Storage can be given back, or shrunk, under a tensor. */
    uint64_t end = (uint64_t)head->offset + head->count;
    if (head->count != 0 && (storage->data == 0 || storage->size_is_apart != 0 ||
                             end > storage->size_bytes / itemsize_bytes)) {
        return false;
    }
    bool is_near = head->dimension_count <= TENSOR_NEAR_DIMENSIONS;
    const int64_t *sizes = is_near ? head->sizes.near : head->sizes.far;
    out->data = storage->data + (uint64_t)head->offset * itemsize_bytes;
    out->dtype = number + 1;
    out->count = head->count;
    out->rows = head->dimension_count > 0 ? (uint64_t)sizes[0] : 0;
    return (out->data & (alignment - 1)) == 0;
}

void js_tensor_look(const js_tensor_layout *layout, uintptr_t object, js_array_seen *out)
{
    const tensor_object *tensor = (const tensor_object *)object;
    array_view view = { 0 };
    bool is_plain = tensor_view(layout, object, &view);
    *out = (js_array_seen){
        .type = tensor->type,
        .data = view.data,
        .dtype = view.dtype,
        .count = view.count,
        .rows = view.rows,
        .is_contiguous = is_plain,
        .is_aligned = is_plain,
        .is_writeable = is_plain,
    };
}

/* Reads the head of an array that has the flags, or of a tensor; false: it is not a plain one.
 * Every object begins with its type; what follows is read of arrays and tensors only. */
static bool object_view(const js_tensor_layout *tensors, uintptr_t array_type, uintptr_t object,
                        int32_t flags, array_view *out)
{
    const array_head *array = array_at(object);
    if (JS_UNLIKELY(array->type != array_type)) {
        return tensor_view(tensors, object, out);
    }
    if ((array->flags & flags) != flags) {
        return false;
    }
    out->data = array->data;
    out->dtype = array->dtype;
    out->count = array_count(array);
    out->rows = array_rows(array);
    return true;
}

/* What is divided among the ranks must be divisible by its rows, not only by its elements. */
static uint64_t table_rows(const js_call_table *table, const array_view *source)
{
    return table->is_by_rows ? source->rows : 0;
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

/* The views of a call's two objects; no target (0): the source is it. */
static bool table_views(const js_call_table *table, uintptr_t source, uintptr_t target,
                        array_view *out_from, array_view *out_to)
{
    const js_tensor_layout *tensors = table->tensors;
    bool is_one = target == 0 || target == source;
    int32_t flags = is_one ? ARRAY_WRITABLE : ARRAY_READABLE;
    if (!object_view(tensors, table->array_type, source, flags, out_from)) {
        return false;
    }
    if (is_one) {
        *out_to = *out_from;
        return true;
    }
    return object_view(tensors, table->array_type, target, ARRAY_WRITABLE, out_to);
}

/* The entry of a call with these arrays; NULL if it is not known, or not a plain one. */
static const js_array_entry *table_find(const js_call_table *table, const array_view *from,
                                        const array_view *to)
{
    uint64_t source_rows = table_rows(table, from);
    const js_array_entry *set = &table->entries[table_set(from->dtype, from->count)];
    for (uint32_t i = 0; i < TABLE_WAYS; i++) {
        const js_array_entry *entry = &set[i];
        if (entry->source_dtype == from->dtype && entry->source_count == from->count &&
            entry->target_dtype == to->dtype && entry->target_count == to->count &&
            entry->source_rows == source_rows) {
            bool is_plain =
                is_apart(from->data, entry->source_bytes, to->data, entry->target_bytes);
            return is_plain ? entry : NULL;
        }
    }
    return NULL;
}

/* Another thread may close it meanwhile, and has the interpreter's lock when it writes here: this
 * one looks once. NULL: it is closed. */
static js_comm *comm_of(js_comm *const *comm)
{
    return __atomic_load_n(comm, __ATOMIC_RELAXED);
}

int32_t js_array_call(const js_call_table *table, uintptr_t source, uintptr_t target)
{
    array_view from;
    array_view to;
    if (!table_views(table, source, target, &from, &to)) {
        return JS_CALL_MISS;
    }
    const js_array_entry *entry = table_find(table, &from, &to);
    if (entry == NULL) {
        return JS_CALL_MISS;
    }
    js_comm *comm = comm_of(&table->comm);
    if (JS_UNLIKELY(comm == NULL)) {
        return JS_ERR_CLOSED;
    }
    return js_comm_call(comm, entry->plan_id, (const void *)from.data, (void *)to.data,
                        table->timeout_ns);
}

int32_t js_array_launch(const js_call_table *table, uintptr_t source, uintptr_t target,
                        uint64_t *out_wr_id)
{
    array_view from;
    array_view to;
    if (!table_views(table, source, target, &from, &to)) {
        return JS_CALL_MISS;
    }
    const js_array_entry *entry = table_find(table, &from, &to);
    if (entry == NULL) {
        return JS_CALL_MISS;
    }
    js_comm *comm = comm_of(&table->comm);
    if (JS_UNLIKELY(comm == NULL)) {
        return JS_ERR_CLOSED;
    }
    return js_comm_launch(comm, entry->plan_id, (const void *)from.data, (void *)to.data,
                          out_wr_id);
}

uint32_t js_array_remember(js_call_table *table, uintptr_t source, uintptr_t target,
                           uint32_t itemsize_bytes, uint32_t plan_id)
{
    array_view from;
    array_view to;
    if (!table_views(table, source, target, &from, &to)) {
        return JS_CALL_TABLE_ENTRIES;
    }
    uint32_t set = table_set(from.dtype, from.count);
    uint32_t place = set + table->remembered++ % TABLE_WAYS;
    for (uint32_t i = set + TABLE_WAYS; i-- > set;) {
        place = table->entries[i].source_dtype == 0 ? i : place;
    }
    table->entries[place] = (js_array_entry){
        .source_dtype = from.dtype,
        .target_dtype = to.dtype,
        .source_count = from.count,
        .target_count = to.count,
        .source_rows = table_rows(table, &from),
        .source_bytes = from.count * itemsize_bytes,
        .target_bytes = to.count * itemsize_bytes,
        .plan_id = plan_id,
    };
    return place;
}

/* The memory of an array or tensor that can be sent, or received into with the flags wanted;
 * false: it is not a plain one. */
static bool mail_span(const js_mail *mail, uintptr_t object, int32_t flags, uintptr_t *out_data,
                      uint64_t *out_bytes)
{
    array_view view;
    if (!object_view(mail->tensors, mail->array_type, object, flags, &view)) {
        return false;
    }
    *out_data = view.data;
    if (view.dtype <= JS_TENSOR_DTYPES) { /* torch's number of it, not the address of NumPy's */
        *out_bytes = view.count * mail->tensors->itemsize_bytes[view.dtype - 1];
        return true;
    }
    for (uint32_t i = 0; i < mail->dtype_count; i++) {
        if (mail->dtypes[i] == view.dtype) {
            *out_bytes = view.count * mail->itemsize_bytes[i];
            return true;
        }
    }
    return false;
}

int32_t js_array_send(const js_mail *mail, uintptr_t source, uint64_t address)
{
    uintptr_t data = 0;
    uint64_t bytes = 0;
    if (!mail_span(mail, source, ARRAY_C_CONTIGUOUS, &data, &bytes)) {
        return JS_CALL_MISS;
    }
    js_comm *comm = comm_of(&mail->comm);
    if (JS_UNLIKELY(comm == NULL)) {
        return JS_ERR_CLOSED;
    }
    return js_comm_send_wait(comm, (const void *)data, bytes, address, mail->timeout_ns);
}

int32_t js_array_receive(const js_mail *mail, uintptr_t target, uint64_t address, uint64_t flags)
{
    uintptr_t data = 0;
    uint64_t bytes = 0;
    if (!mail_span(mail, target, ARRAY_WRITABLE, &data, &bytes)) {
        return JS_CALL_MISS;
    }
    js_comm *comm = comm_of(&mail->comm);
    if (JS_UNLIKELY(comm == NULL)) {
        return JS_ERR_CLOSED;
    }
    return js_comm_receive_wait(comm, (void *)data, bytes | flags, address, mail->timeout_ns);
}

int32_t js_persistent_call(const js_persistent *call)
{
    js_comm *comm = comm_of(&call->comm);
    if (JS_UNLIKELY(comm == NULL)) {
        return JS_ERR_CLOSED;
    }
    return js_comm_call(comm, call->plan_id, call->input, call->output, call->timeout_ns);
}

int32_t js_graph_call(const js_persistent *call)
{
    js_comm *comm = comm_of(&call->comm);
    if (JS_UNLIKELY(comm == NULL)) {
        return JS_ERR_CLOSED;
    }
    return js_comm_call_graph(comm, call->plan_id, call->timeout_ns);
}
