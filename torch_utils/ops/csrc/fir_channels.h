// upfirdn2d on the CPU in channels_last, for separable filters of 4 or 12 taps and factors 1 or 2: no number is loaded twice for a row.
//
// A vector holds neighbouring channels of a pixel. Every column of the image that a row of the result needs is summed down the column
// taps once. The last few such sums stay in registers: the window, whose sums along the row taps are the outputs.

#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "abi.h"
#include "fir_plan.h"
#include "numbers.h"

// 64 bytes of A's; where the processor has shorter vectors the compiler takes several.
template <class A>
struct Lanes {
    static constexpr int N = 64 / sizeof(A);
    typedef A type __attribute__((vector_size(64)));
};

template <class A>
inline typename Lanes<A>::type load_lanes(const A* from) {
    typename Lanes<A>::type to;
    memcpy(&to, from, sizeof(to));
    return to;
}

template <class A>
inline void store_lanes(typename Lanes<A>::type from, A* to) {
    memcpy(to, &from, sizeof(from));
}

// widen() and narrow() of numbers.h for 16 numbers; the compiler finds no vectors in loops over those.
typedef uint32_t Bits __attribute__((vector_size(64)));
typedef uint16_t HalfBits __attribute__((vector_size(32)));

inline Lanes<float>::type load_lanes(const bfloat16* from) {
    HalfBits bits;
    memcpy(&bits, from, sizeof(bits));
    return (Lanes<float>::type)(__builtin_convertvector(bits, Bits) << 16);
}

inline void store_lanes(Lanes<float>::type from, bfloat16* to) {
    const Bits bits = (Bits)from;
    const Bits rounded = (bits + 0x7fffu + ((bits >> 16) & 1)) >> 16;
    const HalfBits half = __builtin_convertvector((bits & 0x7fffffffu) > 0x7f800000u ? (bits >> 16) | 0x40u : rounded, HalfBits);
    memcpy(to, &half, sizeof(half));
}

// Makes rows of the result. A filter of TAPS taps along both axes, of which an output meets MET.
template <class T, int TAPS, int UP, int DOWN>
class ChannelFilter {
    using A = typename Arithmetic<T>::type;
    using V = typename Lanes<A>::type;
    static constexpr int LANES = Lanes<A>::N, MET = TAPS / UP;

  public:
    ChannelFilter(const Upfirdn2dArgs& args, const Term<A>& term)
        : a(args), column_taps(term.column), windows(windows_of(UP, a.pad_x0, a.out_w)), zeros(a.in_w * a.c, narrowed<T>(0)) {
        for (int o = 0; o < UP; o++)
            for (int k = 0; k < MET; k++) row_taps[o][k] = term.row[window_tap(o, k, UP)];
    }

    // x: first pixel of the image.
    void make(const T* x, int64_t row_stride, int64_t oy, T* y) const {
        const int64_t position = oy * DOWN - a.pad_y0, pixel = first_pixel(position, UP);
        const T* rows[MET];
        A taps[MET];
        for (int k = 0; k < MET; k++) {
            rows[k] = pixel + k >= 0 && pixel + k < a.in_h ? x + (pixel + k) * row_stride : zeros.data();
            taps[k] = column_taps[pixel * UP - position + k * UP];
        }
        // The last vector may overlap the one before it, and writes the same numbers again.
        for (int64_t channel = 0; channel < a.c; channel += LANES) {
            const int64_t c = channel + LANES <= a.c ? channel : a.c - LANES;
            make_channels(rows, taps, c, y + c);
        }
    }

  private:
    void make_channels(const T* const* rows, const A* taps, int64_t c, T* y) const {
        V window[MET];
        for (int k = 0; k < MET - DOWN; k++) window[k] = column<true>(rows, taps, windows.first + k, c);
        // Windows whose new columns are all inside the image, and whose outputs are all inside the result, need no checks.
        const int64_t fresh = windows.first + MET - DOWN;
        const int64_t whole = (a.out_w + windows.early) / UP;  // windows up to here have no output behind the last
        const int64_t safe_begin = std::clamp<int64_t>(fresh < 0 ? (-fresh + DOWN - 1) / DOWN : 0, windows.early, whole);
        const int64_t safe_end = std::clamp<int64_t>((a.in_w - fresh) / DOWN, safe_begin, whole);
        int64_t w = 0;
        for (; w < safe_begin; w++) slide<true>(rows, taps, window, w, c, y);
        for (; w < safe_end; w++) slide<false>(rows, taps, window, w, c, y);
        for (; w < windows.count; w++) slide<true>(rows, taps, window, w, c, y);
    }

    // Takes the columns that window `w` adds, makes its outputs, and drops the columns that the next one does without.
    template <bool CHECKED>
    void slide(const T* const* rows, const A* taps, V* window, int64_t w, int64_t c, T* y) const {
        for (int d = 0; d < DOWN; d++) window[MET - DOWN + d] = column<CHECKED>(rows, taps, windows.first + w * DOWN + MET - DOWN + d, c);
        for (int o = 0; o < UP; o++) {
            const int64_t ox = w * UP - windows.early + o;
            V sum = row_taps[o][0] * window[0];
            for (int k = 1; k < MET; k++) sum += row_taps[o][k] * window[k];
            if (CHECKED && (ox < 0 || ox >= a.out_w)) continue;
            __builtin_prefetch(y + (ox + a.out_w) * a.c, 1);
            store_lanes(sum, y + ox * a.c);
        }
        for (int k = 0; k + DOWN < MET; k++) window[k] = window[k + DOWN];
    }

    template <bool CHECKED>
    V column(const T* const* rows, const A* taps, int64_t ix, int64_t c) const {
        if (CHECKED && (ix < 0 || ix >= a.in_w)) return V{};
        // The steps from pixel to pixel are too long for the processor to see what comes next: the same pixel of the next row.
        __builtin_prefetch(rows[MET - 1] + (ix + a.in_w) * a.c + c);
        V sum = taps[0] * load_lanes(rows[0] + ix * a.c + c);
        for (int k = 1; k < MET; k++) sum += taps[k] * load_lanes(rows[k] + ix * a.c + c);
        return sum;
    }

    const Upfirdn2dArgs& a;
    const std::vector<A>& column_taps;
    const Windows windows;       // along a row
    const std::vector<T> zeros;  // a row above or below the image
    A row_taps[UP][MET];
};
