// The arithmetic of bias_act: activations, their first and second derivatives, gain and clamp. For CPU and CUDA.
//
// Nothing branches on a number: both sides of a choice are computed and one is taken, which vectors and warps do in one go.

#pragma once

#include <math.h>

#include "abi.h"
#include "numbers.h"

constexpr double SELU_ALPHA = 1.6732632423543772848170429916717;  // Klambauer et al. 2017, appendix
constexpr double SELU_SCALE = 1.0507009873554804934193349852946;
constexpr double SOFTPLUS_LINEAR = 20;  // beyond it softplus(x) is x, as in the reference op

template <class A>
DEVICE A sigmoid(A x) {
    return 1 / (1 + exp(-x));
}

template <int ACT, class A>
DEVICE A activation(A x, A alpha) {
    if constexpr (ACT == RELU) return x < 0 ? A(0) : x;  // a NaN stays
    if constexpr (ACT == LRELU) return x > 0 ? x : x * alpha;
    if constexpr (ACT == TANH) return tanh(x);
    if constexpr (ACT == SIGMOID) return sigmoid(x);
    if constexpr (ACT == ELU) {
        const A below = expm1(x);
        return x > 0 ? x : below;
    }
    if constexpr (ACT == SELU) {
        const A below = A(SELU_ALPHA) * expm1(x);
        return A(SELU_SCALE) * (x > 0 ? x : below);
    }
    if constexpr (ACT == SOFTPLUS) {
        const A bent = log1p(exp(x));
        return x > A(SOFTPLUS_LINEAR) ? x : bent;
    }
    if constexpr (ACT == SWISH) return x * sigmoid(x);
    return x;
}

template <int ACT, class A>
DEVICE A first_derivative(A x, A alpha) {
    if constexpr (ACT == RELU) return x <= 0 ? A(0) : A(1);
    if constexpr (ACT == LRELU) return x > 0 ? A(1) : alpha;
    if constexpr (ACT == TANH) {
        const A y = tanh(x);
        return 1 - y * y;
    }
    if constexpr (ACT == SIGMOID) {
        const A y = sigmoid(x);
        return y * (1 - y);
    }
    if constexpr (ACT == ELU) {
        const A below = exp(x);
        return x <= 0 ? below : A(1);
    }
    if constexpr (ACT == SELU) {
        const A below = A(SELU_ALPHA) * exp(x);
        return A(SELU_SCALE) * (x <= 0 ? below : A(1));
    }
    if constexpr (ACT == SOFTPLUS) {
        const A bent = sigmoid(x);
        return x > A(SOFTPLUS_LINEAR) ? A(1) : bent;
    }
    if constexpr (ACT == SWISH) {
        const A s = sigmoid(x);
        return s * (1 + x * (1 - s));
    }
    return A(1);
}

// Zero for the piecewise linear ones.
template <int ACT, class A>
DEVICE A second_derivative(A x) {
    if constexpr (ACT == TANH) {
        const A y = tanh(x);
        return -2 * y * (1 - y * y);
    }
    if constexpr (ACT == SIGMOID) {
        const A y = sigmoid(x);
        return y * (1 - y) * (1 - 2 * y);
    }
    if constexpr (ACT == ELU) {
        const A below = exp(x);
        return x < 0 ? below : A(0);
    }
    if constexpr (ACT == SELU) {
        const A below = A(SELU_SCALE * SELU_ALPHA) * exp(x);
        return x < 0 ? below : A(0);
    }
    if constexpr (ACT == SOFTPLUS) {
        const A s = sigmoid(x);
        const A bent = s * (1 - s);
        return x > A(SOFTPLUS_LINEAR) ? A(0) : bent;
    }
    if constexpr (ACT == SWISH) {
        const A s = sigmoid(x);
        return s * (1 - s) * (2 + x * (1 - 2 * s));
    }
    return A(0);
}

// What is the same for every element.
template <class A>
struct BiasActNumbers {
    A alpha, gain, bound;  // no clamp: bound is NaN, which nothing exceeds
};

template <class A>
BiasActNumbers<A> bias_act_numbers(const BiasActArgs& a) {
    return {A(a.alpha), A(a.gain), a.clamp < 0 ? A(NAN) : A(a.clamp)};
}

// With the bound as an element of type T has it: a result that was clamped must be found at it.
template <class T, class A>
DEVICE BiasActNumbers<A> with_stored_bound(const BiasActNumbers<A>& n) {
    return {n.alpha, n.gain, widen(narrowed<T>(n.bound))};
}

// Whether derivatives of these can be told from the result of order 0 alone: by its sign. A result at the bound counts as clamped.
inline bool derives_from_result(const BiasActArgs& a) { return a.act == LINEAR || a.act == RELU || (a.act == LRELU && a.alpha >= 0); }

// Whether a gradient passes the clamp: at the bound itself it does, at a NaN it does not, as in the reference op.
template <class A>
DEVICE bool within(A y, A bound) {
    return fabs(y) <= bound || bound != bound;
}

// One element. x has its bias. `saved` is the result of order 0, looked at only with FROM_RESULT, when x is not.
template <int ACT, int ORDER, bool FROM_RESULT, class A>
DEVICE A bias_act_element(const BiasActNumbers<A>& n, A x, A saved, A dy, A ddy) {
    if constexpr (FROM_RESULT) {
        const A slope = first_derivative<ACT>(n.gain < 0 ? -saved : saved, n.alpha);
        return ORDER == 1 && within(saved, n.bound) && fabs(saved) != n.bound ? dy * (n.gain * slope) : A(0);
    }
    const A y = n.gain * activation<ACT>(x, n.alpha);
    if constexpr (ORDER == 0) return y < -n.bound ? -n.bound : (y > n.bound ? n.bound : y);
    const A passed = within(y, n.bound) ? dy : A(0);
    if constexpr (ORDER == 1) return passed * (n.gain * first_derivative<ACT>(x, n.alpha));
    return passed * ddy * (n.gain * second_derivative<ACT>(x));
}

inline bool valid(const BiasActArgs& a, const void* x, const void* saved_y, const void* dy, const void* ddy, const void* out) {
    const bool numbers = a.act >= LINEAR && a.act <= SWISH && a.order >= 0 && a.order <= 2 && a.size >= 0 && a.channels >= 1 && a.step >= 1;
    if (!numbers || a.size == 0) return numbers;
    const bool input = x || (a.order > 0 && saved_y && derives_from_result(a));
    return input && out && (a.order < 1 || dy) && (a.order < 2 || ddy);
}
