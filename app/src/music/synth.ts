// Instruments of oscillators in a generated room: the same for the loudspeaker and for a file.

export const INSTRUMENTS = { organ: "Organ", piano: "Piano", strings: "Strings" } as const;
export type Instrument = keyof typeof INSTRUMENTS;

export interface Sounding {
  /** Let go of the key. */
  stop(when: number): void;
}

interface Timbre {
  /** Amplitudes of the harmonics, fundamental first. */
  harmonics: number[];
  /** Cents that two oscillators lie apart: pipes and strings are never quite in tune. */
  spread: number;
  attack: number;
  release: number;
  /** A struck string's sound fades by itself. */
  fades: boolean;
  loudness: number;
}

const falling = (count: number, power: number) => Array.from({ length: count }, (_, index) => (index + 1) ** -power);

const TIMBRES: Record<Instrument, Timbre> = {
  // A principal with its octave, twelfth and superoctave.
  organ: { harmonics: [1, 0.7, 0.42, 0.38, 0.1, 0.2, 0.05, 0.16, 0.02, 0.04, 0, 0.05], spread: 5, attack: 0.03, release: 0.14, fades: false, loudness: 0.13 },
  piano: { harmonics: falling(18, 1.25), spread: 3, attack: 0.004, release: 0.18, fades: true, loudness: 0.3 },
  strings: { harmonics: falling(24, 1.05), spread: 12, attack: 0.09, release: 0.22, fades: false, loudness: 0.12 },
};
const ROOM_SECONDS = 1.7;
const PLACES = [-0.35, 0.3, -0.15, 0.15]; // of the voices, left to right

/** Noise that dies away, its treble first; always the same, so that files are. */
function room(context: BaseAudioContext): AudioBuffer {
  const length = Math.floor(ROOM_SECONDS * context.sampleRate);
  const buffer = context.createBuffer(2, length, context.sampleRate);
  let seed = 1;
  for (let channel = 0; channel < 2; channel++) {
    const data = buffer.getChannelData(channel);
    let smooth = 0;
    for (let index = 0; index < length; index++) {
      seed = (Math.imul(seed, 1664525) + 1013904223) | 0;
      const age = index / length;
      const kept = 0.25 + 0.7 * age;
      smooth = kept * smooth + (1 - kept) * (seed / 2 ** 31);
      data[index] = smooth * Math.exp(-5.5 * age);
    }
  }
  return buffer;
}

export class Synth {
  private readonly dry: GainNode;
  private readonly waves = new Map<Instrument, PeriodicWave>();
  private readonly places: StereoPannerNode[];
  private readonly alive = new Set<() => void>();

  constructor(private readonly context: BaseAudioContext, output: AudioNode) {
    this.dry = context.createGain();
    const reverb = context.createConvolver();
    reverb.buffer = room(context);
    const wet = context.createGain();
    wet.gain.value = 0.35;
    const limit = context.createDynamicsCompressor();
    limit.threshold.value = -10;
    limit.ratio.value = 6;
    this.dry.connect(limit);
    this.dry.connect(reverb).connect(wet).connect(limit);
    limit.connect(output);
    this.places = PLACES.map((place) => {
      const panner = context.createStereoPanner();
      panner.pan.value = place;
      panner.connect(this.dry);
      return panner;
    });
  }

  start(instrument: Instrument, pitch: number, voice: number, when: number): Sounding {
    const { context } = this;
    const timbre = TIMBRES[instrument];
    const frequency = 440 * 2 ** ((pitch - 69) / 12);
    const envelope = context.createGain();
    // Ears hear high tones as louder, and many harmonics of low ones.
    const loudness = timbre.loudness * 2 ** ((60 - pitch) / 48);
    envelope.gain.setValueAtTime(0, when);
    envelope.gain.linearRampToValueAtTime(loudness, when + timbre.attack);
    const filter = context.createBiquadFilter();
    filter.type = "lowpass";
    if (timbre.fades) {
      envelope.gain.setTargetAtTime(0, when + timbre.attack, 0.4 + Math.max(0, 90 - pitch) / 45);
      filter.frequency.setValueAtTime(Math.min(frequency * 9 + 800, 16000), when);
      filter.frequency.setTargetAtTime(Math.min(frequency * 2 + 300, 16000), when, 0.35);
    } else filter.frequency.value = Math.min(instrument === "strings" ? frequency * 4 + 900 : frequency * 8 + 1500, 16000);
    filter.connect(envelope).connect(this.places[voice]);
    const oscillators = [-0.5, 0.5].map((side) => {
      const oscillator = context.createOscillator();
      oscillator.setPeriodicWave(this.wave(instrument));
      oscillator.frequency.value = frequency;
      oscillator.detune.value = side * timbre.spread;
      oscillator.connect(filter);
      oscillator.start(when);
      return oscillator;
    });
    const cut = () => {
      const now = context.currentTime;
      envelope.gain.cancelScheduledValues(Math.max(now, when));
      envelope.gain.setTargetAtTime(0, now, 0.02);
      for (const oscillator of oscillators) oscillator.stop(Math.max(now, when) + 0.15);
    };
    this.alive.add(cut);
    oscillators[0].onended = () => {
      this.alive.delete(cut);
      envelope.disconnect();
    };
    return {
      stop(end) {
        const last = Math.max(end, when + timbre.attack);
        if (envelope.gain.cancelAndHoldAtTime) envelope.gain.cancelAndHoldAtTime(last);
        envelope.gain.setTargetAtTime(0, last, timbre.release / 3);
        for (const oscillator of oscillators) oscillator.stop(last + timbre.release * 2.5);
      },
    };
  }

  /** Ends all at once, what is yet to begin too. */
  silence(): void {
    this.alive.forEach((cut) => cut());
  }

  private wave(instrument: Instrument): PeriodicWave {
    let wave = this.waves.get(instrument);
    if (!wave) {
      const sines = new Float32Array([0, ...TIMBRES[instrument].harmonics]);
      wave = this.context.createPeriodicWave(new Float32Array(sines.length), sines);
      this.waves.set(instrument, wave);
    }
    return wave;
  }
}
