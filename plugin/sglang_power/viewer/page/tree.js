// A tree as an outline. Rows are made when they are opened, so that thousands of nodes stay quick.

const children = [];
const rowOf = new Map();

function entropyClass(entropy) {
  if (entropy === null) return "e-none";
  const steps = [0.25, 0.7, 1.4, 2.3];
  return `e${steps.filter((step) => entropy >= step).length}`;
}

/** Of its first token; where that is not known, of one token on average. */
function probability(node) {
  if (node.first_log_p !== null) return Math.exp(node.first_log_p);
  if (node.log_p === null || node.end === node.start) return null;
  return Math.exp(node.log_p / (node.end - node.start));
}

function pathTo(index) {
  const path = [];
  for (let at = index; at !== null; at = run.nodes[at].parent) path.push(at);
  return path.reverse();
}

function fateTag(node) {
  const fates = { chosen: "★ the answer", leaf: "finished", pruned: "✗ given up", open: "not finished" };
  return node.fate in fates ? tag(node.fate, fates[node.fate]) : null;
}

function nodeLine(index) {
  const node = run.nodes[index];
  const share = probability(node);
  const isRoot = node.parent === null;
  const fill = sized(`fill ${entropyClass(node.entropy)}`, share ?? 0);
  return button(
    "line",
    isRoot ? element("span", "") : element("span", "bar", fill),
    text("text", shortened(node.text, 160) || (isRoot ? "(the prompt)" : "(nothing)")),
    element(
      "span",
      "numbers",
      share === null ? null : element("span", "", percent(share)),
      node.entropy === null ? null : element("span", "", `H ${number(node.entropy)}`),
      node.answer === null ? null : tag("answer", shortened(node.answer, 40)),
      fateTag(node),
    ),
  );
}

function nodeDetails(index) {
  const node = run.nodes[index];
  const before = pathTo(index).slice(0, -1).map((at) => run.nodes[at].text).join("");
  const share = probability(node);
  const pairs = [["tokens", `${node.end - node.start}, from position ${node.start} on`]];
  if (share !== null) {
    const what = node.first_log_p === null ? "probability of a token, on average" : "probability of its first token";
    pairs.push([what, percent(share)]);
  }
  if (node.entropy !== null) {
    const where = node.trigger === null ? "entropy, on average" : `entropy where it forked (${node.trigger})`;
    const choices = number(Math.exp(node.entropy));
    pairs.push([where, `${number(node.entropy)} nats, as unsure as among ${choices} equally likely tokens`]);
  }
  if (node.log_p !== null) pairs.push(["log probability of these tokens", number(node.log_p)]);
  if (node.score !== null) pairs.push(["score", number(node.score)]);
  if (node.answer !== null) pairs.push(["answer", node.answer]);
  if (node.confidence !== null) pairs.push(["how decided the answer is, 0 to 1", number(node.confidence)]);
  if (node.cap !== null) pairs.push(["not forked again", `limit ${node.cap}`]);
  if (node.note !== null) pairs.push(["note", node.note]);
  const whole = element("div", "texts", text("before", before), text("own", node.text));
  return [whole, facts(element("dl", "facts"), pairs)];
}

function nodeRow(index, depth) {
  const node = run.nodes[index];
  const row = element("li", `row node ${node.fate}`);
  row.dataset.depth = String(depth);
  row.dataset.node = String(index);
  row.style.setProperty("--depth", String(depth));
  const count = children[index].length;
  let twist = element("span", "");
  if (count > 0) {
    twist = button("twist", "▸");
    twist.setAttribute("aria-label", `${count} ${count === 1 ? "branch" : "branches"}, level ${depth + 1}`);
    twist.setAttribute("aria-expanded", "false");
    twist.addEventListener("click", () => (isOpen(row) ? close(row) : open(row)));
  }
  const line = nodeLine(index);
  row.append(twist, line);
  rowOf.set(index, row);
  return disclosing(row, line, () => nodeDetails(index));
}

function isOpen(row) {
  return row.querySelector(".twist")?.getAttribute("aria-expanded") === "true";
}

function mark(row, opened) {
  const twist = row.querySelector(".twist");
  twist.setAttribute("aria-expanded", String(opened));
  twist.textContent = opened ? "▾" : "▸";
}

function open(row) {
  const depth = Number(row.dataset.depth) + 1;
  row.after(...children[Number(row.dataset.node)].map((child) => nodeRow(child, depth)));
  mark(row, true);
}

function close(row) {
  const depth = Number(row.dataset.depth);
  while (row.nextElementSibling && Number(row.nextElementSibling.dataset.depth) > depth) {
    row.nextElementSibling.remove();
  }
  mark(row, false);
}

/** All rows at once, in the order of the outline; without recursion, since trees may be deep. */
function openAll() {
  const made = [];
  const waiting = [[0, 0]];
  while (waiting.length > 0) {
    const [index, depth] = waiting.pop();
    const row = nodeRow(index, depth);
    made.push(row);
    if (children[index].length > 0) mark(row, true);
    for (const child of [...children[index]].reverse()) waiting.push([child, depth + 1]);
  }
  rows.replaceChildren(...made);
}

function openWinner() {
  rows.replaceChildren(nodeRow(0, 0));
  const path = run.chosen === null ? [0] : pathTo(run.chosen);
  for (const index of path) if (children[index].length > 0) open(rowOf.get(index));
}

function showGroups() {
  const whole = run.classes.reduce((sum, one) => sum + Math.max(one.weight ?? 0, 0), 0);
  for (const one of run.classes) {
    const won = one.members.includes(run.chosen);
    const share = whole > 0 ? Math.max(one.weight ?? 0, 0) / whole : 0;
    const count = `${one.members.length} ${one.members.length === 1 ? "path" : "paths"}`;
    const paths = run.omitted > 0 ? `${count} or more` : count;
    const weight = one.weight === null ? "" : `, weight ${number(one.weight)}`;
    byId("groups").append(
      element(
        "li",
        "",
        element("span", "bar", sized(`fill ${won ? "e3" : "e-none"}`, share)),
        text("text", one.representative ?? "(no answer)"),
        element("span", "numbers", element("span", "", paths + weight), won ? tag("chosen", "★ won") : null),
      ),
    );
  }
  show("groups-section", run.classes.length > 0);
}

function showTree() {
  run.nodes.forEach(() => children.push([]));
  run.nodes.forEach((node, index) => {
    if (node.parent !== null) children[node.parent].push(index);
  });
  show("tree-legend");
  show("tree-tools");
  if (run.omitted > 0) byId("omitted").textContent = `${run.omitted} further branches are not in this record.`;
  byId("open-all").addEventListener("click", openAll);
  byId("open-winner").addEventListener("click", openWinner);
  showGroups();
  openWinner();
}
