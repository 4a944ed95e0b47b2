// bias_act on a GPU: what single threads do. Written so that a CPU can run them one after another, which is how they are tested.

#pragma once

#include "abi.h"
#include "activations.h"
#include "numbers.h"
#include "packs.h"

template <class T>
struct BiasActOperands {
    const T *x, *b, *saved_y, *dy, *ddy;
    T* out;
};

// How the biases of a pack lie.
enum class BiasLayout : int32_t { NONE, NEIGHBOURS, SAME, ANY };

inline BiasLayout bias_layout(const BiasActArgs& a, bool bias, int lanes) {
    if (!bias) return BiasLayout::NONE;
    if (a.step == 1 && a.channels % lanes == 0) return BiasLayout::NEIGHBOURS;
    return a.step % lanes == 0 ? BiasLayout::SAME : BiasLayout::ANY;
}

// SMOOTH: the activations after lrelu, else those up to it. Two kernels, so that the simple ones need few registers.
template <class T, class Index, int LANES, int ORDER, bool FROM_RESULT, bool SMOOTH>
struct BiasActPacks {
    using A = typename Arithmetic<T>::type;

    BiasActOperands<T> o;
    BiasActNumbers<A> numbers;
    Index channels, step;
    int32_t act;
    BiasLayout layout;

    // Elements first to first + LANES - 1.
    DEVICE void run(Index first) const {
        A x[LANES], saved[LANES], dy[LANES], ddy[LANES], out[LANES];
        load(FROM_RESULT ? nullptr : o.x, first, x);
        load(FROM_RESULT ? o.saved_y : nullptr, first, saved);
        load(ORDER > 0 ? o.dy : nullptr, first, dy);
        load(ORDER > 1 ? o.ddy : nullptr, first, ddy);
        if (!FROM_RESULT && layout != BiasLayout::NONE) add_bias(first, x);
        if constexpr (!SMOOTH) {
            if (act == LRELU) compute<LRELU>(x, saved, dy, ddy, out);
            else if (act == RELU) compute<RELU>(x, saved, dy, ddy, out);
            else compute<LINEAR>(x, saved, dy, ddy, out);
        } else {
            switch (act) {
                case TANH: compute<TANH>(x, saved, dy, ddy, out); break;
                case SIGMOID: compute<SIGMOID>(x, saved, dy, ddy, out); break;
                case ELU: compute<ELU>(x, saved, dy, ddy, out); break;
                case SELU: compute<SELU>(x, saved, dy, ddy, out); break;
                case SOFTPLUS: compute<SOFTPLUS>(x, saved, dy, ddy, out); break;
                default: compute<SWISH>(x, saved, dy, ddy, out); break;
            }
        }
        Pack<T, LANES> pack;
#pragma unroll
        for (int l = 0; l < LANES; l++) narrow(out[l], pack.value[l]);
        *reinterpret_cast<Pack<T, LANES>*>(o.out + first) = pack;
    }

    DEVICE static void load(const T* from, Index first, A (&to)[LANES]) {
        if (!from) {
#pragma unroll
            for (int l = 0; l < LANES; l++) to[l] = 0;
            return;
        }
        const Pack<T, LANES> pack = *reinterpret_cast<const Pack<T, LANES>*>(from + first);
#pragma unroll
        for (int l = 0; l < LANES; l++) to[l] = widen(pack.value[l]);
    }

    DEVICE void add_bias(Index first, A (&x)[LANES]) const {
        const Index channel = first / step % channels;
#pragma unroll
        for (int l = 0; l < LANES; l++) {
            const Index at = layout == BiasLayout::SAME ? channel : layout == BiasLayout::NEIGHBOURS ? channel + l : (first + l) / step % channels;
            x[l] += widen(o.b[at]);
        }
    }

    template <int ACT>
    DEVICE void compute(const A (&x)[LANES], const A (&saved)[LANES], const A (&dy)[LANES], const A (&ddy)[LANES], A (&out)[LANES]) const {
        const BiasActNumbers<A> stored = with_stored_bound<T>(numbers);
#pragma unroll
        for (int l = 0; l < LANES; l++) out[l] = bias_act_element<ACT, ORDER, FROM_RESULT>(stored, x[l], saved[l], dy[l], ddy[l]);
    }
};
