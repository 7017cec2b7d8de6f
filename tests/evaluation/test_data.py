"""Data of the Hub through `datasets`, offline on local copies; what is corrupt is named, nothing is re-typed."""

from __future__ import annotations

import csv
import gzip
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.evaluation import strictjson
from distill.evaluation.benchmark import Source, check_tasks
from distill.evaluation.catalogue import benchmark
from distill.evaluation.data import HubSet, read_json_rows, read_jsonl, read_rows, read_texts, read_zip_member
from distill.evaluation.prompting import Encoder
from distill.evaluation.ruler import hotpot
from distill.evaluation.synthetic import essays as corpus

datasets = pytest.importorskip("datasets", reason="datasets is not installed")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of its own for each test."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


@pytest.fixture
def hub(tmp_path):
    """A local folder in the place of a data set on the Hub: `hub(files)` gives the set."""

    def make(files):
        folder = tmp_path / "hub"
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        return HubSet(str(folder), COMMIT)

    return make


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def samples(name, task, tokenizer, **options):
    bench = benchmark(name)
    found = check_tasks(bench, [task], options)[0]
    return bench.samples(found, Source(Encoder(tokenizer), None, None, "official", options))


def test_babilong_from_the_hub(hub, tokenizer, monkeypatch):
    rows = [{"input": f"Mary went home. {i}", "question": "Where is Mary? ", "target": "2020-01-01"} for i in range(3)]
    monkeypatch.setattr("distill.evaluation.babilong.DATA", hub({"data/qa1/0k.json": json.dumps(rows)}))
    made = samples("babilong", "qa1_0k", tokenizer, lengths=["0k"])
    assert [sample.prompt.context.count(f"Mary went home. {i}") for i, sample in enumerate(made)] == [1, 1, 1]
    assert made[0].reference["question"] == "Where is Mary? "


def test_longbench2_from_the_hub(hub, tokenizer, monkeypatch):
    row = {f"choice_{letter}": f"{letter}!" for letter in "ABCD"} | {"_id": "66f3", "domain": "d", "sub_domain": "s"}
    row |= {"difficulty": "easy", "length": "short", "answer": "B", "question": "Q?", "context": "Line.\r\n\u2028 中"}
    monkeypatch.setattr("distill.evaluation.longbench2.DATA", hub({"data.json": json.dumps([row])}))
    made = samples("longbench2", "test", tokenizer, variant="0shot")
    assert made[0].id == "66f3" and made[0].reference == {"answer": "B"}
    assert made[0].prompt.context.endswith("Line.\r\n\u2028 中")


def test_infinitebench_from_the_hub_keeps_the_types_of_labels(hub, tokenizer, monkeypatch):
    context = {"context": "1 \u2028 2\r\n", "input": "The largest number of the list is?"}
    answers = [88, 88.0, 88.5, 2**60, "00123", "2020-01-01", ["00123"], [88]]
    rows = [{"id": i, "answer": answer} | context for i, answer in enumerate(answers)]
    monkeypatch.setattr("distill.evaluation.infbench.DATA", hub({"math_find.jsonl": lines(rows)}))
    made = samples("infbench", "math_find", tokenizer, prompts="yarn_mistral")
    labels = [sample.reference["label"] for sample in made]
    assert [(type(label), label) for label in labels] == [(type(answer), answer) for answer in answers]
    assert context["context"] in made[0].prompt.context


def test_hotpotqa_from_the_hub(hub):
    row = {"_id": "a", "question": "Q?", "answer": "yes", "type": "bridge", "level": "hard"}
    row |= {"context": [["One", ["First. ", "Second."]], ["Two", ["Third."]]], "supporting_facts": [["One", 0]]}
    text, mixed = ("_id", "question", "answer", "type", "level"), ("context", "supporting_facts")
    found = hub({"h.json": json.dumps([row])}).table("h.json", text, mixed)
    assert found == [row]
    assert hotpot(found)[0] == ["One\nFirst. Second.", "Two\nThird."]


