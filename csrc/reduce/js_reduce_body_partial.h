/* The vectorised kernels from 16-bit floats to partial folds in float32, and back; a part of
 * js_reduce_body.h.
 *
 * Also expected from the includer, in the order of the elements:
 *   bf16_spread bf16_pack    raw elements to two registers of float32, and back; NaNs canonical */
#ifndef JS_REDUCE_BODY_PARTIAL_H
#define JS_REDUCE_BODY_PARTIAL_H

#define PARTIAL_ELEMENT_BYTES 2

/* Known at compile time, as in struct reduce_steps. */
struct partial_steps {
    struct vec_pair (*load)(const void *source, size_t at);
    vec (*fold)(vec a, vec b);
    void (*store)(void *target, size_t at, struct vec_pair value, uint32_t divisor);
};

static inline vec bf16_final_finish(struct vec_pair value, uint32_t divisor)
{
    (void)divisor;
    return bf16_pack(value);
}

static inline vec bf16_final_finish_avg(struct vec_pair value, uint32_t divisor)
{
    return bf16_pack(
        (struct vec_pair){ f32_divide(value.low, divisor), f32_divide(value.high, divisor) });
}

/* `at` counts bytes of elements; those of partial folds are twice as many. */
static inline struct vec_pair partial_load_f32(const void *source, size_t at)
{
    const uint8_t *from = (const uint8_t *)source + 2 * at;

    return (struct vec_pair){ vec_load(from, VEC_BYTES), vec_load(from + VEC_BYTES, VEC_BYTES) };
}

static inline void partial_store_f32(void *target, size_t at, struct vec_pair value,
                                     uint32_t divisor)
{
    uint8_t *to = (uint8_t *)target + 2 * at;

    (void)divisor;
    vec_store(to, VEC_BYTES, f32_canonical(value.low));
    vec_store(to + VEC_BYTES, VEC_BYTES, f32_canonical(value.high));
}

#define PARTIAL_LOAD(name, widen_step)                                                             \
    static inline struct vec_pair name(const void *source, size_t at)                              \
    {                                                                                              \
        return widen_step(vec_load((const uint8_t *)source + at, VEC_BYTES));                      \
    }
#define PARTIAL_STORE(name, finish_step)                                                           \
    static inline void name(void *target, size_t at, struct vec_pair value, uint32_t divisor)      \
    {                                                                                              \
        vec_store((uint8_t *)target + at, VEC_BYTES, finish_step(value, divisor));                 \
    }

PARTIAL_LOAD(f16_partial_load, f16_widen)
PARTIAL_LOAD(bf16_partial_load, bf16_spread)
PARTIAL_STORE(f16_final_store, f16_finish)
PARTIAL_STORE(f16_final_store_avg, f16_finish_avg)
PARTIAL_STORE(bf16_final_store, bf16_final_finish)
PARTIAL_STORE(bf16_final_store_avg, bf16_final_finish_avg)

/* The last register may overlap the one before: no target is a source here. Fewer elements than a
 * register holds, or several targets, are left to the reference. */
JS_INLINE void partial_run(const js_reduce_args *args, const struct partial_steps *steps,
                           js_reduce_fn reference)
{
    size_t bytes = args->element_count * PARTIAL_ELEMENT_BYTES;

    if (bytes < VEC_BYTES || args->target_count > 1) {
        reference(args);
        return;
    }
    for (size_t next = 0; next < bytes; next += VEC_BYTES) {
        size_t at = (size_t)js_min_u64(next, bytes - VEC_BYTES);
        struct vec_pair value = steps->load(args->sources[0], at);

        for (uint32_t s = 1; s < args->source_count; s++) {
            struct vec_pair other = steps->load(args->sources[s], at);
            value.low = steps->fold(value.low, other.low);
            value.high = steps->fold(value.high, other.high);
        }
        steps->store(args->targets[0], at, value, args->divisor);
    }
}

#define PARTIAL_KERNEL(name, load_step, fold_step, store_step, reference)                          \
    REDUCE_SIGNATURE(name)                                                                         \
    {                                                                                              \
        static const struct partial_steps steps = { load_step, fold_step, store_step };            \
        partial_run(args, &steps, reference);                                                      \
    }

#define PARTIAL_KERNELS(prefix, dtype)                                                             \
    PARTIAL_KERNEL(prefix##_partial_sum, prefix##_partial_load, f32_sum, partial_store_f32,        \
                   js_reduce_ref_table.partial[dtype][JS_REDOP_SUM])                               \
    PARTIAL_KERNEL(prefix##_partial_prod, prefix##_partial_load, f32_prod, partial_store_f32,      \
                   js_reduce_ref_table.partial[dtype][JS_REDOP_PROD])                              \
    PARTIAL_KERNEL(prefix##_final_sum, partial_load_f32, f32_sum, prefix##_final_store,            \
                   js_reduce_ref_table.final[dtype][JS_REDOP_SUM])                                 \
    PARTIAL_KERNEL(prefix##_final_prod, partial_load_f32, f32_prod, prefix##_final_store,          \
                   js_reduce_ref_table.final[dtype][JS_REDOP_PROD])                                \
    PARTIAL_KERNEL(prefix##_final_avg, partial_load_f32, f32_sum, prefix##_final_store_avg,        \
                   js_reduce_ref_table.final[dtype][JS_REDOP_AVG])

PARTIAL_KERNELS(f16, JS_DTYPE_FLOAT16)
PARTIAL_KERNELS(bf16, JS_DTYPE_BFLOAT16)

#define REDUCE_PARTIALS                                                                            \
    {                                                                                              \
        [JS_DTYPE_FLOAT16] = JS_REDUCE_PARTIAL_ROW(f16),                                           \
        [JS_DTYPE_BFLOAT16] = JS_REDUCE_PARTIAL_ROW(bf16),                                         \
    }

#define REDUCE_FINALS                                                                              \
    {                                                                                              \
        [JS_DTYPE_FLOAT16] = JS_REDUCE_FINAL_ROW(f16),                                             \
        [JS_DTYPE_BFLOAT16] = JS_REDUCE_FINAL_ROW(bf16),                                           \
    }

#endif
