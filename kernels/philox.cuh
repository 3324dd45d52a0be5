// Philox 4x32-10 (Salmon et al., SC 2011) and the normals drawn from it, as in reference.py.
#pragma once

struct Words {
    unsigned word[4];
};

struct alignas(16) Four {
    float lane[4];
};

__device__ __forceinline__ Words philox(unsigned c0, unsigned c1, unsigned c2, unsigned c3, unsigned long long seed) {
    unsigned k0 = static_cast<unsigned>(seed), k1 = static_cast<unsigned>(seed >> 32);
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const unsigned long long first = 0xD2511F53ull * c0, second = 0xCD9E8D57ull * c2;
        c0 = static_cast<unsigned>(second >> 32) ^ c1 ^ k0;
        c2 = static_cast<unsigned>(first >> 32) ^ c3 ^ k1;
        c1 = static_cast<unsigned>(second);
        c3 = static_cast<unsigned>(first);
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return {{c0, c1, c2, c3}};
}

// Box-Muller: radius from 24 bits in (0, 1], angle from 24 bits in [0, 1) of a turn, both exact in float32.
__device__ __forceinline__ Four normals(const Words& words) {
    Four out;
#pragma unroll
    for (int pair = 0; pair < 4; pair += 2) {
        const float uniform = static_cast<float>((words.word[pair] >> 8) + 1u) * 0x1p-24f;
        const float half_turns = static_cast<float>(words.word[pair + 1] >> 8) * 0x1p-23f;
        const float radius = sqrtf(-2.0f * logf(uniform));
        float sine, cosine;
        sincospif(half_turns, &sine, &cosine);
        out.lane[pair] = radius * cosine;
        out.lane[pair + 1] = radius * sine;
    }
    return out;
}
