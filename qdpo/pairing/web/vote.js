// Shows two answers at a time and sends what is thought of them. The token is in the page's own address.
"use strict";

const token = new URLSearchParams(location.search).get("token");
const at = (name) => document.getElementById(name);
let state = null, busy = false, finished = false, edited = "left";

async function ask(path, body) {
  const options = { headers: { "X-Qdpo-Token": token }, cache: "no-store" };
  if (body) Object.assign(options, { method: "POST", body: JSON.stringify(body) });
  const answer = await fetch(path, options);
  return { status: answer.status, ...(await answer.json()) };
}

// One request at a time: a key that is pressed meanwhile is for a comparison that is not there yet.
async function send(path, body, trouble = at("trouble")) {
  if (busy || finished) return null;
  busy = true;
  at("main").setAttribute("aria-busy", "true");
  try {
    const found = await ask(path, body);
    trouble.textContent = found.status === 200 ? "" : found.text;
    if (found.total !== undefined) show(found);
    return found;
  } catch {
    trouble.textContent = "qdpo pairs vote does not answer: it has ended. Start it again with the same command; " +
      "every vote that was called saved is kept.";
    return null;
  } finally {
    busy = false;
    at("main").removeAttribute("aria-busy");
  }
}

function show(found) {
  state = found;
  const pair = found.comparison;
  at("progress-text").textContent = `${found.done} of ${found.total} compared`;
  at("progress").value = found.total ? found.done / found.total : 1;
  at("said").textContent = found.said;
  at("main").hidden = !pair;
  at("done").hidden = Boolean(pair);
  at("undo").disabled = !found.last;
  for (const name of ["vote-left", "vote-right", "vote-tie", "vote-skip", "next"]) at(name).disabled = !pair;
  if (pair) {
    at("question").textContent = `Comparison ${found.done + 1} of ${found.total}`;
    const turns = pair.prompt.flatMap(({ role, content }) => {
      const text = document.createElement("div"), who = document.createElement("p");
      text.className = "text"; text.dir = "auto"; text.textContent = content;
      who.className = "role"; who.textContent = role;
      return pair.prompt.length > 1 ? [who, text] : [text];
    });
    at("prompt").replaceChildren(...turns);
    for (const side of ["left", "right"]) {
      at(side).textContent = pair[side];
      at(`${side}-cut`).hidden = !pair.cut.includes(side);
    }
  } else {
    at("done-text").textContent = `${found.pairs} pairs are saved. Undo takes the last vote back; ` +
      "Finish ends the voting, and the terminal says what is next.";
  }
  at(pair ? "question" : "done-title").focus({ preventScroll: true });
  scrollTo(0, 0);
}

const vote = (choice, text) => state?.comparison &&
  send("vote", { comparison: state.comparison.name, vote: choice, edited: text }, text === undefined ? undefined : at("editor-trouble"));
const undo = () => state?.last && send("undo", { comparison: state.last });
const next = () => state?.comparison && send(`state?after=${encodeURIComponent(state.comparison.name)}`);

function edit(side) {
  if (!state?.comparison || busy || finished) return;
  edited = side;
  at("editor-title").textContent = `Edit the ${side} answer`;
  at("editor-trouble").textContent = "";
  at("editor-text").value = state.comparison[side];
  at("editor").showModal();
  at("editor-text").focus();
}

async function save() {
  const found = await vote(`edit ${edited}`, at("editor-text").value);
  if (found && (found.status === 200 || found.status === 409)) {
    at("editor").close();
    if (found.status === 409) at("trouble").textContent = found.text;
    at(state.comparison ? "question" : "done-title").focus();
  }
}

async function finish() {
  const found = await send("finish", {});
  if (!found) return;
  finished = true;
  for (const button of document.querySelectorAll("button")) button.disabled = true;
  at("said").textContent = "Finished: everything is saved. You can close this page; the terminal says what is next.";
}

const KEYS = {
  ArrowLeft: () => vote("left"), ArrowRight: () => vote("right"), t: () => vote("tie"), "=": () => vote("tie"),
  s: () => vote("skip"), n: next, u: undo, e: () => edit("left"), E: () => edit("right"),
};

document.addEventListener("keydown", (event) => {
  if (at("editor").open) {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); save(); }
    return;
  }
  const act = KEYS[event.key] || (event.shiftKey ? null : KEYS[event.key.toLowerCase()]);
  // a key that is held down votes once
  if (!act || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  event.preventDefault();
  act();
});
for (const choice of ["left", "right", "tie", "skip"]) at(`vote-${choice}`).addEventListener("click", () => vote(choice));
for (const side of ["left", "right"]) at(`edit-${side}`).addEventListener("click", () => edit(side));
for (const [name, act] of Object.entries({ next, undo, finish, "editor-save": save }))
  at(name).addEventListener("click", act);
at("editor-cancel").addEventListener("click", () => at("editor").close());
send("state");
