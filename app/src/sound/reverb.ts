// A room's echo for files: convolution by long Fourier transforms, ten times as fast as a browser's ConvolverNode, which has
// to answer at once.

const SIZE = 1 << 18;

const NEAR = 1 << 12; // numbers that a processor has at hand: transformed to the end before the next ones are
// Of each stage its own, from the place that is half its size: stages then read them in order. Empty until a file is made.
const cosines = new Float32Array(SIZE);
const sines = new Float32Array(SIZE);

export class Reverb {
  /** How many samples are convolved at once; sections are multiples of it but the last one. */
  readonly stride: number;
  private readonly spectra: Complex[];
  private readonly tails: Float32Array[];
  private readonly block: number;
  private readonly work = new Complex();

  /** `echo` is what each side answers to a click. */
  constructor(echo: Float32Array[]) {
    for (let half = 1; half < SIZE; half *= 2) {
      for (let index = 0; index < half; index++) {
        cosines[half + index] = Math.cos((Math.PI * index) / half);
        sines[half + index] = Math.sin((Math.PI * index) / half);
      }
    }
    this.block = SIZE - echo[0].length + 1;
    this.stride = 2 * this.block;
    this.tails = echo.map(({ length }) => new Float32Array(length - 1));
    this.spectra = echo.map((answer) => {
      const spectrum = new Complex();
      spectrum.real.set(answer);
      spectrum.forward();
      return spectrum;
    });
  }

  /** Adds the echo of a stride, or of what is left, to it; what echoes on is added to the next one. */
  add(sides: Float32Array[]): void {
    sides.forEach((dry, side) => {
      // Two stretches at once, as real and imaginary parts: an echo, being real, does not mix them.
      const { work } = this;
      const { real, imaginary } = work;
      real.fill(0).set(dry.subarray(0, this.block));
      imaginary.fill(0).set(dry.subarray(this.block, this.stride));
      work.forward();
      work.multiply(this.spectra[side]);
      work.backward();
      const tail = this.tails[side];
      const wet = new Float32Array(this.stride + tail.length);
      wet.set(real);
      for (let index = 0; index < SIZE; index++) wet[this.block + index] += imaginary[index];
      for (let index = 0; index < tail.length; index++) wet[index] += tail[index];
      for (let index = 0; index < dry.length; index++) dry[index] += wet[index];
      tail.set(wet.subarray(this.stride));
    });
  }
}

/** Numbers and their transform, whose order is that of reversed bits: convolution asks for no other. */
class Complex {
  readonly real = new Float32Array(SIZE);
  readonly imaginary = new Float32Array(SIZE);

  forward(start = 0, size = SIZE): void {
    if (size > NEAR) {
      this.part(start, size / 2);
      this.forward(start, size / 2);
      this.forward(start + size / 2, size / 2);
      return;
    }
    for (let half = size / 2; half >= 1; half /= 2) {
      for (let from = start; from < start + size; from += 2 * half) this.part(from, half);
    }
  }

  private part(from: number, half: number): void {
    const { real, imaginary } = this;
    for (let low = from, high = from + half, turn = half; turn < 2 * half; low++, high++, turn++) {
      const x = real[low] - real[high];
      const y = imaginary[low] - imaginary[high];
      real[low] += real[high];
      imaginary[low] += imaginary[high];
      real[high] = x * cosines[turn] + y * sines[turn];
      imaginary[high] = y * cosines[turn] - x * sines[turn];
    }
  }

  multiply({ real, imaginary }: Complex): void {
    for (let index = 0; index < SIZE; index++) {
      const x = this.real[index];
      const y = this.imaginary[index];
      this.real[index] = (x * real[index] - y * imaginary[index]) / SIZE;
      this.imaginary[index] = (x * imaginary[index] + y * real[index]) / SIZE;
    }
  }

  backward(start = 0, size = SIZE): void {
    if (size > NEAR) {
      this.backward(start, size / 2);
      this.backward(start + size / 2, size / 2);
      this.join(start, size / 2);
      return;
    }
    for (let half = 1; half < size; half *= 2) {
      for (let from = start; from < start + size; from += 2 * half) this.join(from, half);
    }
  }

  private join(from: number, half: number): void {
    const { real, imaginary } = this;
    for (let low = from, high = from + half, turn = half; turn < 2 * half; low++, high++, turn++) {
      const x = real[high] * cosines[turn] - imaginary[high] * sines[turn];
      const y = real[high] * sines[turn] + imaginary[high] * cosines[turn];
      real[high] = real[low] - x;
      imaginary[high] = imaginary[low] - y;
      real[low] += x;
      imaginary[low] += y;
    }
  }
}
