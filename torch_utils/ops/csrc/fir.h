// The arithmetic of upfirdn2d: which pixels and which taps an output meets, and their weighted sum. For CPU and CUDA.

#pragma once

#include <math.h>

#include "abi.h"
#include "numbers.h"

// Along one axis, an output meets taps tap, tap + up, ... at the pixels pixel, pixel + 1, ...: `count` of them.
template <class Index>
struct Reach {
    Index pixel, tap, count;
};

// What output `o` meets of an axis of `size` pixels, of which the first stands `pad` behind the first tap of output 0.
template <class Index>
HD Reach<Index> reach(Index o, Index up, Index down, Index pad, Index taps, Index size) {
    const Index position = o * down - pad;  // of tap 0, on the upsampled axis
    // The taps between two pixels meet inserted zeros, those before pixel 0 the padding.
    const Index pixel = position > 0 ? (position + up - 1) / up : 0;
    const Index tap = pixel * up - position;
    const Index taps_left = taps > tap ? (taps - tap + up - 1) / up : 0;
    const Index pixels_left = size > pixel ? size - pixel : 0;
    return {pixel, tap, taps_left < pixels_left ? taps_left : pixels_left};
}

// Where tap `i` of the correlation stands in the filter: a convolution runs through it from its end.
template <class Index>
HD Index stored_tap(Index i, Index taps, bool flip) {
    return flip ? i : taps - 1 - i;
}

// The gain's share along x and along y. A filter of two dimensions takes all of it along x.
struct AxisGains {
    float x, y;
};

inline AxisGains axis_gains(const Upfirdn2dArgs& a) {
    if (!a.separable) return {(float)a.gain, 1.0f};
    const float root = (float)sqrt(fabs(a.gain));
    return {root, a.gain < 0 ? -root : root};
}

// One output of any upfirdn2d: `x` points to pixel (0, 0) of its plane. Taps take their gain in float32, as in the reference op.
template <class T, class Index>
DEVICE typename Arithmetic<T>::type filtered_pixel(const Upfirdn2dArgs& a, const T* x, const float* f, Index oy, Index ox, AxisGains gains) {
    using A = typename Arithmetic<T>::type;
    const Index fw = a.fw, fh = a.fh, up_x = a.up_x, up_y = a.up_y, step_y = a.x_stride[2], step_x = a.x_stride[3];
    const Reach<Index> ry = reach<Index>(oy, up_y, a.down_y, a.pad_y0, fh, a.in_h);
    const Reach<Index> rx = reach<Index>(ox, up_x, a.down_x, a.pad_x0, fw, a.in_w);
    A sum = 0;
    for (Index i = 0; i < ry.count; i++) {
        const T* row = x + (ry.pixel + i) * step_y + rx.pixel * step_x;
        const Index fy = stored_tap<Index>(ry.tap + i * up_y, fh, a.flip);
        const float* taps = a.separable ? f : f + fy * fw;
        A row_sum = 0;
        for (Index j = 0; j < rx.count; j++)
            row_sum += A(taps[stored_tap<Index>(rx.tap + j * up_x, fw, a.flip)] * gains.x) * widen(row[j * step_x]);
        sum += a.separable ? A(f[fy] * gains.y) * row_sum : row_sum;
    }
    return sum;
}

// Whether the numbers make sense; memory is not looked at.
inline bool valid(const Upfirdn2dArgs& a) {
    const bool taps = a.fw >= 1 && a.fh >= 1 && (!a.separable || a.fw == a.fh);
    const bool factors = a.up_x >= 1 && a.up_y >= 1 && a.down_x >= 1 && a.down_y >= 1;
    return taps && factors && a.n >= 0 && a.c >= 0 && a.in_h >= 0 && a.in_w >= 0 && a.out_h >= 0 && a.out_w >= 0;
}

// Outputs along an axis in groups that meet the same pixels: with up == 2 one that meets the odd taps and the next, which meets the
// even ones, else single ones. Window w begins at pixel first + w * down and makes outputs w * up - early, and the next.
struct Windows {
    int64_t first, early, count;
};

// For up == 1, or up == 2 and down == 1.
HD int64_t first_pixel(int64_t position, int64_t up) { return up == 2 ? (position + 1) >> 1 : position; }
HD Windows windows_of(int64_t up, int64_t pad, int64_t outputs) {
    const int64_t early = up == 2 && pad % 2 == 0 ? 1 : 0;
    return {first_pixel(-pad, up), early, (outputs + early + up - 1) / up};
}

// The tap that output `o` of a window meets at the window's pixel `k`.
HD int window_tap(int o, int k, int up) { return up - 1 - o + k * up; }
