"""`distill cache make|ask|info`, and which document of a folder a question is about."""

from __future__ import annotations

import re

import pytest

import distill
from distill import AttentionMatching, KVzip, cli
from distill.distillation.keep import read_record
from distill.distillation.shelf import documents_for, shelf
from distill.mini.passkey import FACT, QUESTION, story

from ..real import smollm2

TEXTS = {
    "lighthouse.txt": "The lighthouse at Cape Ferrol was built in 1871 by the engineer Ada Brunn. It is 43 metres "
    "high. The keeper in 1902 was Jonas Weller, who kept a diary about storms.",
    "bakery.txt": "The bakery in Mill Street sells rye bread on Mondays and plum cake on Fridays. Its owner, Harriet "
    "Stone, bought the ovens in Lyon for 1200 francs.",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of two caches of the small model, each of a story with a pass key."""
    folder = tmp_path_factory.mktemp("caches")
    for name, key, start in (("one", "48213", 2000), ("two", "90177", 9000)):
        text = f"{story()[start : start + 500]}\n{FACT.format(key=key)}\n{story()[start + 500 : start + 900]}"
        (folder / f"{name}.txt").write_text(text)
    files = [str(folder / "one.txt"), str(folder / "two.txt")]
    assert cli.main(["cache", "make", str(distill.mini.path()), "--file", *files, "-o", str(folder / "kept")]) == 0
    return folder


def said(capsys, *argv):
    """What the command prints; it must succeed."""
    capsys.readouterr()
    status = cli.main(["cache", *map(str, argv)])
    out, err = capsys.readouterr()
    assert status == 0, err
    return out


def refused(capsys, *argv):
    capsys.readouterr()
    assert cli.main(["cache", *map(str, argv)]) == 2
    return capsys.readouterr().err


def test_answers_come_from_the_saved_cache(made, capsys):
    out = said(capsys, "ask", made / "kept" / "one", QUESTION, "Who is", "--max-new-tokens", 6)
    lines = out.splitlines()
    assert lines[0] == QUESTION and re.match(r"  one\.txt: 48213", lines[1]) and "Who is" in lines
    out = said(capsys, "ask", made / "kept", QUESTION, "--document", "two.txt", "--max-new-tokens", 6)
    assert "two.txt: 90177" in out and "one.txt" not in out
    policy, (_, tokenizer) = read_record(made / "kept" / "one")["policy"], distill.mini("llama")
    assert policy == AttentionMatching(KVzip.with_tokenizer(tokenizer, budget=0.25)).to_dict()
    assert policy["policy"]["instruction"]


def test_a_question_that_fits_two_documents_is_put_to_both(made, capsys):
    out = said(capsys, "ask", made / "kept", "The pass key is", "--max-new-tokens", 6)
    assert "one.txt: 48213" in out and "two.txt: 90177" in out and "equally like the question" in out


def test_info_says_what_is_held(made, capsys):
    out = said(capsys, "info", made / "kept")
    head, *rows = out.splitlines()
    assert head.split() == ["document", "tokens", "entries", "bytes", "share", "policy"] and len(rows) == 2
    assert all(re.match(r"(one|two)\.txt +\d+ .* 2[45]\.\d%  matching \(kvzip 0\.25\)$", row) for row in rows)
    out = said(capsys, "info", made / "kept" / "one")
    assert "model: " in out and "bfloat16" in out and "█" in out


def test_make_takes_every_method(made, capsys, tmp_path):
    for method, share in (("none", "100.0%"), ("snapkv:window_size=8", "12.5%"), ("streamingllm", "12.5%")):
        budget = [] if method == "none" else ["--budget", "1/8"]
        place = tmp_path / method[:4]
        model, file = distill.mini.path(), made / "one.txt"
        out = said(capsys, "make", model, "--file", file, "--method", method, *budget, "-o", place)
        found = float(re.search(r"([\d.]+)%", out).group(1))
        assert found == pytest.approx(float(share[:-1]), abs=0.5), out


def test_what_the_command_refuses(made, capsys, tmp_path):
    model, file, kept = distill.mini.path(), made / "one.txt", made / "kept"
    out = tmp_path / "out"
    for argv, match in (
        (("make", model, "--file", "nothing.txt", "-o", out), "file: got nothing.txt, which is no file"),
        (("make", model, "--file", file, file, "-o", out), "file: got two files called one"),
        (("make", model, "--file", file, "--method", "x", "-o", out), "method: got 'x'"),
        (("make", model, "--file", file, "--budget", "1/0", "-o", out), "budget: got '1/0'"),
        (("make", model, "--file", file, "--method", "knorm:budget=9", "--budget", "8", "-o", out), "budget: got 8"),
        (("info", tmp_path), "which holds no cache"),
        (("ask", kept, "x", "--document", "z"), "document: got 'z'; allowed are one.txt, two.txt"),
        (("ask", kept / "one", "x", "--model", distill.mini.path("qwen2")), "model: got one with"),
        (("ask", kept / "one", "x", "--dtype", "float32"), "dtype: got a model in float32"),
    ):
        assert match in refused(capsys, *argv)
    assert not out.exists()


def test_names_and_models_that_a_folder_does_not_say(made, capsys, tmp_path):
    model, tokenizer = distill.mini("llama")
    cache = distill.read_document(model, tokenizer, story()[:400], None)
    distill.save_cache(cache, tmp_path / "first")
    assert "first: " in said(capsys, "ask", tmp_path, "Who is", "--max-new-tokens", 2)
    plain = model(cache.origin.ids, policy=None, use_cache=True).past_key_values
    distill.save_cache(plain, tmp_path / "second")
    assert "second was saved without its text" in refused(capsys, "ask", tmp_path, "Who is")
    assert "model: got nothing" in refused(capsys, "ask", tmp_path / "second", "Who is")
    said(capsys, "ask", tmp_path / "second", "Who is", "--model", distill.mini.path(), "--max-new-tokens", 2)
    distill.save_cache(plain, tmp_path / "third", name="second")
    assert "two caches called second" in refused(capsys, "info", tmp_path)


def test_help_teaches_by_example(capsys):
    for argv in (["--help"], ["make", "--help"], ["ask", "--help"], ["info", "--help"]):
        with pytest.raises(SystemExit):
            cli.main(["cache", *argv])
        assert "distill cache ask caches/report" in capsys.readouterr().out


def test_a_question_is_about_the_document_that_shares_its_words():
    assert documents_for("Who owns the bakery?", TEXTS) == ["bakery.txt"]
    assert documents_for("Who built the lighthouse?", TEXTS) == ["lighthouse.txt"]
    assert documents_for("What is sold on FRIDAY?", TEXTS) == ["bakery.txt"]
    assert documents_for("", TEXTS) == documents_for("xyz", TEXTS) == sorted(TEXTS, reverse=True)
    # what all documents share says nothing
    assert documents_for("the keeper", TEXTS | {"long": TEXTS["bakery.txt"] + " the keeps."}) == ["lighthouse.txt"]


@pytest.mark.real
def test_a_real_model_answers_from_the_document_that_is_found(tmp_path):
    """Nobody knew the questions when the texts were read; half of each cache is dropped."""
    model, tokenizer = smollm2()
    for name, text in TEXTS.items():
        distill.save_cache(distill.read_document(model, tokenizer, text, KVzip(0.5), name=name), tmp_path / name)
    places = shelf(tmp_path)
    caches = {name: distill.load_cache(place, model, tokenizer) for name, place in places.items()}
    questions = ("Who built the lighthouse?", "Who is the owner of the bakery?")
    found = [documents_for(question, TEXTS) for question in questions]
    assert found == [["lighthouse.txt"], ["bakery.txt"]]
    asked = [f"\n\n{question}" for question in questions]
    answers = distill.ask(model, tokenizer, [caches[name] for (name,) in found], asked, 16)
    assert "Ada Brunn" in answers[0] and "Harriet Stone" in answers[1]


def test_a_saved_cache_is_taught(made, capsys, tmp_path):
    settings = ["--steps", 2, "--count", 2, "--batch", 1]
    out = said(capsys, "train", made / "kept" / "one", "-o", tmp_path / "taught", *settings)
    assert "one.txt" in out and (tmp_path / "taught.run" / "log.jsonl").parent.is_dir()
    before, after = (read_record(folder) for folder in (made / "kept" / "one", tmp_path / "taught"))
    assert before["document"] == after["document"] and before["sha256"] != after["sha256"]
    # the run is over, so the same command has nothing to do
    again = said(capsys, "train", made / "kept" / "one", "-o", tmp_path / "again", "--run", tmp_path / "taught.run",
                 *settings)  # fmt: skip
    assert again.replace("again", "taught") == out and read_record(tmp_path / "again")["sha256"] == after["sha256"]
    assert "rate: got" in refused(capsys, "train", made / "kept" / "one", "-o", tmp_path / "x", "--rate", -1)
