// The passes around a modulated convolution on the CPU: see modulation.h.
//
// Each is one pass over the activations with the channels as the vector. Threads share out samples, or runs of pixels where nothing is summed,
// so that the sums do not depend on how many threads there are. Sums are kept in float32 over a run of pixels and in float64 over the runs.

#include <new>
#include <type_traits>
#include <vector>

#include "modulation_elements.h"
#include "threads.h"

namespace {

constexpr int64_t RUN = 64;  // pixels that are summed in float32

template <class T>
using Small = typename Arithmetic<T>::type;  // of styles and the like

struct Run {
    int64_t sample, first, last;  // pixels [first, last) of a sample
};

int64_t runs_per_sample(const ModulationArgs& a) { return (a.pixels + RUN - 1) / RUN; }

Run run_at(const ModulationArgs& a, int64_t index) {
    const int64_t per_sample = runs_per_sample(a), first = index % per_sample * RUN;
    return {index / per_sample, first, first + RUN < a.pixels ? first + RUN : a.pixels};
}

int sensible_threads(const ModulationArgs& a, int threads) {
    const bool small = a.n * a.pixels * a.channels < 16384;
    return small || threads < 1 ? 1 : threads;
}

// Room of one thread, made before there are threads since none may throw, for sums of `count` rows of channels: float32 over a run, float64 over all.
template <class A>
struct Sums {
    int64_t channels;
    std::vector<A> run;
    std::vector<double> all;
    Sums(int64_t count, int64_t channels) : channels(channels), run(count * channels), all(count * channels) {}
    A* row(int index) { return run.data() + index * channels; }
    void start() { all.assign(all.size(), 0.0); }
    void end_run() {
        for (size_t i = 0; i < run.size(); i++) {
            all[i] += run[i];
            run[i] = 0;
        }
    }
    void store(int index, A* to) const {
        for (int64_t c = 0; c < channels; c++) to[c] = (A)all[index * channels + c];
    }
};

template <class T>
void modulate(const ModulationArgs& a, const T* x, const Small<T>* styles, T* y, int threads) {
    share(a.n * runs_per_sample(a), threads, [&](int64_t, int64_t begin, int64_t end) {
        const int64_t channels = a.channels;
        for (int64_t index = begin; index < end; index++) {
            const Run run = run_at(a, index);
            const Small<T>* __restrict s = styles + run.sample * channels;
            for (int64_t p = run.first; p < run.last; p++) {
                const int64_t at = (run.sample * a.pixels + p) * channels;
                const T* __restrict from = x + at;
                T* __restrict to = y + at;
#pragma omp simd
                for (int64_t c = 0; c < channels; c++) narrow(widen(from[c]) * s[c], to[c]);
            }
        }
    });
}

template <class T>
void modulate_backward(const ModulationArgs& a, const T* x, const Small<T>* styles, const T* dy, T* dx, Small<T>* dstyles, int threads) {
    std::vector<Sums<Small<T>>> rooms(threads, Sums<Small<T>>(1, a.channels));
    share(a.n, threads, [&](int64_t thread, int64_t begin, int64_t end) {
        const int64_t channels = a.channels, per_sample = runs_per_sample(a);
        Sums<Small<T>>& sums = rooms[thread];
        for (int64_t n = begin; n < end; n++) {
            sums.start();
            const Small<T>* __restrict s = styles + n * channels;
            Small<T>* __restrict ds = sums.row(0);
            for (int64_t r = 0; r < per_sample; r++) {
                const Run run = run_at(a, n * per_sample + r);
                for (int64_t p = run.first; p < run.last; p++) {
                    const int64_t at = (n * a.pixels + p) * channels;
                    const T *__restrict xs = x + at, *__restrict gs = dy + at;
                    T* __restrict to = dx + at;
#pragma omp simd
                    for (int64_t c = 0; c < channels; c++) {
                        const Small<T> g = widen(gs[c]);
                        ds[c] += g * widen(xs[c]);
                        narrow(g * s[c], to[c]);
                    }
                }
                sums.end_run();
            }
            sums.store(0, dstyles + n * channels);
        }
    });
}

template <class T>
void epilogue(const ModulationArgs& a, const T* x, const Small<T>* scale, const Small<T>* noise, const Small<T>* bias, T* y, int threads) {
    const std::vector<Small<T>> zeros(bias ? 0 : a.channels);
    share(a.n * runs_per_sample(a), threads, [&](int64_t, int64_t begin, int64_t end) {
        // Not outside: what a lambda refers to might change with every store, and nothing would be vectorised.
        const int64_t channels = a.channels;
        const Epilogue<Small<T>> act = epilogue_of<Small<T>>(a);
        const Small<T>* __restrict b = bias ? bias : zeros.data();
        for (int64_t index = begin; index < end; index++) {
            const Run run = run_at(a, index);
            const Small<T>* __restrict d = scale + run.sample * channels;
            const Small<T>* shift = noise ? noise + (a.noise_per_sample ? run.sample * a.pixels : 0) : nullptr;
            for (int64_t p = run.first; p < run.last; p++) {
                const int64_t at = (run.sample * a.pixels + p) * channels;
                const Small<T> z = shift ? shift[p] : 0;
                const T* from = x + at;
                T* to = y + at;
#pragma omp simd
                for (int64_t c = 0; c < channels; c++) {
                    narrow(act.value(widen(from[c]), d[c], b[c] + z), to[c]);
                }
            }
        }
    });
}

template <class T>
void epilogue_backward(const ModulationArgs& a, const T* x, const Small<T>* scale, const Small<T>* noise, const Small<T>* bias, const T* dy, T* dx,
                       Small<T>* dscale, Small<T>* dbias, Small<T>* dnoise, int threads) {
    const std::vector<Small<T>> zeros(bias ? 0 : a.channels);
    std::vector<Sums<Small<T>>> rooms(threads, Sums<Small<T>>(2, a.channels));
    share(a.n, threads, [&](int64_t thread, int64_t begin, int64_t end) {
        const int64_t channels = a.channels, per_sample = runs_per_sample(a);
        const Epilogue<Small<T>> act = epilogue_of<Small<T>>(a);
        const Small<T>* __restrict b = bias ? bias : zeros.data();
        Sums<Small<T>>& sums = rooms[thread];
        for (int64_t n = begin; n < end; n++) {
            sums.start();
            const Small<T>* __restrict d = scale + n * channels;
            const Small<T>* shift = noise ? noise + (a.noise_per_sample ? n * a.pixels : 0) : nullptr;
            Small<T> *__restrict dd = sums.row(0), *__restrict db = sums.row(1);
            for (int64_t r = 0; r < per_sample; r++) {
                const Run run = run_at(a, n * per_sample + r);
                for (int64_t p = run.first; p < run.last; p++) {
                    const int64_t at = (n * a.pixels + p) * channels;
                    const Small<T> z = shift ? shift[p] : 0;
                    const T *__restrict xs = x + at, *__restrict gs = dy + at;
                    T* __restrict to = dx + at;
                    Small<T> total = 0;
#pragma omp simd reduction(+ : total)
                    for (int64_t c = 0; c < channels; c++) {
                        const Small<T> v = widen(xs[c]), du = act.derivative(v, d[c], b[c] + z, widen(gs[c]));
                        dd[c] += du * v;
                        db[c] += du;
                        total += du;
                        narrow(du * d[c], to[c]);
                    }
                    if (dnoise) dnoise[n * a.pixels + p] = total;
                }
                sums.end_run();
            }
            sums.store(0, dscale + n * channels);
            sums.store(1, dbias + n * channels);
        }
    });
}

// Runs `pass` for the element type of the arguments, handed over as a null pointer to it.
template <class Pass>
int32_t for_type(const ModulationArgs* a, Pass pass) {
    if (!valid(a) || !a->channels_last) return BAD_ARGUMENT;
    if (a->n == 0 || a->channels == 0) return OK;
    try {
        if (a->dtype == F32) {
            pass((float*)nullptr);
        } else if (a->dtype == F64) {
            pass((double*)nullptr);
        } else if (a->dtype == BF16) {
            pass((bfloat16*)nullptr);
        } else {
            return BAD_DTYPE;
        }
    } catch (const std::bad_alloc&) {
        return OUT_OF_MEMORY;
    }
    return OK;
}

}  // namespace

