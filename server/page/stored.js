// What the browser keeps: conversations and choices in localStorage, the key for this tab alone.

const CHAT = "trimtab-chat-";
const CHOICES = "trimtab-choices";
const KEY = "trimtab-key";
const FIELDS = ["id", "title", "updated", "settings", "messages"];

const chats = new Map();  // by id; all that there are where the browser keeps nothing

/** Reads all conversations again: at the start, and when another tab has changed one. */
export function readChats() {
  let keys;
  try {
    keys = Object.keys(localStorage).filter((name) => name.startsWith(CHAT));
  } catch {
    return;  // the browser does not allow it
  }
  chats.clear();
  for (const name of keys) {
    const chat = parsed(localStorage.getItem(name));
    if (chat && FIELDS.every((field) => field in chat) && Array.isArray(chat.messages)) {
      endWriting(chat);
      chats.set(chat.id, chat);
    }
  }
}

/** Marks answers as stopped whose page was closed while they were written. */
function endWriting(chat) {
  for (const answer of chat.messages.flatMap((message) => message.answers ?? [])) {
    if (answer.state === "writing") answer.state = "stopped";
  }
}

/** Returns the conversations, the latest first. */
export function allChats() {
  return [...chats.values()].sort((a, b) => b.updated - a.updated);
}

export const chatById = (id) => chats.get(id);

/** Returns a conversation that is kept once it has a message. */
export function newChat(settings) {
  const id = crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}`;  // the former only if secure
  return { id, title: "New conversation", updated: Date.now(), settings: { ...settings }, messages: [] };
}

/** Keeps a conversation. Returns the titles of older ones that had to go to make room. */
export function saveChat(chat) {
  chat.updated = Date.now();
  chats.set(chat.id, chat);
  const removed = [];
  for (;;) {
    try {
      localStorage.setItem(CHAT + chat.id, JSON.stringify(chat));
      return removed;
    } catch (error) {
      const oldest = allChats().at(-1);
      if (error.name !== "QuotaExceededError" || oldest === chat) return removed;
      removed.push(oldest.title);
      deleteChat(oldest.id);
    }
  }
}

export function deleteChat(id) {
  chats.delete(id);
  guarded(() => localStorage.removeItem(CHAT + id));
}

/** Calls a function when another tab has changed a conversation. */
export function onForeignChange(listener) {
  addEventListener("storage", (event) => {
    if (event.key !== null && !event.key.startsWith(CHAT)) return;
    readChats();
    listener();
  });
}

export const choices = () => parsed(guarded(() => localStorage.getItem(CHOICES))) ?? {};
export const saveChoices = (made) => guarded(() => localStorage.setItem(CHOICES, JSON.stringify(made)));

let key = guarded(() => sessionStorage.getItem(KEY)) ?? "";
export const apiKey = () => key;

/** Keeps the server's key until the tab is closed; an empty one is forgotten. */
export function setApiKey(given) {
  key = given;
  guarded(() => (given ? sessionStorage.setItem(KEY, given) : sessionStorage.removeItem(KEY)));
}

function parsed(text) {
  try {
    const value = JSON.parse(text);
    return value !== null && typeof value === "object" ? value : null;
  } catch {
    return null;
  }
}

function guarded(access) {
  try {
    return access();
  } catch {
    return null;
  }
}
