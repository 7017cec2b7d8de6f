"""The page /codec of the server: what is typed comes back coded, also in a browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest

httpx = pytest.importorskip("httpx", reason="the extra serve is not installed")
pytest.importorskip("fastapi", reason="the extra serve is not installed")

from distill.pruning import Distill  # noqa: E402
from distill.serving import Settings, create_app  # noqa: E402
from distill.serving.codec_page import CHARACTERS  # noqa: E402

from .live import live  # noqa: E402

TEXT = "Alice was beginning to get very tired of sitting by her sister"


@pytest.fixture(scope="module")
def server():
    quick = Distill(scorer="baseline", ner=None)
    with live(create_app(lambda: quick, Settings(api_key=None, timeout=60))) as url:
        yield url


def tokens(page):
    return json.loads(re.search(r"const TOKENS=(.*);\n", page)[1])


def test_what_is_typed_comes_back_coded(server):
    answer = httpx.post(f"{server}/codec", json={"text": TEXT}, timeout=60)
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/html")
    found = tokens(answer.text)
    assert "".join(text for text, *_ in found) == TEXT
    bits = sum(bits for _, _, bits, _ in found)
    said = float(re.search(r"([\d.]+) bits per byte under mini-llama", answer.text)[1])
    assert said == pytest.approx(bits / len(TEXT), abs=2e-3) and 0.5 < said < 5
    random = tokens(httpx.post(f"{server}/codec", json={"text": "xq zvv kkj qqw"}, timeout=60).text)
    assert sum(bits for _, _, bits, _ in random) / 14 > 1.5 * said  # what nobody writes costs more
    for odd in ("", "\u00e9\n\n\t", "<script>alert(1)</script>"):
        again = httpx.post(f"{server}/codec", json={"text": odd}, timeout=60)
        assert again.status_code == 200 and "".join(text for text, *_ in tokens(again.text)) == odd
        assert "<script>alert" not in again.text


def test_what_is_too_long_or_has_no_key_is_refused(server):
    assert httpx.post(f"{server}/codec", json={"text": "x" * (CHARACTERS + 1)}).status_code == 422
    assert httpx.post(f"{server}/codec", json={}).status_code == 422
    quick = Distill(scorer="baseline", ner=None)
    with live(create_app(lambda: quick, Settings(api_key="secret"))) as locked:
        assert "hidden = !true" in httpx.get(f"{locked}/codec").text
        assert httpx.post(f"{locked}/codec", json={"text": "a"}).status_code == 401
        assert httpx.post(
            f"{locked}/codec", json={"text": "a"}, headers={"X-API-Key": "secret"}, timeout=60
        ).is_success


def test_the_page_in_a_browser(server, tmp_path):
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no browser")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}", "--dump-dom"]
    flags += ["--no-first-run", "--disable-background-networking", "--virtual-time-budget=20000"]
    address = f"{server}/codec#{TEXT.replace(' ', '%20')}"
    done = subprocess.run([browser, *flags, address], capture_output=True, text=True, timeout=120, check=False)
    assert "bits per byte under mini-llama" in done.stdout, done.stdout[-2000:] + done.stderr[-2000:]
    assert TEXT.split()[0] in done.stdout and "refused" not in re.search(r'id="said".*?</p>', done.stdout)[0]
