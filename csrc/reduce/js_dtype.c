/* Sizes and names of element types and reduction operations. */
#include "js_dtype.h"

#include "js_base.h"

struct dtype_info {
    const char *name;
    uint32_t bytes;
};

static const struct dtype_info dtype_infos[JS_DTYPE_COUNT] = {
    [JS_DTYPE_FLOAT64] = { "float64", 8 }, [JS_DTYPE_FLOAT32] = { "float32", 4 },
    [JS_DTYPE_FLOAT16] = { "float16", 2 }, [JS_DTYPE_BFLOAT16] = { "bfloat16", 2 },
    [JS_DTYPE_INT32] = { "int32", 4 },     [JS_DTYPE_INT64] = { "int64", 8 },
    [JS_DTYPE_UINT8] = { "uint8", 1 },
};

static const char *const redop_names[JS_REDOP_COUNT] = {
    [JS_REDOP_SUM] = "sum", [JS_REDOP_PROD] = "prod", [JS_REDOP_MIN] = "min",
    [JS_REDOP_MAX] = "max", [JS_REDOP_AVG] = "avg",
};

uint32_t js_dtype_bytes(uint32_t dtype)
{
    return dtype < JS_ARRAY_LEN(dtype_infos) ? dtype_infos[dtype].bytes : 0;
}

const char *js_dtype_name(uint32_t dtype)
{
    return dtype < JS_ARRAY_LEN(dtype_infos) ? dtype_infos[dtype].name : NULL;
}

const char *js_redop_name(uint32_t redop)
{
    return redop < JS_ARRAY_LEN(redop_names) ? redop_names[redop] : NULL;
}
