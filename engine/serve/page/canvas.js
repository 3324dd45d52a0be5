// Canvases that are sharp on every screen, and speak the page's colours.

/**
 * An empty canvas of its element's size, whose unit is a CSS pixel.
 * @param {HTMLCanvasElement} canvas
 * @returns {{context: CanvasRenderingContext2D, width: number, height: number, ink: (name: string) => string}}
 */
export function pen(canvas) {
  const { clientWidth: width, clientHeight: height } = canvas;
  const style = getComputedStyle(canvas);
  canvas.width = Math.round(width * devicePixelRatio);
  canvas.height = Math.round(height * devicePixelRatio);
  const context = canvas.getContext("2d");
  context.scale(devicePixelRatio, devicePixelRatio);
  context.font = `11px ${style.fontFamily}`;
  return { context, width, height, ink: (name) => style.getPropertyValue(name) };
}
