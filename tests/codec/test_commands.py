"""`distill zip` and `distill unzip` as they are called, and the page in a browser."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from distill.cli import main

TEXT = (
    "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness.\n"
)
ROOT = Path(__file__).resolve().parents[2]
#: parses an argument once, so that each test says only what differs
QUICK = ["-q", "--context", "32", "--block", "200"]


@pytest.fixture
def book(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = Path("book.txt")
    path.write_bytes(TEXT.encode())
    return path


def test_files_go_there_and_back(book, capfd):
    Path("other.txt").write_bytes(b"")
    assert main(["zip", "book.txt", "other.txt", *QUICK]) == 0
    assert f"book.txt: {len(TEXT)} bytes ->" in capfd.readouterr().err
    written = Path("book.txt.dz").read_bytes()
    assert main(["zip", "book.txt", *QUICK]) == 2
    assert "output: got 'book.txt.dz', which exists" in capfd.readouterr().err
    assert main(["unzip", "book.txt.dz", "-q"]) == 2
    book.unlink()
    assert main(["unzip", "book.txt.dz", "-q"]) == 0
    assert book.read_bytes() == TEXT.encode()
    assert main(["unzip", "other.txt.dz", "-q", "--force"]) == 0 and Path("other.txt").read_bytes() == b""
    assert main(["zip", "book.txt", "--force", *QUICK]) == 0 and Path("book.txt.dz").read_bytes() == written
    assert sorted(path.name for path in Path().iterdir()) == ["book.txt", "book.txt.dz", "other.txt", "other.txt.dz"]


def test_info_test_and_salvage(book, capsys):
    book.write_bytes((TEXT * 4).encode())
    assert main(["zip", "book.txt", *QUICK, "--no-verify"]) == 0
    assert main(["zip", "info", "book.txt.dz"]) == 0
    said = capsys.readouterr().out
    assert f"coded with mini-llama, {4 * len(TEXT)} bytes" in said and "context 32" in said and "DAMAGED" not in said
    assert main(["zip", "test", "book.txt.dz"]) == 0 and "whole" in capsys.readouterr().out
    data = bytearray(Path("book.txt.dz").read_bytes())
    data[data.index(b"\xf5BLK", data.index(b"\xf5BLK") + 1) - 1] ^= 1
    Path("broken.dz").write_bytes(data)
    assert main(["zip", "info", "broken.dz"]) == 1 and "DAMAGED" in capsys.readouterr().out
    assert main(["zip", "test", "broken.dz"]) == 1 and "block 0: its checksum is wrong" in capsys.readouterr().out
    assert main(["unzip", "broken.dz", "-o", "out.txt", "-q"]) == 2 and not Path("out.txt").exists()
    assert main(["unzip", "broken.dz", "-o", "out.txt", "-q", "--salvage"]) == 1
    left = Path("out.txt").read_bytes()
    assert left and (TEXT * 4).encode().endswith(left)


def test_errors_come_before_anything_is_written(book, capsys):
    for argv, said in (
        (["zip", "none.txt"], "file: got 'none.txt', which is no file"),
        (["zip", "book.txt", "--model", "nowhere"], "model: got 'nowhere'"),
        (["zip", "book.txt", "--context", "1"], "context: got 1"),
        (["zip", "info", "book.txt"], "file: got something else; allowed are files that distill zip wrote"),
        (["zip", "info"], "file: got none to info"),
        (["zip", "a", "b", "-o", "c"], "output: got one for several files"),
        (["unzip", "book.txt"], "file: got 'book.txt'; name the output with -o"),
    ):
        assert main(argv) == 2 and said in capsys.readouterr().err
    assert [path.name for path in Path().iterdir()] == ["book.txt"]


def test_files_may_stand_behind_options(book, capsys):
    assert main(["zip", "info", "-q", "none.dz"]) == 2 and "got 'none.dz'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["zip", "book.txt", "--no-such-option", "other.txt"])
    assert "unrecognized arguments: --no-such-option other.txt" in capsys.readouterr().err


def test_standard_input_and_output(book, monkeypatch):
    def through(argv: list[str], data: bytes) -> bytes:
        out = io.BytesIO()
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(data)))
        monkeypatch.setattr("sys.stdout", SimpleNamespace(buffer=out, flush=out.flush))
        assert main(argv) == 0
        return out.getvalue()

    packed = through(["zip", "-", *QUICK], TEXT.encode())
    assert through(["unzip", "-", "-q"], packed) == TEXT.encode()


def test_a_killed_process_leaves_nothing(book):
    book.write_bytes((ROOT / "mini" / "story.txt").read_bytes() * 20)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "distill.cli", "zip", "book.txt", "-q"]
    running = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    opened = Path(f"/proc/{running.pid}/fd")
    if not opened.is_dir():
        running.kill()
        pytest.skip("no /proc to see when the output has been opened")
    while time.monotonic() < deadline and not any("deleted" in _target(link) for link in opened.iterdir()):
        time.sleep(0.05)
    time.sleep(0.5)
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    assert [path.name for path in Path().iterdir()] == ["book.txt"]


def _target(link: Path) -> str:
    try:
        return os.readlink(link)
    except OSError:
        return ""


PROBE = """<pre id="probe"></pre><script>
const seen = document.querySelectorAll("#text span");
seen[3].dispatchEvent(new MouseEvent("mouseover", {bubbles: true, clientX: 20, clientY: 20}));
const shown = document.getElementById("tip");
const colours = new Set([...seen].map((span) => span.style.background));
document.querySelector("input[value=rank]").click();
document.getElementById("probe").textContent = [seen.length, document.getElementById("text").textContent.length,
  shown.hidden, shown.querySelectorAll("tr").length, colours.size > 1, document.querySelectorAll(".bar").length > 1,
  document.querySelectorAll("polyline").length, document.querySelector(".scale").textContent.includes("100+"),
  document.querySelectorAll("[src], link").length].join(" ");
</script>"""


def test_the_page_in_a_browser(book, tmp_path):
    assert main(["zip", "view", "book.txt", "-o", "page.html", "-q"]) == 0
    page = Path("page.html").read_text()
    assert "<title>distill zip view book.txt</title>" in page and "bits per byte under mini-llama" in page
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no browser")
    Path("probed.html").write_text(page.replace("</body>", PROBE + "</body>"))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    flags += ["--disable-background-networking", "--virtual-time-budget=3000", "--dump-dom"]
    address = Path("probed.html").resolve().as_uri()
    done = subprocess.run([browser, *flags, address], capture_output=True, text=True, timeout=120, check=False)
    found = done.stdout.split('<pre id="probe">')[1].split("</pre>")[0].split()
    tokens, characters, *rest = found
    assert int(tokens) > 20 and int(characters) == len(TEXT)
    assert rest == ["false", "5", "true", "true", "3", "true", "0"]


def test_bench_prints_every_way(book, capsys):
    assert main(["zip", "bench", "book.txt", "-q"]) == 0
    said = capsys.readouterr().out
    for name in ("xz -9e", "brotli 11", "ideal: sum", "ac, model alone", "+ ngram", "rank, corrected, huffman"):
        assert name in said
