// The Piano page: performances written by a model, brought as MIDI, drawn; heard, seen, partly written anew.
import "../sound/page.css";
import "./page.css";
import { Cancelled, Job, type Model, post, upload } from "../api";
import { Desk, type Heard } from "../desk";
import { button, check, field, h, notice, numberInput, options, save, Segments, slider, valid } from "../dom";
import type { Page } from "../main";
import { legend } from "../sound/heat";
import { HIGHEST, LOWEST, pitchName } from "../sound/pitch";
import { positionName, Take } from "../sound/take";
import { Transport } from "../sound/transport";
import { toWav } from "../sound/wav";
import { KINDS, type Note, type NoteNats, opening, Performance, type Played, timeName } from "./performance";
import { type Heat, type Mode, mostNats, Roll, type Told, type View } from "./roll";

interface Written extends Played {
  nats: (NoteNats | null)[] | null;
  nats_per_token: number;
  tokens: number;
}

interface Rewritten extends Written {
  candidates: (number | null)[];
}

interface Streamed {
  notes: Note[];
  nats: (NoteNats | null)[];
  until: number;
  shortened?: [number, number, number][];
}

type Playing = Take<Performance, Roll>;

const LONGEST_REWRITE = 60; // seconds
const SHORTEST_REWRITE = 0.25;
const STATED = 5; // seconds
const LEAD = 2; // seconds of what was there before that are heard first
/** What is there again, with all that can be undone, when the page was left and is shown once more. */
const pieces = [new Performance(), new Performance()];
const left = { compare: false, second: false };

