// Markdown of answers as nodes: headings, lists, quotes, tables, rules, and code with a copy button.

import { button, copyBy, element } from "./dom.js";
import { inlineNodes } from "./inline.js";

const MOST_NESTED = 6;
const FENCE = /^ {0,3}(`{3,}|~{3,}) *([^`\s]*)/;
const HEADING = /^ {0,3}(#{1,6})\s+(\S.*)$/;
const RULE = /^ {0,3}([-*_])( *\1){2,} *$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])( +|$)/;
const TAB = "    ";

const shown = new WeakMap();  // the sources of the blocks in a container

/** Shows a text in a container. Blocks that have not changed stay as they are, with their selection. */
export function showMarkdown(container, text) {
  const blocks = blocksOf(text.replaceAll("\r\n", "\n").replaceAll("\t", TAB).split("\n"), 0);
  const sources = blocks.map((block) => block.source);
  const before = shown.get(container) ?? [];
  let same = 0;
  while (same < before.length && before[same] === sources[same]) same += 1;
  while (container.childNodes.length > same) container.lastChild.remove();
  container.append(...blocks.slice(same).map((block) => block.build()));
  shown.set(container, sources);
}

/** Returns the blocks of some lines: the source of each, and what builds its node. */
function blocksOf(lines, depth) {
  const blocks = [];
  let at = 0;
  while (at < lines.length) {
    if (!lines[at].trim()) {
      at += 1;
      continue;
    }
    const begin = at;
    const { end, build } = blockAt(lines, at, depth);
    at = end;
    blocks.push({ source: lines.slice(begin, end).join("\n"), build });
  }
  return blocks;
}

function blockAt(lines, at, depth) {
  const line = lines[at];
  const fence = FENCE.exec(line);
  if (fence) return codeAt(lines, at, fence);
  const heading = HEADING.exec(line);
  if (heading) return { end: at + 1, build: () => headingOf(heading) };
  if (RULE.test(line)) return { end: at + 1, build: () => element("hr") };
  if (depth < MOST_NESTED && QUOTE.test(line)) return quoteAt(lines, at, depth);
  if (depth < MOST_NESTED && ITEM.test(line)) return listAt(lines, at, depth);
  if (line.includes("|") && isDelimiter(lines[at + 1])) return tableAt(lines, at);
  return paragraphAt(lines, at, depth);
}

function paragraphAt(lines, at, depth) {
  let end = at + 1;
  while (end < lines.length && lines[end].trim() && !interrupts(lines, end, depth)) end += 1;
  const text = lines.slice(at, end).map((line) => line.trim()).join("\n");
  return { end, build: () => element("p", {}, ...inlineNodes(text)) };
}

/** Returns whether a line begins another block within a paragraph. */
function interrupts(lines, at, depth) {
  const line = lines[at];
  if (FENCE.test(line) || HEADING.test(line) || RULE.test(line)) return true;
  if (line.includes("|") && isDelimiter(lines[at + 1])) return true;
  if (depth >= MOST_NESTED) return false;
  return QUOTE.test(line) || (ITEM.test(line) && /^ *([-*+]|1[.)]) /.test(line));
}

