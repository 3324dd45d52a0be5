// Four elements at a time: one 128-bit access in float32 where address and count allow, element by element elsewhere.
#pragma once
#include "philox.cuh"

struct Half {
    unsigned short bits;
};

struct Brain {  // bfloat16
    unsigned short bits;
};

template <class Element>
struct alignas(4 * sizeof(Element)) Packed {
    Element lane[4];
};

__device__ __forceinline__ float from_bits(unsigned bits) {
    float value;
    static_assert(sizeof value == sizeof bits, "float is 32 bits");
    memcpy(&value, &bits, sizeof value);
    return value;
}

__device__ __forceinline__ float widen(float value) { return value; }

__device__ __forceinline__ float widen(Brain value) { return from_bits(static_cast<unsigned>(value.bits) << 16); }

// Exact for all halves: the product with 2^112 moves the exponent's bias and normalises subnormals.
__device__ __forceinline__ float widen(Half value) {
    const unsigned magnitude = value.bits & 0x7fffu, sign = static_cast<unsigned>(value.bits & 0x8000u) << 16;
    if (magnitude >= 0x7c00u) return from_bits(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
    const float scaled = from_bits(magnitude << 13) * 0x1p112f;
    return sign ? -scaled : scaled;
}

template <class Element>
__device__ __forceinline__ bool is_whole(const Element* at, unsigned count) {
    return count >= 4 && reinterpret_cast<unsigned long long>(at) % sizeof(Packed<Element>) == 0;
}

// The next ``count`` elements as they are, at most four; missing lanes are zero.
template <class Element>
__device__ __forceinline__ Packed<Element> load_packed(const Element* at, unsigned count) {
    Packed<Element> packed = {};
    if (is_whole(at, count)) {
        packed = *reinterpret_cast<const Packed<Element>*>(at);
    } else {
#pragma unroll
        for (unsigned i = 0; i < 4; ++i)
            if (i < count) packed.lane[i] = at[i];
    }
    return packed;
}

// The same, widened.
template <class Element>
__device__ __forceinline__ Four load(const Element* at, unsigned count) {
    const Packed<Element> packed = load_packed(at, count);
    Four out;
#pragma unroll
    for (int i = 0; i < 4; ++i) out.lane[i] = widen(packed.lane[i]);
    return out;
}

template <class Element>
__device__ __forceinline__ void store(Element* at, unsigned count, const Packed<Element>& values) {
    if (is_whole(at, count)) {
        *reinterpret_cast<Packed<Element>*>(at) = values;
    } else {
#pragma unroll
        for (unsigned i = 0; i < 4; ++i)
            if (i < count) at[i] = values.lane[i];
    }
}

__device__ __forceinline__ void store(float* at, unsigned count, const Four& values) {
    Packed<float> packed;
#pragma unroll
    for (int i = 0; i < 4; ++i) packed.lane[i] = values.lane[i];
    store(at, count, packed);
}

// clip(value, -1, 1), but NaN of what is no finite number: a network that fails must be known to, and a clip would hide it.
__device__ __forceinline__ float bounded(float value) {
    return (value < -1.0f ? -1.0f : value > 1.0f ? 1.0f : value) + 0.0f * value;
}