int32_t modulate_cpu(const ModulationArgs* args, const void* x, const void* styles, void* y, int32_t threads) {
    return for_type(args, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        modulate(*args, (const T*)x, (const Small<T>*)styles, (T*)y, sensible_threads(*args, threads));
    });
}

int32_t modulate_backward_cpu(const ModulationArgs* args, const void* x, const void* styles, const void* dy, void* dx, void* dstyles,
                              int32_t threads) {
    return for_type(args, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        modulate_backward(*args, (const T*)x, (const Small<T>*)styles, (const T*)dy, (T*)dx, (Small<T>*)dstyles, sensible_threads(*args, threads));
    });
}

int32_t epilogue_cpu(const ModulationArgs* args, const void* x, const void* scale, const void* noise, const void* bias, void* y,
                     int32_t threads) {
    return for_type(args, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        epilogue(*args, (const T*)x, (const Small<T>*)scale, (const Small<T>*)noise, (const Small<T>*)bias, (T*)y, sensible_threads(*args, threads));
    });
}

int32_t epilogue_backward_cpu(const ModulationArgs* args, const void* x, const void* scale, const void* noise, const void* bias,
                              const void* dy, void* dx, void* dscale, void* dbias, void* dnoise, int32_t threads) {
    return for_type(args, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        epilogue_backward(*args, (const T*)x, (const Small<T>*)scale, (const Small<T>*)noise, (const Small<T>*)bias, (const T*)dy, (T*)dx,
                          (Small<T>*)dscale, (Small<T>*)dbias, (Small<T>*)dnoise, sensible_threads(*args, threads));
    });
}
