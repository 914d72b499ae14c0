"""The command `sglang-power tune sampler` against a scripted server. Error rate 0."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest
from eval_answers import Json, ScriptedApi
from sglang_power import cli
from sglang_power.evaluation.catalogue import digest_of
from sglang_power.request import PowerRequest
from sglang_power.sampler_tuning.outcome import Tuning
from sglang_power.server.config import load_config

GRID = {"plain": {}, "greedy": {}, "power": {"alpha": [2.0, 4.0], "steps": [3]}}


def sample(folder: Path, count: int = 24) -> Path:
    """Sums whose answer is 5, or 6 for every fourth one."""
    path = folder / "sums.jsonl"
    lines = [{"prompt": f"{n}?", "answer": 6 if n % 4 == 0 else 5, "id": f"s{n}"} for n in range(count)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def command(path: Path, *more: str, kind: tuple[str, ...] = ("sampler",)) -> list[str]:
    grid = () if "--grid" in more else ("--grid", json.dumps(GRID))
    output = ("--output", str(path.parent / "out"))
    budget = () if "--budget" in more else ("--budget", "5000")
    return ["tune", *kind, "--url", "http://fake/v1", "--sample", str(path), *budget, *grid, *output, *more]


def tuned(path: Path) -> Tuning:
    return Tuning.model_validate_json((path.parent / "out" / "tuning.json").read_bytes())


def by_sampler(body: Json) -> str:
    """Only power of exponent 4 is right."""
    return "The answer is 5." if body["custom_params"].get("alpha") == 4.0 else "The answer is 7."


@pytest.mark.parametrize("kind", [("sampler",), ()])
def test_the_best_candidate_becomes_a_preset(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: tuple[str, ...]
) -> None:
    server, path = ScriptedApi(monkeypatch, text=by_sampler), sample(tmp_path)
    assert cli.main(command(path, "--name", "mine", kind=kind)) == 0
    found = tuned(path)
    assert found.pick.params == {"sampler": "power", "alpha": 4.0, "steps": 3}
    assert [each.name for each in found.held_out] == ["power[alpha=4.0,steps=3]", "plain", "greedy"]
    assert (found.items, found.held_out_items, found.held_out_asked) == (14, 10, 10)
    assert found.held_out[0].accuracy.value > 0.5 > found.held_out[1].accuracy.value == 0.0
    assert found.spent == sum(40 if "alpha" in body["custom_params"] else 4 for body in server.asked)
    assert found.spent <= found.budget
    choosing = {body["prompt"] for body in server.asked if body["custom_params"].get("alpha") == 2.0}
    held_out = {body["prompt"] for body in server.asked} - choosing
    assert len(held_out) == 10, "no choice saw them"
    told = capsys.readouterr()
    assert "On 10 problems that no choice has seen:" in told.out
    assert "candidates, best " in told.err
    assert cli.main(["config", "check", str(path.parent / "out" / "preset.yaml")]) == 0
    config = load_config(path.parent / "out" / "preset.yaml")
    request = config.resolve({"preset": "mine"})
    assert isinstance(request, PowerRequest)
    assert (request.alpha, request.steps) == (4.0, 3)


def test_the_preset_says_what_it_rests_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ScriptedApi(monkeypatch, text=by_sampler)
    path = sample(tmp_path)
    assert cli.main(command(path)) == 0
    found, text = tuned(path), (path.parent / "out" / "preset.yaml").read_text()
    assert f"Sample sums.jsonl (sha256 {digest_of(path)})." in text
    assert "# Written by: sglang-power tune sampler --url http://fake/v1" in text
    assert "# Model m, sglang 0.5.23, sglang-power 0.1.0." in text
    assert f"within 5000 decoded tokens ({found.spent} spent)" in text
    assert "#   plain: 0.000 (0.000 to 0.278) at 4 tokens an answer; the pick is ahead by" in text


def test_ties_go_to_the_cheaper_and_that_nothing_is_better_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ScriptedApi(monkeypatch)
    path = sample(tmp_path)
    assert cli.main(command(path)) == 0
    assert tuned(path).pick.name == "plain"
    assert "does not show that the pick is better than greedy" in capsys.readouterr().out


def test_answers_that_are_kept_are_not_asked_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    server, path = ScriptedApi(monkeypatch, text=by_sampler), sample(tmp_path)
    assert cli.main(command(path)) == 0
    first, count = tuned(path), len(server.asked)
    assert cli.main(command(path)) == 0
    assert len(server.asked) == count
    assert tuned(path) == first


def test_a_candidate_that_the_server_refuses_is_out_and_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server, path = ScriptedApi(monkeypatch, text=by_sampler), sample(tmp_path)

    def refuse(_: int, body: Json) -> httpx.Response | None:
        wrong = body["custom_params"].get("alpha") == 2.0
        return httpx.Response(400, json={"error": {"message": "alpha=2: no"}}) if wrong else None

    server.fault = refuse
    assert cli.main(command(path, "--budget", "20000")) == 0
    standing = next(each for each in tuned(path).standings if "alpha=2" in each.name)
    assert standing.left == "refused: alpha=2: no"


def test_a_budget_that_ends_early_says_how_many_problems_the_figure_has(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ScriptedApi(monkeypatch, text=by_sampler)
    path = sample(tmp_path, 60)
    assert cli.main(command(path, "--budget", "1800")) == 0
    found = tuned(path)
    assert found.held_out_asked < found.held_out_items
    assert (
        f"The budget ended after {found.held_out_asked} of 18 held-out problems." in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--budget", "500"), "2 rounds of 4 problems or more need about 1006"),
        (("--grid", '{"power": {"alpha": [4.0]}}'), "1 candidates: there is nothing to choose between"),
        (("--grid", "{"), "--grid: "),
        (("--limit", "19"), "19 problems that can be graded: at least 20 are needed"),
    ],
)
def test_what_cannot_be_tuned_is_told(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: tuple[str, ...],
    message: str,
) -> None:
    ScriptedApi(monkeypatch)
    assert cli.main(command(sample(tmp_path), *more)) == 2
    assert message in capsys.readouterr().err


def test_candidates_that_the_held_out_part_cannot_pay_for_are_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """40 tokens an answer, ten answers: more than 30% of the budget."""
    ScriptedApi(monkeypatch, text=by_sampler)
    path = sample(tmp_path)
    assert cli.main(command(path, "--budget", "1200")) == 0
    found = tuned(path)
    assert found.pick.name in ("plain", "greedy")
    assert {each.left for each in found.standings if "alpha" in each.name} == {
        "too dear: 10 answers take more than the held-out part has"
    }


def test_no_sample_and_no_gradable_problem_are_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ScriptedApi(monkeypatch)
    assert cli.main(command(tmp_path / "none.jsonl")) == 2
    assert "none.jsonl" in capsys.readouterr().err
    path = tmp_path / "odd.jsonl"
    path.write_text('{"prompt": "a", "answer": "?", "kind": "number"}\n')
    assert cli.main(command(path)) == 2
    assert "none of its 1 items can be graded" in capsys.readouterr().err


def test_a_server_without_the_plugin_has_nothing_to_tune(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = ScriptedApi(monkeypatch, has_plugin=False)
    assert cli.main(command(sample(tmp_path))) == 1
    assert "nothing to tune" in capsys.readouterr().err
    assert server.asked == []


@pytest.mark.parametrize("option", ["--budget", "--limit", "--max-tokens", "--concurrency"])
def test_a_wrong_option_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str) -> None:
    with pytest.raises(SystemExit):
        cli.main(command(sample(tmp_path), option, "0"))
    assert f"argument {option}: at least 1" in capsys.readouterr().err
