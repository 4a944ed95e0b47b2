// The arithmetic of the passes of modulation.h: one element at a time. For CPU and CUDA.

#pragma once

#include <math.h>

#include "modulation.h"
#include "numbers.h"

// The piecewise linear activation: its value is the slope times u, but for the clamp.
template <class A>
struct Epilogue {
    A above, below, bound;  // no clamp: bound is infinite

    DEVICE A slope(A u) const { return u > 0 ? above : below; }

    DEVICE A value(A x, A scale, A shift) const {
        const A u = x * scale + shift, y = slope(u) * u, capped = y > bound ? bound : y;
        return capped < -bound ? -bound : capped;
    }

    // The gradient of u, given that of the value.
    DEVICE A derivative(A x, A scale, A shift, A dy) const {
        const A u = x * scale + shift, steepness = slope(u);
        return fabs(steepness * u) > bound ? A(0) : dy * steepness;
    }
};

template <class A>
Epilogue<A> epilogue_of(const ModulationArgs& a) {
    return {A(a.gain), A(a.gain * a.alpha), a.clamp < 0 ? A(INFINITY) : A(a.clamp)};
}
