// bias_act on the CPU: one pass over memory in blocks, for each of which the biases lie ready as an array.

#include <algorithm>
#include <new>
#include <vector>

#include "abi.h"
#include "activations.h"
#include "numbers.h"
#include "threads.h"

namespace {

constexpr int64_t BLOCK = 512;       // elements
constexpr int64_t SERIAL = 1 << 15;  // elements up to which one thread is faster than several

// The operands of a block, all of n elements but those that are absent. `bias` has all, zeros if there is none.
template <class T>
struct Operands {
    const T *x, *bias, *saved_y, *dy, *ddy;
    T* out;
};

template <class T>
using Numbers = BiasActNumbers<typename Arithmetic<T>::type>;

template <class T, int ACT, int ORDER, bool FROM_RESULT>
void run_block(const Numbers<T>& given, const Operands<T>& o, int64_t n) {
    using A = typename Arithmetic<T>::type;
    const Numbers<T> numbers = with_stored_bound<T>(given);
    const T *x = o.x, *bias = o.bias, *saved_y = o.saved_y, *dy = o.dy, *ddy = o.ddy;
    T* out = o.out;
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        const A value = FROM_RESULT ? A(0) : A(widen(x[i]) + widen(bias[i]));
        const A result = bias_act_element<ACT, ORDER, FROM_RESULT>(
            numbers, value, FROM_RESULT ? A(widen(saved_y[i])) : A(0), ORDER > 0 ? A(widen(dy[i])) : A(0), ORDER > 1 ? A(widen(ddy[i])) : A(0));
        narrow(result, out[i]);
    }
}

template <class T>
using Block = void (*)(const Numbers<T>&, const Operands<T>&, int64_t);

template <class T, int ACT>
Block<T> block_of(int order, bool from_result) {
    if constexpr (ACT <= LRELU)
        if (from_result) return order == 1 ? run_block<T, ACT, 1, true> : run_block<T, ACT, 2, true>;
    return order == 0 ? run_block<T, ACT, 0, false> : order == 1 ? run_block<T, ACT, 1, false> : run_block<T, ACT, 2, false>;
}

template <class T>
Block<T> block_of(int act, int order, bool from_result) {
    switch (act) {
        case RELU: return block_of<T, RELU>(order, from_result);
        case LRELU: return block_of<T, LRELU>(order, from_result);
        case TANH: return block_of<T, TANH>(order, from_result);
        case SIGMOID: return block_of<T, SIGMOID>(order, from_result);
        case ELU: return block_of<T, ELU>(order, from_result);
        case SELU: return block_of<T, SELU>(order, from_result);
        case SOFTPLUS: return block_of<T, SOFTPLUS>(order, from_result);
        case SWISH: return block_of<T, SWISH>(order, from_result);
        default: return block_of<T, LINEAR>(order, from_result);
    }
}

// Gives any block its biases as an array.
template <class T>
class Biases {
  public:
    // The channels of neighbouring elements differ: the biases over and over. Else, or without biases: a block of one value.
    Biases(const BiasActArgs& args, const T* b) : a(args), b(b), values(b && a.step == 1 ? a.channels + BLOCK : BLOCK, narrowed<T>(0)) {
        for (size_t i = 0; b && a.step == 1 && i < values.size(); i++) values[i] = b[i % a.channels];
    }

    // How many elements from `first` on can be one block, at most `most`.
    int64_t block(int64_t first, int64_t most) const {
        return std::min({most, BLOCK, b && a.step > 1 ? a.step - first % a.step : BLOCK});
    }

    const T* of(int64_t first) {
        if (!b) return values.data();
        if (a.step == 1) return values.data() + first % a.channels;
        const int64_t channel = first / a.step % a.channels;
        if (channel != filled) std::fill_n(values.data(), std::min(BLOCK, a.step), b[channel]);
        filled = channel;
        return values.data();
    }

  private:
    const BiasActArgs& a;
    const T* b;
    std::vector<T> values;
    int64_t filled = -1;
};

template <class T>
int32_t run(const BiasActArgs& a, const void* x, const void* b, const void* saved_y, const void* dy, const void* ddy, void* out, int threads) {
    const bool from_result = !x;
    const Block<T> run_one = block_of<T>(a.act, a.order, from_result);
    const auto numbers = bias_act_numbers<typename Arithmetic<T>::type>(a);
    threads = a.size <= SERIAL ? 1 : std::max(threads, 1);
    std::vector<Biases<T>> biases(threads, Biases<T>(a, from_result ? nullptr : static_cast<const T*>(b)));
    auto at = [](const void* p, int64_t i) { return p ? static_cast<const T*>(p) + i : nullptr; };
    share(a.size, threads, [&](int64_t thread, int64_t first, int64_t last) {
        for (int64_t i = first, n; i < last; i += n) {
            n = biases[thread].block(i, last - i);
            run_one(numbers, {at(x, i), biases[thread].of(i), at(saved_y, i), at(dy, i), at(ddy, i), static_cast<T*>(out) + i}, n);
        }
    });
    return OK;
}

}  // namespace

EXPORT int32_t bias_act_cpu(
    const BiasActArgs* args, const void* x, const void* b, const void* saved_y, const void* dy, const void* ddy, void* out, int32_t threads) try {
    if (!args || !valid(*args, x, saved_y, dy, ddy, out)) return BAD_ARGUMENT;
    if (args->size == 0) return OK;
    switch (args->dtype) {
        case F32: return run<float>(*args, x, b, saved_y, dy, ddy, out, threads);
        case F64: return run<double>(*args, x, b, saved_y, dy, ddy, out, threads);
        case BF16: return run<bfloat16>(*args, x, b, saved_y, dy, ddy, out, threads);
        default: return BAD_DTYPE;
    }
} catch (const std::bad_alloc&) {
    return OUT_OF_MEMORY;
}
