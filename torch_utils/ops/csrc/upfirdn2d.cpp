// upfirdn2d on the CPU.
//
// Images whose rows lie in one piece, in NCHW or in channels_last, go through one routine. To it an image is rows of pixels of
// `inner` neighbouring numbers each: 1 in NCHW, where every plane is an image, and the channels in channels_last. All of its
// arithmetic is `weighted_sum` of arrays. Down the columns the arrays are rows of the image. Along a row they are the row itself,
// shifted; outputs that meet the same taps form a phase, and a phase is one sum. Other strides go pixel by pixel.

#include <algorithm>
#include <new>
#include <type_traits>
#include <vector>

#include "abi.h"
#include "fir.h"
#include "fir_channels.h"
#include "fir_plan.h"
#include "fir_rows.h"
#include "numbers.h"
#include "threads.h"

namespace {

constexpr int64_t WIDE = 8;          // numbers in a pixel from which on a pixel is worth a loop of its own
constexpr int64_t SERIAL = 1 << 14;  // outputs up to which one thread is faster than several

// out[q * out_step + i] (+)= sum over k of taps[k] * in[k][q * in_step + i], for q < count and i < n.
template <int TAPS, bool ADD, class In, class A>
void weighted_sum_of(A* __restrict out, int64_t out_step, const In* const* in, int64_t in_step, const A* taps, int64_t count, int64_t n) {
    A weight[TAPS];
    const In* source[TAPS];
    for (int k = 0; k < TAPS; k++) {
        weight[k] = taps[k];
        source[k] = in[k];
    }
    for (int64_t q = 0; q < count; q++, out += out_step) {
        for (int64_t i = 0; i < n; i++) {
            A sum = ADD ? out[i] : A(0);
            for (int k = 0; k < TAPS; k++) sum += weight[k] * widen(source[k][i]);
            out[i] = sum;
        }
        for (int k = 0; k < TAPS; k++) source[k] += in_step;
    }
}

constexpr int MOST_TAPS = 6;  // in one go: half of 12

template <bool ADD, class In, class A>
void weighted_sum_of_few(A* out, int64_t out_step, const In* const* in, int64_t in_step, const A* taps, int n_taps, int64_t count, int64_t n) {
    switch (n_taps) {
        case 1: return weighted_sum_of<1, ADD>(out, out_step, in, in_step, taps, count, n);
        case 2: return weighted_sum_of<2, ADD>(out, out_step, in, in_step, taps, count, n);
        case 3: return weighted_sum_of<3, ADD>(out, out_step, in, in_step, taps, count, n);
        case 4: return weighted_sum_of<4, ADD>(out, out_step, in, in_step, taps, count, n);
        case 5: return weighted_sum_of<5, ADD>(out, out_step, in, in_step, taps, count, n);
        default: return weighted_sum_of<MOST_TAPS, ADD>(out, out_step, in, in_step, taps, count, n);
    }
}

template <class In, class A>
void weighted_sum(A* out, int64_t out_step, const In* const* in, int64_t in_step, const A* taps, int n_taps, int64_t count, int64_t n, bool add) {
    if (n_taps == 0 && !add)
        for (int64_t q = 0; q < count; q++) std::fill_n(out + q * out_step, n, A(0));
    for (int k = 0; k < n_taps; k += MOST_TAPS, add = true) {
        const int few = std::min(n_taps - k, MOST_TAPS);
        if (add)
            weighted_sum_of_few<true>(out, out_step, in + k, in_step, taps + k, few, count, n);
        else
            weighted_sum_of_few<false>(out, out_step, in + k, in_step, taps + k, few, count, n);
    }
}

template <int64_t TO_STEP, int64_t FROM_STEP, int64_t INNER, class From, class To>
void copy_pixels_of(To* __restrict to, const From* __restrict from, int64_t count) {
    for (int64_t q = 0; q < count; q++)
        for (int64_t i = 0; i < INNER; i++) narrow(widen(from[q * FROM_STEP * INNER + i]), to[q * TO_STEP * INNER + i]);
}

// Copies pixel q * from_step to pixel q * to_step, for q < count. The compiler makes vector code of the cases that it is told of.
template <class From, class To>
void copy_pixels(To* to, int64_t to_step, const From* from, int64_t from_step, int64_t inner, int64_t count) {
    if (to_step == 1 && from_step == 1) return copy_pixels_of<1, 1, 1>(to, from, count * inner);
    if (to_step == 1 && from_step == 2 && inner == 1) return copy_pixels_of<1, 2, 1>(to, from, count);
    if (to_step == 2 && from_step == 1 && inner == 1) return copy_pixels_of<2, 1, 1>(to, from, count);
    if (to_step == 1 && from_step == 2 && inner == 3) return copy_pixels_of<1, 2, 3>(to, from, count);
    if (to_step == 2 && from_step == 1 && inner == 3) return copy_pixels_of<2, 1, 3>(to, from, count);
    for (int64_t q = 0; q < count; q++)
        for (int64_t i = 0; i < inner; i++) narrow(widen(from[q * from_step * inner + i]), to[q * to_step * inner + i]);
}

// Makes rows of the result, one at a time, in one thread.
template <class T>
class RowFilter {
    using A = typename Arithmetic<T>::type;
    static constexpr bool CONVERTS = !std::is_same<T, A>::value;

