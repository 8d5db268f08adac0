// The conversation: questions, answers, other versions of them, and two variants side by side.

import { AnswerView } from "./answer.js";
import { $, announce, button, element } from "./dom.js";
import { saveChat } from "./stored.js";
import { historyOf, newAnswer, write } from "./writing.js";

const TITLE_LENGTH = 60;
const SAID_LENGTH = 400;
const NEAR_END = 80;  // pixels

/** Shows a conversation and lets it grow.
 *
 * `status()` returns the latest status. `changed()` is called when writing begins or ends, `failed`
 * with what went wrong, `edit` with a question that is to be changed, and `again()` when another
 * version of the last answer is wanted.
 */
export class Conversation {
  constructor(callbacks) {
    this.callbacks = callbacks;
    this.chat = null;
    this.abort = null;  // of what is being written
    this.written = null;  // the conversation to which it belongs, which may not be the shown one
    this.views = new WeakMap();  // by answer
    this.items = new WeakMap();  // by message: its element, and what that was made of
  }

  get writing() {
    return this.abort !== null;
  }

  show(chat) {
    this.chat = chat;
    this.draw();
    this.toEnd();
  }

  stop() {
    this.abort?.abort();
  }

  /** Stops what is written of a conversation that was deleted. */
  drop(chat) {
    if (this.written === chat) this.stop();
  }

  /** Asks a question. `wishes` are the hints of one answer, or of two that are shown side by side. */
  async send(text, wishes) {
    const { chat } = this;
    const seed = freshSeed();
    if (!chat.messages.length) chat.title = text.trim().split("\n")[0].slice(0, TITLE_LENGTH);
    const answers = wishes.map((hints) => newAnswer(hints, seed));
    chat.messages.push({ text }, { answers, chosen: 0, compared: wishes.length > 1 });
    await this.write(chat, answers);
  }

  /** Writes another version of the last answer. */
  async again(hints) {
    const { chat } = this;
    const message = chat.messages.at(-1);
    const answer = newAnswer(hints, freshSeed());
    message.answers = message.answers.filter((one) => one.text);
    message.chosen = message.answers.push(answer) - 1;
    await this.write(chat, [answer]);
  }

  /** Writes the last answers one after the other, so that none slows another down. */
  async write(chat, answers) {
    const abort = (this.abort = new AbortController());
    this.written = chat;
    saveChat(chat);
    this.draw();
    this.toEnd();
    this.callbacks.changed();
    announce("The answer is being written.");
    const messages = historyOf(chat, chat.messages.length - 2);
    for (const answer of answers) {
      const changed = () => this.follow(() => this.views.get(answer)?.changed());
      if (abort.signal.aborted) answer.state = "stopped";
      else await write(answer, messages, chat.settings, { signal: abort.signal, changed });
    }
    this.abort = this.written = null;
    this.finish(chat, answers);
  }

  finish(chat, answers) {
    const removed = chat.deleted ? [] : saveChat(chat);
    const problem = answers.find((one) => one.error)?.error;
    const gone = removed.length ? `To make room, older conversations were deleted: ${removed.join(", ")}. ` : "";
    announce(gone + (problem?.words ?? said(answers)));
    if (problem) this.callbacks.failed(problem);
    if (this.chat === chat) this.follow(() => this.draw());
    this.callbacks.changed();
  }

  /** Does something, and stays at the end of the conversation if that is what is seen. */
  follow(action) {
    const place = $("conversation");
    const near = place.scrollHeight - place.scrollTop - place.clientHeight < NEAR_END;
    action();
    if (near) requestAnimationFrame(() => this.toEnd());
  }

  toEnd() {
    $("conversation").scrollTop = $("conversation").scrollHeight;
  }

  /** Shows all messages. Those that have not changed stay, with what is opened and focused in them. */
  draw() {
    const { messages } = this.chat;
    const list = $("messages");
    $("welcome").hidden = messages.length > 0;
    const items = messages.map((message, place) => this.itemOf(message, place >= messages.length - 2 && !this.writing));
    items.forEach((item, place) => {
      const shown = list.children[place];
      if (shown !== item) shown ? shown.replaceWith(item) : list.append(item);
    });
    while (list.children.length > items.length) list.lastChild.remove();
  }

  itemOf(message, last) {
    const { answers, chosen } = message;
    const made = JSON.stringify([last, chosen, answers?.map((one) => one.state), this.callbacks.status() === null]);
    const known = this.items.get(message);
    if (known?.made === made) return known.item;
    const item = element("li", {}, answers ? this.answersOf(message, last) : this.questionOf(message, last));
    this.items.set(message, { item, made });
    return item;
  }

  questionOf(message, last) {
    const edit = last ? button("Edit", () => this.edit(), { "aria-label": "Change the question" }) : null;
    const text = element("div", { className: "question" }, message.text);
    return element("article", { className: "asked", "aria-label": "You" }, text, edit);
  }

  /** Takes the last question back, to be changed. */
  edit() {
    const [{ text }] = this.chat.messages.splice(-2);
    saveChat(this.chat);
    this.draw();
    this.callbacks.edit(text);
  }

  answersOf(message, last) {
    const shown = message.compared ? message.answers : [message.answers[message.chosen]];
    const views = shown.map((answer) => {
      const view = new AnswerView(answer, () => this.actionsOf(message, answer, last), this.callbacks.status);
      this.views.set(answer, view);
      return message.compared ? column(view.element, message.answers.indexOf(answer) + 1, answer) : view.element;
    });
    const label = message.compared ? "Two answers" : "Answer";
    return element("article", { className: message.compared ? "side-by-side" : "one", "aria-label": label }, ...views);
  }

  actionsOf(message, answer, last) {
    if (message.compared) {
      const chosen = message.answers[message.chosen] === answer;
      const words = chosen ? "Goes on from here" : "Go on from here";
      const fields = { "aria-pressed": String(chosen) };
      return answer.text ? [button(words, () => this.choose(message, answer), fields)] : [];
    }
    const fields = { className: "again", title: "Write another answer to this" };
    const again = last ? [button("Again", () => this.callbacks.again(), fields)] : [];
    return message.answers.length > 1 ? [...again, this.versionsOf(message)] : again;
  }

  versionsOf(message) {
    const { answers, chosen } = message;
    const turn = (step) => this.choose(message, answers[chosen + step]);
    return element("span", { className: "versions", role: "group", "aria-label": "Versions of the answer" },
      button("‹", () => turn(-1), { disabled: chosen === 0, "aria-label": "The version before" }),
      `${chosen + 1} of ${answers.length}`,
      button("›", () => turn(1), { disabled: chosen === answers.length - 1, "aria-label": "The next version" }));
  }

  choose(message, answer) {
    message.chosen = message.answers.indexOf(answer);
    saveChat(this.chat);
    this.draw();
    this.views.get(answer)?.element.querySelector("[aria-pressed], .versions :enabled")?.focus();
  }
}

const freshSeed = () => crypto.getRandomValues(new Uint32Array(1))[0];

function column(content, number, { hints }) {
  const title = hints.variant ?? "chosen by the controller";
  return element("section", { "aria-label": `Answer ${number}: ${title}` }, element("h3", {}, title), content);
}

/** Returns what screen readers say of finished answers: that they are there, and how they begin. */
function said(answers) {
  if (answers.some((one) => one.state === "stopped")) return "Stopped.";
  const text = answers.map((one) => one.text).join(" ").slice(0, SAID_LENGTH);
  return `${answers.length > 1 ? "Both answers are" : "The answer is"} here: ${text}`;
}
