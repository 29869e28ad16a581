/* The reduction kernels by themselves, for tests and `jetstream info`. */
#include "js_dtype.h"
#include "js_reduce.h"
#include "js_status.h"

uint32_t js_isa(void)
{
    return (uint32_t)js_reduce_isa();
}

uint32_t js_isa_available(uint32_t isa)
{
    return js_reduce_pick_isa((enum js_isa)isa, JS_DTYPE_FLOAT32, JS_REDOP_SUM) != NULL;
}

int32_t js_isa_force(uint32_t isa)
{
    if (js_reduce_force_isa((enum js_isa)isa) != JS_OK) {
        return JS_FAIL(JS_ERR_UNSUPPORTED, "this CPU or build has no kernels for ISA %u", isa);
    }
    return JS_OK;
}

uint32_t js_dtype_size_bytes(uint32_t dtype)
{
    return js_dtype_bytes((enum js_dtype)dtype);
}

int32_t js_fold(uint32_t isa, uint32_t dtype, uint32_t redop, void *target,
                const uintptr_t *sources, uint32_t source_count, size_t count)
{
    js_reduce_fn fold =
        js_reduce_pick_isa((enum js_isa)isa, (enum js_dtype)dtype, (enum js_redop)redop);
    if (fold == NULL || source_count == 0) {
        return JS_FAIL(JS_ERR_UNSUPPORTED, "no kernel: ISA %u, dtype %u, operation %u, %u sources",
                       isa, dtype, redop, source_count);
    }
    fold(target, (const void *const *)(const void *)sources, source_count, count, source_count);
    return JS_OK;
}
