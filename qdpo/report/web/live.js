// Keeps a served report page new, and stops its run. The token is in the page's own address.
"use strict";

const SECONDS = 2, QUIET_SECONDS = 5;
const token = new URLSearchParams(location.search).get("token");
const live = {};
for (const name of ["state", "reload", "stop"]) live[name] = document.getElementById(`live-${name}`);
let version = null, touched = 0;

for (const kind of ["pointerdown", "keydown", "wheel"])
  document.addEventListener(kind, () => { touched = Date.now(); }, { passive: true });

// who reads a pair, searches, or has just zoomed is not interrupted
function isBusy() {
  return Date.now() - touched < 1000 * QUIET_SECONDS || document.querySelector("details[open]") !== null ||
    (document.getElementById("pairs-search") || {}).value;
}

async function ask(path, options = {}) {
  const answer = await fetch(path, { ...options, headers: { "X-Qdpo-Token": token }, cache: "no-store" });
  return { ok: answer.ok, ...(await answer.json()) };
}

async function look() {
  try {
    const found = await ask("state");
    live.state.textContent = found.text;
    live.stop.hidden = !found.can_stop;
    if (version === null) version = found.version;
    if (found.ok && found.version !== version) {
      if (isBusy()) live.reload.hidden = false;
      else { location.reload(); return; }
    }
  } catch {
    live.state.textContent = "qdpo report --serve has ended; this page is as of its last look";
    live.stop.hidden = true;
  }
  setTimeout(look, 1000 * SECONDS);
}

live.reload.addEventListener("click", () => location.reload());
live.stop.addEventListener("click", async () => {
  if (!confirm("Stop the run? It ends its step and saves; it can be continued later.")) return;
  live.stop.hidden = true;
  live.state.textContent = (await ask("stop", { method: "POST" })).text;
});
look();
