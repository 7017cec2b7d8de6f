"""LongBench v2 through an OpenAI-compatible server: a stub that fails now and then, and our own server."""

from __future__ import annotations

import json
import threading

import pytest

from distill.evaluation import api
from distill.evaluation.cli import main
from distill.evaluation.store import read_results

pytest.importorskip("openai")
fastapi = pytest.importorskip("fastapi")

from tests.pruning.live import live  # noqa: E402

FILLER = "The council met in the old hall and the minutes were read by the clerk without any haste. "


def rows(count):
    """Questions whose document names the answer."""
    found = []
    for i in range(count):
        document = FILLER * 20 + f"The bridge of Arden was built by mason number {i}. " + FILLER * 20
        row = {f"choice_{letter}": f"by mason {letter}" for letter in "ABCD"} | {"choice_B": f"by mason number {i}"}
        row |= {"_id": f"q{i}", "domain": "d", "sub_domain": "s", "difficulty": "easy", "length": "short"}
        found.append(row | {"answer": "B", "context": document, "question": "Who built the bridge of Arden?"})
    return found


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.json"
    path.write_text(json.dumps(rows(4)), encoding="utf-8")
    return path


class Stub:
    """A server that answers (B) where the document still names the mason, and fails as often as it is told to."""

    def __init__(self, failures=0, broken=()):
        self.failures, self.broken, self.prompts, self.keys = failures, broken, [], set()
        self.open = self.most = 0
        self._lock = threading.Lock()
        self.app = fastapi.FastAPI()
        self.app.post("/v1/chat/completions")(self.answer)

    def answer(self, request: fastapi.Request, body: dict = fastapi.Body()):  # noqa: B008
        with self._lock:
            self.keys.add(request.headers.get("authorization"))
            if self.failures:
                self.failures -= 1
                return fastapi.Response(status_code=503, headers={"retry-after-ms": "10"})
        text = body["messages"][0]["content"]
        if any(part in text for part in self.broken):
            return fastapi.Response(status_code=400)
        self.prompts.append(text)
        assert body["temperature"] == 0 and body["max_tokens"] == 128 and body["model"] == "m"
        letter = "B" if "was built by mason number" in text else "A"
        base = {"id": "x", "object": "chat.completion.chunk", "created": 0, "model": "m"}
        delta = {"index": 0, "delta": {"content": f"The correct answer is ({letter})"}, "finish_reason": "stop"}
        usage = {"prompt_tokens": len(text.split()), "completion_tokens": 6, "total_tokens": 0}
        chunks = [base | {"choices": [delta]}, base | {"choices": [], "usage": usage}]
        lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks] + ["data: [DONE]\n\n"]
        return fastapi.responses.StreamingResponse(iter(lines), media_type="text/event-stream")


def command(url, data, output, *flags):
    return main(["longbench2", "--api", f"{url}/v1", "--api-model", "m", "--data-path", str(data),
                 "--output", str(output), "--concurrency", "2", *flags])  # fmt: skip


