// Emphasis, code, links and line breaks within a paragraph of Markdown, as nodes.
//
// Nothing here becomes markup: every character of the text ends in a text node or an address that
// was checked. A search that found nothing is not repeated, so that the time grows with the length.

import { element } from "./dom.js";

const MOST_NESTED = 8;
const LONGEST_LABEL = 500;
const LONGEST_ADDRESS = 2000;
const PROTOCOLS = new Set(["http:", "https:", "mailto:"]);
const MARKS = [["**", "strong"], ["__", "strong"], ["~~", "del"], ["*", "em"], ["_", "em"]];
const ESCAPABLE = /[!-/:-@[-`{-~]/;
const BARE = /https?:\/\/[^\s<>"'`]+/y;
const BREAK = /<br ?\/?>/iy;
const LETTER = /[\p{L}\p{N}]/u;

/** Returns the nodes of a text. */
export function inlineNodes(text, depth = 0) {
  const nodes = [];
  const missing = new Set();  // marks that no later place closes
  let plain = "";
  const add = (node) => {
    if (plain) nodes.push(document.createTextNode(plain));
    plain = "";
    nodes.push(node);
  };
  let at = 0;
  while (at < text.length) {
    const found = depth < MOST_NESTED ? construct(text, at, depth, missing) : null;
    if (found) {
      if (typeof found.node === "string") plain += found.node;
      else add(found.node);
      at = found.end;
    } else {
      plain += text[at];
      at += 1;
    }
  }
  if (plain) nodes.push(document.createTextNode(plain));
  return nodes;
}

/** Returns what begins at a place, `{node, end}`, or null for a plain character. */
function construct(text, at, depth, missing) {
  switch (text[at]) {
    case "\n": return { node: element("br"), end: at + 1 };
    case "\\": return escaped(text, at);
    case "`": return code(text, at, missing);
    case "*": case "_": case "~": return emphasis(text, at, depth, missing);
    case "!": return text[at + 1] === "[" ? link(text, at + 1, depth, "picture: ") : null;
    case "[": return link(text, at, depth, "");
    case "<": return angle(text, at);
    case "h": return LETTER.test(text[at - 1] ?? "") ? null : bareAddress(text, at);
    default: return null;
  }
}

function escaped(text, at) {
  const next = text[at + 1] ?? "";
  if (next === "\n") return { node: element("br"), end: at + 2 };
  return ESCAPABLE.test(next) ? { node: next, end: at + 2 } : null;
}

function code(text, at, missing) {
  let ticks = at;
  while (text[ticks] === "`") ticks += 1;
  const fence = text.slice(at, ticks);
  if (missing.has(fence)) return { node: fence, end: ticks };
  let end = text.indexOf(fence, ticks);
  while (end >= 0 && text[end + fence.length] === "`") {
    let next = end;
    while (text[next] === "`") next += 1;
    end = text.indexOf(fence, next);
  }
  if (end < 0) {
    missing.add(fence);
    return { node: fence, end: ticks };
  }
  let inner = text.slice(ticks, end).replaceAll("\n", " ");
  if (inner.startsWith(" ") && inner.endsWith(" ") && inner.trim()) inner = inner.slice(1, -1);
  return { node: element("code", {}, inner), end: end + fence.length };
}

function emphasis(text, at, depth, missing) {
  for (const [mark, name] of MARKS) {
    if (!text.startsWith(mark, at) || missing.has(mark)) continue;
    const begin = at + mark.length;
    if (!/\S/.test(text[begin] ?? "") || (mark[0] === "_" && LETTER.test(text[at - 1] ?? ""))) continue;
    const end = closing(text, begin, mark);
    if (end < 0) {
      missing.add(mark);
      continue;
    }
    const inner = inlineNodes(text.slice(begin, end), depth + 1);
    return { node: element(name, {}, ...inner), end: end + mark.length };
  }
  const mark = text[at];  // a run that means nothing is passed at once
  let end = at;
  while (text[end] === mark) end += 1;
  return end - at > 2 ? { node: text.slice(at, end), end } : null;
}

/** Returns where a mark closes what begins at a place; -1 for nowhere. */
function closing(text, begin, mark) {
  for (let end = text.indexOf(mark, begin + 1); end >= 0; end = text.indexOf(mark, end + 1)) {
    const after = text[end + mark.length] ?? "";
    if (/\s/.test(text[end - 1]) || text[end - 1] === "\\") continue;
    if (mark.length === 1 && (text[end - 1] === mark || after === mark)) continue;  // of a double one
    if (mark.length === 2 && after === mark[0] && text[end + 3] !== mark[0]) end += 1;  // `***`
    if (mark[0] === "_" && LETTER.test(text[end + mark.length] ?? "")) continue;
    return end;
  }
  return -1;
}

/** A link `[label](address "title")`; pictures are links, since nothing foreign is loaded. */
function link(text, at, depth, before) {
  let open = 0;
  let end = at;
  for (; end < text.length && end - at < LONGEST_LABEL; end += 1) {
    if (text[end] === "[") open += 1;
    else if (text[end] === "]" && (open -= 1) === 0) break;
  }
  if (text[end] !== "]" || text[end + 1] !== "(") return null;
  const close = closingBracket(text, end + 1);
  if (close < 0) return null;
  const [address] = text.slice(end + 2, close).trim().split(/\s/, 1);
  const label = inlineNodes(text.slice(at + 1, end), depth + 1);
  const node = anchor(address, [before, ...label]);
  return node && { node, end: close + 1 };
}

function closingBracket(text, at) {
  let open = 0;
  for (let end = at; end < text.length && end - at < LONGEST_ADDRESS; end += 1) {
    if (text[end] === "\n") return -1;
    if (text[end] === "(") open += 1;
    else if (text[end] === ")" && (open -= 1) === 0) return end;
  }
  return -1;
}

function angle(text, at) {
  BREAK.lastIndex = at;
  const found = BREAK.exec(text);
  if (found) return { node: element("br"), end: at + found[0].length };
  if (!text.startsWith("<http", at)) return null;
  const end = text.slice(at, at + LONGEST_ADDRESS).indexOf(">");
  const address = text.slice(at + 1, at + end);
  const node = end > 0 && !/\s/.test(address) && anchor(address, [address]);
  return node ? { node, end: at + end + 1 } : null;
}

function bareAddress(text, at) {
  BARE.lastIndex = at;
  const found = BARE.exec(text)?.[0].slice(0, LONGEST_ADDRESS);
  if (!found) return null;
  let address = found;
  while (/[.,;:!?*_~)\]]$/.test(address)) {
    if (address.endsWith(")") && address.includes("(")) break;
    address = address.slice(0, -1);
  }
  const node = anchor(address, [address]);
  return node && { node, end: at + address.length };
}

/** Returns a link to an address of the web or of mail; null for any other. */
function anchor(address, children) {
  if (!URL.canParse(address)) return null;
  const target = new URL(address);
  if (!PROTOCOLS.has(target.protocol)) return null;
  const fields = { href: target.href, target: "_blank", rel: "noopener noreferrer nofollow" };
  return element("a", fields, ...children.filter((child) => child !== ""));
}
