// Enough of CUDA for the kernels' own source to compile as host C++: one thread after another runs over the grid.
#pragma once
#include <cmath>
#include <cstring>
#include <utility>

#define __global__ __attribute__((visibility("hidden")))  // C libraries have such names: glibc an ``advance``
#define __device__
#define __forceinline__ inline

struct Index {
    unsigned x, y, z;
};

static thread_local Index blockIdx, threadIdx, blockDim, gridDim;

inline void sincospif(float half_turns, float* sine, float* cosine) {
    const double angle = 3.14159265358979323846 * half_turns;
    *sine = static_cast<float>(std::sin(angle));
    *cosine = static_cast<float>(std::cos(angle));
}

template <class... Arguments, std::size_t... Positions>
void call(void (*kernel)(Arguments...), void** arguments, std::index_sequence<Positions...>) {
    kernel(*static_cast<Arguments*>(arguments[Positions])...);
}

// As cuLaunchKernel: arguments points at each argument's value.
template <class... Arguments>
void launch(void (*kernel)(Arguments...), const unsigned* grid, unsigned threads, void** arguments) {
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {threads, 1, 1};
    for (blockIdx.y = 0; blockIdx.y < grid[1]; ++blockIdx.y)
        for (blockIdx.x = 0; blockIdx.x < grid[0]; ++blockIdx.x)
            for (threadIdx.x = 0; threadIdx.x < threads; ++threadIdx.x)
                call(kernel, arguments, std::index_sequence_for<Arguments...>{});
}
