// Neighbouring elements that a GPU's thread moves at once.

#pragma once

template <class T, int N>
struct alignas(sizeof(T) * N) Pack {
    T value[N];
};
