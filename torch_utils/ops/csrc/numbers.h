// The number formats of the native ops: how elements are stored, and in what their arithmetic runs.

#pragma once

#include <stdint.h>
#include <string.h>

// HD: functions of numbers that host and device share. DEVICE: what a CUDA thread does, and a CPU thread in a CPU build.
#if defined(__CUDACC__)
#define HD __host__ __device__ __forceinline__
#define DEVICE __device__ __forceinline__
#else
#define HD inline
#define DEVICE inline
#endif

struct bfloat16 {
    uint16_t bits;
};
struct float16 {  // arithmetic in CUDA builds only
    uint16_t bits;
};

// In what an element of type T is computed with: float, but for double.
template <class T>
struct Arithmetic {
    using type = float;
};
template <>
struct Arithmetic<double> {
    using type = double;
};

template <class To, class From>
HD To bit_copy(From from) {
    static_assert(sizeof(To) == sizeof(From), "bits fit");
    To to;
    memcpy(&to, &from, sizeof(To));
    return to;
}

DEVICE double widen(double x) { return x; }
DEVICE float widen(float x) { return x; }
DEVICE float widen(bfloat16 x) { return bit_copy<float>((uint32_t)x.bits << 16); }

DEVICE void narrow(double x, double& to) { to = x; }
DEVICE void narrow(float x, float& to) { to = x; }

// To the nearest bfloat16, ties to even. A NaN stays one: rounding its bits up could make it an infinity.
DEVICE void narrow(float x, bfloat16& to) {
    const uint32_t bits = bit_copy<uint32_t>(x);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1)) >> 16;
    const uint32_t nan = (bits >> 16) | 0x40u;
    to.bits = (uint16_t)((bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
}

#if defined(__CUDACC__)
// The conversions of the PTX language, so that no header beyond the compiler's own is needed.
DEVICE float widen(float16 x) {
    float to;
    asm("cvt.f32.f16 %0, %1;" : "=f"(to) : "h"(x.bits));
    return to;
}
DEVICE void narrow(float x, float16& to) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to.bits) : "f"(x)); }
#endif

template <class T>
DEVICE T narrowed(typename Arithmetic<T>::type x) {
    T to;
    narrow(x, to);
    return to;
}
