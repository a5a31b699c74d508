// The chat page: one conversation, kept in this browser; answers are streamed from /v1/chat/completions.
"use strict";

const byId = (id) => document.getElementById(id);
const fields = ["model", "temperature", "max-tokens", "system"];
const KEY = "swiftune-key";
let messages = [];
let running = null;

// Beside a key that it makes, the server prints an address that ends in #key=..., which no request carries; it is kept
// for this tab alone.
if (location.hash.startsWith("#key=")) {
  sessionStorage.setItem(KEY, decodeURIComponent(location.hash.slice(5)));
  history.replaceState(null, "", location.pathname);
}

function save() {
  const settings = Object.fromEntries(fields.map((id) => [id, byId(id).value]));
  try {
    localStorage.setItem("swiftune-chat", JSON.stringify({ messages, settings }));
  } catch { /* no room, or not allowed: the chat then ends with the page */ }
}

function restore() {
  try {
    const kept = JSON.parse(localStorage.getItem("swiftune-chat")) ?? {};
    messages = Array.isArray(kept.messages) ? kept.messages : [];
    return kept.settings ?? {};
  } catch {
    return {};
  }
}

function show(message) {
  const box = document.createElement("div");
  box.className = `message ${message.role}`;
  box.textContent = message.content;
  byId("chat").append(box);
  box.scrollIntoView({ block: "end" });
  return box;
}

function complain(text) {
  byId("problem").textContent = text;
  byId("problem").hidden = !text;
}

async function call(path, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  const response = await fetch(path, { ...options, headers });
  if (response.ok) return response;
  if (response.status === 401) {
    const given = prompt("API key of this server:");
    if (given) {
      sessionStorage.setItem(KEY, given);
      return call(path, options);
    }
  }
  const said = await response.json().catch(() => null);
  throw new Error(said?.error?.message ?? `The server answered ${response.status}.`);
}

// The data of server-sent events, however they are cut into chunks.
async function* events(body) {
  const decoder = new TextDecoder();
  const reader = body.getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + decoder.decode(value, { stream: true })).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      if (part.startsWith("data: ") && part !== "data: [DONE]") yield JSON.parse(part.slice(6));
    }
  }
}

function request() {
  const number = (id) => (byId(id).value === "" ? undefined : Number(byId(id).value));
  const system = byId("system").value.trim();
  return {
    model: byId("model").value,
    messages: [...(system ? [{ role: "system", content: system }] : []), ...messages],
    temperature: number("temperature"),
    max_tokens: number("max-tokens"),
    stream: true,
  };
}

function busy(on) {
  byId("send").hidden = on;
  byId("stop").hidden = !on;
}

async function ask(question) {
  complain("");
  messages.push({ role: "user", content: question });
  show(messages.at(-1));
  save();
  const body = JSON.stringify(request());
  const answer = { role: "assistant", content: "" };
  const box = show(answer);
  running = new AbortController();
  busy(true);
  try {
    const response = await call("/v1/chat/completions", { method: "POST", body, signal: running.signal });
    for await (const event of events(response.body)) {
      if (event.error) throw new Error(event.error.message);
      answer.content += event.choices[0]?.delta?.content ?? "";
      box.textContent = answer.content;
      box.scrollIntoView({ block: "end" });
    }
  } catch (error) {
    if (error.name !== "AbortError") complain(error.message);
  }
  if (answer.content) messages.push(answer);
  else box.remove();
  running = null;
  busy(false);
  save();
}

byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const question = byId("question").value.trim();
  if (!question || running) return;
  byId("question").value = "";
  ask(question);
});
byId("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    byId("ask").requestSubmit();
  }
});
byId("stop").addEventListener("click", () => running?.abort());
byId("clear").addEventListener("click", () => {
  running?.abort();
  messages = [];
  byId("chat").replaceChildren();
  complain("");
  save();
});
for (const id of fields) byId(id).addEventListener("change", save);

async function start() {
  const settings = restore();
  for (const id of fields.slice(1)) byId(id).value = settings[id] ?? "";
  messages.forEach(show);
  try {
    const { data } = await (await call("/v1/models")).json();
    byId("model").replaceChildren(...data.map((model) => new Option(model.id)));
    if (data.some((model) => model.id === settings.model)) byId("model").value = settings.model;
  } catch (error) {
    complain(error.message);
  }
}

start();
