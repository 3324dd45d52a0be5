// The arithmetic of the denoising loop. Each kernel has its NumPy twin, of the same name, in reference.py.
//
// Built without fused multiply-add, so that everything but the normals equals the twin bit for bit. Elements of a song lie
// along x of the grid, songs along y; every kernel takes any size, alignment and grid. Step, segment and seeds are read
// from memory, so that a captured graph serves every segment of every song. Structures and arguments are layout.py's too.
#include "lanes.cuh"

// One row of a sampler's table; 32 bytes.
struct Row {
    float p, q, a, b, c, d, e;
    unsigned draw;  // which of the segment's draws the step's noise is
};

// What a batch of songs is told once a segment; the songs' seeds follow it.
struct Control {
    unsigned segment;
    float guidance;
};

// Loops over the blocks of four elements that fall to this thread: ``first`` is an element of the song, ``count`` how many
// of the song are left there.
#define FOR_EACH_FOUR(first, count, size)                                                                        \
    for (unsigned long long first = 4ull * (blockIdx.x * blockDim.x + threadIdx.x), count; first < (size);        \
         first += 4ull * gridDim.x * blockDim.x)                                                                  \
        if ((count = (size) - first), true)

__device__ __forceinline__ Four draw_normals(const Control* control, unsigned draw, unsigned long long first) {
    const unsigned long long* seeds = reinterpret_cast<const unsigned long long*>(control + 1);
    return normals(philox(static_cast<unsigned>(first / 4), draw, control->segment, 0u, seeds[blockIdx.y]));
}

// out [B, size]: the standard normals of one draw.
extern "C" __global__ void philox_normal(float* out, const Control* control, unsigned draw, unsigned size) {
    out += static_cast<unsigned long long>(blockIdx.y) * size;
    FOR_EACH_FOUR(first, count, size) store(out + first, count, draw_normals(control, draw, first));
}

// x and x0_previous [B, size] in place; prediction [B, size]; unconditional [B, size] or null, without guidance; noise
// [draws, B, size] or null, to draw it here.
template <class Element>
__device__ __forceinline__ void step(float* x, float* x0_previous, const Element* prediction,
                                     const Element* unconditional, const float* noise, const Row* table_row,
                                     const Control* control, unsigned size) {
    const Row row = *table_row;
    const unsigned long long song = static_cast<unsigned long long>(blockIdx.y) * size;
    const unsigned long long drawn = (static_cast<unsigned long long>(row.draw) * gridDim.y + blockIdx.y) * size;
    FOR_EACH_FOUR(first, count, size) {
        const unsigned long long at = song + first;
        Four model = load(prediction + at, count);
        if (unconditional) {
            const Four without = load(unconditional + at, count);
            const float weight = control->guidance;
#pragma unroll
            for (int i = 0; i < 4; ++i) model.lane[i] = weight * model.lane[i] + (1.0f - weight) * without.lane[i];
        }
        const Four before = load(x + at, count);
        Four clean, next;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            clean.lane[i] = bounded(row.p * before.lane[i] - row.q * model.lane[i]);
            next.lane[i] = row.a * before.lane[i] + row.b * clean.lane[i];
        }
        if (row.c != 0.0f) {
            const Four previous = load(x0_previous + at, count);
#pragma unroll
            for (int i = 0; i < 4; ++i) next.lane[i] += row.c * previous.lane[i];
        }
        if (row.d != 0.0f) {
            const Four random = noise ? load(noise + drawn + first, count) : draw_normals(control, row.draw, first);
#pragma unroll
            for (int i = 0; i < 4; ++i) next.lane[i] += row.d * random.lane[i];
        }
        if (row.e != 0.0f) {
#pragma unroll
            for (int i = 0; i < 4; ++i) next.lane[i] += row.e * model.lane[i];
        }
        store(x + at, count, next);
        store(x0_previous + at, count, clean);
    }
}

#define SAMPLER_STEP(name, Element)                                                                               \
    extern "C" __global__ void name(float* x, float* x0_previous, const Element* prediction,                      \
                                    const Element* unconditional, const float* noise, const Row* row,             \
                                    const Control* control, unsigned size) {                                      \
        step(x, x0_previous, prediction, unconditional, noise, row, control, size);                               \
    }

SAMPLER_STEP(sampler_step_fp32, float)
SAMPLER_STEP(sampler_step_fp16, Half)
SAMPLER_STEP(sampler_step_bf16, Brain)

// A finished mel [B, size] to the context encoder's input [B, size]: bounded(mel).
extern "C" __global__ void mel_to_context(const float* mel, float* context, unsigned size) {
    const unsigned long long song = static_cast<unsigned long long>(blockIdx.y) * size;
    FOR_EACH_FOUR(first, count, size) {
        Four values = load(mel + song + first, count);
#pragma unroll
        for (int i = 0; i < 4; ++i) values.lane[i] = bounded(values.lane[i]);
        store(context + song + first, count, values);
    }
}

// A finished mel [size] to the vocoder's log-mel [size]: (mel + 1) scale + offset. Its twin is in engine/sound/mel.py.
extern "C" __global__ void from_network(const float* mel, float* log_mel, float scale, float offset, unsigned size) {
    FOR_EACH_FOUR(first, count, size) {
        Four values = load(mel + first, count);
#pragma unroll
        for (int i = 0; i < 4; ++i) values.lane[i] = (values.lane[i] + 1.0f) * scale + offset;
        store(log_mel + first, count, values);
    }
}

// audio [B, size] in place, ``hop`` samples of each of the frames of log_mel [B, size / hop, mels]: NaN where a frame holds
// what is no finite number, whatever the vocoder made of that. mels and hop are multiples of four.
extern "C" __global__ void carry_nan(float* audio, const float* log_mel, unsigned mels, unsigned hop, unsigned size) {
    audio += static_cast<unsigned long long>(blockIdx.y) * size;
    log_mel += static_cast<unsigned long long>(blockIdx.y) * (size / hop) * mels;
    FOR_EACH_FOUR(first, count, size) {
        const float* frame = log_mel + first / hop * mels;
        float zero = 0.0f;
        for (unsigned bin = 0; bin < mels; bin += 4) {
            const Four bins = load(frame + bin, 4);
#pragma unroll
            for (int i = 0; i < 4; ++i) zero += 0.0f * bins.lane[i];
        }
        Four samples = load(audio + first, count);
#pragma unroll
        for (int i = 0; i < 4; ++i) samples.lane[i] += zero;
        store(audio + first, count, samples);
    }
}
