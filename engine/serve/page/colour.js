// Colours that eyes see as even steps: made in OKLCH, for the parts of a song and for the spectrogram.

const PART_HUES = [252, 30, 150, 325, 80, 200, 290, 55, 120, 5]; // degrees, neighbours far apart

/**
 * @param {number} lightness 0 to 1
 * @param {number} chroma 0 is grey
 * @param {number} hue degrees
 * @returns {number[]} sRGB, each 0 to 255 (Ottosson 2020)
 */
function oklch(lightness, chroma, hue) {
  const a = chroma * Math.cos((hue * Math.PI) / 180);
  const b = chroma * Math.sin((hue * Math.PI) / 180);
  const l = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3;
  const m = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3;
  const s = (lightness - 0.0894841775 * a - 1.291485548 * b) ** 3;
  return [
    4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
    -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
    -0.0041960863 * l - 0.7034186147 * m + 1.707614701 * s,
  ].map((linear) => {
    const light = Math.min(Math.max(linear, 0), 1);
    return Math.round(255 * (light <= 0.0031308 ? 12.92 * light : 1.055 * light ** (1 / 2.4) - 0.055));
  });
}

/**
 * A part's colour, to which the page gives the lightness that suits its ground.
 * @param {number} index of the part
 * @param {boolean} isDrum drums are grey
 * @returns {string} chroma and hue, as CSS's oklch() takes them
 */
export function partTone(index, isDrum) {
  return `${isDrum ? 0.01 : 0.14} ${PART_HUES[index % PART_HUES.length]}`;
}

/**
 * The spectrogram's colours: lightness goes evenly away from the page's ground.
 * @param {boolean} isDark the page's ground
 * @returns {Uint8ClampedArray} RGBA of 256 loudnesses, one after another
 */
export function colourMap(isDark) {
  const map = new Uint8ClampedArray(4 * 256);
  for (let n = 0; n < 256; n++) {
    const share = n / 255;
    const lightness = isDark ? 0.19 + 0.76 * share : 0.975 - 0.74 * share;
    const hue = isDark ? 285 - 75 * share : 210 + 75 * share;
    map.set([...oklch(lightness, 0.006 + 0.1 * Math.sin(Math.PI * share), hue), 255], 4 * n);
  }
  return map;
}
