// Values of a region: runs above a threshold, and files of them.

export interface Scored {
  region: string;
  contig: string;
  start: number; // from 0
  end: number; // not in it
  length: number; // of the contig
  strand: string;
  phases: number;
  position: string;
  sequence: string;
  nats: (number | null)[]; // null where the genome has N
  mean: number;
  known: number;
  seconds: number;
}

/** Bases [start, end) of the contig above a threshold, with their mean and highest NLL. */
export interface Run {
  start: number;
  end: number;
  mean: number;
  most: number;
}

export const whole = new Intl.NumberFormat("en");

export const placeName = (contig: string, start: number, end: number): string =>
  `${contig}:${whole.format(start + 1)}-${whole.format(end)}`;

/** Each base's mean with its neighbours, `width` bases in all, those without a value left out. */
export function smoothed(values: (number | null)[], width: number): (number | null)[] {
  if (width <= 1) return values;
  const sums = new Float64Array(values.length + 1);
  const counts = new Int32Array(values.length + 1);
  values.forEach((value, at) => {
    sums[at + 1] = sums[at] + (value ?? 0);
    counts[at + 1] = counts[at] + (value === null ? 0 : 1);
  });
  const before = Math.floor(width / 2);
  return values.map((value, at) => {
    if (value === null) return null;
    const from = Math.max(0, at - before);
    const to = Math.min(values.length, at - before + width);
    return (sums[to] - sums[from]) / (counts[to] - counts[from]);
  });
}

/** Unbroken runs of at least `least` bases whose smoothed value is above the threshold; numbers are of the bases themselves. */
export function runsAbove(scored: Scored, threshold: number, least: number, width: number): Run[] {
  const judged = smoothed(scored.nats, width);
  const runs: Run[] = [];
  for (let at = 0; at < judged.length; ) {
    let end = at;
    let sum = 0;
    let most = -Infinity;
    for (; end < judged.length && (judged[end] ?? -Infinity) > threshold; end++) {
      const value = scored.nats[end] as number;
      sum += value;
      most = Math.max(most, value);
    }
    if (end - at >= least && end > at) runs.push({ start: scored.start + at, end: scored.start + end, mean: sum / (end - at), most });
    at = end + 1;
  }
  return runs;
}

/** The value that a share of the bases is not above. */
export function quantile(values: (number | null)[], share: number): number {
  const known = values.filter((value): value is number => value !== null).sort((a, b) => a - b);
  return known[Math.min(known.length - 1, Math.floor(share * known.length))];
}

/** A number as Python's .7g has it, which `seqpope score` writes; it comes with seven digits already. */
function general(value: number): string {
  const text = value !== 0 && Math.abs(value) < 1e-4 ? value.toExponential() : String(value);
  return text.replace(/e([+-])(\d)$/, "e$10$2");
}

export function bedGraph(scored: Scored): string {
  const lines: string[] = [];
  scored.nats.forEach((value, at) => {
    const start = scored.start + at;
    if (value !== null) lines.push(`${scored.contig}\t${start}\t${start + 1}\t${general(value)}\n`);
  });
  return lines.join("");
}

/** Runs as BED: the fourth column has the mean in nats, the fifth hundreds of a nat up to 1000. */
export const bed = (contig: string, runs: Run[]): string =>
  runs.map((run) => `${contig}\t${run.start}\t${run.end}\tmean=${run.mean.toFixed(4)}\t${Math.max(0, Math.min(1000, Math.round(100 * run.mean)))}\n`).join("");

export function fasta(name: string, description: string, sequence: string): string {
  const lines = sequence.match(/.{1,60}/g) ?? [];
  return `>${`${name} ${description}`.trim()}\n${lines.join("\n")}\n`;
}

/** Part of a file's name. */
export const fileName = (contig: string, start: number, end: number): string => `${contig}_${start + 1}-${end}`.replace(/[^\w.-]/g, "_");

/** Seconds in words. */
export function duration(seconds: number): string {
  if (seconds < 90) return `${Math.max(1, Math.round(seconds))} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}
