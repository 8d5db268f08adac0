// An answer as it is shown: its text as it grows, its end, its badge, and what can be done with it.

import { badgeOf } from "./badge.js";
import { button, copyBy, element } from "./dom.js";
import { showMarkdown } from "./markdown.js";

/** Shows one answer. `actions(answer)` returns the buttons beside its badge; `status()` the latest status. */
export class AnswerView {
  constructor(answer, actions, status) {
    this.answer = answer;
    this.actions = actions;
    this.status = status;
    this.thoughts = element("details", { className: "thoughts", hidden: true }, element("summary", {}, "Thoughts"), element("div"));
    this.text = element("div", { className: "text" });
    this.foot = element("div", { className: "foot" });
    this.element = element("div", { className: "answer" }, this.thoughts, this.text, this.foot);
    this.waiting = false;
    this.state = null;
    this.refresh();
  }

  /** Shows what has come by now, at most once for each picture that the screen shows. */
  changed() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      this.refresh();
    });
  }

  refresh() {
    const { answer } = this;
    showMarkdown(this.text, answer.text);
    this.thoughts.hidden = !answer.thoughts;
    if (answer.thoughts) showMarkdown(this.thoughts.lastChild, answer.thoughts);
    this.element.classList.toggle("writing", answer.state === "writing");
    if (answer.state !== this.state) {
      this.state = answer.state;
      this.foot.replaceChildren(...this.footOf(answer));
    }
  }

  footOf(answer) {
    if (answer.state === "writing") return [];
    const problem = answer.error ? element("p", { className: "problem" }, answer.error.words) : null;
    const stopped = answer.state === "stopped" && !answer.text ? element("p", { className: "note" }, "Stopped before the first word.") : null;
    const [badge, details] = badgeOf(answer, this.status());
    const copy = answer.text ? button("Copy", () => copyBy(copy, answer.text), { "aria-label": "Copy the answer" }) : null;
    const row = element("div", { className: "row" }, badge, copy, ...this.actions(answer));
    return [problem, stopped, row, details].filter(Boolean);
  }
}