def test_essays_from_the_hub_are_the_text_of_the_file(hub, tmp_path, monkeypatch):
    texts = [("B", "NA"), ("a, b", 'He said "x"\r\nand\n\nmore \u2028 中'), ("nan", " lead\ttab "), ("1", "null")]
    path = tmp_path / "essays.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(
            [("id", "title", "text", "date"), *((i, *pair, "x") for i, pair in enumerate(texts))]
        )
    monkeypatch.setattr(corpus, "ESSAYS", hub({corpus.FILE: path.read_bytes()}))
    assert corpus.essays(None, None) == "\n".join(text for _, text in sorted(texts))


@pytest.mark.parametrize("name", ["babilong", "longbench2", "essays"])
def test_the_pinned_revision_is_asked_for(tokenizer, monkeypatch, name):
    asked = []

    def load_dataset(*args, **kwargs):
        asked.append((args, kwargs))
        return datasets.Dataset.from_list([{"title": "t", "text": "x", **dict.fromkeys("abc", "")}]).select([])

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    for revision in (None, "other"):
        if name == "essays":
            corpus.essays(None, revision)
            pinned = corpus.ESSAYS
        else:
            bench = benchmark(name)
            task, options = ("qa1_0k", {"lengths": ["0k"]}) if name == "babilong" else ("test", {"variant": "0shot"})
            found = bench.tasks(options)[task]
            bench.samples(found, Source(Encoder(tokenizer), None, revision, "official", options))
            pinned = HubSet(bench.repo, bench.revision)
        args, kwargs = asked.pop()
        assert args == (pinned.repo,) and kwargs["revision"] == (revision or pinned.revision)


def test_infinitebench_asks_for_the_pinned_revision_too(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    found = HubSet("some/set", COMMIT)._place("passkey.jsonl", COMMIT)
    assert found == f"hf://datasets/some/set@{COMMIT}/passkey.jsonl"


def test_another_commit_in_the_cache_is_refused(monkeypatch):
    """Offline, `datasets` gives what it has of a data set, whatever revision was asked for."""

    class Cached(list):
        cache_files = ({"filename": f"/cache/some___set/default/0.0.0/{'f' * 40}/data.arrow"},)

    monkeypatch.setattr("datasets.load_dataset", lambda *args, **kwargs: Cached())
    with pytest.raises(ValueError, match=f"only the revision {'f' * 40} is at hand.*--data-path"):
        HubSet("some/set", COMMIT).table("x.json", ("a",))
    assert HubSet("some/set", "f" * 40).table("x.json", ("a",)) == []


@pytest.mark.parametrize(
    "act",
    [
        lambda data: data.table("no.json", ("a",)),
        lambda data: data.json_lines("no.jsonl"),
        lambda data: data.table("odd.json", ("a",)),
        lambda data: data.table("broken.json", ("a",)),
    ],
)
def test_rows_that_cannot_be_had_say_how_to_use_a_local_copy(hub, act):
    data = hub({"odd.json": '[{"b": "x"}]', "broken.json": '[{"a": '})
    with pytest.raises(ValueError, match=r"data: got no \w+\.jsonl? of the data set .*--data-path"):
        act(data)


def test_sets_of_the_hub_without_a_network_say_how_to_use_a_local_copy(tokenizer):
    """The tests run with HF_HUB_OFFLINE=1."""
    for name, task, options in (
        ("babilong", "qa1_0k", {"lengths": ["0k"]}),
        ("longbench2", "test", {"variant": "0shot"}),
        ("infbench", "passkey", {"prompts": "yarn_mistral"}),
    ):
        with pytest.raises(ValueError, match=r"data: got no .* of the data set .*--data-path"):
            samples(name, task, tokenizer, **options)


def test_a_row_without_a_value_is_named(hub, tokenizer, monkeypatch):
    rows = [{"input": "x", "question": "q", "target": "t"}, {"input": "x", "question": "q"}]
    monkeypatch.setattr("distill.evaluation.babilong.DATA", hub({"data/qa1/0k.json": json.dumps(rows)}))
    with pytest.raises(ValueError, match="BABILong qa1_0k, row 2: got no 'target', only input, question"):
        samples("babilong", "qa1_0k", tokenizer, lengths=["0k"])


def test_without_datasets_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(ValueError, match=r"pip install 'distill-llm\[eval\]'"):
        HubSet("some/set", COMMIT).table("x.json", ("a",))


CORRUPT = {
    "utf8": (b'{"a": "\xff"}', "utf-8"),
    "torn": (b'{"a": ', "Expecting value"),
    "deep": (b"[" * 100_000 + b"]" * 100_000, "nested more than 100 deep"),
    "rather deep": (b"[" * 101 + b"]" * 101, "nested more than 100 deep"),
    "digits": (b'{"a": ' + b"9" * 5_000 + b"}", "an integer of 5000 digits"),
    "infinite": (b'{"a": 1e999}', "too large"),
    "nan": (b'{"a": NaN}', "the value NaN"),
    "minus": (b'{"a": -Infinity}', "the value -Infinity"),
    "zeros": (b"\0\0\0\0", "Expecting value"),
}


@pytest.mark.parametrize("kind", CORRUPT)
def test_corrupt_json_names_file_and_line(tmp_path, kind):
    content, reason = CORRUPT[kind]
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'{"a": 1}\n' + content + b"\n")
    with pytest.raises(ValueError, match=rf"data\.jsonl, line 2: got corrupt JSON \(.*{reason}"):
        read_jsonl(path)
    whole = tmp_path / "data.json"
    whole.write_bytes(content)
    with pytest.raises(ValueError, match=rf"data\.json: got corrupt JSON \(.*{reason}"):
        read_json_rows(whole)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=10,
)


