// Conversions of float16 on a CPU, in place of those that CUDA builds have in numbers.h: so its kernels run in the tests, too.

#pragma once

#include "numbers.h"

inline float widen(float16 x) { return bit_copy<_Float16>(x.bits); }
inline void narrow(float x, float16& to) { to.bits = bit_copy<uint16_t>((_Float16)x); }
