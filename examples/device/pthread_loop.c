/* A device in C: a thread that computes, launches an all-reduce, waits for it and checks it.
 *
 * It knows js_device.h and nothing else of jetstream, and no Python. pthread_loop.py compiles it,
 * prepares the queue pair, starts the thread and joins it. */
#include <jetstream/js_device.h>

#include <pthread.h>
#include <time.h>

#define PATIENCE 600 /* times 100 ms without a completion */

/* What the host hands over, and what it reads when it has joined the thread. */
typedef struct device {
    const js_qp *qp;
    float *x;       /* registered memory: INPUT and OUTPUT of the all-reduce */
    uint64_t count; /* elements of x */
    uint64_t steps;
    uint64_t *latency_ns; /* [steps]: from posting to completion */
    uint32_t plan;
    uint32_t rank;
    uint32_t size;
    int32_t status; /* enum js_status: how it went */
    uint64_t steps_done;
    uint64_t wrong;       /* elements that are not what they should be */
    unsigned long thread; /* pthread_t */
} device;

int device_start(device *d);
int device_join(device *d);

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Small whole numbers, so that float32 adds them exactly. */
static float value_of(uint64_t step, uint64_t i)
{
    return (float)((step + i) % 1000);
}

/* How the operation wr_id went. It is the only one under way, so the next completion is its. */
static int32_t wait_for(const js_qp *qp, uint64_t wr_id)
{
    js_cqe cqe;
    int32_t status = JS_ERR_AGAIN;
    for (int i = 0; i < PATIENCE && status == JS_ERR_AGAIN; i++) {
        status = js_wait_completion(qp, &cqe);
    }
    if (status != JS_OK) {
        return status;
    }
    return cqe.wr_id == wr_id ? cqe.status : JS_ERR_PROTOCOL;
}

static int32_t step_once(device *d, uint64_t step)
{
    for (uint64_t i = 0; i < d->count; i++) { /* what a model would compute */
        d->x[i] = value_of(step, i) + (float)d->rank;
    }
    uint64_t start_ns = now_ns();
    int32_t status = js_post_launch(d->qp, step, d->plan, d->x, d->x);
    if (status == JS_OK) {
        status = wait_for(d->qp, step);
    }
    if (status != JS_OK) {
        return status;
    }
    d->latency_ns[step] = now_ns() - start_ns;
    float ranks = (float)(d->size * (d->size - 1) / 2);
    for (uint64_t i = 0; i < d->count; i++) {
        d->wrong += d->x[i] != (float)d->size * value_of(step, i) + ranks;
    }
    return JS_OK;
}

static void *run(void *argument)
{
    device *d = argument;
    while (d->steps_done < d->steps) {
        d->status = step_once(d, d->steps_done);
        if (d->status != JS_OK) {
            break;
        }
        d->steps_done++;
    }
    return NULL;
}

/* 0, or an errno. */
int device_start(device *d)
{
    pthread_t thread;
    int failed = pthread_create(&thread, NULL, run, d);
    d->thread = thread;
    return failed;
}

int device_join(device *d)
{
    return pthread_join(d->thread, NULL);
}
