// A chain as a list of steps: what was kept, what was tried, what was decided.

const VERDICTS = { accepted: "✓ accepted", rejected: "✗ rejected", early: "✂ stopped early" };

function verdict(step) {
  return step.accepted ? "accepted" : step.early_rejected ? "early" : "rejected";
}

function ratio(step) {
  if (step.log_ratio !== null) return number(step.log_ratio);
  return step.accepted ? "+∞" : "not finite";
}

function ending(words, ids) {
  return words ?? `token ids ${ids.slice(0, 40).join(" ")}${ids.length > 40 ? " …" : ""}`;
}

function stepLine(step, longest) {
  const kind = verdict(step);
  const saved = step.early_rejected && step.saved_tokens_max ? `saved ≤ ${step.saved_tokens_max}` : null;
  return button(
    "line",
    element(
      "span",
      "strip",
      sized("kept", step.cut / longest),
      sized(`new ${kind}`, step.proposal_length / longest),
    ),
    text(
      "text",
      element("span", "before", tail(step.kept_text ?? "", 40)),
      shortened(ending(step.proposal_text, step.proposal_ids), 120),
    ),
    element(
      "span",
      "numbers",
      element("span", "", `log ratio ${ratio(step)} ${step.accepted ? ">" : "≤"} log u ${number(step.log_u)}`),
      saved === null ? null : element("span", "", saved),
      tag(kind, VERDICTS[kind]),
    ),
  );
}

function competing(title, step, words) {
  const shown = element("div", "texts", text("before", step.kept_text ?? ""), text("own", words));
  return [element("h3", "", title), shown];
}

function stepDetails(step) {
  const old = step.current_length - step.cut;
  const tried = `Kept: ${tokens(step.cut)}. Tried: another ending in place of the ${tokens(old)} behind them.`;
  const early = ` After ${tokens(step.proposal_length)} of it, it was certain to be rejected.`;
  const pairs = [
    ["weight of the new ending, log", number(step.log_w_proposal)],
    ["weight of the old ending, log", number(step.log_w_current)],
    ["chance of this cut in the new answer, log", number(step.log_cut_proposal)],
    ["chance of this cut in the old answer, log", number(step.log_cut_current)],
  ];
  if (step.log_tilt_proposal || step.log_tilt_current) {
    pairs.push(["reward of the new answer, weighted", number(step.log_tilt_proposal)]);
    pairs.push(["reward of the old answer, weighted", number(step.log_tilt_current)]);
  }
  const bound = step.early_rejected ? "log ratio, at most" : "log ratio (new − old)";
  pairs.push([bound, ratio(step)], ["log u (random)", number(step.log_u)]);
  return [
    element("p", "", step.early_rejected ? tried + early : tried),
    ...competing("Old ending", step, step.current_text ?? "(not in this record)"),
    ...competing("New ending", step, ending(step.proposal_text, step.proposal_ids)),
    facts(element("dl", "facts"), pairs),
  ];
}

function stepRow(step, longest) {
  const line = stepLine(step, longest);
  return disclosing(element("li", `row step ${verdict(step)}`, line), line, () => stepDetails(step));
}

function showChain() {
  const lengths = run.steps.map((step) => Math.max(step.current_length, step.cut + step.proposal_length));
  const longest = lengths.reduce((most, length) => Math.max(most, length), 1);
  let stage = 0;
  for (const step of run.steps) {
    if (step.stage !== stage) {
      // An answer that ends early, like a draft, goes to the last block at once.
      const title = step.stage === stage + 1 ? `Block ${step.stage}` : "The finished answer";
      rows.append(element("li", "stage", element("h3", "", title)));
      stage = step.stage;
    }
    rows.append(stepRow(step, longest));
  }
  show("chain-legend");
  show("chain-tools");
  const only = byId("only-accepted");
  only.addEventListener("click", () => {
    only.setAttribute("aria-pressed", String(rows.classList.toggle("only-accepted")));
  });
}