function headingOf([, marks, text]) {
  const level = Math.min(6, marks.length + 2);  // below the page's own
  return element(`h${level}`, {}, ...inlineNodes(text.trimEnd().replace(/(?<= )#{1,100}$/, "").trimEnd()));
}

function codeAt(lines, at, [, mark, language]) {
  const indent = lines[at].length - lines[at].trimStart().length;
  let end = at + 1;
  const closes = (line) => {
    const trimmed = line.trim();
    return trimmed.length >= mark.length && trimmed === mark[0].repeat(trimmed.length);
  };
  while (end < lines.length && !closes(lines[end])) end += 1;
  const strip = (line) => line.slice(Math.min(indent, line.length - line.trimStart().length));
  const text = lines.slice(at + 1, end).map(strip).join("\n");
  return { end: Math.min(end + 1, lines.length), build: () => codeBlock(text, language) };
}

function codeBlock(text, language) {
  const copy = button("Copy", () => copyBy(copy, text), { "aria-label": "Copy the code" });
  const code = element("pre", { tabIndex: 0, role: "region", "aria-label": "Code" }, element("code", {}, text));
  const head = element("figcaption", {}, element("span", {}, language.slice(0, 30) || "code"), copy);
  return element("figure", { className: "code" }, head, code);
}

function quoteAt(lines, at, depth) {
  let end = at;
  while (end < lines.length && lines[end].trim() && (QUOTE.test(lines[end]) || !interrupts(lines, end, depth))) end += 1;
  const inner = lines.slice(at, end).map((line) => line.replace(QUOTE, ""));
  return { end, build: () => element("blockquote", {}, ...built(inner, depth)) };
}

const built = (lines, depth) => blocksOf(lines, depth + 1).map((block) => block.build());

/** A list goes on over blank lines as long as its items or lines indented below them follow. */
function listAt(lines, at, depth) {
  const [, margin, mark] = ITEM.exec(lines[at]);
  const ordered = /\d/.test(mark);
  const items = [];
  let end = at;
  while (end < lines.length) {
    const item = ITEM.exec(lines[end]);
    if (!item || item[1].length > margin.length + 3 || /\d/.test(item[2]) !== ordered || RULE.test(lines[end])) break;
    const body = [lines[end].slice(item[0].length)];
    const indent = item[1].length + item[2].length + 1;
    for (end += 1; end < lines.length && belongs(lines, end, indent, item[1].length, depth); end += 1) {
      body.push(lines[end].slice(Math.min(indent, lines[end].length - lines[end].trimStart().length)));
    }
    items.push(body);
    const next = end + lines.slice(end, end + 2).findIndex((line) => line.trim());
    if (next > end && ITEM.test(lines[next])) end = next;
  }
  const start = ordered && Number.parseInt(mark, 10) !== 1 ? { start: Number.parseInt(mark, 10) } : {};
  return { end, build: () => element(ordered ? "ol" : "ul", start, ...items.map((body) => listItem(body, depth))) };
}

/** Returns whether a line belongs to an item whose text is indented so much, and whose mark so much. */
function belongs(lines, at, indent, margin, depth) {
  const line = lines[at];
  const own = line.length - line.trimStart().length;
  if (!line.trim()) {
    const next = lines[at + 1] ?? "";
    return next.trim() !== "" && next.length - next.trimStart().length >= Math.min(indent, margin + 2);
  }
  if (own >= Math.min(indent, margin + 2)) return true;
  return Boolean(lines[at - 1].trim()) && !ITEM.test(line) && !interrupts(lines, at, depth);
}

/** An item of one paragraph has no paragraph in it. */
function listItem(body, depth) {
  const nodes = built(body, depth);
  if (nodes[0]?.localName === "p") nodes.splice(0, 1, ...nodes[0].childNodes);
  return element("li", {}, ...nodes);
}

const cellsOf = (line) => {
  const inner = line.trim().replace(/^\|/, "").replace(/(?<!\\)\|$/, "");
  return inner.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
};

function isDelimiter(line) {
  if (!line || !line.includes("-") || !line.includes("|")) return false;
  return cellsOf(line).every((cell) => /^:?-+:?$/.test(cell));
}

function tableAt(lines, at) {
  const sides = cellsOf(lines[at + 1]).map((cell) =>
    cell.endsWith(":") ? (cell.startsWith(":") ? "centred" : "right") : "");
  let end = at + 2;
  while (end < lines.length && lines[end].includes("|")) end += 1;
  const row = (line, name) => {
    const cells = cellsOf(line).slice(0, sides.length);
    return element("tr", {}, ...cells.map((cell, column) =>
      element(name, { className: sides[column] }, ...inlineNodes(cell))));
  };
  const build = () => {
    const body = lines.slice(at + 2, end).map((line) => row(line, "td"));
    const table = element("table", {}, element("thead", {}, row(lines[at], "th")), element("tbody", {}, ...body));
    return element("div", { className: "wide", tabIndex: 0, role: "region", "aria-label": "Table" }, table);
  };
  return { end, build };
}
