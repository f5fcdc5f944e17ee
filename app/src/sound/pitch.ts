// A piano's keys and their names.
export const LOWEST = 21;
export const HIGHEST = 108;
const NAMES = ["C", "C♯", "D", "E♭", "E", "F", "F♯", "G", "A♭", "A", "B♭", "B"];

export function pitchName(pitch: number): string {
  return pitch < 0 ? "rest" : `${NAMES[pitch % 12]}${Math.floor(pitch / 12) - 1}`;
}

export const isBlack = (pitch: number) => [1, 3, 6, 8, 10].includes(pitch % 12);
