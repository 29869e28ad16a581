/* A device on a GPU: a kernel that launches all-reduces and waits for them by itself.
 *
 * The rings of the queue pair and the staging buffer lie in memory of the host, which is pinned and
 * mapped here; the kernel writes descriptors and reads completions over PCIe. The engine thread of
 * the process makes the rounds, since a GPU cannot. cuda_loop.py compiles and runs this. */
#include <jetstream/js_device.h>

#include <algorithm>
#include <cstdio>
#include <cuda_runtime.h>
#include <unistd.h>
#include <vector>

namespace
{
constexpr unsigned THREADS = 256;
constexpr int PATIENCE = 600; /* times about 100 ms without a completion */

/* --- the device ------------------------------------------------------------------------------ */

struct Outcome {
    int32_t status; /* enum js_status */
    uint32_t reserved;
    uint64_t steps_done;
    unsigned long long wrong; /* elements that are not what they should be */
};

struct Loop {
    js_qp qp;               /* with pointers that the GPU can follow */
    float *x;               /* memory of the GPU: what is added up */
    volatile float *staged; /* the staging buffer, as the GPU sees it; */
    uint64_t staged_addr;   /* as the data plane does */
    uint64_t count;
    uint64_t steps;
    uint64_t *latency_ns; /* [steps]: from posting to completion */
    Outcome *outcome;
    uint32_t plan;
    uint32_t rank;
    uint32_t size;
};

/* Small whole numbers, so that float32 adds them exactly. */
__device__ float value_of(uint64_t step, uint64_t i)
{
    return static_cast<float>((step + i) % 1000);
}

__device__ uint64_t now_ns()
{
    uint64_t now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    return now;
}

/* By one thread. How the all-reduce of this step went. */
__device__ int32_t all_reduce(const Loop &loop, uint64_t step)
{
    js_cqe cqe;
    void *staged = reinterpret_cast<void *>(loop.staged_addr);
    int32_t status = js_post_launch(&loop.qp, step, loop.plan, staged, staged);
    if (status != JS_OK) {
        return status;
    }
    status = JS_ERR_AGAIN;
    for (int i = 0; i < PATIENCE && status == JS_ERR_AGAIN; i++) {
        status = js_wait_completion(&loop.qp, &cqe);
    }
    return status != JS_OK ? status : cqe.status;
}

/* One block, which stays for all steps. */
__global__ void all_reduce_loop(Loop loop)
{
    __shared__ int32_t status;
    unsigned long long wrong = 0;
    for (uint64_t step = 0; step < loop.steps; step++) {
        for (uint64_t i = threadIdx.x; i < loop.count; i += blockDim.x) {
            loop.x[i] = value_of(step, i) + static_cast<float>(loop.rank); /* a model's work */
            loop.staged[i] = loop.x[i];
        }
        __threadfence_system(); /* each thread's part is there before the descriptor is */
        __syncthreads();
        if (threadIdx.x == 0) {
            uint64_t start_ns = now_ns();
            status = all_reduce(loop, step);
            loop.latency_ns[step] = now_ns() - start_ns;
            loop.outcome->status = status;
            loop.outcome->steps_done = step + (status == JS_OK);
        }
        __syncthreads();
        if (status != JS_OK) {
            break;
        }
        float ranks = static_cast<float>(loop.size * (loop.size - 1) / 2);
        for (uint64_t i = threadIdx.x; i < loop.count; i += blockDim.x) {
            loop.x[i] = loop.staged[i];
            wrong += loop.x[i] != static_cast<float>(loop.size) * value_of(step, i) + ranks;
        }
        __syncthreads(); /* all have read `status` and their part */
    }
    atomicAdd(&loop.outcome->wrong, wrong);
}

/* --- the host --------------------------------------------------------------------------------- */

/* Memory of the host that the GPU can reach. Registered by pages, each page once. */
class Pinned
{
  public:
    void want(const void *start, size_t bytes)
    {
        uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
        uintptr_t begin = reinterpret_cast<uintptr_t>(start);
        wanted_.push_back({ begin / page * page, (begin + bytes + page - 1) / page * page, 0 });
    }

    cudaError_t pin()
    {
        std::sort(wanted_.begin(), wanted_.end(),
                  [](const Range &a, const Range &b) { return a.begin < b.begin; });
        for (const Range &range : wanted_) {
            if (!ranges_.empty() && range.begin <= ranges_.back().end) {
                ranges_.back().end = std::max(ranges_.back().end, range.end);
            } else {
                ranges_.push_back(range);
            }
        }
        for (Range &range : ranges_) {
            void *host = reinterpret_cast<void *>(range.begin);
            void *device = nullptr;
            cudaError_t error =
                cudaHostRegister(host, range.end - range.begin, cudaHostRegisterMapped);
            if (error != cudaSuccess) {
                return error;
            }
            pinned_++;
            error = cudaHostGetDevicePointer(&device, host, 0);
            if (error != cudaSuccess) {
                return error;
            }
            range.device = reinterpret_cast<uintptr_t>(device);
        }
        return cudaSuccess;
    }

    /* Where the GPU finds what lies in a pinned range. */
    template <typename T> T *on_device(T *host) const
    {
        uintptr_t address = reinterpret_cast<uintptr_t>(host);
        for (const Range &range : ranges_) {
            if (address >= range.begin && address < range.end) {
                return reinterpret_cast<T *>(range.device + (address - range.begin));
            }
        }
        return nullptr;
    }

    cudaError_t release()
    {
        cudaError_t first = cudaSuccess;
        for (; pinned_ > 0; pinned_--) {
            void *host = reinterpret_cast<void *>(ranges_[pinned_ - 1].begin);
            cudaError_t error = cudaHostUnregister(host);
            first = first == cudaSuccess ? error : first;
        }
        return first;
    }

