// The Chorales page: what is asked of the models, what is heard and seen of their answers.
import "../sound/page.css";
import "./page.css";
import { Cancelled, Job, type Model, post, upload } from "../api";
import { Desk, type Heard } from "../desk";
import { button, check, field, h, notice, numberInput, options, save, Segments, slider, valid } from "../dom";
import type { Page } from "../main";
import { legend } from "../sound/heat";
import { positionName, Take } from "../sound/take";
import { type Instrument, INSTRUMENTS } from "../sound/tones";
import { Transport } from "../sound/transport";
import { toWav } from "../sound/wav";
import { BAR, type Grid, Piece, placeName, PLACES, silentBars, unknown, VOICES } from "./piece";
import { type Mode, MOST_NATS, Roll, type Told, type View } from "./roll";
import { Score } from "./score";

interface Drawn {
  grid: Grid;
  from: number;
  nats: number[][];
  rules_cost: number;
}

interface Wish {
  opening?: Grid;
  given?: (number | null)[][];
}

const USUAL_BARS = 8;
const READABLE = ".mid,.midi,.musicxml,.xml,.mxl,.krn";
/** What is there again, with all that can be undone, when the page was left and is shown once more. */
const pieces = [new Piece(), new Piece()];
const left = { compare: false, second: false, tempo: 80, instrument: "organ" as Instrument };