  public:
    RowFilter(const Upfirdn2dArgs& args, const Plan<A>& plan, const Rows& x)
        : a(args), plan(plan), inner(x.inner), row_stride(x.row_stride),
          split(inner < WIDE && (plan.period > 1 || plan.advance > 1)),
          longest((a.out_w + plan.period - 1) / plan.period * inner),
          column_length((plan.columns + plan.advance - 1) / plan.advance * inner),
          padded(plan.columns * inner), columns(split && plan.advance > 1 ? plan.advance * column_length : 0),
          result(CONVERTS || (split && plan.period > 1) ? plan.period * longest : 0),
          image_rows(a.fh), weights(a.fh), shifted(a.fw) {
        const int64_t in = plan.advance;
        for (const Phase& phase : plan.phases)
            for (int64_t pixel = phase.pixel; pixel < phase.pixel + phase.taps; pixel++)
                shifts.push_back(columns.empty() ? pixel * inner : pixel % in * column_length + pixel / in * inner);
    }

    // x: first pixel of the image.
    void make(const T* x, int64_t oy, T* y) {
        const Reach<int64_t> r = reach<int64_t>(oy, a.up_y, a.down_y, a.pad_y0, a.fh, a.in_h);
        A* out = result.data();
        if constexpr (!CONVERTS)
            if (result.empty()) out = y;
        bool add = false;
        for (const Term<A>& term : plan.terms)
            if (sum_columns(x, r, term)) {
                sum_row(term, out, add);
                add = true;
            }
        if (!add)
            std::fill_n(y, a.out_w * inner, narrowed<T>(0));
        else if (!result.empty())
            finish(out, y);
    }

  private:
    // Fills the padded row with what the term makes of the image's rows; false: nothing, since the term meets none of them.
    bool sum_columns(const T* x, const Reach<int64_t>& r, const Term<A>& term) {
        const int64_t begin = std::max(plan.first_column, int64_t(0)), end = std::min(plan.first_column + plan.columns, a.in_w);
        int met = 0;
        for (int64_t i = 0; i < r.count; i++) {
            weights[met] = term.column[r.tap + i * a.up_y];
            if (plan.terms.size() > 1 && weights[met] == 0) continue;  // a term for another row of the filter
            image_rows[met++] = x + (r.pixel + i) * row_stride + begin * inner;
        }
        if (met == 0 || end <= begin) return false;
        A* inside = padded.data() + (begin - plan.first_column) * inner;
        weighted_sum(inside, 0, image_rows.data(), 0, weights.data(), met, 1, (end - begin) * inner, false);
        return true;
    }

