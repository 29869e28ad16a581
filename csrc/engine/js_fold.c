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

int32_t js_fold(const js_fold_request *request)
{
    js_reduce_fn fold = js_reduce_pick_isa((enum js_isa)request->isa, (enum js_dtype)request->dtype,
                                           (enum js_redop)request->redop);
    if (fold == NULL || request->source_count == 0) {
        return JS_FAIL(JS_ERR_UNSUPPORTED, "no kernel: ISA %u, dtype %u, operation %u, %u sources",
                       request->isa, request->dtype, request->redop, request->source_count);
    }
    fold(&(js_reduce_args){ .targets = &request->target,
                            .sources = (const void *const *)(const void *)request->sources,
                            .target_count = 1,
                            .source_count = request->source_count,
                            .element_count = request->count,
                            .divisor = request->source_count });
    return JS_OK;
}

int32_t js_scale(uint32_t dtype, void *target, const void *source, uint64_t count,
                 const void *scale)
{
    if (js_reduce_scale((enum js_dtype)dtype, target, source, count, scale) != JS_OK) {
        return JS_FAIL(JS_ERR_UNSUPPORTED, "dtype %u has no premultiplied sum", dtype);
    }
    return JS_OK;
}
