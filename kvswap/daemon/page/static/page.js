"use strict";
// The page's own script: what is shown is made by the daemon, this keeps it current and sends what is asked for.

const token = document.querySelector("meta[name=kvswap-token]").content;
const sure = document.getElementById("sure");
const problem = document.getElementById("problem");
const connection = document.getElementById("connection");

function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// -- staying current --------------------------------------------------------------------------

// A part in which somebody types, or has the focus on a button, keeps its place.
function replace(part, html) {
  const active = part.contains(document.activeElement) ? document.activeElement : null;
  if (active && active.matches("input, textarea, select")) return false;
  const same = active && (active.id ? "#" + CSS.escape(active.id) : active.dataset.url &&
    `[data-url="${CSS.escape(active.dataset.url)}"]`);
  const scrolled = [...part.querySelectorAll("[tabindex='0']")].map((one) => [one.scrollTop, one.scrollLeft]);
  part.innerHTML = html;
  part.querySelectorAll("[tabindex='0']").forEach((one, i) => {
    if (scrolled[i]) [one.scrollTop, one.scrollLeft] = scrolled[i];
  });
  if (same) (part.querySelector(same) || part).focus?.({ preventScroll: true });
  return true;
}

const waiting = new Map();

function show(parts) {
  for (const [name, html] of Object.entries(parts)) waiting.set(name, html);
  for (const [name, html] of waiting) {
    const part = document.getElementById(name);
    if (!part || !part.hasAttribute("data-part") || replace(part, html)) waiting.delete(name);
  }
}

const source = new EventSource("/ui/live");
source.onmessage = (event) => {
  say(connection, "");
  show(JSON.parse(event.data));
};
source.onerror = () => say(connection, "The daemon does not answer: what is shown is not current.");

// -- doing ------------------------------------------------------------------------------------

function ask(what, why) {
  say(document.getElementById("sure-what"), what);
  say(document.getElementById("sure-why"), why);
  sure.returnValue = "no";
  sure.showModal();
  return new Promise((answer) => {
    sure.addEventListener("close", () => answer(sure.returnValue === "yes"), { once: true });
  });
}

function words(error) {
  return [error.message, error.cause && `likely: ${error.cause}`, error.hint && `try: ${error.hint}`]
    .filter(Boolean).join(" - ");
}

// Read an answer of JSON lines: events, then a result or an error.
async function readLines(response, told) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "", last = {};
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return last;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      last = JSON.parse(line);
      if (last.event === "prefill") say(told, `${last.tokens} tokens are prefilled`);
    }
  }
}

async function send(element, body, told) {
  say(problem, "");
  try {
    const response = await fetch(element.dataset.url, {
      method: element.dataset.method,
      headers: { "Kvswap-Page": token, "Content-Type": "application/json" },
      body: body === undefined ? undefined : JSON.stringify(body),
    });
    const lines = element.hasAttribute("data-lines") && response.ok;
    const text = lines ? "" : await response.text();
    let answer = lines ? await readLines(response, told) : {};
    try {
      if (!lines) answer = JSON.parse(text);
    } catch {
      answer = { error: { message: text } };
    }
    if (answer.error) throw new Error(words(answer.error));
    return answer;
  } catch (error) {
    say(problem, error.message || "The daemon does not answer.");
    problem.scrollIntoView({ block: "nearest" });
    return null;
  }
}

async function act(element, what, body, told) {
  if (element.dataset.say && !(await ask(what, element.dataset.say))) return null;
  return send(element, body, told);
}

document.addEventListener("click", async (event) => {
  const button = event.target.closest("button[data-url]");
  if (!button) return;
  const body = button.dataset.body === undefined ? undefined : JSON.parse(button.dataset.body);
  button.disabled = true;
  const done = await act(button, button.textContent.replace("…", "").trim() + "?", body, problem);
  button.disabled = false;
  if (done && !button.closest("[data-part]")) location.reload();
});

document.addEventListener("submit", async (event) => {
  const form = event.target.closest("form[data-url]");
  if (!form) return;
  event.preventDefault();
  const body = {};
  for (const [name, value] of new FormData(form)) if (typeof value === "string" && value !== "") body[name] = value;
  const button = form.querySelector("button");
  const told = form.querySelector(".told");
  button.disabled = true;
  const done = await act(form, button.textContent.replace("…", "").trim() + "?", body, told || problem);
  button.disabled = false;
  if (!done) {
    if (told) say(told, "");
    return;
  }
  form.reset();
  if (told && done.result) say(told, `Published as ${done.result.artifact}: ${done.result.tokens} tokens.`);
  document.activeElement.blur();
});

document.addEventListener("change", async (event) => {
  const into = event.target.dataset.into;
  if (!into || !event.target.files.length) return;
  document.getElementById(into).value = await event.target.files[0].text();
});