export const music: Page = (root, state) => {
  const models = state.models.filter(({ kind }) => kind === "chorales");
  const view: View = { mode: "look", voice: 0, length: 4, zoom: 8, heat: false, locked: false };
  const gone = new AbortController();
  const desk = new Desk(gone.signal, () => working(), () => settle());
  let judging: Job<unknown> | null = null;
  let settling = 0;
  let recording = false; // a file of what is heard

  // Controls ----------------------------------------------------------------------------------------------------

  const named = (model: Model) => `${positionName(model.position)} · ${model.label}`;
  const listed = models.map((model): [string, string] => [model.id, named(model)]);

  const start = options([
    ["nothing", "nothing"],
    ["opening", "the first bars of the piece below"],
    ["melody", "a voice of the piece below (harmonise)"],
  ]);
  const model = options(listed);
  const other = options(listed, models.find(({ position }) => position !== models[0]?.position)?.id);
  const compare = check("Compare with a second model", left.compare && models.length > 1, () => arrange());
  compare.input.disabled = models.length < 2;
  const seed = numberInput(1, 0, 2 ** 32 - 1);
  const fresh = check("new one each time", true);
  const bars = numberInput(USUAL_BARS, 1, 32);
  const openingBars = numberInput(2, 1, 63);
  const voice = options(VOICES.map((name, index): [string, string] => [String(index), name]));
  const fits = check("move it into the soprano's range", true);
  const autoplay = check("Play while it is written", true);
  const temperature = numberInput(1, 0, 5, "any");
  const topP = numberInput(1, 0.01, 1, "any");
  const particles = options([["1", "1: looks nowhere ahead"], ["4", "4"], ["8", "8"], ["16", "16: best, takes longest"]], "8");
  const rules = {
    ranges: check("voices within their ranges"),
    no_parallels: check("no parallel fifths and octaves"),
    cadence: check("ends with a cadence"),
    no_rests: check("no rests"),
  };
  const go = button("Generate", () => void generate(), { className: "primary" });
  const barsField = field("Bars to write", bars);
  const openingField = field("Bars kept", openingBars);
  const voiceField = field("Voice kept", voice);
  const file = h("input", { type: "file", accept: READABLE, "aria-label": "MIDI or MusicXML file", onchange: () => void uploaded() });

  const tempo = slider(left.tempo, 30, 200, 1, () => setTempo());
  const tempoShown = h("span", {}, "80");
  const instrument = options(Object.entries(INSTRUMENTS), left.instrument);
  instrument.onchange = () => (player.instrument = instrument.value as Instrument);

  const modes = new Segments<Mode>("What the pointer does", "mode", [["look", "Look"], ["mark", "Mark"], ["draw", "Draw"]], (mode) => setMode(mode));
  const pen = options(VOICES.map((name, index): [string, string] => [String(index), name]));
  pen.onchange = () => {
    view.voice = Number(pen.value);
    takes.forEach(({ roll }) => roll.redraw());
  };
  const length = options([["1", "sixteenth"], ["2", "eighth"], ["4", "quarter"], ["8", "half"], ["16", "whole"]], "4");
  length.onchange = () => (view.length = Number(length.value));
  const undo = button("Undo", () => active.piece.undo(), { title: "Ctrl+Z" });
  const redo = button("Redo", () => active.piece.redo(), { title: "Ctrl+Shift+Z" });
  const rewrite = button("Write marked anew", () => void regenerate(), { disabled: true });
  const unmark = button("Unmark", () => active.roll.clearMarks(), { disabled: true });
  const invert = button("Invert", () => active.roll.invertMarks(), { title: "Mark what is not, and the other way round" });
  const heat = check("Surprise", false, () => showHeat());
  const legendPlace = h("div", { hidden: true });

  const score = new Score((step) => player.seek(step));
  const scoreBox = h("details", { className: "card", ontoggle: () => settle() }, h("summary", {}, h("h2", {}, "Score")), score.root);
  const files = (["mid", "musicxml", "png", "wav"] as const).map((format) =>
    button({ mid: "MIDI", musicxml: "MusicXML", png: "PNG", wav: "WAV" }[format], () => void download(format), { disabled: true }),
  );

  // Takes -------------------------------------------------------------------------------------------------------

  const transport = new Transport(
    {
      ready: () => !active.piece.empty || !active.piece.whole,
      at: (step) => {
        shown().forEach((each) => each.roll.at(step, player.playing && each === active));
        if (scoreBox.open) score.at(player.playing ? step : null, active.piece.grid);
      },
      name: placeName,
      undo: () => !desk.busy && active.piece.undo(),
      redo: () => !desk.busy && active.piece.redo(),
    },
    1,
    left.instrument,
    gone.signal,
  );
  const { player } = transport;
  const take = (name: string, piece: Piece): Take<Piece, Roll> => {
    const told: Told = {
      seek: (step) => player.seek(step),
      sample: (pitch, voice) => player.sample(pitch, PLACES[voice]),
      active: () => choose(made),
      marked: () => tell(),
      view: () => viewed(),
    };
    const made: Take<Piece, Roll> = new Take(name, piece, new Roll(piece, view, told, name), () => choose(made));
    piece.changed = () => {
      made.roll.update();
      changed(made);
    };
    return made;
  };
  const takes = [take("first model", pieces[0]), take("second model", pieces[1])];
  let active = takes[compare.input.checked && left.second ? 1 : 0];
  const rolls = h("div", { className: "takes" }, ...takes.map(({ root }) => root));

  function shown(): Take<Piece, Roll>[] {
    return compare.input.checked ? takes : [takes[0]];
  }

  function choose(next: Take<Piece, Roll>): void {
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
    voiceField.hidden = fits.root.hidden = start.value !== "melody";
    barsField.hidden = start.value === "melody";
    tell();
  }

  function changed(which: Take<Piece, Roll>): void {
    if (which === active) {
      transport.length = which.piece.length;
      settle();
    }
    tell();
  }

  /** What can be done now, and what is known. */
  function tell(): void {
    const { piece, roll } = active;
    const some = !piece.empty;
    const { busy } = desk;
    player.region = roll.markedSteps;
    view.locked = busy;
    go.disabled = busy || !models.length;
    desk.cancel.disabled = !busy;
    file.disabled = empty.disabled = busy;
    undo.disabled = busy || !piece.canUndo;
    redo.disabled = busy || !piece.canRedo;
    unmark.disabled = !player.region;
    invert.disabled = !some;
    rewrite.disabled = busy || !player.region;
    transport.play.disabled = !some && piece.whole;
    files.forEach((each) => (each.disabled = !some || !piece.whole));
    shown().forEach((each) => each.caption());
  }

  /** What takes longer waits until the piece has been as it is for a while. */
  function settle(): void {
    clearTimeout(settling);
    if (gone.signal.aborted) return;
    settling = window.setTimeout(() => {
      if (desk.busy || !active.piece.whole) return;
      if (view.heat) void judge();
      if (!scoreBox.open) return;
      if (active.piece.grid.length) score.show(active.piece.grid, Number(tempo.value)).catch((error) => desk.told(error));
      else score.clear();
    }, 400);
  }

  // Jobs --------------------------------------------------------------------------------------------------------

  function working(): void {
    if (desk.busy) judging?.cancel();
    tell();
  }

  const chosen = (select: HTMLSelectElement) => models.find(({ id }) => id === select.value) ?? models[0];

  /** Has a model write into a take; what streams in is there at once. */
  async function write(into: Take<Piece, Roll>, by: Model, wish: Wish, what: string): Promise<void> {
    desk.check();
    const { piece } = into;
    const opening = wish.opening ?? [];
    const free = wish.given?.findIndex((row) => row.includes(null)) ?? 0;
    const head = wish.given ? (wish.given.slice(0, free) as Grid) : opening;
    const total = wish.given ? wish.given.length : opening.length + Number(bars.value) * BAR;
    piece.remember();
    piece.origin = { model: by, seed: Number(seed.value), note: wish.given ? "around what was kept" : opening.length ? "behind what was kept" : "" };
    into.roll.fit(total);
    let most = 0;
    const written = (share: number) => {
      most = Math.max(most, share);
      desk.say(`${what}: bar ${Math.max(1, Math.ceil(piece.grid.length / BAR))} of ${Math.ceil(total / BAR)}`, most);
    };
    piece.whole = false;
    piece.replace([...head]);
    if (into === active && autoplay.input.checked) {
      player.source = piece;
      player.play(Math.max(0, head.length - BAR));
    }
    try {
      const drawn = await desk.asked<Drawn>(
        "music.generate",
        {
          model: by.id,
          seed: Number(seed.value),
          bars: Number(bars.value),
          particles: Number(particles.value),
          ...wish,
          sampling: { temperature: Number(temperature.value), top_p: Number(topP.value) },
          rules: Object.fromEntries(Object.entries(rules).map(([name, { input }]) => [name, input.checked])),
        },
        what,
        {
          step: (step: { pitches: number[]; nats: number[] }) => {
            piece.add(step.pitches, step.nats);
            written(piece.grid.length / total);
          },
          // Of versions side by side, which agree on bars only later.
          progress: ({ done, of }: { done: number; of: number }) => written(done / of),
        } as Heard,
      );
      piece.whole = true;
      const nats = unknown(drawn.grid.length);
      drawn.nats.forEach((row, index) => (nats[drawn.from + index] = row));
      piece.replace(drawn.grid, nats);
    } catch (error) {
      piece.whole = true;
      if (!wish.given && piece.grid.length > head.length) {
        piece.replace([...piece.grid], piece.nats);
        if (error instanceof Cancelled && !gone.signal.aborted) notice("Stopped: what had been written is kept. Undo brings back what was there before.", "info");
      } else {
        if (player.starved) player.stop(0);
        piece.takeBack();
      }
      throw error;
    }
  }

  async function generate(): Promise<void> {
    player.wake();
    const source = active.piece.grid;
    const melodic = start.value === "melody";
    const kept = Number(voice.value);
    if (!valid(seed, bars, openingBars, temperature, topP)) return;
    if (start.value !== "nothing" && !source.length) return notice("There is no piece yet: upload one, or draw one on empty bars.");
    if (melodic && !source.some((row) => row[kept] >= 0)) return notice(`The ${VOICES[kept]} has no notes: draw some, or choose another voice.`);
    if (fresh.input.checked) seed.value = String(Math.floor(Math.random() * 1e6));
    await desk.working(async () => {
      let wish: Wish = {};
      if (start.value === "opening") wish = { opening: source.slice(0, Number(openingBars.value) * BAR) };
      if (melodic) {
        const shift = kept === 0 && fits.input.checked ? await fitting(source.map((row) => row[0])) : 0;
        wish = { given: source.map((row) => row.map((pitch, index) => (index === kept ? (pitch < 0 ? pitch : pitch + shift) : null))) };
      }
      if (compare.input.checked) choose(takes[0]);
      if (!compare.input.checked) return write(active, chosen(model), wish, "Writing");
      for (const [index, select] of [model, other].entries()) {
        await write(takes[index], chosen(select), wish, `Writing, ${positionName(chosen(select).position)}`);
      }
    });
  }

  async function fitting(line: number[]): Promise<number> {
    const { shift } = await desk.asked<{ shift: number }>("music.fit_melody", { line }, "Fitting the melody");
    if (shift) notice(`The melody is moved ${shift > 0 ? "up" : "down"} by ${Math.abs(shift)} semitones, into the soprano's range.`, "info");
    return shift;
  }

  async function regenerate(): Promise<void> {
    player.wake();
    if (!active.roll.markedSteps) return;
    if (!valid(seed, temperature, topP)) return;
    if (fresh.input.checked) seed.value = String(Math.floor(Math.random() * 1e6));
    const given = active.roll.given;
    await desk.working(() => write(active, chosen(active === takes[1] ? other : model), { given }, "Writing anew"));
  }

  /** Asks what surprised, in the background: whoever draws goes on, and what comes too late is dropped. */
  async function judge(): Promise<void> {
    judging?.cancel();
    for (const each of shown()) {
      const { piece } = each;
      if (desk.busy || !piece.grid.length || piece.scored) continue;
      const { grid } = piece;
      const by = piece.origin.model ?? chosen(each === takes[1] ? other : model);
      const job = new Job<{ nats: number[][] }>("music.surprise", { model: by.id, grid });
      judging = job;
      desk.say("Asking the model what surprises it");
      try {
        const { nats } = await job.result;
        if (piece.grid !== grid) return;
        piece.origin = { ...piece.origin, judge: by };
        piece.replace(grid, nats);
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
    for (const { piece } of takes) if (!piece.origin.model && !piece.empty && !desk.busy) piece.replace(piece.grid);
    settle();
  }

  // Files -------------------------------------------------------------------------------------------------------

  async function uploaded(): Promise<void> {
    const [picked] = file.files ?? [];
    if (!picked) return;
    await desk.working(async () => {
      desk.say(`Reading ${picked.name}`);
      const { grid, voices } = await upload<{ grid: Grid; voices: string[] }>("/api/music/read", picked, state.limits.upload);
      desk.check();
      begin(grid);
      const count = Math.ceil(grid.length / BAR);
      notice(`${picked.name}: ${count} ${count === 1 ? "bar" : "bars"}; ${voices.join(", ")}`, "info");
      if (voices.length === 1) {
        voice.value = String(VOICES.findIndex((name) => name === voices[0]));
        start.value = "melody";
      }
      arrange();
    });
    file.value = "";
  }

  /** Another piece in the place of what is shown; where two models are compared, both judge it. */
  function begin(grid: Grid): void {
    player.stop(0);
    for (const each of shown()) {
      each.piece.remember();
      each.piece.origin = { model: null, seed: null };
      each.piece.replace([...grid]);
      each.roll.clearMarks();
      each.roll.fit(grid.length);
    }
  }

  const empty = button("Empty bars to draw on", () => {
    if (!valid(bars)) return;
    begin(silentBars(bars.checkValidity() ? Number(bars.value) : USUAL_BARS));
    setMode("draw");
    start.value = "melody";
    arrange();
    active.roll.canvas.focus();
  });

  async function download(format: "mid" | "musicxml" | "png" | "wav"): Promise<void> {
    const { piece } = active;
    const { seed: drawn } = piece.origin;
    const name = `chorale${drawn === null ? "" : `-seed${drawn}`}.${format}`;
    if (format === "wav") {
      if (recording) return;
      recording = true;
      if (!desk.busy) desk.say("Playing it into a file");
    }
    try {
      const made =
        format === "wav"
          ? await toWav(piece, player.pace, player.instrument)
          : await (await post("/api/music/convert", { grid: piece.grid, format, tempo: Number(tempo.value), title: "Chorale" })).blob();
      save(name, made);
    } catch (error) {
      desk.told(error);
    }
    if (format === "wav") recording = false;
    if (!desk.busy) desk.say("");
  }

  // What is heard and seen ---------------------------------------------------------------------------------------

  function setTempo(): void {
    player.pace = 15 / Number(tempo.value);
    tempoShown.textContent = tempo.value;
  }

  function setMode(mode: Mode): void {
    view.mode = mode;
    viewed();
  }

  /** The view was changed by the roll's keys. */
  function viewed(): void {
    modes.value = view.mode;
    pen.value = String(view.voice);
    takes.forEach(({ roll }) => roll.redraw());
  }

  function showHeat(): void {
    view.heat = heat.input.checked;
    if (!view.heat) judging?.cancel();
    legendPlace.hidden = !view.heat;
    legendPlace.replaceChildren(legend(MOST_NATS));
    viewed();
    settle();
  }

  function zoom(by: number): void {
    active.roll.zoom(by);
    viewed();
  }

  // The page ----------------------------------------------------------------------------------------------------

  const otherField = field("Second model", other);
  start.onchange = arrange;
  model.onchange = other.onchange = judgeAnew;
  const hint = models.length < 2 ? "There is only one chorale model. To compare PoPE with RoPE, train twins (seqpope train --domain music, about ten minutes without a GPU) and load the page again." : "";
  root.append(
    h("section", { className: "card", "aria-label": "Write music" },
      h("h2", {}, "Write a chorale"),
      h("div", { className: "row" }, field("Start from", start), openingField, voiceField, barsField, field("Model", model), field("Seed", seed), fresh.root, fits.root),
      h("div", { className: "row" }, compare.root, otherField, hint ? h("small", { className: "soft hint" }, hint) : null),
      h("details", {},
        h("summary", {}, "More: temperature, rules"),
        h("div", { className: "row more" },
          field("Temperature", temperature), field("Top p", topP),
          field("Versions tried side by side", particles, "to harmonise and to write anew"),
          h("fieldset", {}, h("legend", {}, "Rules"), ...Object.values(rules).map((rule) => rule.root))),
      ),
      h("div", { className: "row" }, go, desk.cancel, autoplay.root, desk.meter, desk.status),
      h("div", { className: "row bring" }, field("Or bring music: MIDI, MusicXML", file), empty),
    ),
    h("section", { className: "card", "aria-label": "The piece" },
      transport.row(h("label", { className: "field" }, h("span", {}, "Tempo ", tempoShown), tempo), field("Instrument", instrument)),
      h("div", { className: "row" }, modes.root, field("Voice", pen), field("Pencil", length), undo, redo, rewrite, unmark, invert,
        button("−", () => zoom(-1), { "aria-label": "Farther" }), button("+", () => zoom(1), { "aria-label": "Closer" }), heat.root, legendPlace),
      rolls,
      h("div", { className: "row files" }, h("span", { className: "soft" }, "Download"), ...files),
      h("details", {}, h("summary", {}, "Keys"), h("p", { id: "roll-help", className: "soft" },
        "Space plays and stops. On the roll: arrows move the cursor through time and voices; with Shift they mark beats and voices, Escape unmarks; " +
        "Enter plays from the cursor; Home, End, Page up and down go farther; 1 to 4 choose a voice; + and − zoom. D takes the pencil and puts it down: " +
        "then up and down choose a pitch, Enter writes it, Delete makes a rest. Ctrl+Z undoes, Ctrl+Y does again.")),
    ),
    scoreBox,
  );
  if (!models.length) notice("There is no chorale model: neither a shipped one nor one among the runs.");
  player.source = active.piece;
  transport.length = active.piece.length;
  takes.forEach(({ roll }) => roll.update());
  setTempo();
  arrange();
  transport.changed();
  requestAnimationFrame(() => active.piece.empty || active.roll.fit(active.piece.length));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => legendPlace.replaceChildren(legend(MOST_NATS)), { signal: gone.signal });

  return () => {
    Object.assign(left, { compare: compare.input.checked, second: active === takes[1], tempo: Number(tempo.value), instrument: instrument.value });
    gone.abort();
    desk.leave();
    judging?.leave();
    clearTimeout(settling);
    pieces.forEach((piece) => (piece.changed = () => {}));
    transport.close();
    score.clear();
    takes.forEach(({ roll }) => roll.close());
  };
};
