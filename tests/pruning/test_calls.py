"""Other people's calls: LLMLingua's, LangChain's, LlamaIndex's."""

from __future__ import annotations

import inspect
import warnings

import pytest

from distill.llmlingua import PromptCompressor
from distill.pruning import BudgetWarning, Distill


@pytest.fixture(scope="module")
def compressor():
    return PromptCompressor(scorer="lexical", ner="capitals")


@pytest.fixture(scope="module")
def words():
    return PromptCompressor(scorer="baseline", ner="capitals")


def test_the_result_is_llmlinguas_dictionary(compressor, long_prose):
    contexts = [long_prose(120, 1), long_prose(120, 2)]
    found = compressor.compress_prompt(
        contexts, instruction="Answer shortly.", question="Who drafted the report?", rate=0.4
    )
    assert set(found) == {
        "compressed_prompt", "compressed_prompt_list", "origin_tokens", "compressed_tokens", "ratio", "rate", "saving",
    }  # fmt: skip
    prompt = found["compressed_prompt"]
    assert prompt.startswith("Answer shortly.\n\n") and prompt.endswith("\n\nWho drafted the report?")
    assert "\n\n".join(found["compressed_prompt_list"]) in prompt and len(found["compressed_prompt_list"]) == 2
    assert "who had drafted the report" in prompt
    assert found["ratio"] == f"{found['origin_tokens'] / found['compressed_tokens']:.1f}x"
    assert found["rate"].endswith("%") and 30 < float(found["rate"][:-1]) < 50
    assert found["saving"].startswith(", Saving $")


def test_a_target_is_shared_by_all_contexts(words, long_prose):
    found = PromptCompressor(scorer="baseline", ner=None).compress_prompt(
        [long_prose(200, i) for i in range(3)], target_token=720
    )
    assert 690 <= found["compressed_tokens"] <= 720


def test_forced_contexts_tokens_and_labels(words, long_prose):
    contexts = [long_prose(60, 1), "One short line? No? ? Yes."]
    found = words.compress_prompt(
        contexts, rate=0.7, force_context_ids=[0], force_tokens=["?"], return_word_label=True
    )
    assert found["compressed_prompt_list"][0] == contexts[0]
    assert found["compressed_prompt_list"][1].count("?") == 3
    labels = found["fn_labeled_original_prompt"].split("\t\t|\t\t")
    assert all(label.endswith((" 0", " 1")) for label in labels) and "? 1" in labels
    dropped = words.compress_prompt(["a ? ? ?"], rate=1.0, force_tokens=["?"], drop_consecutive=True)
    assert dropped["compressed_prompt_list"] == ["a ?"]


def test_structured_prompts(words, long_prose):
    code = "if a < b: print('<b>')"
    fixed, short = "Keep <this> as it is, word for word.", long_prose(150, 4)
    text = f"<llmlingua, compress=False>{fixed}</llmlingua><llmlingua, rate=0.4>{short}</llmlingua> {code}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BudgetWarning)
        found = words.structured_compress_prompt([text], rate=0.9)
    out = found["compressed_prompt"]
    assert out.startswith(fixed) and "llmlingua" not in out
    assert words.distill.counter.count([out])[0] < 0.75 * found["origin_tokens"]
    with pytest.raises(ValueError, match=r"context\[0\] rate: got 1.5"):
        words.structured_compress_prompt("<llmlingua, rate=1.5>a b</llmlingua>")


def test_every_argument_of_the_package_is_known(words, long_prose):
    """With the value that the package has by default each is accepted; with another one it works or names ours."""
    theirs = pytest.importorskip("llmlingua").PromptCompressor
    for name in ("compress_prompt", "structured_compress_prompt"):
        call = getattr(words, name)
        for parameter in list(inspect.signature(getattr(theirs, name)).parameters.values())[2:]:
            assert call(["The river rose at noon, and nobody was there."], **{parameter.name: parameter.default})
            if parameter.default is False and parameter.name not in inspect.signature(call).parameters:
                with pytest.raises(ValueError, match=rf"^{parameter.name}: got True; allowed are only False; here: "):
                    call(["a b"], **{parameter.name: True})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reorder_context": "sort"}, "reorder_context: got 'sort'; .*scope='all'"),
        ({"iterative_size": 100}, "iterative_size: got 100; .*one pass"),
        ({"keep_first_sentence": 1}, "keep_first_sentence: got 1; .*<keep>"),
        ({"context_segs": ["a"]}, "context_segs: got .*structured_compress_prompt"),
        ({"target_token": 0}, "target_token: got 0"),
        ({"rate": 0}, "rate: got 0"),
        ({"force_context_ids": [3]}, "force_context_ids: got 3; allowed are whole numbers from 0 to 0"),
        ({"rank_method": "bm25"}, "rank_method: got 'bm25'"),
        ({"nonsense": 1}, "nonsense: got an argument that does not exist"),
        ({"question": 5}, "question: got 5"),
    ],
)
def test_what_is_not_done_here_is_refused_by_name(words, options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        words.compress_prompt(["a text"], **options)
    with pytest.raises(ValueError, match="llmlingua2_config: got"):
        PromptCompressor(llmlingua2_config={"max_batch_size": 2})


def test_a_classifier_stands_in_for_llmlingua2(checkpoints, prose):
    found = PromptCompressor(checkpoints.bert, use_llmlingua2=True, ner=None).compress_prompt(prose, rate=0.6)
    assert found["compressed_tokens"] <= 0.6 * found["origin_tokens"]


def test_langchain(prose, long_prose):
    pytest.importorskip("langchain_core")
    from langchain_core.documents import Document

    from distill.pruning.langchain import DistillCompressor

    texts = [prose, long_prose(150, 1), long_prose(150, 2)]
    documents = [Document(page_content=text, metadata={"source": i}, id=str(i)) for i, text in enumerate(texts)]
    tool = DistillCompressor(distill=Distill(scorer="lexical", ner=None), rate=0.3)
    found = tool.compress_documents(documents, "Who drafted the report?")
    assert [d.metadata["source"] for d in found] == [0, 1, 2] and [d.id for d in found] == ["0", "1", "2"]
    assert all(d.metadata["distill_tokens"] <= 0.3 * d.metadata["distill_original_tokens"] for d in found)
    assert "who had drafted the report" in found[0].page_content
    assert documents[0].page_content == prose and "distill_tokens" not in documents[0].metadata
    assert tool.compress_documents([], "x") == []
    shared = DistillCompressor(distill=Distill(scorer="lexical"), target_tokens=90, scope="all", options={"rules": 1})
    with pytest.raises(ValueError, match="rules"):
        shared.compress_documents(documents, "Who?")


def test_llamaindex(prose, long_prose):
    pytest.importorskip("llama_index.core")
    from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

    from distill.pruning.llamaindex import DistillPostprocessor

    nodes = [
        NodeWithScore(node=TextNode(text=text, id_=str(i), metadata={"source": i}), score=0.5 - i / 10)
        for i, text in enumerate([prose, long_prose(150, 1), long_prose(150, 2)])
    ]
    tool = DistillPostprocessor(distill=Distill(scorer="lexical", ner=None), rate=0.3)
    found = tool.postprocess_nodes(nodes, QueryBundle("Who drafted the report?"))
    assert [n.score for n in found] == [n.score for n in nodes] and [n.node.node_id for n in found] == ["0", "1", "2"]
    assert "who had drafted the report" in found[0].node.get_content()
    assert all(n.node.metadata["distill_tokens"] <= 0.3 * n.node.metadata["distill_original_tokens"] for n in found)
    assert nodes[0].node.get_content() == prose