  private:
    struct Range {
        uintptr_t begin;
        uintptr_t end;
        uintptr_t device;
    };
    std::vector<Range> wanted_;
    std::vector<Range> ranges_;
    size_t pinned_ = 0;
};
} // namespace

/* What cuda_loop.py hands over, and what it reads afterwards. */
extern "C" {
struct device_task {
    const js_qp *qp;
    float *staged; /* symmetric memory, registered: INPUT and OUTPUT */
    uint64_t count;
    uint64_t steps;
    uint64_t *latency_ns; /* [steps] */
    uint32_t plan;
    uint32_t rank;
    uint32_t size;
    int32_t status; /* enum js_status */
    uint64_t steps_done;
    uint64_t wrong;
    char error[256]; /* what CUDA says; empty: nothing is wrong */
};
int device_run(device_task *task);
}

namespace
{
struct Buffers {
    float *x = nullptr;
    uint64_t *latency_ns = nullptr;
    Outcome *outcome = nullptr;
};

bool is_good(device_task *task, const char *what, cudaError_t error)
{
    if (error == cudaSuccess) {
        return true;
    }
    if (task->error[0] == '\0') {
        snprintf(task->error, sizeof(task->error), "%s: %s", what, cudaGetErrorString(error));
    }
    return false;
}

bool can_map(device_task *task)
{
    int device = 0;
    int maps = 0;
    if (!is_good(task, "no GPU", cudaGetDevice(&device)) ||
        !is_good(task, "asking the GPU",
                 cudaDeviceGetAttribute(&maps, cudaDevAttrCanMapHostMemory, device))) {
        return false;
    }
    return maps != 0 || is_good(task, "mapping memory of the host", cudaErrorNotSupported);
}

bool pin(device_task *task, Pinned *pinned)
{
    const js_qp &qp = *task->qp;
    pinned->want(qp.control, sizeof(*qp.control));
    pinned->want(qp.sq, qp.sq_depth_slots * sizeof(*qp.sq));
    pinned->want(qp.rq, qp.rq_depth_slots * sizeof(*qp.rq));
    pinned->want(qp.cq, qp.cq_depth_slots * sizeof(*qp.cq));
    pinned->want(qp.signals, JS_SIGNALS * sizeof(*qp.signals));
    pinned->want(task->staged, task->count * sizeof(*task->staged));
    return is_good(task, "pinning", pinned->pin());
}

bool allocate(device_task *task, Buffers *buffers)
{
    size_t steps_bytes = task->steps * sizeof(uint64_t);
    return is_good(task, "memory for x", cudaMalloc(&buffers->x, task->count * sizeof(float))) &&
           is_good(task, "memory for times", cudaMalloc(&buffers->latency_ns, steps_bytes)) &&
           is_good(task, "memory for the outcome",
                   cudaMalloc(&buffers->outcome, sizeof(Outcome))) &&
           is_good(task, "clearing", cudaMemset(buffers->outcome, 0, sizeof(Outcome)));
}

bool run(device_task *task, const Pinned &pinned, const Buffers &buffers)
{
    Loop loop = {};
    loop.qp = *task->qp;
    loop.qp.control = pinned.on_device(task->qp->control);
    loop.qp.sq = pinned.on_device(task->qp->sq);
    loop.qp.rq = pinned.on_device(task->qp->rq);
    loop.qp.cq = pinned.on_device(task->qp->cq);
    loop.qp.signals = pinned.on_device(task->qp->signals);
    loop.qp.progress = nullptr; /* functions of the host */
    loop.qp.wait = nullptr;
    loop.qp.wake = nullptr;
    loop.x = buffers.x;
    loop.staged = pinned.on_device(task->staged);
    loop.staged_addr = reinterpret_cast<uintptr_t>(task->staged);
    loop.count = task->count;
    loop.steps = task->steps;
    loop.latency_ns = buffers.latency_ns;
    loop.outcome = buffers.outcome;
    loop.plan = task->plan;
    loop.rank = task->rank;
    loop.size = task->size;
    all_reduce_loop<<<1, THREADS>>>(loop);
    Outcome outcome = {};
    if (!is_good(task, "starting the kernel", cudaGetLastError()) ||
        !is_good(task, "the kernel", cudaDeviceSynchronize()) ||
        !is_good(task, "reading the outcome",
                 cudaMemcpy(&outcome, buffers.outcome, sizeof(outcome), cudaMemcpyDeviceToHost))) {
        return false;
    }
    task->status = outcome.status;
    task->steps_done = outcome.steps_done;
    task->wrong = outcome.wrong;
    return is_good(task, "reading the times",
                   cudaMemcpy(task->latency_ns, buffers.latency_ns, task->steps * sizeof(uint64_t),
                              cudaMemcpyDeviceToHost));
}
} // namespace

/* Runs the loop on the current GPU. 0: task->status says how it went; else task->error does. */
int device_run(device_task *task)
{
    Pinned pinned;
    Buffers buffers;
    task->error[0] = '\0';
    bool is_done = can_map(task) && pin(task, &pinned) && allocate(task, &buffers) &&
                   run(task, pinned, buffers);
    is_done = is_good(task, "freeing", cudaFree(buffers.x)) && is_done;
    is_done = is_good(task, "freeing", cudaFree(buffers.latency_ns)) && is_done;
    is_done = is_good(task, "freeing", cudaFree(buffers.outcome)) && is_done;
    is_done = is_good(task, "unpinning", pinned.release()) && is_done;
    return is_done ? 0 : 1;
}
