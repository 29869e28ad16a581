/* Multiplication of an array by one element, with the kernels that multiply arrays. */
#include <string.h>

#include "js_base.h"
#include "js_reduce.h"

/* Elements multiplied at a time: few enough for the stack and the first cache, enough for the
 * kernel to be fast. */
#define SCALE_BLOCK 128
#define SCALE_ELEMENT_BYTES_MAX 16

int32_t js_reduce_scale(enum js_dtype dtype, void *target, const void *source, size_t element_count,
                        const void *scale)
{
    JS_ALIGNED(64) uint8_t block[SCALE_BLOCK * SCALE_ELEMENT_BYTES_MAX];
    uint32_t bytes = js_dtype_bytes(dtype);
    size_t filled = (size_t)js_min_u64(SCALE_BLOCK, element_count);

    if (!js_dtype_has(dtype, JS_REDOP_PREMUL_SUM)) {
        return JS_ERR_UNSUPPORTED;
    }
    js_reduce_fn multiply = js_reduce_pick(dtype, JS_REDOP_PROD);
    for (size_t i = 0; i < filled; i++) {
        memcpy(block + i * bytes, scale, bytes);
    }
    for (size_t start = 0; start < element_count; start += SCALE_BLOCK) {
        size_t count = (size_t)js_min_u64(SCALE_BLOCK, element_count - start);
        void *product = (uint8_t *)target + start * bytes;
        const void *factors[] = { (const uint8_t *)source + start * bytes, block };
        multiply(&(js_reduce_args){ .targets = &product,
                                    .sources = factors,
                                    .target_count = 1,
                                    .source_count = 2,
                                    .element_count = count,
                                    .divisor = 1 });
    }
    return JS_OK;
}
