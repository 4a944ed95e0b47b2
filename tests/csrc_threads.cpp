// Runs what the threads of the CUDA kernels do on a CPU, one thread after another and step by step, for tests/test_csrc.py.

#include <vector>

#include "bias_act_packs.h"
#include "csrc_float16.h"
#include "fir_tiles.h"

namespace {

constexpr int THREADS = 96;  // of a block; the kernels' code is right for any number

template <class T, int LANES, int UP, int DOWN>
int patches(const Upfirdn2dArgs& a, const T* x, const float* f, T* y) {
    constexpr int PATCH_H = UP == 1 && DOWN == 1 ? 4 : 2, PATCH_W = LANES == 1 || UP == 2 ? 1 : 2;
    using Filter = PatchFilter<T, int32_t, LANES, UP, DOWN, LANES == 1 ? 4 : PATCH_H, PATCH_W>;
    using A = typename Arithmetic<T>::type;
    Rows xr, yr;
    for (bool channels_last : {a.c > 1, false}) {
        if (!as_rows(a.x_stride, a.n, a.c, a.in_w, channels_last, xr) || !as_rows(a.y_stride, a.n, a.c, a.out_w, channels_last, yr)) continue;
        if (xr.inner % LANES) return BAD_ARGUMENT;
        const auto filter = patch_filter<Filter>(a, xr, yr, LANES, UP, LANES == 1 ? 4 : PATCH_H, PATCH_W);
        A taps[16];
        for (int i = 0; i < 16; i++) taps[i] = patch_tap<A>(f, i, a.separable, a.flip, axis_gains(a));
        for (int64_t thread = filter.threads; thread-- > 0;) filter.run(thread, x, taps, y);
        return OK;
    }
    return BAD_ARGUMENT;
}

template <class T, int UP, int DOWN, bool CHANNELS>
int tiles(const Upfirdn2dArgs& a, const T* x, const float* f, T* y) {
    using Filter = TileFilter<T, int32_t, UP, DOWN, CHANNELS>;
    const auto filter = tile_filter<Filter>(a, UP);
    std::vector<typename Filter::Memory> shared(1);
    auto& memory = shared[0];
    for (int thread = 0; thread < THREADS; thread++) filter.load_taps(thread, THREADS, f, memory);
    for (int64_t block = 0; block < filter.blocks; block++) {
        const auto at = filter.place(block);
        for (int thread = 0; thread < THREADS; thread++) filter.load(thread, THREADS, at, x, memory);
        for (int thread = 0; thread < THREADS; thread++) filter.along_rows(thread, THREADS, memory);
        for (int thread = 0; thread < THREADS; thread++) filter.down_columns(thread, THREADS, at, memory, y);
    }
    return OK;
}

// wide: with several channels per thread or tile.
template <class T, int UP, int DOWN>
int common(const Upfirdn2dArgs& a, const T* x, const float* f, T* y, bool wide) {
    constexpr int LANES = sizeof(T) == 8 ? 2 : 4;
    if (a.fw == 4) return wide ? patches<T, LANES, UP, DOWN>(a, x, f, y) : patches<T, 1, UP, DOWN>(a, x, f, y);
    return wide ? tiles<T, UP, DOWN, true>(a, x, f, y) : tiles<T, UP, DOWN, false>(a, x, f, y);
}

template <class T>
int filter(const Upfirdn2dArgs& a, const void* x, const float* f, void* y, bool wide) {
    const T* from = static_cast<const T*>(x);
    T* to = static_cast<T*>(y);
    if (!fits_32_bits(a)) return BAD_ARGUMENT;
    if (a.up_x == 2) return common<T, 2, 1>(a, from, f, to, wide);
    return a.down_x == 2 ? common<T, 1, 2>(a, from, f, to, wide) : common<T, 1, 1>(a, from, f, to, wide);
}

template <class T, int LANES, int ORDER, bool FROM_RESULT, bool SMOOTH>
int packs(const BiasActArgs& a, const BiasActOperands<T>& o) {
    using Packs = BiasActPacks<T, int32_t, LANES, ORDER, FROM_RESULT, SMOOTH>;
    const Packs packs{o, bias_act_numbers<typename Arithmetic<T>::type>(a), (int32_t)a.channels, (int32_t)a.step, a.act, bias_layout(a, o.b, LANES)};
    for (int64_t first = a.size - LANES; first >= 0; first -= LANES) packs.run(first);
    return OK;
}

template <class T, int LANES, bool SMOOTH>
int orders(const BiasActArgs& a, const BiasActOperands<T>& o) {
    if (!o.x) return a.order == 1 ? packs<T, LANES, 1, true, false>(a, o) : packs<T, LANES, 2, true, false>(a, o);
    if (a.order == 0) return packs<T, LANES, 0, false, SMOOTH>(a, o);
    return a.order == 1 ? packs<T, LANES, 1, false, SMOOTH>(a, o) : packs<T, LANES, 2, false, SMOOTH>(a, o);
}

template <class T>
int act(const BiasActArgs& a, const void* const* in, void* out, bool wide) {
    constexpr int LANES = 16 / sizeof(T);
    auto typed = [&](int i) { return static_cast<const T*>(in[i]); };
    const BiasActOperands<T> o{typed(0), typed(0) ? typed(1) : nullptr, typed(2), typed(3), typed(4), static_cast<T*>(out)};
    if (wide && a.size % LANES) return BAD_ARGUMENT;
    if (a.act > LRELU) return wide ? orders<T, LANES, true>(a, o) : orders<T, 1, true>(a, o);
    return wide ? orders<T, LANES, false>(a, o) : orders<T, 1, false>(a, o);
}

// Threads of the kernel for 4x4 taps with single elements, which needs most of them, and blocks of the two kernels for 12 taps.
template <int UP, int DOWN>
void launch_sizes(const Upfirdn2dArgs& a, int64_t* sizes) {
    Rows xr, yr;
    as_rows(a.x_stride, a.n, a.c, a.in_w, false, xr), as_rows(a.y_stride, a.n, a.c, a.out_w, false, yr);
    sizes[0] = patch_filter<PatchFilter<float, int32_t, 1, UP, DOWN, 4, 1>>(a, xr, yr, 1, UP, 4, 1).threads;
    sizes[1] = tile_filter<TileFilter<float, int32_t, UP, DOWN, true>>(a, UP).blocks;
    sizes[2] = tile_filter<TileFilter<float, int32_t, UP, DOWN, false>>(a, UP).blocks;
}

}  // namespace

