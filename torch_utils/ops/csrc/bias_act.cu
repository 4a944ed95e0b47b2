// bias_act on CUDA: one pass over memory, 16 bytes per operand and thread where operands are aligned.

#include "abi.h"
#include "activations.h"
#include "bias_act_packs.h"
#include "launch.h"
#include "numbers.h"

namespace {

template <class Packs, int LANES>
__global__ void __launch_bounds__(THREADS) packs_kernel(const Packs packs, int64_t size) {
    const int64_t step = (int64_t)gridDim.x * THREADS * LANES;
    for (int64_t first = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * LANES; first < size; first += step) packs.run(first);
}

template <class T, class Index, int LANES, int ORDER, bool FROM_RESULT, bool SMOOTH>
int32_t launch(const BiasActArgs& a, const BiasActOperands<T>& o, cudaStream_t stream) {
    using Packs = BiasActPacks<T, Index, LANES, ORDER, FROM_RESULT, SMOOTH>;
    const Packs packs{o, bias_act_numbers<typename Arithmetic<T>::type>(a), (Index)a.channels, (Index)a.step, a.act, bias_layout(a, o.b, LANES)};
    packs_kernel<Packs, LANES><<<grid(a.size, THREADS * LANES), THREADS, 0, stream>>>(packs, a.size);
    return error_number(cudaGetLastError());
}

template <class T, class Index, int LANES>
int32_t launch_order(const BiasActArgs& a, const BiasActOperands<T>& o, cudaStream_t stream) {
    if (!o.x) return a.order == 1 ? launch<T, Index, LANES, 1, true, false>(a, o, stream) : launch<T, Index, LANES, 2, true, false>(a, o, stream);
    const bool smooth = a.act > LRELU;
    switch (a.order) {
        case 0: return smooth ? launch<T, Index, LANES, 0, false, true>(a, o, stream) : launch<T, Index, LANES, 0, false, false>(a, o, stream);
        case 1: return smooth ? launch<T, Index, LANES, 1, false, true>(a, o, stream) : launch<T, Index, LANES, 1, false, false>(a, o, stream);
        default: return smooth ? launch<T, Index, LANES, 2, false, true>(a, o, stream) : launch<T, Index, LANES, 2, false, false>(a, o, stream);
    }
}

// 16 bytes at a time, where every operand stands at a multiple of 16 and nothing is left over, and numbers fit 32 bits.
template <class T>
int32_t run(const BiasActArgs& a, const void* x, const void* b, const void* saved_y, const void* dy, const void* ddy, void* out, cudaStream_t stream) {
    constexpr int LANES = 16 / sizeof(T);
    auto typed = [](const void* p) { return static_cast<const T*>(p); };
    const BiasActOperands<T> o{typed(x), typed(x ? b : nullptr), typed(saved_y), typed(dy), typed(ddy), static_cast<T*>(out)};
    bool aligned = a.size % LANES == 0;
    for (const void* p : {x, saved_y, dy, ddy, static_cast<const void*>(out)}) aligned = aligned && reinterpret_cast<uintptr_t>(p) % 16 == 0;
    const int64_t limit = int64_t(1) << 31;
    if (a.size >= limit || a.channels >= limit || a.step >= limit) return launch_order<T, int64_t, 1>(a, o, stream);
    return aligned ? launch_order<T, int32_t, LANES>(a, o, stream) : launch_order<T, int32_t, 1>(a, o, stream);
}

}  // namespace

EXPORT int32_t bias_act_cuda(const BiasActArgs* args, const void* x, const void* b, const void* saved_y, const void* dy, const void* ddy,
                             void* out, int32_t device, void* stream) {
    if (!args || !valid(*args, x, saved_y, dy, ddy, out)) return BAD_ARGUMENT;
    if (args->size == 0) return OK;
    const OnDevice here(device);
    if (here.error != cudaSuccess) return error_number(here.error);
    cudaStream_t on = static_cast<cudaStream_t>(stream);
    switch (args->dtype) {
        case F32: return run<float>(*args, x, b, saved_y, dy, ddy, out, on);
        case F64: return run<double>(*args, x, b, saved_y, dy, ddy, out, on);
        case F16: return run<float16>(*args, x, b, saved_y, dy, ddy, out, on);
        case BF16: return run<bfloat16>(*args, x, b, saved_y, dy, ddy, out, on);
        default: return BAD_DTYPE;
    }
}
