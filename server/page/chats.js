// The list of conversations: open one, begin one, delete one and take that back.

import { $, announce, button, element } from "./dom.js";
import { allChats, deleteChat, saveChat } from "./stored.js";

/** Shows the list. `opened(chat)` is called to show a conversation, `begun()` to begin one, and
 * `removed(chat)` where one was deleted. */
export class ChatList {
  constructor({ opened, begun, removed }) {
    Object.assign(this, { opened, begun, removed });
    this.current = null;
    this.deleted = null;
    $("new-chat").addEventListener("click", begun);
    $("undo").addEventListener("click", () => this.restore());
  }

  /** Shows all conversations and which of them is open. */
  show(current) {
    this.current = current;
    const chats = allChats();
    $("chat-list").replaceChildren(...chats.map((chat) => this.entry(chat)));
    $("no-chats").hidden = chats.length > 0;
    $("undo").hidden = this.deleted === null;
  }

  entry(chat) {
    const open = button(chat.title, () => this.opened(chat), { className: "open" });
    if (chat.id === this.current?.id) open.setAttribute("aria-current", "true");
    const remove = button("×", () => this.remove(chat), { className: "delete", title: "Delete" });
    remove.setAttribute("aria-label", `Delete: ${chat.title}`);
    return element("li", {}, open, remove);
  }

  remove(chat) {
    chat.deleted = true;
    this.deleted = chat;
    deleteChat(chat.id);
    this.removed(chat);
    if (chat.id === this.current?.id) this.begun();
    else this.show(this.current);
    $("undo").focus();
    announce(`Deleted: ${chat.title}.`);
  }

  restore() {
    const chat = this.deleted;
    delete chat.deleted;
    this.deleted = null;
    saveChat(chat);
    this.opened(chat);
    announce(`Restored: ${chat.title}.`);
  }
}
