/* The kernel tables, one for each instruction set. Private to reduce/; others use js_reduce.h. */
#ifndef JS_REDUCE_TABLE_H
#define JS_REDUCE_TABLE_H

#include "js_reduce.h"

struct js_reduce_table {
    /* NULL where there is no special kernel: the reference serves. In the reference: the operation
     * is not defined. The first is not NULL if the table was compiled for this machine at all. */
    js_reduce_fn kernels[JS_DTYPE_COUNT][JS_REDOP_COUNT];
    /* Elements to partial folds and back, where these are larger; NULL as above. */
    js_reduce_fn partial[JS_DTYPE_COUNT][JS_REDOP_COUNT];
    js_reduce_fn final[JS_DTYPE_COUNT][JS_REDOP_COUNT];
};

extern const struct js_reduce_table js_reduce_ref_table;
extern const struct js_reduce_table js_reduce_avx2_table;
extern const struct js_reduce_table js_reduce_avx512_table;

/* Rows of a table from functions named <prefix>_kernel_<op>. What does not depend on the sign comes
 * from the kernels of the unsigned type, `raw`. */
#define JS_REDUCE_FIELD(prefix, raw)                                                               \
    [JS_REDOP_SUM] = raw##_kernel_sum, [JS_REDOP_PROD] = raw##_kernel_prod,                        \
    [JS_REDOP_AVG] = prefix##_kernel_avg, [JS_REDOP_PREMUL_SUM] = raw##_kernel_sum
#define JS_REDUCE_ORDER(prefix)                                                                    \
    [JS_REDOP_MIN] = prefix##_kernel_min, [JS_REDOP_MAX] = prefix##_kernel_max
#define JS_REDUCE_BITS(raw)                                                                        \
    [JS_REDOP_BAND] = raw##_kernel_band, [JS_REDOP_BOR] = raw##_kernel_bor,                        \
    [JS_REDOP_BXOR] = raw##_kernel_bxor
#define JS_REDUCE_FLOAT_ROW(prefix)                                                                \
    {                                                                                              \
        JS_REDUCE_FIELD(prefix, prefix), JS_REDUCE_ORDER(prefix)                                   \
    }
#define JS_REDUCE_INT_ROW(prefix, raw)                                                             \
    {                                                                                              \
        JS_REDUCE_FIELD(prefix, raw), JS_REDUCE_ORDER(prefix), JS_REDUCE_BITS(raw)                 \
    }
#define JS_REDUCE_PARTIAL_ROW(prefix)                                                              \
    {                                                                                              \
        [JS_REDOP_SUM] = prefix##_partial_sum, [JS_REDOP_PROD] = prefix##_partial_prod,            \
        [JS_REDOP_AVG] = prefix##_partial_sum, [JS_REDOP_PREMUL_SUM] = prefix##_partial_sum        \
    }
#define JS_REDUCE_FINAL_ROW(prefix)                                                                \
    {                                                                                              \
        [JS_REDOP_SUM] = prefix##_final_sum, [JS_REDOP_PROD] = prefix##_final_prod,                \
        [JS_REDOP_AVG] = prefix##_final_avg, [JS_REDOP_PREMUL_SUM] = prefix##_final_sum            \
    }
#define JS_REDUCE_COMPLEX_ROW(prefix)                                                              \
    {                                                                                              \
        JS_REDUCE_FIELD(prefix, prefix)                                                            \
    }
#define JS_REDUCE_BOOL_ROW                                                                         \
    {                                                                                              \
        [JS_REDOP_SUM] = bool_kernel_bor, [JS_REDOP_PROD] = bool_kernel_band,                      \
        [JS_REDOP_MIN] = bool_kernel_band, [JS_REDOP_MAX] = bool_kernel_bor, JS_REDUCE_BITS(bool)  \
    }

#endif
