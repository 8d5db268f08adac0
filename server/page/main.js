// The page: asks the server how it is, and brings conversation, list, form and panel together.

import { ChatList } from "./chats.js";
import { Composer } from "./composer.js";
import { Conversation } from "./conversation.js";
import { $, announce } from "./dom.js";
import { HostPanel } from "./host.js";
import { health, stateOf } from "./state.js";
import { Problem, ask } from "./server.js";
import { apiKey, chatById, newChat, onForeignChange, readChats, saveChat, setApiKey } from "./stored.js";
import { showVariants } from "./variants.js";

const PERIOD_MS = 1000;
const HIDDEN_PERIOD_MS = 10000;

let status = null;
let state = stateOf("connecting");
let timer = null;

const host = new HostPanel();
const conversation = new Conversation({
  status: () => status,
  changed: showWriting,
  failed: (problem) => problem.status === 401 && askForKey(problem.words),
  edit: (text) => composer.write(text),
  again() {
    $("prompt").focus();  // since the button goes
    conversation.again(composer.hints());
  },
});
const composer = new Composer({
  send: (text, wishes) => conversation.send(text, wishes),
  stop: () => conversation.stop(),
  settingsChanged(settings) {
    conversation.chat.settings = { ...settings };
    if (conversation.chat.messages.length) saveChat(conversation.chat);
  },
});
const chats = new ChatList({
  opened: open,
  begun: () => open(newChat(composer.defaults)),
  removed: (chat) => conversation.drop(chat),
});

function open(chat) {
  conversation.show(chat);
  composer.showSettings(chat.settings);
  chats.show(chat);
  showWriting();
  if (narrow.matches) showPanel("chats", false);
  else $("prompt").focus();
}

function showWriting() {
  composer.showState(conversation.writing, state.ready);
  chats.show(conversation.chat);
}

/** Asks for the state again and again; once more at once where something has just changed. */
async function refresh() {
  clearTimeout(timer);
  let next;
  try {
    const first = status === null;
    status = await (await ask("trimtab/status")).json();
    next = stateOf(status.draining ? "draining" : status.trouble === null ? "ready" : "trouble", status);
    composer.showStatus(status);
    await host.show(status);
    showVariants(status);
    if (first) conversation.draw();  // badges say more now
  } catch (error) {
    if (!(error instanceof Problem)) console.error(error);
    next = [401, 403].includes(error.status) ? stateOf("locked", error.message) : await health();
  }
  show(next);
  timer = setTimeout(refresh, document.hidden ? HIDDEN_PERIOD_MS : PERIOD_MS);
}

function show(next) {
  if (next.name !== state.name) announce(next.words);
  if (next.name === "locked") askForKey(next.words);
  else $("key-form").hidden = true;
  state = next;
  $("model").textContent = status?.model ?? "";
  $("state").textContent = next.short;
  document.body.dataset.state = next.name;
  $("banner").hidden = next.ready || next.name === "locked";
  $("banner-words").textContent = next.words;
  $("loading").hidden = next.progress === undefined;
  if (next.progress === null) $("loading").removeAttribute("value");
  else if (next.progress !== undefined) $("loading").value = next.progress;
  $("panel-data").hidden = status === null;
  composer.showState(conversation.writing, next.ready);
}

function askForKey(words) {
  $("key-words").textContent = apiKey() ? words : "This server asks for a key.";
  if (!$("key-form").hidden) return;
  $("key-form").hidden = false;
  $("key").focus();
}

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setApiKey($("key").value.trim());
  $("key").value = "";
  refresh();
});
$("forget-key").addEventListener("click", () => {
  setApiKey("");
  refresh();
});

const narrow = matchMedia("(max-width: 60rem)");

/** Shows or hides a panel beside the conversation; on a narrow screen one takes its place. */
function showPanel(name, shown) {
  for (const other of ["chats", "server"]) {
    const open = other === name ? shown : !narrow.matches && !$(other).hidden;
    $(other).hidden = !open;
    $(`show-${other}`).setAttribute("aria-expanded", String(open));
  }
  document.body.classList.toggle("covered", narrow.matches && shown);
}

for (const name of ["chats", "server"]) {
  $(`show-${name}`).addEventListener("click", () => showPanel(name, $(name).hidden));
}
function fitPanels() {
  for (const name of ["chats", "server"]) {
    $(name).hidden = narrow.matches;
    $(`show-${name}`).setAttribute("aria-expanded", String(!narrow.matches));
  }
  document.body.classList.remove("covered");
}
narrow.addEventListener("change", fitPanels);
document.addEventListener("visibilitychange", () => document.hidden || refresh());

readChats();
onForeignChange(() => {
  const fresh = chatById(conversation.chat.id);
  if (fresh && !conversation.writing) conversation.show(fresh);
  chats.show(conversation.chat);
});
fitPanels();
open(newChat(composer.defaults));
composer.showWishes();
refresh();
