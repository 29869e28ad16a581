/* The n-ary reduction kernels: target[i] = sources[0][i] op sources[1][i] op ..., in one pass, also
 * where the result goes to several targets.
 *
 * What is computed is part of the contract, because all ranks must get the same bits. The result
 * depends on nothing but the source elements, their order and the divisor: not on the instruction
 * set, on alignment, or on how a range is split into calls.
 *
 * - The fold goes strictly from left to right in the order of `sources`.
 * - float64, float32: IEEE 754 in the element type, rounded (to nearest even) at each step. No
 *   fused multiply-add. avg: the sum, then one division by the divisor in the element type.
 * - float16, bfloat16, float8: elements are widened to float32 (exact), folded there as float32
 *   is, avg divided there, and rounded once, to nearest even, at the end. Subnormals are kept; what
 *   is too large becomes infinity, or NaN in float8_e4m3fn, which has no infinity.
 * - A floating-point result that is NaN is the one canonical NaN of its type: quiet, positive,
 *   payload zero (0x7fc00000 in float32, 0x7f in float8_e4m3fn), whatever NaNs went in. It also is
 *   with one source.
 * - Floating min and max are minimum and maximum of IEEE 754-2019: any NaN makes the result NaN,
 *   and -0 is less than +0.
 * - complex64, complex128: sum and avg are those of the parts. prod is (ac - bd) + (ad + bc)i,
 *   each operation rounded. Each part that is NaN is canonical.
 * - Integers: sum and prod wrap modulo 2^n. avg is the exact sum (no wrap in between) divided by
 *   the divisor, truncated toward zero; a quotient out of range, possible only with a divisor
 *   below source_count, wraps. band, bor, bxor: bit by bit.
 * - bool: any byte but zero is true, results are 0 or 1. sum, max, bor: or; prod, min, band: and.
 * - premul_sum: sum. Its contributions have been multiplied by js_reduce_scale before.
 * js_dtype_has says what is defined.
 *
 * The thread must be in the default floating-point mode: round to nearest, subnormals not
 * flushed. (A thread of an inference program may be in another one, for example after
 * torch.set_flush_denormal(True): float32 and float64 subnormals are then flushed here too.) */
#ifndef JS_REDUCE_H
#define JS_REDUCE_H

#include <stddef.h>
#include <stdint.h>

#include "js_dtype.h"

/* What to fold, and where to. */
typedef struct js_reduce_args {
    void *const *targets;       /* each gets the whole result */
    const void *const *sources; /* folded in this order */
    uint32_t target_count;      /* at least 1 */
    uint32_t source_count;      /* at least 1 */
    size_t element_count;       /* of each array; 0 is fine */
    uint32_t divisor;           /* at least 1, for avg alone: the number of contributions, which is
                                 * more than source_count when sources are partial folds */
} js_reduce_args;

/* Folds the sources into every target. A target may be equal to any of the sources; otherwise
 * arrays that are written must not overlap others. Any alignment. Cannot fail; touches no byte
 * outside the ranges, and changes nothing of `args`. */
typedef void (*js_reduce_fn)(const js_reduce_args *args);

/* Chooses the widest instruction set of this CPU unless one has been chosen already. Idempotent;
 * any thread. */
void js_reduce_init(void);

/* Returns the kernel of the chosen instruction set (chooses on first use); NULL if dtype or redop
 * is out of range or they do not go together. Any thread. The kernel stays valid; look it up once,
 * when a plan is loaded. */
js_reduce_fn js_reduce_pick(enum js_dtype dtype, enum js_redop redop);

/* The two halves of a fold in groups. The first folds elements into partial folds: elements of
 * float32 for 16-bit and 8-bit floats where steps are rounded (js_dtype_partial_bytes), of dtype
 * itself otherwise. The second folds partial folds into elements; it divides, and rounds once. So
 * a fold in one group gives what js_reduce_pick's kernel gives. Arguments and results are as there,
 * but where sizes differ no array may overlap another. */
js_reduce_fn js_reduce_pick_partial(enum js_dtype dtype, enum js_redop redop);
js_reduce_fn js_reduce_pick_final(enum js_dtype dtype, enum js_redop redop);
js_reduce_fn js_reduce_pick_partial_isa(enum js_isa isa, enum js_dtype dtype, enum js_redop redop);
js_reduce_fn js_reduce_pick_final_isa(enum js_isa isa, enum js_dtype dtype, enum js_redop redop);

/* Returns the kernel of one instruction set, for tests and benchmarks; NULL where this CPU or
 * this build does not have it, or as for js_reduce_pick. Any thread. */
js_reduce_fn js_reduce_pick_isa(enum js_isa isa, enum js_dtype dtype, enum js_redop redop);

/* target[i] = source[i] * *scale, the product of two elements as prod gives it: the kernel in use,
 * on blocks. target may be equal to source. JS_ERR_UNSUPPORTED if dtype has no premul_sum. */
int32_t js_reduce_scale(enum js_dtype dtype, void *target, const void *source, size_t element_count,
                        const void *scale);

/* Makes js_reduce_pick use `isa` from now on. Returns JS_OK, or JS_ERR_UNSUPPORTED (and changes
 * nothing) where it is not available. Any thread. */
int32_t js_reduce_force_isa(enum js_isa isa);

/* Returns the instruction set in use (chooses on first use). Any thread. */
enum js_isa js_reduce_isa(void);

/* Returns "scalar", "avx2" or "avx512", NULL out of range. */
const char *js_reduce_isa_name(uint32_t isa);

#endif
