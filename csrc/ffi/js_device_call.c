/* The functions of js_device.h for code that cannot inline a header: loops compiled while they
 * run, and interpreters. Addresses come as integers, because that is what they have. */
#include "js_base.h"
#include "js_clock.h"

#include <jetstream/js_api.h>

static const js_qp *device_qp(uint64_t address)
{
    return (const js_qp *)(uintptr_t)address;
}

int32_t js_device_post(uint64_t qp, uint64_t sqe)
{
    return js_post(device_qp(qp), (const js_sqe *)(uintptr_t)sqe);
}

int32_t js_device_post_receive(uint64_t qp, uint64_t rqe)
{
    return js_post_receive_entry(device_qp(qp), (const js_rqe *)(uintptr_t)rqe);
}

int32_t js_device_launch(uint64_t qp, uint64_t wr_id, uint32_t plan, uint64_t input,
                         uint64_t output)
{
    return js_post_launch(device_qp(qp), wr_id, plan, (const void *)(uintptr_t)input,
                          (void *)(uintptr_t)output);
}

int32_t js_device_graph(uint64_t qp, uint64_t wr_id, uint32_t graph)
{
    return js_post_graph(device_qp(qp), wr_id, graph);
}

int32_t js_device_send(uint64_t qp, uint64_t wr_id, uint64_t source, uint64_t bytes, uint32_t peer,
                       uint32_t tag)
{
    return js_post_send(device_qp(qp), wr_id, (const void *)(uintptr_t)source, bytes, peer, tag);
}

int32_t js_device_receive(uint64_t qp, uint64_t wr_id, uint64_t target, uint64_t bytes,
                          uint32_t peer, uint32_t tag)
{
    return js_post_receive(device_qp(qp), wr_id, (void *)(uintptr_t)target, bytes, peer, tag);
}

int32_t js_device_put(uint64_t qp, uint64_t wr_id, uint64_t source, uint64_t bytes, uint64_t window,
                      uint64_t offset)
{
    js_remote to = { .offset = offset, .key = (uint32_t)window, .peer = (uint32_t)(window >> 32) };
    return js_post_put(device_qp(qp), wr_id, (const void *)(uintptr_t)source, bytes, to);
}

int32_t js_device_poll(uint64_t qp, uint64_t out)
{
    return js_poll_completion(device_qp(qp), (js_cqe *)(uintptr_t)out);
}

int32_t js_device_wait(uint64_t qp, uint64_t out)
{
    return js_wait_completion(device_qp(qp), (js_cqe *)(uintptr_t)out);
}

uint64_t js_device_read_signal(uint64_t qp, uint32_t signal)
{
    return signal < JS_SIGNALS ? js_read_signal(device_qp(qp), signal) : 0;
}

int32_t js_device_wait_signal(uint64_t qp, uint32_t signal, uint64_t until)
{
    return signal < JS_SIGNALS ? js_wait_signal(device_qp(qp), signal, until) : JS_ERR_INVALID;
}

int32_t js_device_repeat(uint64_t qp, const js_sqe *entry, uint64_t iterations,
                         uint64_t *latency_ns)
{
    const js_qp *device = device_qp(qp);
    const js_clock_scale *clock = js_clock_calibrate();
    for (uint64_t i = 0; i < iterations; i++) {
        uint64_t start = js_clock_ticks();
        js_cqe cqe;
        int32_t result = js_post(device, entry);
        if (result == JS_OK) {
            do {
                result = js_wait_completion(device, &cqe);
            } while (result == JS_ERR_AGAIN);
        }
        result = result == JS_OK ? cqe.status : result;
        if (result != JS_OK) {
            return result;
        }
        if (latency_ns != NULL) {
            latency_ns[i] = js_clock_span_ns(clock, js_clock_ticks() - start);
        }
    }
    return JS_OK;
}
