// The log-mel spectrogram that voices speak, computed in the page: the same numbers as the engine's own analysis.

export const SAMPLE_RATE = 16000; // Hz
export const HOP = 320; // samples: 50 frames a second
export const FRAME_S = HOP / SAMPLE_RATE; // seconds
export const WINDOW = 640; // samples, periodic Hann, followed by zeros up to FFT
export const MELS = 128; // HTK mels from 0 to 8000 Hz
export const LOG_MIN = Math.log(1e-5); // magnitudes are clipped here before the logarithm
const FFT = 1024; // samples
const HIGH_HZ = 8000;

const hann = Float64Array.from({ length: WINDOW }, (_, n) => 0.5 - 0.5 * Math.cos((2 * Math.PI * n) / WINDOW));
const cosines = Float64Array.from({ length: FFT / 2 }, (_, n) => Math.cos((2 * Math.PI * n) / FFT));
const sines = Float64Array.from({ length: FFT / 2 }, (_, n) => -Math.sin((2 * Math.PI * n) / FFT));
const reversed = Uint16Array.from({ length: FFT }, (_, n) => reverseBits(n));
const mel = (hertz) => 1127 * Math.log1p(hertz / 700);
// where each bin lies on the ladder of triangles' edges: it rises in one triangle and falls in the one below
const rungs = Float64Array.from({ length: FFT / 2 + 1 }, (_, bin) => {
  return (mel((bin * SAMPLE_RATE) / FFT) / mel(HIGH_HZ)) * (MELS + 1);
});
const real = new Float64Array(FFT);
const imaginary = new Float64Array(FFT);
const bands = new Float64Array(MELS + 2);

/**
 * One frame of log-mel: natural logarithms of mel-weighted magnitudes.
 * @param {Float32Array} samples sound at SAMPLE_RATE; beyond its end is silence
 * @param {number} start the frame's first sample; the frame reaches WINDOW samples from there
 * @param {Float32Array} [out] where the MELS values go
 * @returns {Float32Array} out
 */
export function logMel(samples, start, out = new Float32Array(MELS)) {
  real.fill(0);
  imaginary.fill(0);
  for (let n = Math.min(WINDOW, samples.length - start) - 1; n >= 0; n--) {
    real[reversed[n]] = samples[start + n] * hann[n];
  }
  transform();
  bands.fill(0);
  for (let bin = 1; bin < FFT / 2; bin++) {
    const magnitude = Math.hypot(real[bin], imaginary[bin]);
    const rung = Math.floor(rungs[bin]);
    const share = rungs[bin] - rung;
    bands[rung + 1] += share * magnitude;
    bands[rung] += (1 - share) * magnitude;
  }
  for (let m = 0; m < MELS; m++) out[m] = Math.max(Math.log(bands[m + 1]), LOG_MIN);
  return out;
}

/** The Fourier transform of `real` and `imaginary`, in place; their order is already bit-reversed. */
function transform() {
  for (let half = 1, stride = FFT / 2; half < FFT; half *= 2, stride /= 2) {
    for (let block = 0; block < FFT; block += 2 * half) {
      for (let n = 0; n < half; n++) {
        const [upper, lower] = [block + n, block + n + half];
        const [c, s] = [cosines[n * stride], sines[n * stride]];
        const re = real[lower] * c - imaginary[lower] * s;
        const im = real[lower] * s + imaginary[lower] * c;
        real[lower] = real[upper] - re;
        imaginary[lower] = imaginary[upper] - im;
        real[upper] += re;
        imaginary[upper] += im;
      }
    }
  }
}

function reverseBits(number) {
  let result = 0;
  for (let bit = 1; bit < FFT; bit *= 2) result = 2 * result + (number & bit ? 1 : 0);
  return result;
}
