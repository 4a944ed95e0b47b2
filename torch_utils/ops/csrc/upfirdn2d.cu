// upfirdn2d on CUDA: fir_tiles.h for the common filters, a thread per output for all others.

#include "abi.h"
#include "fir.h"
#include "fir_rows.h"
#include "fir_tiles.h"
#include "launch.h"
#include "numbers.h"

namespace {

// What a kernel needs besides its geometry.
template <class T>
struct Operands {
    const T* x;
    const float* f;
    T* y;
};

template <class Filter, class T>
__global__ void __launch_bounds__(THREADS) patch_kernel(const Filter filter, Operands<T> o, bool separable, bool flip, AxisGains gains) {
    using A = typename Arithmetic<T>::type;
    __shared__ A taps[16];
    if (threadIdx.x < 16) taps[threadIdx.x] = patch_tap<A>(o.f, threadIdx.x, separable, flip, gains);
    __syncthreads();
    const int64_t step = (int64_t)gridDim.x * THREADS;
    for (int64_t thread = (int64_t)blockIdx.x * THREADS + threadIdx.x; thread < filter.threads; thread += step) filter.run(thread, o.x, taps, o.y);
}

template <class Filter, class T>
__global__ void __launch_bounds__(THREADS) tile_kernel(const Filter filter, Operands<T> o) {
    __shared__ typename Filter::Memory memory;
    filter.load_taps(threadIdx.x, THREADS, o.f, memory);
    for (int64_t block = blockIdx.x; block < filter.blocks; block += gridDim.x) {
        const auto at = filter.place(block);
        filter.load(threadIdx.x, THREADS, at, o.x, memory);
        __syncthreads();
        filter.along_rows(threadIdx.x, THREADS, memory);
        __syncthreads();
        // While some threads are still here, others may load the next tile: that is into memory.in, which no one reads now.
        filter.down_columns(threadIdx.x, THREADS, at, memory, o.y);
    }
}

// Output number `item` of a tensor whose fastest axis is the columns, or the channels.
template <class T, class Index>
__global__ void __launch_bounds__(THREADS) pixel_kernel(const Upfirdn2dArgs a, Operands<T> o, AxisGains gains, bool channels_fastest) {
    const int64_t total = a.n * a.c * a.out_h * a.out_w, step = (int64_t)gridDim.x * THREADS;
    for (int64_t item = (int64_t)blockIdx.x * THREADS + threadIdx.x; item < total; item += step) {
        Index rest = item;
        auto next = [&](Index size) {
            const Index at = rest % size;
            rest /= size;
            return at;
        };
        Index c = channels_fastest ? next(a.c) : 0;
        const Index ox = next(a.out_w), oy = next(a.out_h);
        if (!channels_fastest) c = next(a.c);
        const T* image = o.x + rest * (Index)a.x_stride[0] + c * (Index)a.x_stride[1];
        T* to = o.y + rest * (Index)a.y_stride[0] + c * (Index)a.y_stride[1] + oy * (Index)a.y_stride[2] + ox * (Index)a.y_stride[3];
        narrow(filtered_pixel<T, Index>(a, image, o.f, oy, ox, gains), *to);
    }
}

// Whether all of a tensor's packs of `lanes` channels stand at multiples of their size.
template <class T>
bool packs_aligned(const Rows& rows, const T* data, int lanes) {
    const bool strides = rows.group_stride % lanes == 0 && rows.plane_stride % lanes == 0 && rows.row_stride % lanes == 0;
    return strides && rows.inner % lanes == 0 && reinterpret_cast<uintptr_t>(data) % (sizeof(T) * lanes) == 0;
}

template <class T, int LANES, int UP, int DOWN, int PATCH_H, int PATCH_W>
void launch_patches(const Upfirdn2dArgs& a, const Rows& xr, const Rows& yr, Operands<T> o, cudaStream_t stream) {
    using Filter = PatchFilter<T, int32_t, LANES, UP, DOWN, PATCH_H, PATCH_W>;
    const auto filter = patch_filter<Filter>(a, xr, yr, LANES, UP, PATCH_H, PATCH_W);
    patch_kernel<Filter, T><<<grid(filter.threads, THREADS), THREADS, 0, stream>>>(filter, o, a.separable, a.flip, axis_gains(a));
}

// Patches are as large as registers allow.
template <class T, int UP, int DOWN>
bool launch_patches(const Upfirdn2dArgs& a, Operands<T> o, cudaStream_t stream) {
    constexpr int LANES = sizeof(T) == 8 ? 2 : 4;
    Rows xr, yr;
    for (bool channels_last : {a.c > 1, false}) {
        if (!as_rows(a.x_stride, a.n, a.c, a.in_w, channels_last, xr) || !as_rows(a.y_stride, a.n, a.c, a.out_w, channels_last, yr)) continue;
        if (packs_aligned(xr, o.x, LANES) && packs_aligned(yr, o.y, LANES))
            launch_patches<T, LANES, UP, DOWN, UP == 1 && DOWN == 1 ? 4 : 2, UP == 1 ? 2 : 1>(a, xr, yr, o, stream);
        else
            launch_patches<T, 1, UP, DOWN, 4, 1>(a, xr, yr, o, stream);
        return true;
    }
    return false;
}

template <class T, int UP, int DOWN, bool CHANNELS>
void launch_tiles(const Upfirdn2dArgs& a, Operands<T> o, cudaStream_t stream) {
    using Filter = TileFilter<T, int32_t, UP, DOWN, CHANNELS>;
    const auto filter = tile_filter<Filter>(a, UP);
    tile_kernel<Filter, T><<<grid(filter.blocks, 1), THREADS, 0, stream>>>(filter, o);
}

// The common filters; false: this is something else.
template <class T, int UP, int DOWN>
bool launch_common(const Upfirdn2dArgs& a, Operands<T> o, cudaStream_t stream) {
    if (a.up_x != UP || a.up_y != UP || a.down_x != DOWN || a.down_y != DOWN || a.fw != a.fh || !fits_32_bits(a)) return false;
    if (a.fw == 4) return launch_patches<T, UP, DOWN>(a, o, stream);
    if (a.fw != 12 || !a.separable) return false;
    if (a.x_stride[1] == 1 && a.c >= 8)
        launch_tiles<T, UP, DOWN, true>(a, o, stream);
    else
        launch_tiles<T, UP, DOWN, false>(a, o, stream);
    return true;
}

template <class T>
int32_t filter(const Upfirdn2dArgs& a, const void* x, const float* f, void* y, cudaStream_t stream) {
    const Operands<T> o{static_cast<const T*>(x), f, static_cast<T*>(y)};
    if (!launch_common<T, 1, 1>(a, o, stream) && !launch_common<T, 2, 1>(a, o, stream) && !launch_common<T, 1, 2>(a, o, stream)) {
        const unsigned blocks = grid(a.n * a.c * a.out_h * a.out_w, THREADS);
        const bool channels_fastest = a.c > 1 && a.y_stride[1] < a.y_stride[3];
        if (fits_32_bits(a))
            pixel_kernel<T, int32_t><<<blocks, THREADS, 0, stream>>>(a, o, axis_gains(a), channels_fastest);
        else
            pixel_kernel<T, int64_t><<<blocks, THREADS, 0, stream>>>(a, o, axis_gains(a), channels_fastest);
    }
    return error_number(cudaGetLastError());
}

}  // namespace

EXPORT int32_t upfirdn2d_cuda(const Upfirdn2dArgs* args, const void* x, const float* f, void* y, int32_t device, void* stream) {
    if (!args || !valid(*args)) return BAD_ARGUMENT;
    const Upfirdn2dArgs& a = *args;
    if (a.n == 0 || a.c == 0 || a.out_h == 0 || a.out_w == 0) return OK;
    if (!f || !y || (!x && a.in_h > 0 && a.in_w > 0)) return BAD_ARGUMENT;
    const OnDevice here(device);
    if (here.error != cudaSuccess) return error_number(here.error);
    cudaStream_t on = static_cast<cudaStream_t>(stream);
    switch (a.dtype) {
        case F32: return filter<float>(a, x, f, y, on);
        case F64: return filter<double>(a, x, f, y, on);
        case F16: return filter<float16>(a, x, f, y, on);
        case BF16: return filter<bfloat16>(a, x, f, y, on);
        default: return BAD_DTYPE;
    }
}