    // Adds or sets what the term makes of the padded row.
    void sum_row(const Term<A>& term, A* out, bool add) {
        const int64_t in = plan.advance, step = plan.period;
        for (int64_t d = 0; d < in && !columns.empty(); d++)
            copy_pixels(columns.data() + d * column_length, 1, padded.data() + d * inner, in, inner, (plan.columns - d + in - 1) / in);
        for (int64_t index = 0; index < (int64_t)plan.phases.size(); index++) {
            const Phase& phase = plan.phases[index];
            const A *taps = term.row.data() + phase.first_tap, *row = columns.empty() ? padded.data() : columns.data();
            for (int k = 0; k < phase.taps; k++) shifted[k] = row + shifts[phase.first_tap + k];
            if (split || (in == 1 && step == 1))
                weighted_sum(out + index * longest, 0, shifted.data(), 0, taps, phase.taps, 1, phase.outputs * inner, add);
            else
                weighted_sum(out + index * inner, step * inner, shifted.data(), in * inner, taps, phase.taps, phase.outputs, inner, add);
        }
    }

    // Interleaves phases that were made apart, and converts.
    void finish(const A* out, T* y) {
        if (!split) return copy_pixels(y, 1, out, 1, inner, a.out_w);
        for (int64_t index = 0; index < (int64_t)plan.phases.size(); index++)
            copy_pixels(y + index * inner, plan.period, out + index * longest, 1, inner, plan.phases[index].outputs);
    }