export const piano: Page = (root, state) => {
  const models = state.models.filter(({ kind }) => kind === "piano");
  const view: View = { mode: "look", zoom: 40, heat: null, velocity: 64, length: 0.5, locked: false };
  const gone = new AbortController();
  const desk = new Desk(gone.signal, () => working(), () => settle());
  let judging: Job<unknown> | null = null;
  let settling = 0;
  let recording = false; // a file of what is heard

  // Controls ----------------------------------------------------------------------------------------------------

  const listed = models.map((model): [string, string] => [model.id, `${positionName(model.position)} · ${model.label}`]);
  const keys = Array.from({ length: HIGHEST - LOWEST + 1 }, (_, index): [string, string] => [String(LOWEST + index), pitchName(LOWEST + index)]);
  const start = options([["nothing", "nothing"], ["opening", "the first seconds of the piece below"]]);
  const openingSeconds = numberInput(10, 0.5, 900, "any");
  const seconds = numberInput(30, 0.5, 180, "any");
  const model = options(listed);
  const other = options(listed, models.find(({ position }) => position !== models[0]?.position)?.id);
  const compare = check("Compare with a second model", left.compare && models.length > 1, () => arrange());
  compare.input.disabled = models.length < 2;
  const seed = numberInput(1, 0, 2 ** 32 - 1);
  const fresh = check("new one each time", true);
  const autoplay = check("Play while it is written", true);
  const temperature = numberInput(1, 0, 5, "any");
  const topP = numberInput(1, 0.01, 1, "any");
  const lowest = options(keys, String(LOWEST));
  const highest = options(keys, String(HIGHEST));
  const polyphony = options([["", "no limit"], ...[1, 2, 3, 4, 5, 6, 8, 10, 12, 16].map((count): [string, string] => [String(count), String(count)])]);
  const candidates = options([["1", "1: is heard while it is written"], ["4", "4"], ["8", "8"], ["16", "16: fits best, takes longest"]], "4");
  const go = button("Generate", () => void generate(), { className: "primary" });
  const openingField = field("Seconds kept", openingSeconds);
  const file = h("input", { type: "file", accept: ".mid,.midi", "aria-label": "MIDI file", onchange: () => void uploaded() });

  const modes = new Segments<Mode>("What the pointer does", "mode", [["look", "Look"], ["mark", "Mark"], ["draw", "Draw"]], (mode) => setMode(mode));
  const loud = h("span", {}, String(view.velocity));
  const velocity = slider(view.velocity, 1, 127, 1, (value) => {
    view.velocity = value;
    loud.textContent = String(value);
  });
  const length = options([["0.125", "⅛ s"], ["0.25", "¼ s"], ["0.5", "½ s"], ["1", "1 s"], ["2", "2 s"], ["4", "4 s"]], "0.5");
  length.onchange = () => {
    view.length = Number(length.value);
    viewed();
  };
  const undo = button("Undo", () => active.piece.undo(), { title: "Ctrl+Z" });
  const redo = button("Redo", () => active.piece.redo(), { title: "Ctrl+Shift+Z" });
  const rewrite = button("Write marked anew", () => void regenerate(), { disabled: true });
  const unmark = button("Unmark", () => active.roll.clearMarks(), { disabled: true });
  const heat = options([["", "not shown"], ["all", "of the whole note"], ...KINDS.map((kind, index): [string, string] => [String(index), kind])]);
  heat.onchange = () => showHeat();
  const legendPlace = h("div", { hidden: true });
  const empty = button("Empty page to draw on", () => {
    begin({ notes: [], pedal: [] });
    setMode("draw");
    active.roll.canvas.focus();
  });
  const files = (["mid", "png", "wav"] as const).map((format) => button({ mid: "MIDI", png: "PNG", wav: "WAV" }[format], () => void download(format), { disabled: true }));

  // Takes -------------------------------------------------------------------------------------------------------

  const transport = new Transport(
    {
      ready: () => !active.piece.empty || !active.piece.whole,
      at: (time) => shown().forEach((each) => each.roll.at(time, player.playing && each === active)),
      name: (time) => timeName(time, 1),
      undo: () => !desk.busy && active.piece.undo(),
      redo: () => !desk.busy && active.piece.redo(),
    },
    0.1,
    "piano",
    gone.signal,
  );
  const { player } = transport;
  const take = (name: string, piece: Performance): Playing => {
    const told: Told = {
      seek: (time) => player.seek(time),
      sample: (pitch, velocity) => player.sample(pitch, 0, velocity),
      active: () => choose(made),
      marked: () => tell(),
      view: () => viewed(),
      full: () => notice("There is room for no more notes."),
    };
    const made: Playing = new Take(name, piece, new Roll(piece, view, told, name), () => choose(made));
    piece.changed = () => {
      made.roll.update();
      changed(made);
    };
    return made;
  };
  const takes = [take("first model", pieces[0]), take("second model", pieces[1])];
  let active = takes[compare.input.checked && left.second ? 1 : 0];
  const rolls = h("div", { className: "takes" }, ...takes.map(({ root }) => root));

  function shown(): Playing[] {
    return compare.input.checked ? takes : [takes[0]];
  }

  function choose(next: Playing): void {
    if (next === active) return;
    active = next;
    const at = player.position();
    player.source = active.piece;
    transport.length = active.piece.length;
    if (player.playing) player.play(at);
    arrange();
    settle();
  }

  function arrange(): void {
    if (!shown().includes(active)) choose(takes[0]);
    takes.forEach((each) => each.arrange(shown().includes(each), shown().length > 1, each === active));
    rolls.classList.toggle("two", shown().length > 1);
    otherField.hidden = !compare.input.checked;
    openingField.hidden = start.value !== "opening";
    tell();
  }

  function changed(which: Playing): void {
    if (which === active) {
      transport.length = which.piece.length;
      settle();
    }
    tell();
  }

  /** What can be done now, and what is known. */
  function tell(): void {
    const { piece, roll } = active;
    const { busy } = desk;
    const some = !piece.empty;
    player.region = roll.marked;
    view.locked = busy;
    go.disabled = busy || !models.length;
    desk.cancel.disabled = !busy;
    file.disabled = empty.disabled = busy;
    undo.disabled = busy || !piece.canUndo;
    redo.disabled = busy || !piece.canRedo;
    unmark.disabled = !roll.marked;
    rewrite.disabled = busy || !roll.marked || !models.length;
    transport.play.disabled = !some && piece.whole;
    files.forEach((each) => (each.disabled = !some || !piece.whole));
    shown().forEach((each) => each.caption());
  }

  /** What takes longer waits until the piece has been as it is for a while. */
  function settle(): void {
    clearTimeout(settling);
    if (gone.signal.aborted || view.heat === null || !models.length) return;
    settling = window.setTimeout(() => {
      if (!desk.busy && active.piece.whole) void judge();
    }, 400);
  }

  // Jobs --------------------------------------------------------------------------------------------------------

  function working(): void {
    if (desk.busy) judging?.cancel();
    tell();
  }

  const chosen = (select: HTMLSelectElement) => models.find(({ id }) => id === select.value) ?? models[0];

  /** What both ways of writing are told. */
  function wish(by: Model): Record<string, unknown> {
    return {
      model: by.id,
      seed: Number(seed.value),
      keys: [Number(lowest.value), Number(highest.value)],
      polyphony: polyphony.value ? Number(polyphony.value) : null,
      sampling: { temperature: Number(temperature.value), top_p: Number(topP.value) },
    };
  }

  /** Whether what was set can be; a new seed if one is wanted. */
  function prepared(...inputs: HTMLInputElement[]): boolean {
    player.wake();
    if (!valid(seed, temperature, topP, ...inputs)) return false;
    if (Number(lowest.value) > Number(highest.value)) {
      notice("The lowest key is above the highest: choose them the other way round.");
      return false;
    }
    if (fresh.input.checked) seed.value = String(Math.floor(Math.random() * 1e6));
    return true;
  }

  /** Has a model write into a take; what streams in behind `head` is there at once. */
  async function write<T extends Written>(into: Playing, by: Model, kind: string, args: Record<string, unknown>, what: string, head: Played, from: number, until: number, streams = true): Promise<T> {
    desk.check();
    const { piece } = into;
    const origin = { model: by, seed: Number(seed.value), note: kind === "piano.rewrite" ? "around what was kept" : head.notes.length ? "behind what was kept" : "" };
    piece.remember();
    if (streams) {
      piece.origin = origin;
      piece.open(head, from);
      if (into === active && autoplay.input.checked) {
        player.source = piece;
        player.play(Math.max(0, from - LEAD));
      }
    }
    const notes = ({ notes, nats, until: reached, shortened }: Streamed) => {
      piece.add(notes, nats, reached, shortened);
      // In steps: a status is read out, and seconds go by faster than they are said. The meter says it finer.
      desk.say(`${what}: ${timeName(STATED * Math.floor(reached / STATED))} of ${timeName(until)}`, (reached - from) / (until - from));
    };
    try {
      const written = await desk.asked<T>(kind, { ...wish(by), ...args }, what, (streams ? { notes } : {}) as Heard);
      piece.origin = origin;
      piece.whole = true;
      const all = written.nats ?? written.notes.map(() => null);
      piece.replace(written, all, { nats: written.nats_per_token, tokens: written.tokens }, all.every((nats) => nats !== null));
      if (!streams && autoplay.input.checked && into === active && !player.playing) player.play(Math.max(0, from - LEAD));
      return written;
    } catch (error) {
      const kept = streams && kind === "piano.generate" && piece.notes.length > head.notes.length;
      piece.whole = true;
      if (kept) {
        piece.replace(piece, piece.nats);
        if (error instanceof Cancelled && !gone.signal.aborted) notice("Stopped: what had been written is kept. Undo brings back what was there before.", "info");
      } else {
        if (player.starved) player.stop(0);
        piece.takeBack();
      }
      throw error;
    }
  }

  async function generate(): Promise<void> {
    const { piece } = active;
    if (!prepared(seconds, openingSeconds)) return;
    const going = start.value === "opening";
    if (going && piece.empty) return notice("There is no piece yet: open a MIDI file, or draw notes.");
    const source: Played = { notes: piece.notes, pedal: piece.pedal };
    const cut = going ? Math.min(Number(openingSeconds.value), Math.max(...source.notes.map(([onset, duration]) => onset + duration))) : 0;
    if (going && source.notes[0][0] >= cut) return notice(`There is no note in the first ${openingSeconds.value} s: keep more of the piece.`);
    await desk.working(async () => {
      if (compare.input.checked) choose(takes[0]);
      const by: [Playing, HTMLSelectElement][] = compare.input.checked ? [[takes[0], model], [takes[1], other]] : [[active, model]];
      const args = { seconds: Number(seconds.value), opening: going ? source : null, cut: going ? cut : null };
      for (const [into, select] of by) {
        into.roll.clearMarks();
        into.roll.fit(cut + args.seconds);
        const what = by.length > 1 ? `Writing, ${positionName(chosen(select).position)}` : "Writing";
        await write(into, chosen(select), "piano.generate", args, what, going ? opening(source, cut) : { notes: [], pedal: [] }, cut, cut + args.seconds);
      }
    });
  }

  async function regenerate(): Promise<void> {
    const { piece, roll } = active;
    if (!roll.marked) return;
    const [begin, end] = roll.marked;
    if (end - begin > LONGEST_REWRITE) return notice(`Up to ${LONGEST_REWRITE} s are written anew at once, ${(end - begin).toFixed(0)} s are marked: mark fewer.`);
    if (end - begin < SHORTEST_REWRITE) return notice(`At least ${SHORTEST_REWRITE} s are written anew: mark more.`);
    if (!prepared()) return;
    const performance: Played = { notes: piece.notes, pedal: piece.pedal };
    const many = Number(candidates.value);
    await desk.working(async () => {
      const written = await write<Rewritten>(active, chosen(active === takes[1] ? other : model), "piano.rewrite", { performance, begin, end, candidates: many }, "Writing anew", opening(performance, begin), begin, end, many === 1);
      const known = written.candidates.filter((nats) => nats !== null);
      if (known.length > 1) notice(`Of ${many} versions the one is taken that fits best to what follows: ${Math.min(...known).toFixed(2)} nats a token there, up to ${Math.max(...known).toFixed(2)} with others.`, "info");
    });
  }

  /** Asks what surprised, in the background: whoever draws goes on, and what comes too late is dropped. */
  async function judge(): Promise<void> {
    judging?.cancel();
    for (const each of shown()) {
      const { piece } = each;
      if (desk.busy || piece.empty || piece.scored) continue;
      const { notes, pedal } = piece;
      const by = piece.origin.model ?? chosen(each === takes[1] ? other : model);
      const say = (share: number | null = null) => !desk.busy && desk.say("Asking the model what surprises it", share);
      const heard = { progress: ({ done, of }: { done: number; of: number }) => say(done / of) } as Heard;
      const job = new Job<Written>("piano.surprise", { model: by.id, performance: { notes, pedal } }, heard);
      judging = job;
      say();
      try {
        const { nats, nats_per_token, tokens } = await job.result;
        if (piece.notes !== notes) return;
        piece.origin = { ...piece.origin, judge: by };
        piece.replace(piece, nats ?? undefined, { nats: nats_per_token, tokens }, true);
      } catch (error) {
        desk.told(error);
        return;
      } finally {
        if (judging === job) judging = null;
        if (!desk.busy && !judging) desk.say("");
      }
    }
  }

  /** Another model is to judge what none wrote. */
  function judgeAnew(): void {
    for (const { piece } of takes) if (!piece.origin.model && !piece.empty && !desk.busy) piece.replace(piece);
    settle();
  }

  // Files -------------------------------------------------------------------------------------------------------

  async function uploaded(): Promise<void> {
    const [picked] = file.files ?? [];
    if (!picked) return;
    await desk.working(async () => {
      desk.say(`Reading ${picked.name}`);
      const played = await upload<Played & { seconds: number; left_out: number }>("/api/piano/read", picked, state.limits.upload);
      desk.check();
      begin(played);
      const pedal = played.pedal.length, left = played.left_out;
      notice(`${picked.name}: ${timeName(played.seconds)}, ${played.notes.length} ${played.notes.length === 1 ? "note" : "notes"}${pedal ? `, pedal ${pedal} ${pedal === 1 ? "time" : "times"}` : ", no pedal"}${left ? `. It is longer than the studio takes: the ${left} ${left === 1 ? "note" : "notes"} behind are left out` : ""}`, "info");
      if (models.length) start.value = "opening";
      arrange();
    });
    file.value = "";
  }

  /** Another piece in the place of what is shown; where two models are compared, both judge it. */
  function begin({ notes, pedal }: Played): void {
    player.stop(0);
    for (const each of shown()) {
      each.piece.remember();
      each.piece.origin = { model: null, seed: null };
      each.piece.replace({ notes, pedal });
      each.roll.clearMarks();
      each.roll.fit(each.piece.seconds);
    }
  }

  async function download(format: "mid" | "png" | "wav"): Promise<void> {
    const { piece } = active;
    const { seed: drawn } = piece.origin;
    if (format === "wav") {
      if (recording) return;
      recording = true;
      if (!desk.busy) desk.say("Playing it into a file");
    }
    try {
      const performance: Played = { notes: piece.notes, pedal: piece.pedal };
      const made = format === "wav" ? await toWav(piece, 1, "piano") : await (await post("/api/piano/convert", { performance, format, title: "Performance" })).blob();
      save(`piano${drawn === null ? "" : `-seed${drawn}`}.${format}`, made);
    } catch (error) {
      desk.told(error);
    }
    if (format === "wav") recording = false;
    if (!desk.busy) desk.say("");
  }

  // What is heard and seen ---------------------------------------------------------------------------------------

  function setMode(mode: Mode): void {
    view.mode = mode;
    viewed();
  }

  /** The view was changed, maybe by the roll's keys. */
  function viewed(): void {
    modes.value = view.mode;
    takes.forEach(({ roll }) => roll.redraw());
  }

  function showHeat(): void {
    view.heat = heat.value === "" ? null : heat.value === "all" ? "all" : (Number(heat.value) as Heat);
    if (view.heat === null) judging?.cancel();
    recolour();
    viewed();
    settle();
  }

  function recolour(): void {
    legendPlace.hidden = view.heat === null;
    if (view.heat !== null) legendPlace.replaceChildren(legend(mostNats(view.heat)));
  }

  function zoom(by: number): void {
    active.roll.zoom(by);
    viewed();
  }

  // The page ----------------------------------------------------------------------------------------------------

  const otherField = field("Second model", other);
  start.onchange = arrange;
  model.onchange = other.onchange = judgeAnew;
  const hint = models.length === 1 ? "There is only one piano model. To compare PoPE with RoPE, train twins (seqpope train --config maestro-20min on a GPU, maestro-cpu without) and load the page again." : "";
  const writing = () => [
    h("h2", {}, "Write a performance"),
    h("div", { className: "row" }, field("Start from", start), openingField, field("Seconds to write", seconds), field("Model", model), field("Seed", seed), fresh.root),
    h("div", { className: "row" }, compare.root, otherField, hint ? h("small", { className: "soft hint" }, hint) : null),
    h("details", {},
      h("summary", {}, "More: temperature, keys"),
      h("div", { className: "row more" },
        field("Temperature", temperature), field("Top p", topP), field("Lowest key", lowest), field("Highest key", highest),
        field("Notes at once", polyphony), field("Versions to write anew", candidates, "the one is taken that fits best to what follows"))),
    h("div", { className: "row" }, go, desk.cancel, autoplay.root, desk.meter, desk.status),
  ];
  const missing = () => [
    h("h2", {}, "There is no piano model yet"),
    h("div", { className: "lead" },
      h("p", {}, "None comes with seqpope: the performances of MAESTRO that one learns from may not be used commercially (CC BY-NC-SA). Train one, and load this page again:"),
      h("pre", {}, "seqpope prepare maestro\nseqpope train --config maestro-20min     # on a GPU\nseqpope train --config maestro-cpu       # on two cores, in minutes: shows how it works, and plays badly")),
    h("p", { className: "soft hint" }, "Until then, you can open performances, hear and draw them, and download them."),
    h("div", { className: "row" }, desk.status),
  ];
  root.append(
    h("section", { className: "card piano", "aria-label": "Write music" },
      ...(models.length ? writing() : missing()),
      h("div", { className: "row bring" }, field(models.length ? "Or bring a performance: MIDI" : "Bring a performance: MIDI", file), empty),
    ),
    h("section", { className: "card", "aria-label": "The piece" },
      transport.row(),
      h("div", { className: "row" }, modes.root, h("label", { className: "field" }, h("span", {}, "Pencil's velocity ", loud), velocity), field("Pencil's length", length), undo, redo, rewrite, unmark,
        button("−", () => zoom(-1), { "aria-label": "Farther" }), button("+", () => zoom(1), { "aria-label": "Closer" }), models.length ? field("Surprise", heat) : null, legendPlace),
      rolls,
      h("div", { className: "row files" }, h("span", { className: "soft" }, "Download"), ...files, h("small", { className: "soft" }, "No MusicXML: a performance is in seconds and has no bars.")),
      h("details", {}, h("summary", {}, "Keys"), h("p", { id: "roll-help", className: "soft" },
        "Space plays and stops. On the roll: left and right go from note to note in time, up and down to notes beside; with Shift, left and right mark a stretch, Escape unmarks; " +
        "Enter plays from the cursor; Home, End, Page up and down go farther; + and − zoom. D takes the pencil and puts it down: " +
        "then left and right move it by its length, up and down choose a key, Enter writes a note, Delete removes the one that sounds there. Ctrl+Z undoes, Ctrl+Y does again.")),
    ),
  );
  player.source = active.piece;
  transport.length = active.piece.length;
  takes.forEach(({ roll }) => roll.update());
  arrange();
  transport.changed();
  requestAnimationFrame(() => active.piece.empty || active.roll.fit(active.piece.seconds));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolour, { signal: gone.signal });

  return () => {
    Object.assign(left, { compare: compare.input.checked, second: active === takes[1] });
    gone.abort();
    desk.leave();
    judging?.leave();
    clearTimeout(settling);
    pieces.forEach((piece) => (piece.changed = () => {}));
    transport.close();
    takes.forEach(({ roll }) => roll.close());
  };
};
