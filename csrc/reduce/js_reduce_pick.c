/* Run-time choice of the instruction set and look-up of kernels. */
#include "js_atomic.h"
#include "js_base.h"
#include "js_cpu.h"
#include "js_reduce_table.h"

struct pick_isa {
    const char *name;
    const struct js_reduce_table *table;
    uint32_t needs; /* bits of enum js_cpu_feature */
};

/* In ascending order of preference. FMA is not needed but the files are compiled with it. */
static const struct pick_isa pick_isas[JS_ISA_COUNT] = {
    [JS_ISA_SCALAR] = { "scalar", &js_reduce_ref_table, 0 },
    [JS_ISA_AVX2] = { "avx2", &js_reduce_avx2_table, JS_CPU_AVX2 | JS_CPU_F16C | JS_CPU_FMA },
    [JS_ISA_AVX512] = { "avx512", &js_reduce_avx512_table,
                        JS_CPU_AVX2 | JS_CPU_F16C | JS_CPU_FMA | JS_CPU_AVX512F | JS_CPU_AVX512BW |
                            JS_CPU_AVX512VL | JS_CPU_AVX512DQ },
};

/* What js_reduce_pick uses: JS_ISA_COUNT until it has been chosen. Any thread, relaxed: nothing
 * but the value itself is published. */
static uint32_t pick_chosen = JS_ISA_COUNT;

static bool pick_is_available(uint32_t isa)
{
    return isa < JS_ARRAY_LEN(pick_isas) &&
           pick_isas[isa].table->kernels[JS_DTYPE_FLOAT64][JS_REDOP_SUM] != NULL &&
           js_cpu_has(pick_isas[isa].needs);
}

void js_reduce_init(void)
{
    uint32_t best = JS_ISA_SCALAR;

    if (js_load_rlx_u32(&pick_chosen) != JS_ISA_COUNT) {
        return;
    }
    for (uint32_t isa = 0; isa < JS_ISA_COUNT; isa++) {
        best = pick_is_available(isa) ? isa : best;
    }
    /* Lost to another thread, or to js_reduce_force_isa: theirs stands. */
    (void)js_cas_seq_u32(&pick_chosen, JS_ISA_COUNT, best);
}

enum js_isa js_reduce_isa(void)
{
    js_reduce_init();
    return (enum js_isa)js_load_rlx_u32(&pick_chosen);
}

int32_t js_reduce_force_isa(enum js_isa isa)
{
    if (!pick_is_available(isa)) {
        return JS_ERR_UNSUPPORTED;
    }
    js_store_rlx_u32(&pick_chosen, isa);
    return JS_OK;
}

static js_reduce_fn pick_kernel(enum js_isa isa, enum js_dtype dtype, enum js_redop redop)
{
    if ((uint32_t)dtype >= JS_DTYPE_COUNT || (uint32_t)redop >= JS_REDOP_COUNT) {
        return NULL;
    }
    js_reduce_fn kernel = pick_isas[isa].table->kernels[dtype][redop];
    return kernel != NULL ? kernel : js_reduce_ref_table.kernels[dtype][redop];
}

js_reduce_fn js_reduce_pick(enum js_dtype dtype, enum js_redop redop)
{
    return pick_kernel(js_reduce_isa(), dtype, redop);
}

js_reduce_fn js_reduce_pick_isa(enum js_isa isa, enum js_dtype dtype, enum js_redop redop)
{
    return pick_is_available(isa) ? pick_kernel(isa, dtype, redop) : NULL;
}

js_reduce_fn js_reduce_pick_partial_isa(enum js_isa isa, enum js_dtype dtype, enum js_redop redop)
{
    uint32_t bytes = js_dtype_partial_bytes(dtype, redop);
    if (bytes == 0 || !pick_is_available(isa)) {
        return NULL;
    }
    if (bytes == js_dtype_bytes(dtype)) { /* a sum that is not divided yet */
        return pick_kernel(isa, dtype, redop == JS_REDOP_AVG ? JS_REDOP_SUM : redop);
    }
    js_reduce_fn kernel = pick_isas[isa].table->partial[dtype][redop];
    return kernel != NULL ? kernel : js_reduce_ref_table.partial[dtype][redop];
}

js_reduce_fn js_reduce_pick_final_isa(enum js_isa isa, enum js_dtype dtype, enum js_redop redop)
{
    uint32_t bytes = js_dtype_partial_bytes(dtype, redop);
    if (bytes == 0 || !pick_is_available(isa)) {
        return NULL;
    }
    if (bytes == js_dtype_bytes(dtype)) {
        return pick_kernel(isa, dtype, redop);
    }
    js_reduce_fn kernel = pick_isas[isa].table->final[dtype][redop];
    return kernel != NULL ? kernel : js_reduce_ref_table.final[dtype][redop];
}

js_reduce_fn js_reduce_pick_partial(enum js_dtype dtype, enum js_redop redop)
{
    return js_reduce_pick_partial_isa(js_reduce_isa(), dtype, redop);
}

js_reduce_fn js_reduce_pick_final(enum js_dtype dtype, enum js_redop redop)
{
    return js_reduce_pick_final_isa(js_reduce_isa(), dtype, redop);
}

const char *js_reduce_isa_name(uint32_t isa)
{
    return isa < JS_ARRAY_LEN(pick_isas) ? pick_isas[isa].name : NULL;
}
