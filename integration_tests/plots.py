"""The pictures of the demo. Matplotlib without a display."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt

LABELS = {
    "plain": "plain T = 1",
    "lowtemp": "T = 1/alpha",
    "greedy": "greedy",
    "cot": "CoT-decoding (ours)",
    "branch": "branch (ours)",
    "best_of @ branch": "best-of-n, tokens of branch",
    "vote @ branch": "vote, tokens of branch",
    "best_of @ power": "best-of-n, tokens of power",
    "vote @ power": "vote, tokens of power",
    "power": "power (ours)",
    "smc": "particles (ours)",
    "best_of @ smc": "best-of-n, tokens of particles",
    "vote @ smc": "vote, tokens of particles",
    "smc_exact": "exact particles (ours)",
    "fast_exact": "fast-exact (ours)",
    "best_of @ fast_exact": "best-of-n, tokens of fast-exact",
    "vote @ fast_exact": "vote, tokens of fast-exact",
    "perfect": "perfect (ours)",
}
OWN = ("power", "branch", "cot", "smc", "smc_exact", "fast_exact", "perfect")


def demo(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw accuracy against decoded tokens per returned token, a panel per family, a colour per sampler."""
    suites = sorted({row["suite"] for row in rows})
    figure, panels = plt.subplots(1, len(suites), figsize=(5.2 * len(suites), 3.8), sharey=True)
    for panel, suite in zip(panels, suites, strict=True):
        for row in (row for row in rows if row["suite"] == suite):
            low, high = row["ci95"]
            panel.errorbar(
                row["decoded_per_returned"],
                row["accuracy"],
                yerr=[[row["accuracy"] - low], [high - row["accuracy"]]],
                color=plt.get_cmap("tab20")(list(LABELS).index(row["sampler"]) % 20),
                fmt="D" if row["sampler"] in OWN else "o",
                capsize=3,
                label=LABELS[row["sampler"]],
            )
        panel.set(xscale="log", ylim=(0, 1.02), title=f"family {suite}")
        panel.set_xlabel("decoded tokens per returned token (log scale)")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("accuracy, 95% interval")
    handles = {
        label: handle
        for panel in panels
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    panels[-1].legend(
        handles.values(), handles.keys(), fontsize=8, loc="center left", bbox_to_anchor=(1.02, 0.5)
    )
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def chain(trace: Sequence[dict[str, Any]], path: Path) -> None:
    """One chain, a line per step: what was kept, what was proposed, what became of it."""
    colours = {"accepted": "#2a7f4f", "rejected": "#c0504d", "stopped early": "#e8a33d"}
    figure, panel = plt.subplots(figsize=(8.5, 0.13 * len(trace) + 1.0))
    for step in trace:
        fate = "accepted" if step["accepted"] else "stopped early" if step["early_rejected"] else "rejected"
        panel.barh(step["step"], step["cut"], color="#d9d9d9", height=0.8)
        panel.barh(step["step"], step["proposal_length"], left=step["cut"], color=colours[fate], height=0.8)
    for fate, colour in {"kept (from the radix cache)": "#d9d9d9", **colours}.items():
        panel.bar(0, 0, color=colour, label=fate)
    panel.invert_yaxis()
    panel.set(xlabel="token position", ylabel="step", title="one chain: cuts and proposals")
    panel.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)
