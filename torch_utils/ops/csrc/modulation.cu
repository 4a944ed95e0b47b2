// The passes around a modulated convolution on CUDA: see modulation.h and modulation_tiles.h.

#include "launch.h"
#include "modulation_tiles.h"

namespace {

static_assert(THREADS <= TILE_THREADS, "tiles have room for a block's threads");

template <class Tiles>
__global__ void __launch_bounds__(THREADS) forward_kernel(const Tiles tiles, int64_t blocks) {
    for (int64_t block = blockIdx.x; block < blocks; block += gridDim.x) {
        const auto thread = tiles.at(block, threadIdx.x);
        for (int64_t chunk = thread.first_chunk; chunk < thread.last_chunk; chunk++) tiles.forward(thread, chunk);
    }
}

template <class Tiles>
__global__ void __launch_bounds__(THREADS) backward_kernel(const Tiles tiles, int64_t blocks) {
    __shared__ typename Tiles::Memory memory;
    for (int64_t block = blockIdx.x; block < blocks; block += gridDim.x) {
        auto thread = tiles.at(block, threadIdx.x);
        for (int64_t chunk = thread.first_chunk; chunk < thread.last_chunk; chunk++) {
            tiles.backward(thread, chunk, memory);
            if (!tiles.meeting()) continue;
            __syncthreads();
            // While some threads are still here, others fill the other half of memory.met, and then wait.
            tiles.add_rows(thread, threadIdx.x, THREADS, chunk, memory);
        }
        if (tiles.keeping()) {
            tiles.keep(thread, memory);
            __syncthreads();
            tiles.store(thread, threadIdx.x, THREADS, memory);
        }
        __syncthreads();  // the next block's numbers go to the same memory
    }
}

// What a pass needs to be launched.
struct Launch {
    const ModulationArgs& args;
    bool backward;
    cudaStream_t stream;
};

template <class T, int LANES, bool CHANNELS_LAST, bool ACTIVATED>
int32_t launch(const Launch& how, const ModulationOperands<T>& o) {
    using Tiles = ModulationTiles<T, LANES, CHANNELS_LAST, ACTIVATED>;
    const Tiles tiles = modulation_tiles<Tiles>(how.args, o, THREADS, how.backward ? BACKWARD_BLOCKS : FORWARD_BLOCKS);
    const int64_t blocks = tiles.shares.blocks();
    if (how.backward)
        backward_kernel<Tiles><<<grid(blocks, 1), THREADS, 0, how.stream>>>(tiles, blocks);
    else
        forward_kernel<Tiles><<<grid(blocks, 1), THREADS, 0, how.stream>>>(tiles, blocks);
    return error_number(cudaGetLastError());
}

template <class T, bool ACTIVATED>
int32_t launch(const Launch& how, const ModulationOperands<T>& o) {
    if constexpr (sizeof(T) < 8) {
        constexpr int LANES = 16 / sizeof(T);
        if (tile_lanes(how.args) > 1)
            return how.args.channels_last ? launch<T, LANES, true, ACTIVATED>(how, o) : launch<T, LANES, false, ACTIVATED>(how, o);
    }
    return how.args.channels_last ? launch<T, 1, true, ACTIVATED>(how, o) : launch<T, 1, false, ACTIVATED>(how, o);
}

// Operands of any type, as they come in. dy is there in backward passes.
struct Pointers {
    const void *x, *scale, *noise, *bias, *dy;
    void *out, *dscale, *dbias, *dnoise;
};

template <class T, bool ACTIVATED>
int32_t run(const Launch& how, const Pointers& p) {
    using A = typename Arithmetic<T>::type;
    auto small = [](const void* from) { return static_cast<const A*>(from); };
    auto sums = [](void* to) { return static_cast<A*>(to); };
    return launch<T, ACTIVATED>(how, {static_cast<const T*>(p.x), small(p.scale), small(p.noise), small(p.bias), static_cast<const T*>(p.dy),
                                      static_cast<T*>(p.out), sums(p.dscale), sums(p.dbias), sums(p.dnoise)});
}

template <bool ACTIVATED>
int32_t run(const ModulationArgs* args, const Pointers& p, bool backward, int32_t device, void* stream) {
    if (!valid(args)) return BAD_ARGUMENT;
    if (args->n == 0 || args->pixels == 0 || args->channels == 0) return OK;
    if (!p.x || !p.scale || !p.out || (backward && (!p.dy || !p.dscale || (ACTIVATED && !p.dbias)))) return BAD_ARGUMENT;
    for (const void* large : {p.x, p.dy, static_cast<const void*>(p.out)})
        if (args->aligned && reinterpret_cast<uintptr_t>(large) % 16 != 0) return BAD_ARGUMENT;
    const OnDevice here(device);
    if (here.error != cudaSuccess) return error_number(here.error);
    const Launch how{*args, backward, static_cast<cudaStream_t>(stream)};
    switch (args->dtype) {
        case F32: return run<float, ACTIVATED>(how, p);
        case F64: return run<double, ACTIVATED>(how, p);
        case F16: return run<float16, ACTIVATED>(how, p);
        case BF16: return run<bfloat16, ACTIVATED>(how, p);
        default: return BAD_DTYPE;
    }
}

}  // namespace

EXPORT int32_t modulation_parts_cuda(const ModulationArgs* args, int64_t* over_pixels, int64_t* over_channels) {
    if (!valid(args) || !over_pixels || !over_channels) return BAD_ARGUMENT;
    const ModulationShares shares = modulation_shares(*args, THREADS, BACKWARD_BLOCKS);
    *over_pixels = args->channels_last ? shares.splits : shares.tiles;
    *over_channels = args->channels_last ? shares.tiles : shares.splits;
    return OK;
}

EXPORT int32_t modulate_cuda(const ModulationArgs* args, const void* x, const void* styles, void* y, int32_t device, void* stream) {
    return run<false>(args, {x, styles, nullptr, nullptr, nullptr, y, nullptr, nullptr, nullptr}, false, device, stream);
}

EXPORT int32_t modulate_backward_cuda(const ModulationArgs* args, const void* x, const void* styles, const void* dy, void* dx, void* dstyles,
                                      int32_t device, void* stream) {
    return run<false>(args, {x, styles, nullptr, nullptr, dy, dx, dstyles, nullptr, nullptr}, true, device, stream);
}

EXPORT int32_t epilogue_cuda(const ModulationArgs* args, const void* x, const void* scale, const void* noise, const void* bias, void* y,
                             int32_t device, void* stream) {
    return run<true>(args, {x, scale, noise, bias, nullptr, y, nullptr, nullptr, nullptr}, false, device, stream);
}

EXPORT int32_t epilogue_backward_cuda(const ModulationArgs* args, const void* x, const void* scale, const void* noise, const void* bias,
                                      const void* dy, void* dx, void* dscale, void* dbias, void* dnoise, int32_t device, void* stream) {
    return run<true>(args, {x, scale, noise, bias, dy, dx, dscale, dbias, dnoise}, true, device, stream);
}
