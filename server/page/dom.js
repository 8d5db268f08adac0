// Elements of the page, and what is said to screen readers. Text is never parsed as markup.

export const $ = (id) => document.getElementById(id);

/** Returns a new element. Fields with a dash and `role` become attributes, `on` holds listeners. */
export function element(name, fields = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(fields)) {
    if (key === "on") {
      for (const [event, listener] of Object.entries(value)) made.addEventListener(event, listener);
    } else if (key.includes("-") || key === "role") made.setAttribute(key, value);
    else made[key] = value;
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** Returns a button that is no submit button. */
export function button(label, listener, fields = {}) {
  return element("button", { type: "button", on: { click: listener }, ...fields }, label);
}

/** Returns a new element of a drawing. */
export function drawn(name, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** Lets screen readers say a sentence when they are done with what they say now. */
export function announce(sentence) {
  const place = $("announcement");
  place.textContent = "";  // so that the same sentence is said again
  setTimeout(() => (place.textContent = sentence), 50);
}

/** Copies a text, and says on the button that it did. */
export async function copyBy(pressed, text) {
  const copied = (await toClipboard(text)) ? "Copied" : "Not copied: the browser does not allow it";
  const label = pressed.textContent;
  pressed.textContent = copied;
  announce(copied);
  setTimeout(() => (pressed.textContent = label), 1500);
}

async function toClipboard(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {  // pages that are not secure have no clipboard, but this older way
    const focused = document.activeElement;
    const area = element("textarea", { value: text, className: "unseen", readOnly: true });
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    focused?.focus();
    return done;
  }
}
