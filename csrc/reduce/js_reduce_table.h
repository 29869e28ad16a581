/* The kernel tables, one for each instruction set. Private to reduce/; others use js_reduce.h. */
#ifndef JS_REDUCE_TABLE_H
#define JS_REDUCE_TABLE_H

#include "js_reduce.h"

struct js_reduce_table {
    js_reduce_fn kernels[JS_DTYPE_COUNT][JS_REDOP_COUNT]; /* NULL: not compiled for this machine */
};

extern const struct js_reduce_table js_reduce_ref_table;
extern const struct js_reduce_table js_reduce_avx2_table;
extern const struct js_reduce_table js_reduce_avx512_table;

#endif