    const Upfirdn2dArgs& a;
    const Plan<A>& plan;
    const int64_t inner, row_stride;
    const bool split;  // narrow pixels: columns and phases are taken apart, so that every loop is long
    const int64_t longest, column_length;
    std::vector<A> padded, columns, result;
    std::vector<const T*> image_rows;
    std::vector<A> weights;
    std::vector<int64_t> shifts;  // of the row that a tap meets, for all phases as in Term::row
    std::vector<const A*> shifted;
};

// Calls make(thread, image, oy, row) for each row of the result: image is the first pixel of x's, row that of y's.
template <class T, class Make>
void for_each_row(const Upfirdn2dArgs& a, const Rows& xr, const Rows& yr, const T* x, T* y, int threads, Make make) {
    share(xr.groups * xr.planes * a.out_h, threads, [&](int64_t thread, int64_t first, int64_t last) {
        for (int64_t row = first; row < last;) {
            const int64_t image = row / a.out_h, plane = image % xr.planes, group = image / xr.planes;
            const T* from = x + group * xr.group_stride + plane * xr.plane_stride;
            T* to = y + group * yr.group_stride + plane * yr.plane_stride;
            for (int64_t oy = row - image * a.out_h; oy < a.out_h && row < last; oy++, row++) make(thread, from, oy, to + oy * yr.row_stride);
        }
    });
}

template <class T, int TAPS, int UP, int DOWN>
void filter_channels(
    const Upfirdn2dArgs& a, const Rows& xr, const Rows& yr, const T* x, const Term<typename Arithmetic<T>::type>& term, T* y, int threads) {
    const ChannelFilter<T, TAPS, UP, DOWN> filter(a, term);
    for_each_row(a, xr, yr, x, y, threads, [&](int64_t, const T* image, int64_t oy, T* row) { filter.make(image, xr.row_stride, oy, row); });
}

// Filters wide pixels with one of the common separable filters; false: this is something else.
template <class T>
bool filter_common(const Upfirdn2dArgs& a, const Rows& xr, const Rows& yr, const T* x, const float* f, T* y, int threads) {
    using A = typename Arithmetic<T>::type;
    if (xr.inner < Lanes<A>::N || a.fw != a.fh || a.up_x != a.up_y || a.down_x != a.down_y) return false;
    const auto terms = filter_terms<A>(a, f);
    if (terms.size() != 1) return false;
    auto is = [&](int taps, int up, int down) { return a.fw == taps && a.up_x == up && a.down_x == down; };
    if (is(4, 1, 1)) return filter_channels<T, 4, 1, 1>(a, xr, yr, x, terms[0], y, threads), true;
    if (is(4, 2, 1)) return filter_channels<T, 4, 2, 1>(a, xr, yr, x, terms[0], y, threads), true;
    if (is(4, 1, 2)) return filter_channels<T, 4, 1, 2>(a, xr, yr, x, terms[0], y, threads), true;
    if (is(12, 1, 1)) return filter_channels<T, 12, 1, 1>(a, xr, yr, x, terms[0], y, threads), true;
    if (is(12, 2, 1)) return filter_channels<T, 12, 2, 1>(a, xr, yr, x, terms[0], y, threads), true;
    if (is(12, 1, 2)) return filter_channels<T, 12, 1, 2>(a, xr, yr, x, terms[0], y, threads), true;
    return false;
}

template <class T>
void filter_rows(const Upfirdn2dArgs& a, const Rows& xr, const Rows& yr, const T* x, const float* f, T* y, int threads) {
    const auto plan = make_plan<typename Arithmetic<T>::type>(a, f);
    std::vector<RowFilter<T>> filters(threads, RowFilter<T>(a, plan, xr));
    for_each_row(a, xr, yr, x, y, threads, [&](int64_t thread, const T* image, int64_t oy, T* row) { filters[thread].make(image, oy, row); });
}

template <class T>
void filter_pixels(const Upfirdn2dArgs& a, const T* x, const float* f, T* y, int threads) {
    const AxisGains gains = axis_gains(a);
    share(a.n * a.c * a.out_h, threads, [&](int64_t, int64_t first, int64_t last) {
        for (int64_t row = first; row < last; row++) {
            const int64_t oy = row % a.out_h, c = row / a.out_h % a.c, n = row / a.out_h / a.c;
            const T* image = x + n * a.x_stride[0] + c * a.x_stride[1];
            T* to = y + n * a.y_stride[0] + c * a.y_stride[1] + oy * a.y_stride[2];
            for (int64_t ox = 0; ox < a.out_w; ox++) narrow(filtered_pixel<T, int64_t>(a, image, f, oy, ox, gains), to[ox * a.y_stride[3]]);
        }
    });
}

template <class T>
int32_t filter(const Upfirdn2dArgs& a, const void* x, const float* f, void* y, int threads) {
    threads = a.n * a.c * a.out_h * a.out_w <= SERIAL ? 1 : std::max(threads, 1);
    const T* from = static_cast<const T*>(x);
    T* to = static_cast<T*>(y);
    Rows xr, yr;
    for (bool channels_last : {a.c > 1, false})
        if (as_rows(a.x_stride, a.n, a.c, a.in_w, channels_last, xr) && as_rows(a.y_stride, a.n, a.c, a.out_w, channels_last, yr)) {
            if (!filter_common(a, xr, yr, from, f, to, threads)) filter_rows(a, xr, yr, from, f, to, threads);
            return OK;
        }
    filter_pixels(a, from, f, to, threads);
    return OK;
}

}  // namespace

EXPORT int32_t upfirdn2d_cpu(const Upfirdn2dArgs* args, const void* x, const float* f, void* y, int32_t threads) try {
    if (!args || !valid(*args)) return BAD_ARGUMENT;
    const Upfirdn2dArgs& a = *args;
    if (a.n == 0 || a.c == 0 || a.out_h == 0 || a.out_w == 0) return OK;
    if (!f || !y || (!x && a.in_h > 0 && a.in_w > 0)) return BAD_ARGUMENT;
    switch (a.dtype) {
        case F32: return filter<float>(a, x, f, y, threads);
        case F64: return filter<double>(a, x, f, y, threads);
        case BF16: return filter<bfloat16>(a, x, f, y, threads);
        default: return BAD_DTYPE;
    }
} catch (const std::bad_alloc&) {
    return OUT_OF_MEMORY;
}
