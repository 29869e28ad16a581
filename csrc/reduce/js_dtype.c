/* Sizes and names of element types and reduction operations. */
#include "js_dtype.h"

#include "js_base.h"

#define REDOP(name) (1U << JS_REDOP_##name)
#define REDOPS_FIELD (REDOP(SUM) | REDOP(PROD) | REDOP(AVG) | REDOP(PREMUL_SUM))
#define REDOPS_ORDER (REDOP(MIN) | REDOP(MAX))
#define REDOPS_BITS (REDOP(BAND) | REDOP(BOR) | REDOP(BXOR))
#define REDOPS_FLOAT (REDOPS_FIELD | REDOPS_ORDER)
#define REDOPS_INT (REDOPS_FIELD | REDOPS_ORDER | REDOPS_BITS)
#define REDOPS_BOOL (REDOP(SUM) | REDOP(PROD) | REDOPS_ORDER | REDOPS_BITS)

struct dtype_info {
    const char *name;
    uint32_t bytes;
    uint32_t redops; /* bit r: operation r is defined */
};

static const struct dtype_info dtype_infos[JS_DTYPE_COUNT] = {
    [JS_DTYPE_FLOAT64] = { "float64", 8, REDOPS_FLOAT },
    [JS_DTYPE_FLOAT32] = { "float32", 4, REDOPS_FLOAT },
    [JS_DTYPE_FLOAT16] = { "float16", 2, REDOPS_FLOAT },
    [JS_DTYPE_BFLOAT16] = { "bfloat16", 2, REDOPS_FLOAT },
    [JS_DTYPE_INT32] = { "int32", 4, REDOPS_INT },
    [JS_DTYPE_INT64] = { "int64", 8, REDOPS_INT },
    [JS_DTYPE_UINT8] = { "uint8", 1, REDOPS_INT },
    [JS_DTYPE_INT8] = { "int8", 1, REDOPS_INT },
    [JS_DTYPE_INT16] = { "int16", 2, REDOPS_INT },
    [JS_DTYPE_UINT16] = { "uint16", 2, REDOPS_INT },
    [JS_DTYPE_UINT32] = { "uint32", 4, REDOPS_INT },
    [JS_DTYPE_UINT64] = { "uint64", 8, REDOPS_INT },
    [JS_DTYPE_BOOL] = { "bool", 1, REDOPS_BOOL },
    [JS_DTYPE_FLOAT8_E4M3FN] = { "float8_e4m3fn", 1, REDOPS_FLOAT },
    [JS_DTYPE_FLOAT8_E5M2] = { "float8_e5m2", 1, REDOPS_FLOAT },
    [JS_DTYPE_COMPLEX64] = { "complex64", 8, REDOPS_FIELD },
    [JS_DTYPE_COMPLEX128] = { "complex128", 16, REDOPS_FIELD },
};

static const char *const redop_names[JS_REDOP_COUNT] = {
    [JS_REDOP_SUM] = "sum", [JS_REDOP_PROD] = "prod", [JS_REDOP_MIN] = "min",
    [JS_REDOP_MAX] = "max", [JS_REDOP_AVG] = "avg",   [JS_REDOP_BAND] = "band",
    [JS_REDOP_BOR] = "bor", [JS_REDOP_BXOR] = "bxor", [JS_REDOP_PREMUL_SUM] = "premul_sum",
};

uint32_t js_dtype_bytes(uint32_t dtype)
{
    return dtype < JS_ARRAY_LEN(dtype_infos) ? dtype_infos[dtype].bytes : 0;
}

bool js_dtype_has(uint32_t dtype, uint32_t redop)
{
    return dtype < JS_ARRAY_LEN(dtype_infos) && redop < JS_REDOP_COUNT &&
           (dtype_infos[dtype].redops >> redop & 1U) != 0;
}

uint32_t js_dtype_partial_bytes(uint32_t dtype, uint32_t redop)
{
    if (!js_dtype_has(dtype, redop)) {
        return 0;
    }
    uint32_t bytes = dtype_infos[dtype].bytes;
    bool is_float = (dtype_infos[dtype].redops & REDOPS_BITS) == 0;
    if (!is_float && redop == JS_REDOP_AVG) {
        return 0; /* the exact sum may need more bits than the type has */
    }
    bool is_rounded = is_float && (REDOPS_FIELD >> redop & 1U) != 0;
    return is_rounded && bytes < sizeof(float) ? (uint32_t)sizeof(float) : bytes;
}

const char *js_dtype_name(uint32_t dtype)
{
    return dtype < JS_ARRAY_LEN(dtype_infos) ? dtype_infos[dtype].name : NULL;
}

const char *js_redop_name(uint32_t redop)
{
    return redop < JS_ARRAY_LEN(redop_names) ? redop_names[redop] : NULL;
}
