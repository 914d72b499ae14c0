"""Samplers, branches and choices for SGLang programs: `import sglang_power.frontend as sp`.

    @sgl.function
    def solve(s, question):
        s += question
        s += sp.gen("answer", sampler="power", alpha=4.0, max_tokens=256)

From the first expression of this package on, a program sends token ids instead of text;
plugin/docs/programs.md tells what that changes. Importing this package installs hooks on SGLang's
interpreter; see `_lang`.
"""

from sglang_power.frontend._lang import install
from sglang_power.frontend.branching import branch
from sglang_power.frontend.choices import PowerChoices, power_choices
from sglang_power.frontend.generating import gen, refine, vote
from sglang_power.frontend.group import Group
from sglang_power.frontend.selecting import Selected, select

install()

__all__ = [
    "Group",
    "PowerChoices",
    "Selected",
    "branch",
    "gen",
    "power_choices",
    "refine",
    "select",
    "vote",
]