// Whether 32 bits are enough for the kernels for common filters, and what they would be launched with.
EXPORT int32_t fits_32_bits_threads(const Upfirdn2dArgs* a, int64_t* sizes) {
    a->up_x == 2 ? launch_sizes<2, 1>(*a, sizes) : a->down_x == 2 ? launch_sizes<1, 2>(*a, sizes) : launch_sizes<1, 1>(*a, sizes);
    return fits_32_bits(*a);
}

EXPORT int32_t upfirdn2d_threads(const Upfirdn2dArgs* a, const void* x, const float* f, void* y, int32_t wide) {
    switch (a->dtype) {
        case F64: return filter<double>(*a, x, f, y, wide);
        case F16: return filter<float16>(*a, x, f, y, wide);
        case BF16: return filter<bfloat16>(*a, x, f, y, wide);
        default: return filter<float>(*a, x, f, y, wide);
    }
}

// in: x, b, saved_y, dy, ddy.
EXPORT int32_t bias_act_threads(const BiasActArgs* a, const void* const* in, void* out, int32_t wide) {
    switch (a->dtype) {
        case F64: return act<double>(*a, in, out, wide);
        case F16: return act<float16>(*a, in, out, wide);
        case BF16: return act<bfloat16>(*a, in, out, wide);
        default: return act<float>(*a, in, out, wide);
    }
}