def test_whole_and_pruned_prompts(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-0815")
    prices = tmp_path / "prices.json"
    prices.write_text(json.dumps({"m": {"input": 2.0, "output": 10}}), encoding="utf-8")
    stub = Stub(failures=2)
    with live(stub.app) as url:
        assert command(url, data, tmp_path / "out", "--prices", str(prices)) == 0
        whole = capsys.readouterr().out
        assert len(stub.prompts) == 4 and all(FILLER * 20 in text for text in stub.prompts)
        stub.prompts.clear()
        assert command(url, data, tmp_path / "out", "--prices", str(prices), "--prune", "rate=0.3,scorer=lexical") == 0
        pruned = capsys.readouterr().out
    assert stub.keys == {"Bearer sk-secret-0815"}
    assert "100.00" in whole and "51.0 to 100.0" in whole and "25.00" in whole  # accuracy, interval, chance
    assert "0 removed before" in whole and "break-even" not in whole and "break-even" in pruned
    assert all("was built by mason number" in text and FILLER * 20 not in text for text in stub.prompts)
    assert all(text.endswith('"The correct answer is (insert answer here)".') for text in stub.prompts)
    folder = next(tmp_path.glob("out/longbench2/*pruned*"))
    bill = json.loads((folder / "bill.json").read_text(encoding="utf-8"))
    assert bill["samples"] == 4 and bill["new_tokens"] == 24 and bill["removed_tokens"] > 0
    assert bill["saved"] == pytest.approx(bill["removed_tokens"] * 2e-6)
    assert bill["money"] == pytest.approx((bill["prompt_tokens"] * 2 + 24 * 10) / 1e6)
    assert bill["break_even"]["read_tokens_per_second"] == pytest.approx(
        bill["removed_tokens"] / bill["prune_seconds"]
    )
    for path in (tmp_path / "out").rglob("*"):
        assert not path.is_file() or "sk-secret" not in path.read_text(encoding="utf-8")
    assert "sk-secret" not in whole + pruned


def test_what_is_missing_is_asked_again_and_nothing_else(data, tmp_path, capsys):
    stub = Stub(broken=("mason number 2",))
    with live(stub.app) as url:
        assert command(url, data, tmp_path / "out", "--retries", "0") == 2
        assert "no answer for 1 of 4 samples (q2: BadRequestError)" in capsys.readouterr().err
        stub.broken = ()
        stub.prompts.clear()
        assert command(url, data, tmp_path / "out", "--retries", "0") == 0
    assert len(stub.prompts) == 1 and "mason number 2" in stub.prompts[0]
    result = read_results(next(tmp_path.rglob("test.jsonl")))
    assert list(result.records) == ["q0", "q1", "q2", "q3"] and result.summary["n"] == 4


def test_our_own_server_answers(data, tmp_path, tiny, capsys):
    transformers = pytest.importorskip("transformers")
    from distill.models import load
    from distill.serving.completions import Engine, create_model_app
    from distill.serving.settings import Settings

    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny)
    engine = Engine(load(str(tiny), policy=None), tokenizer, "m")
    short = [row | {"context": row["context"][-600:]} for row in rows(2)]
    data.write_text(json.dumps(short), encoding="utf-8")
    with live(create_model_app(lambda: engine, Settings())) as url:
        assert command(url, data, tmp_path / "out", "--prune", "rate=0.5,scorer=lexical,ner=capitals") == 0
    record = next(iter(read_results(next(tmp_path.rglob("test.jsonl"))).records.values()))
    assert record["cost"]["counted"] and record["prompt_tokens"] > 0 and 0 < record["new_tokens"] <= 128
    assert record["cost"]["kept_tokens"] <= 0.5 * record["cost"]["document_tokens"]
    assert 0 < record["cost"]["ttft_seconds"] <= record["cost"]["seconds"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--api", "ftp://x"], "--api: got"),
        (["--api", "http://user:secret@x/v1"], "--api: got one with a key in it"),
        (["--prune", "rat=0.5"], "--prune: got 'rat'"),
        (["--prune", "rate=2"], "rate: got 2"),
        (["--concurrency", "0"], "--concurrency: got 0"),
        (["--prices", "/nowhere.json"], "--prices: got /nowhere.json"),
        (["--max-length", "100"], "--max-length: got 100; allowed beside --api"),
        (["--model", "m"], "--model: got"),
    ],
)
def test_bad_flags_are_named(flags, message, data, tmp_path, capsys):
    usual = ["--api", "http://127.0.0.1:9/v1", "--retries", "0"]
    arguments = ["longbench2", *usual, "--api-model", "m", "--data-path", str(data), "--output", str(tmp_path)]
    assert main([*arguments, *flags]) == 2
    said = capsys.readouterr().err
    assert message in said and "secret" not in said


def test_prices_have_to_be_prices(tmp_path):
    path = tmp_path / "prices.json"
    path.write_text(json.dumps({"m": {"input": -1, "output": 1}}), encoding="utf-8")
    with pytest.raises(ValueError, match="input of m: got -1"):
        api.read_prices(path, "m")
    with pytest.raises(ValueError, match="--prices: got 'n'; allowed are"):
        api.read_prices(path, "n")
