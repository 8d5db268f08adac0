// Where a question is written, and everything that is asked along with it.

import { $, element } from "./dom.js";
import { apiKey, choices, saveChoices } from "./stored.js";
import { BALANCED, LEVELS, hintsOf, wishWords } from "./wishes.js";

const EXACT = ["variant", "read", "ttft_ms", "tpot_ms", "max_loss"];
const DEFAULTS = { system: "", temperature: null, tokens: null };
const HOTTEST = 5;
const COMPARED = "Both variants are named, so this does not count. They write one after the other, from the same seed.";
const CHOSEN_BY_CONTROLLER = "the server chooses";

/** The form of the questions. `send(text, wishes)` is called to ask, `settingsChanged` after a change. */
export class Composer {
  constructor({ send, stop, settingsChanged }) {
    this.status = null;
    this.settingsChanged = settingsChanged;
    const kept = choices();
    $("level").value = kept.level ?? BALANCED;
    this.defaults = { ...DEFAULTS, ...kept.settings };
    this.offered = {};
    this.kept = kept;
    $("prompt").addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      $("ask").requestSubmit();
    });
    $("prompt").addEventListener("input", grow);
    $("stop").addEventListener("click", stop);
    addEventListener("keydown", (event) => event.key === "Escape" && stop());
    $("ask").addEventListener("submit", (event) => {
      event.preventDefault();
      const text = $("prompt").value;
      if (!text.trim() || $("send").disabled || $("send").hidden) return;
      send(text, this.wishes());
      this.write("");
    });
    for (const id of ["level", "compare", "left", "right", ...EXACT]) {
      $(id).addEventListener("input", () => this.wishesChanged());
    }
    for (const id of ["system", "temperature", "tokens"]) {
      $(id).addEventListener("change", () => this.takeSettings());
    }
  }

  /** Puts a text into the field. */
  write(text) {
    $("prompt").value = text;
    grow();
    $("prompt").focus();
  }

  /** Returns the hints of each answer that is asked for: two where variants are compared. */
  wishes() {
    if (!$("compare").checked) return [this.hints()];
    return ["left", "right"].map((id) => ({ variant: $(id).value, read: "full" }));
  }

  /** Returns the hints of an answer that is compared with none. */
  hints() {
    return hintsOf(Number($("level").value), this.exact(), this.status);
  }

  exact() {
    const valueOf = (id) => ($(id).value !== "" && $(id).type === "number" ? Number($(id).value) : $(id).value);
    return Object.fromEntries(EXACT.map((id) => [id, valueOf(id)]));
  }

  /** Shows what there is to choose from. */
  showStatus(status) {
    const first = this.status === null;
    this.status = status;
    const variants = status.variants.map((one) => one.name);
    const readers = ["full", ...status.readers.map((one) => one.name)];
    const known = JSON.stringify([variants, readers]);
    if (known === this.offered) return;
    this.offered = known;
    offer("variant", variants, CHOSEN_BY_CONTROLLER);
    offer("read", readers, CHOSEN_BY_CONTROLLER);
    offer("left", variants);
    offer("right", variants);
    if (first) this.restore(variants);
    $("compare-choice").hidden = variants.length < 2;
    this.showWishes();
  }

  restore(variants) {
    const { exact = {}, compared = [] } = this.kept;
    for (const id of EXACT) $(id).value = exact[id] ?? "";
    for (const id of ["variant", "read"]) if ($(id).selectedIndex < 0) $(id).value = "";
    $("left").value = variants.includes(compared[0]) ? compared[0] : variants[0];
    $("right").value = variants.includes(compared[1]) ? compared[1] : (variants[2] ?? variants.at(-1));
  }

  /** Shows the settings of a conversation. */
  showSettings({ system, temperature, tokens }) {
    $("system").value = system;
    $("temperature").value = temperature ?? "";
    $("tokens").value = tokens ?? "";
  }

  /** Shows whether an answer is being written, and whether one may be asked for. */
  showState(writing, ready) {
    $("send").hidden = writing;
    $("stop").hidden = !writing;
    $("send").disabled = !ready;
    $("forget-key").hidden = !apiKey();
  }

  takeSettings() {
    const given = $("temperature").value;
    const temperature = given === "" ? null : Math.min(HOTTEST, Math.max(0, Number(given)));
    const tokens = Math.round(Number($("tokens").value)) || null;
    this.defaults = { system: $("system").value, temperature, tokens };
    this.keep();
    this.settingsChanged(this.defaults);
  }

  wishesChanged() {
    this.showWishes();
    this.keep();
  }

  showWishes() {
    const level = Number($("level").value);
    $("level").setAttribute("aria-valuetext", LEVELS[level].name);
    $("level-name").textContent = LEVELS[level].name;
    const compared = $("compare").checked;
    $("wish").textContent = compared ? COMPARED : wishWords(level, this.exact(), this.status);
    $("level").disabled = compared;
    $("compared").hidden = !compared;
  }

  keep() {
    saveChoices({
      level: Number($("level").value),
      exact: this.exact(),
      compared: [$("left").value, $("right").value],
      settings: this.defaults,
    });
  }
}

/** Fits the height of the field to its text. */
function grow() {
  const field = $("prompt");
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight + 2}px`;
}

/** Offers names to choose from, and maybe that the server chooses; what was chosen stays. */
function offer(id, names, none) {
  const chosen = $(id).value;
  const free = none === undefined ? [] : [element("option", { value: "" }, none)];
  $(id).replaceChildren(...free, ...names.map((name) => element("option", { value: name }, name)));
  if (names.includes(chosen)) $(id).value = chosen;
}
