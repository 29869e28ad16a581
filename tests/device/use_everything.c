/* Uses every function of js_device.h; compiled as C, C++ and CUDA by
 * tests/unit/test_device_header.py. Needs nothing else, so that it shows that a device does not. */
#include <jetstream/js_device.h>

#if defined(__CUDACC__)
#define USE_FN static __host__ __device__
#else
#define USE_FN static
#endif

USE_FN uint64_t use_words(const js_qp *qp, js_ring_line *line)
{
    uint64_t sum = js_device_load_acq_u32(&line->index) + js_device_load_rlx_u32(&line->index);
    js_device_store_rel_u32(&line->seen, 1);
    js_device_store_rlx_u32(&line->seen, 2);
    uint64_t *value = &qp->signals[0].value;
    sum += js_device_load_acq_u64(value) + js_device_load_rlx_u64(value);
    js_device_store_rel_u64(value, sum);
    js_device_store_rlx_u64(value, sum);
    uint16_t *commit = &qp->rq[0].commit;
    sum += (uint64_t)js_device_load_acq_u16(commit) + js_device_load_rlx_u16(commit);
    js_device_store_rel_u16(commit, 1);
    js_device_store_rlx_u16(commit, 2);
    sum += (uint64_t)js_device_cas_u32(&line->index, 1, 2);
    js_device_relax();
    uint32_t depth = qp->sq_depth_slots;
    return sum + js_lap_parity(1, depth) + js_sq_commit(1, depth) + js_rq_commit(1, depth) +
           js_cq_commit(1, depth);
}

USE_FN int32_t use_posts(const js_qp *qp, const uint64_t *source, uint64_t *target)
{
    js_remote to;
    to.offset = 64;
    to.key = 7;
    to.peer = 1;
    js_sqe entry = js_sqe_of(JS_SQ_NOP, 1);
    js_sqe put = js_sqe_of_put(2, source, 8, to);
    js_rqe receive = qp->rq[0];
    uint32_t index = 0;
    int32_t result = js_post(qp, &entry) + js_post(qp, &put) + js_post_receive_entry(qp, &receive);
    result += js_post_send(qp, 3, source, 8, 1, 5);
    result += js_post_receive(qp, 4, target, 8, JS_PEER_ANY, 5);
    result += js_post_put(qp, 5, source, 8, to) + js_post_put_signal(qp, 6, source, 8, to, 0);
    result += js_post_launch(qp, 7, 0, source, target) + js_post_graph(qp, 8, 0);
    js_qp_control *control = qp->control;
    result +=
        js_qp_reserve(qp, &control->sq_reserved, &control->sq_consumed, qp->sq_depth_slots, &index);
    js_qp_ring_doorbell(qp);
    return result;
}

USE_FN int32_t use_completions(const js_qp *qp)
{
    js_cqe cqe;
    uint32_t spins = 0;
    int32_t result = js_progress(qp) + js_take_completion(qp, &cqe) + js_poll_completion(qp, &cqe);
    result += js_wait_completion(qp, &cqe) + js_wait_signal(qp, 0, js_read_signal(qp, 0) + 1);
    return result + js_wait_step(qp, &qp->signals[1].value, 1, &spins);
}

#if defined(__CUDACC__)
__global__ void use_kernel(js_qp qp, uint64_t *out)
{
    out[0] = use_words(&qp, &qp.control->sq_reserved);
    out[1] = (uint64_t)(use_posts(&qp, out, out) + use_completions(&qp));
}
#endif

#if defined(__cplusplus)
extern "C" {
#endif
uint64_t use_everything(const js_qp *qp, uint64_t *out);
#if defined(__cplusplus)
}
#endif

uint64_t use_everything(const js_qp *qp, uint64_t *out)
{
    return use_words(qp, &qp->control->sq_reserved) + (uint64_t)use_posts(qp, out, out) +
           (uint64_t)use_completions(qp);
}