@settings(max_examples=100, deadline=None)
@given(json_values)
def test_what_is_written_is_read_back(value):
    assert strictjson.loads(strictjson.dumps(value, "x").encode("utf-8"), "x") == value


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60) | json_values.map(lambda value: json.dumps(value).encode()[:-1]))
def test_any_bytes_are_read_or_refused_by_name(data):
    try:
        strictjson.loads(data, "here")
    except ValueError as error:
        assert str(error).startswith("here: got corrupt JSON (")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": [float("-inf")]}, {1, 2}, object()])
def test_what_json_does_not_have_is_not_written(value):
    with pytest.raises(ValueError, match="here: got a value that is not JSON"):
        strictjson.dumps(value, "here")


def test_half_a_surrogate_pair_is_written_as_an_escape():
    assert strictjson.loads(strictjson.dumps({"a": "\ud83d 中"}, "x").encode("utf-8"), "x") == {"a": "\ud83d 中"}


def test_files_that_are_no_archives_are_named(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"a": 1}\n')[:-9])
    (tmp_path / "b.zip").write_bytes(b"PK\x03\x04 not a zip")
    (tmp_path / "c.txt").write_bytes(b"\xff\xfe")
    for name, act in (
        ("a.jsonl.gz", read_jsonl),
        ("b.zip", lambda p: read_zip_member(p, ["x"])),
        ("c.txt", read_texts),
    ):
        with pytest.raises(ValueError, match=rf"{name}: got .*; allowed is"):
            act(tmp_path / name)
    with pytest.raises(ValueError, match=r"--data-path: got .*nowhere; allowed"):
        read_rows(tmp_path / "nowhere", ["x"])


@pytest.mark.parametrize("options", [None, [], ["a"], ["a", "b", "c", "d", "e"], "abcd"])
def test_a_choice_without_four_options_is_named(tmp_path, tokenizer, options):
    row = {"id": 1, "context": "c", "input": "i", "answer": "a", "options": options}
    (tmp_path / "longbook_choice_eng.jsonl").write_text(json.dumps(row), encoding="utf-8")
    bench = benchmark("infbench")
    task, settings = bench.tasks({})["longbook_choice_eng"], {"prompts": "yarn_mistral"}
    with pytest.raises(ValueError, match=r"InfiniteBench longbook_choice_eng, options: got .*; allowed are four"):
        bench.samples(task, Source(Encoder(tokenizer), tmp_path, None, "official", settings))
