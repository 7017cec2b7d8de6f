"""`distill eval compare` on the shipped small model, and its report in a real browser."""

from __future__ import annotations

import html
import html.parser
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import distill.mini
from distill.evaluation import report
from distill.evaluation.cli import main
from distill.evaluation.report import collect

PAPER = "promptdistill:selection_layers=[3],cache_truncation_end=1"
METHOD = f"{PAPER},scoring=softmax,pooling=max,pooling_kernel=31,recent=32"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# runs in the page after its own script: presses what a reader would press, and notes what is there
PROBE = """
<script>
const count = (selector) => document.querySelectorAll(selector).length;
const found = { ready: document.documentElement.dataset.ready === "true", curves: count("#quality .curve"),
  whiskers: count("#quality .whisker"), chance: count("#quality .chance"), maps: count("#heat svg.heat"),
  cells: count("#heat rect"), ttft: count("#ttft circle"), cache: count("#cache circle"), peak: count("#peak circle"),
  runs: count("#runs tbody tr"), samples: count("#samples tbody tr") };
document.querySelector("#samples tbody tr").click();
found.open = document.getElementById("drill").open;
found.answers = count("#drill-answers tbody tr");
found.kept = [...document.querySelectorAll("#drill-prompt mark")].map((node) => node.textContent).join("");
found.lost = [...document.querySelectorAll("#drill-prompt .lost")].map((node) => node.textContent).join("");
found.options = count("#drill-run option");
found.external = performance.getEntriesByType("resource").map((entry) => entry.name)
  .filter((name) => !name.startsWith("data:"));
const box = document.createElement("pre");
box.id = "probe";
box.textContent = JSON.stringify(found);
document.body.append(box);
</script>
"""


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Output folder of a comparison: two variants of a method, two budgets, both protocols, six samples each."""
    output = tmp_path_factory.mktemp("compare")
    model = distill.mini.path("llama")
    arguments = ["compare", "needle", "--model", str(model), "--cpu", "--dtype", "float32", "--output", str(output)]
    arguments += [
        "--data-path",
        str(model.parent / "story.txt"),
        "--needles",
        "1",
        "--s_len",
        "700",
        "--e_len",
        "1000",
    ]
    arguments += ["--n-lengths", "2", "--n-depths", "3", "--protocol", "both", "--drilldown", "1"]
    arguments += ["--methods", "default", METHOD, PAPER, "--budgets", "64", "128"]
    assert main(arguments) == 0
    return output


def folders(output):
    return sorted(path.parent for path in output.rglob("scores.json"))


def test_the_numbers_of_the_report(compared):
    assert len(folders(compared)) == 10
    data = collect(folders(compared))
    runs = {
        (run["label"].count("softmax"), run["edition"], run["budget"], run["protocol"]): run for run in data["runs"]
    }
    stock = runs[0, "default", None, "query-aware"]["tasks"]["random"]
    assert stock["score"] == 100 and stock["n"] == 6 and stock["interval"][0] == pytest.approx(60.97, abs=0.01)
    assert "difference" not in stock
    chosen = runs[1, "promptdistill", 128, "query-aware"]["tasks"]["random"]
    paper = runs[0, "promptdistill", 128, "query-aware"]["tasks"]["random"]
    hidden = runs[1, "promptdistill", 128, "query-agnostic"]["tasks"]["random"]
    # what this small model can show: a question that the method sees finds the needle, a hidden one does not
    assert min(chosen["score"], paper["score"]) > hidden["score"]
    assert chosen["cost"]["cache_bytes"] < stock["cost"]["cache_bytes"] / 2
    assert chosen["difference"][0] == pytest.approx(chosen["score"] - 100)
    heat = chosen["heat"]
    assert (heat["lengths"], heat["depths"]) == ([700, 1000], [0, 50, 100])
    assert sum(map(sum, heat["values"])) / 6 == pytest.approx(chosen["score"])
    assert len(data["samples"]) == 6 and len(data["samples"][0]["answers"]) == 10
    drilled = [sample for sample in data["samples"] if any("kept" in a for a in sample["answers"].values())]
    assert len(drilled) == 1
    for answer in drilled[0]["answers"].values():
        assert len(answer["kept"]) == len(data["prompts"][answer["prompt"]]) == answer["prompt_tokens"]
    assert data["facts"]["preset"] == "official" and data["facts"]["environment"]["versions"]["torch"]


def test_several_models_are_told_apart(compared, tmp_path):
    """A method is compared with its own model, another model with the first."""
    assert {run["model"] for run in collect(folders(compared))["runs"]} == {""}
    aware = [folder for folder in folders(compared) if "query-aware" in folder.name]
    stock = next(folder for folder in aware if "default" in folder.name)
    method = next(folder for folder in aware if folder != stock)
    copies = []
    for folder in (stock, method):
        copy = tmp_path / "small" / folder.name
        shutil.copytree(folder, copy)
        scores = json.loads((copy / "scores.json").read_text())
        for task in scores["tasks"].values():
            task["header"]["model"] = "elsewhere/small"
            task["samples"] = dict.fromkeys(task["samples"], 0.5)
        (copy / "scores.json").write_text(json.dumps(scores))
        copies.append(copy)
    runs = collect([stock, method, *copies])["runs"]
    gaps = {(run["model"], run["edition"]): run["tasks"]["random"].get("difference") for run in runs}
    assert {model for model, _ in gaps} == {"llama", "small"} and len(gaps) == 4
    assert gaps["llama", "default"] is None and gaps["small", "default"][0] == -50  # stock finds all
    assert gaps["small", "promptdistill"][0] == 0 and gaps["llama", "promptdistill"][0] <= 0


@pytest.mark.parametrize(
    ("models", "names"),
    [
        (["a/x"], [""]),
        (["a/x", "a/y"], ["x", "y"]),
        (["a/x", "b/x", "b/y"], ["a/x", "b/x", "b/y"]),
        (["x", "a/x"], ["x", "a/x"]),
    ],
)
def test_names_of_models(models, names):
    assert list(report._short(models).values()) == names


def test_the_page_is_whole_and_loads_nothing(compared):
    page = (compared / "report.html").read_text(encoding="utf-8")
    assert "%TITLE%" not in page and "%DATA%" not in page
    outside = []

    class Links(html.parser.HTMLParser):
        def handle_starttag(self, tag, attributes):
            given = dict(attributes)
            outside.extend(given[name] for name in ("src", "href") if name in given)

    Links().feed(page)
    assert outside == ["data:,"]


def test_text_cannot_break_out_of_the_page(compared, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folders(compared)[0], copy)
    path = copy / "random.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    row = json.loads(lines[1]) | {"prediction": "</script><b>%DATA% &amp;"}
    path.write_text("\n".join([lines[0], json.dumps(row), *lines[2:]]) + "\n", encoding="utf-8")
    report.write([copy], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("</script>") == 2
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S).group(1)
    assert json.loads(data)["samples"][0]["answers"]["0"]["prediction"] == row["prediction"]


def test_bad_reports_are_refused(compared, tmp_path, capsys):
    with pytest.raises(ValueError, match="folders: got none; allowed is at least one"):
        report.write([], tmp_path / "r.html")
    assert main(["report", str(tmp_path)]) == 2
    assert "allowed are folders with scored runs" in capsys.readouterr().err
    other = tmp_path / "other"
    other.mkdir()
    scores = json.loads((folders(compared)[0] / "scores.json").read_text(encoding="utf-8"))
    (other / "scores.json").write_text(json.dumps(scores | {"benchmark": "ruler"}), encoding="utf-8")
    with pytest.raises(ValueError, match="folders: got runs of needle, ruler; allowed are runs of one benchmark"):
        report.write([folders(compared)[0], other], tmp_path / "r.html")


def test_a_report_of_earlier_runs(compared, tmp_path):
    assert main(["report", str(compared), "--report", str(tmp_path / "again.html")]) == 0
    again = (tmp_path / "again.html").read_text(encoding="utf-8")
    assert len(again) == pytest.approx(len((compared / "report.html").read_text(encoding="utf-8")), rel=0.01)


def test_in_a_browser_the_curves_maps_and_drilldown_are_there(compared, tmp_path):
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"no browser found: none of {', '.join(BROWSERS)} is installed")
    page = (compared / "report.html").read_text(encoding="utf-8")
    probed = tmp_path / "probed.html"
    probed.write_text(page.replace("</body>", PROBE + "</body>"), encoding="utf-8")
    found, console = open_page(browser, probed, tmp_path / "profile")
    assert console == []
    # two variants under two protocols; each has two budgets
    assert found["ready"] and found["curves"] == 4 and found["whiskers"] == 8 and found["chance"] == 1
    assert found["maps"] == 10 and found["cells"] == 60
    assert found["ttft"] == found["cache"] == found["peak"] == 8
    assert found["runs"] == 10 and found["samples"] == 6
    assert found["open"] and found["answers"] == 11 and found["options"] == 10
    assert found["kept"] and found["lost"]
    assert found["external"] == []


def open_page(browser: str, path: Path, profile: Path) -> tuple[dict, list[str]]:
    """What the probe found in the page, and what the browser's console said."""
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        f"--user-data-dir={profile}",
    ]
    flags += ["--enable-logging=stderr", "--virtual-time-budget=4000", "--dump-dom", path.as_uri()]
    done = subprocess.run([browser, *flags], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-2000:]
    text = re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.S)
    assert text, done.stdout[-2000:]
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(html.unescape(text.group(1))), console
