// The arithmetic of the denoising loop, and what a frame leaves for the next. Each kernel has its NumPy twin, of the same name, in reference.py.
//
// Built without fused multiply-add, so that everything but the normals equals the twin bit for bit. Elements of a song lie
// along x of the grid, songs along y; every kernel takes any size, alignment and grid. Step, segment, place and seeds are
// read from memory, so that a captured graph serves all of every song. Structures and arguments are layout.py's too.
#include "lanes.cuh"

// One row of a sampler's table; 32 bytes.
struct Row {
    float p, q, a, b, c, d, e;
    unsigned draw;  // which of the segment's draws the step's noise is
};

// What a batch of songs is told once a segment, or once a window of live play; the songs' seeds follow it. The last four
// are elements of a song, multiples of four: 0 for a segment.
struct Control {
    unsigned segment;
    float guidance;
    unsigned first;   // of the segment, where a window begins; its end lies in the next one
    unsigned given;   // at a window's beginning, that were played
    unsigned moved;   // from the window before, at most the song's
    unsigned unused;  // keeps the seeds where they may be read
};

// Loops over the blocks of four elements that fall to this thread: ``first`` is an element of the song, ``count`` how many
// of the song are left there.
#define FOR_EACH_FOUR(first, count, size)                                                                        \
    for (unsigned long long first = 4ull * (blockIdx.x * blockDim.x + threadIdx.x), count; first < (size);        \
         first += 4ull * gridDim.x * blockDim.x)                                                                  \
        if ((count = (size) - first), true)

__device__ __forceinline__ Four draw_normals(const Control* control, unsigned draw, unsigned long long first,
                                             unsigned size) {
    const unsigned long long* seeds = reinterpret_cast<const unsigned long long*>(control + 1);
    const unsigned block = control->first / 4 + static_cast<unsigned>(first / 4), of_segment = (size - 1) / 4 + 1;
    const unsigned segment = control->segment + block / of_segment;
    return normals(philox(block % of_segment, draw, segment, 0u, seeds[blockIdx.y]));
}

// out [B, size]: the standard normals of one draw, from the segment's element ``first`` on.
extern "C" __global__ void philox_normal(float* out, const Control* control, unsigned draw, unsigned size) {
    out += static_cast<unsigned long long>(blockIdx.y) * size;
    FOR_EACH_FOUR(first, count, size) store(out + first, count, draw_normals(control, draw, first, size));
}

// x and x0_previous [B, size] in place; prediction [B, size]; unconditional [B, size] or null, without guidance; noise
// [draws, B, size] or null, to draw it here; played [B, size], of which the given elements count, or null for none.
template <class Element>
__device__ __forceinline__ void step(float* x, float* x0_previous, const Element* prediction,
                                     const Element* unconditional, const float* noise, const float* played,
                                     const Row* table_row, const Control* control, unsigned size) {
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
        for (int i = 0; i < 4; ++i) clean.lane[i] = bounded(row.p * before.lane[i] - row.q * model.lane[i]);
        if (played && first < control->given) {
            clean = load(played + at, count);
            if (row.e != 0.0f) {
#pragma unroll
                for (int i = 0; i < 4; ++i) model.lane[i] = (row.p * before.lane[i] - clean.lane[i]) / row.q;
            }
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) next.lane[i] = row.a * before.lane[i] + row.b * clean.lane[i];
        if (row.c != 0.0f) {
            const Four previous = load(x0_previous + at, count);
#pragma unroll
            for (int i = 0; i < 4; ++i) next.lane[i] += row.c * previous.lane[i];
        }
        if (row.d != 0.0f) {
            const Four random =
                noise ? load(noise + drawn + first, count) : draw_normals(control, row.draw, first, size);
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
                                    const Element* unconditional, const float* noise, const float* played,        \
                                    const Row* row, const Control* control, unsigned size) {                      \
        step(x, x0_previous, prediction, unconditional, noise, played, row, control, size);                       \
    }

SAMPLER_STEP(sampler_step_fp32, float)
SAMPLER_STEP(sampler_step_fp16, Half)
SAMPLER_STEP(sampler_step_bf16, Brain)

// From the window before, x [B, size] and its context [B, size], to the next one's: next_context [B, size], bounded, and
// played [B, size], what of it x had, and zeros.
extern "C" __global__ void advance(const float* x, const float* context, float* played, float* next_context,
                                   const Control* control, unsigned size) {
    const unsigned long long song = static_cast<unsigned long long>(blockIdx.y) * size;
    FOR_EACH_FOUR(first, count, size) {
        Four had, before;
#pragma unroll
        for (unsigned i = 0; i < 4; ++i) {
            const unsigned long long at = control->moved + first + (i < count ? i : 0);
            const bool is_context = at < size;
            had.lane[i] = is_context ? x[song + at] : 0.0f;
            before.lane[i] = bounded(is_context ? context[song + at] : x[song + at - size]);
        }
        store(played + song + first, count, had);
        store(next_context + song + first, count, before);
    }
}

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

// What a frame leaves for those after it, of an autoregressive decoder. prediction [songs, mels] goes to ``before``
// [songs, mels], the decoder's input, and into mel [songs, frames, mels] at ``offset``; new_rows [layers, rows, size] into
// own_rows [layers, rows, kept, size] at the frame's number, if that is less than ``kept``. Rows are keys or values of a
// head, counted in 16 bits whatever they hold; strides are from a layer to the next. The number is *begun + offset; *frame
// becomes the next.
extern "C" __global__ void keep_frame(const float* prediction, float* before, float* mel, const Half* new_rows,
                                      Half* own_rows, const unsigned long long* begun, unsigned long long* frame,
                                      unsigned offset, unsigned songs, unsigned frames, unsigned mels, unsigned layers,
                                      unsigned rows, unsigned kept, unsigned size, unsigned new_stride,
                                      unsigned own_stride) {
    const unsigned long long number = *begun + offset;
    for (unsigned long long line = blockIdx.y; line < songs + 1ull * layers * rows; line += gridDim.y) {
        if (line < songs) {
            FOR_EACH_FOUR(first, count, mels) {
                const Packed<float> bins = load_packed(prediction + line * mels + first, count);
                store(before + line * mels + first, count, bins);
                store(mel + (line * frames + offset) * mels + first, count, bins);
            }
        } else if (number < kept) {
            const unsigned long long layer = (line - songs) / rows, row = (line - songs) % rows;
            const Half* given = new_rows + layer * new_stride + row * size;
            Half* place = own_rows + layer * own_stride + (row * kept + number) * size;
            FOR_EACH_FOUR(first, count, size) store(place + first, count, load_packed(given + first, count));
        }
    }
    if (blockIdx.x + blockIdx.y + threadIdx.x == 0) *frame = number + 1;
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
