// What both pictures share. The script is these files in one function: common, tree, chain, main.
// Strings of the record become text nodes only.

const data = JSON.parse(document.getElementById("data").textContent);
const run = data.run;
const rows = byId("rows");

function byId(id) {
  return document.getElementById(id);
}

function element(tag, className, ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...children.filter((child) => child !== null));
  return made;
}

function button(className, ...children) {
  const made = element("button", className, ...children);
  made.type = "button";
  return made;
}

/** Text of the model: it may run from right to left. */
function text(className, ...children) {
  const made = element("span", className, ...children);
  made.dir = "auto";
  return made;
}

function show(id, visible = true) {
  byId(id).hidden = !visible;
}

function sized(className, part) {
  const made = element("span", className);
  made.style.setProperty("--part", String(Math.min(Math.max(part, 0), 1)));
  return made;
}

function tag(kind, label) {
  return element("span", `tag ${kind}`, label);
}

function number(value) {
  if (value === null) return "not finite";
  if (value !== 0 && Math.abs(value) < 0.0005) return "≈ 0";
  return Number(value.toPrecision(3)).toString().replace("-", "−");
}

function percent(share) {
  return share < 0.001 ? "below 0.1%" : `${Number((100 * share).toPrecision(3))}%`;
}

function tokens(count) {
  return `${count} ${count === 1 ? "token" : "tokens"}`;
}

function facts(list, pairs) {
  for (const [name, value] of pairs) {
    list.append(element("dt", "", name), element("dd", "", String(value)));
  }
  return list;
}

function shortened(whole, length) {
  const characters = Array.from(whole.slice(0, 2 * length));
  return characters.length > length ? `${characters.slice(0, length).join("")}…` : characters.join("");
}

function tail(whole, length) {
  const characters = Array.from(whole.slice(-2 * length));
  return characters.slice(-length).join("");
}

/** A row whose line opens what `details` makes. */
function disclosing(row, line, details) {
  line.setAttribute("aria-expanded", "false");
  line.addEventListener("click", () => {
    const open = row.querySelector(".more");
    if (open) open.remove();
    else row.append(element("div", "more", ...details()));
    line.setAttribute("aria-expanded", String(!open));
  });
  return row;
}

function showHead() {
  byId("source").textContent = data.source;
  byId("story").append(...data.story.map((sentence) => element("p", "", sentence)));
  byId("answer").textContent = data.answer;
  show("prompt-section", data.prompt !== null);
  byId("prompt").textContent = data.prompt ?? "";
  facts(byId("facts"), data.facts);
  facts(byId("params"), data.params);
}
