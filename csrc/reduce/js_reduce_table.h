/* The kernel tables, one for each instruction set. Private to reduce/; others use js_reduce.h. */
#ifndef JS_REDUCE_TABLE_H
#define JS_REDUCE_TABLE_H

#include "js_reduce.h"

struct js_reduce_table {
    /* NULL where there is no special kernel: the reference serves. In the reference: the operation
     * is not defined. The first is not NULL if the table was compiled for this machine at all. */
    js_reduce_fn kernels[JS_DTYPE_COUNT][JS_REDOP_COUNT];
};

extern const struct js_reduce_table js_reduce_ref_table;
extern const struct js_reduce_table js_reduce_avx2_table;
extern const struct js_reduce_table js_reduce_avx512_table;

#endif
