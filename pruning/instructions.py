"""What in a text tells the model what to do: imperatives, questions, the last turn of the user.

Plain patterns for what people write to models, in English and a few words of other languages. They are tried on
sentences at places where instructions stand: the first and the last blocks of a text, beside code, tables, JSON and
logs, and after labels such as "Task:". Inside a document an imperative is most often part of the document.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import regex

from distill.pruning.sentences import sentence_spans

# verbs that begin a sentence only to ask for something
_CLEAR = """
summari[sz]e translate rewrite rephrase paraphrase explain describe extract classify generate refactor implement fix
debug proofread convert analy[sz]e evaluate write answer respond reply compute calculate determine identify suggest
recommend provide optimi[sz]e simplify shorten solve prove verify rename ensure avoid ignore pretend imagine return
create compare add remove update make build improve complete find give tell show use keep include exclude choose select
"""
# verbs that are nouns, too, or begin sentences of other kinds
_UNCLEAR = """
list give output use read find review add remove update make build design complete continue fill check test improve
tell show propose count decide state name choose select pick rank sort order group format parse print keep include
exclude consider assume note focus limit follow cite quote refer look think play draft edit correct expand outline plan
report document annotate comment port migrate replace merge split run execute act take put get go turn do say help ask
break clean move set start stop try tag label mark match
"""
_AFTER = r"""(?:the|an?|this|that|these|those|all|each|every|any|no|only|it|them|me|us|my|our|your|its|their|his|her
|in|to|with|from|whether|if|what|how|why|which|who|when|where|as|by|for|up|out|at|on|both|one|two|three|\d|[`"'“:(])"""
_LEAD = r"(?:(?:please|kindly|now|then|first|next|finally|also|and|so|ok|okay|hi|hello|hey|thanks)\b[,:]?\s+){0,4}"
_POLITE = r"(?:please|kindly|bitte|por\sfavor|s['’]il\s(?:vous|te)\spla[iî]t|per\sfavore)"
_SENTENCE = regex.compile(
    rf"""(?ix)
    [\s>*\-\#\d.)("“]{{0,8}}{_LEAD}(?:
      (?:{"|".join(_CLEAR.split())})\b
    | (?:{"|".join(_UNCLEAR.split())})\s+{_AFTER.replace(chr(10), "")}
    | (?:do\snot|don['’]t|never|always|make\ssure|be\s(?:sure|careful|concise|brief|precise|specific))\b
    | you\s(?:are|must|should|will|may|can|have\sto|need\sto|['’]re)\b | your\s(?:task|job|goal|role|answer|output)\b
    | (?:can|could|would|will)\syou\b | i(?:\swant|\sneed|\swould\slike|['’]d\slike|\sam\slooking|['’]m\slooking)\b
    | (?:let['’]s|let\sus|act\sas|help\sme|in\sthis\stask|the\s(?:task|goal)\sis|based\son\s(?:the|this))\b
    | (?:{_POLITE})\b
    | (?:traduis|traduisez|r[ée]sum(?:e|ez)|explique[zr]?|[ée]cri(?:s|vez)|traduce|resuma?|explica|escrib[ea]
       |[üu]bersetze|erkl[äa]re|schreib[e]?|fasse|beantworte|traduci|riassumi|spiega|scrivi)\b
    | (?:请|請|翻译|翻譯|总结|總結|概括|回答|解释|解釋|列出|不要|请勿|务必|務必|必须|必須
       |根据以|根據以|用中文|用英文|写|寫)
    )
    """
)
_ANYWHERE = regex.compile(
    rf"(?i)\b{_POLITE}\b|(?:してください|して下さい|ください|しなさい|せよ|してほしい|要約し|翻訳し|答えよ)"
    r"|(?:하세요|하십시오|해\s?주세요|해\s?줘|하시오|해라|주십시오)"
)
_QUESTION = regex.compile(r"[?？][\"'”’)\]*_]*$")
_LABEL = regex.compile(
    r"(?i)[\s#*>_]{0,8}(?:system|instructions?|task|rules?|role|question|query|prompt|指示|任务|问题|質問)\s*[*_]*[:：]"
)
_TURN = regex.compile(
    r"(?im)^(?:<\|im_start\|>|<\|start_header_id\|>|\*\*|\#{1,4} )?"
    r"(?P<who>system|user|human|assistant|ai|bot|customer|agent|tool|q|a)(?:\*\*)?(?:<\|end_header_id\|>|[:：]\*{0,2}|(?=\n))"
)
_USERS = frozenset({"user", "human", "customer", "q"})


def instructs(sentence: str) -> bool:
    """Whether a sentence asks for something: an imperative, a request or a question."""
    bare = sentence.strip()
    if len(bare) > 600:
        return False
    return bool(_SENTENCE.match(bare) or _QUESTION.search(bare) or _ANYWHERE.search(bare) or _LABEL.match(bare))


def labelled(line: str) -> bool:
    """Whether a line begins with a label such as "Task:"."""
    return bool(_LABEL.match(line))


def instruction_spans(text: str, blocks: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The sentences of some blocks that tell the model what to do.

    Args:
        text: the text.
        blocks: characters `[start, end)` where instructions may stand.

    Returns:
        Characters `[start, end)`, ascending.
    """
    return [
        (begin + a, begin + b)
        for begin, end in blocks
        for a, b in sentence_spans(text[begin:end])
        if instructs(text[begin + a : begin + b])
    ]


def turn_spans(text: str) -> list[tuple[int, int]]:
    """Of a conversation that is written as text, the turns of the system and the last turn of the user.

    A conversation is a text with lines that begin with who speaks ("User:", "Assistant:", "<|im_start|>user"), at
    least two of them different.

    Returns:
        Characters `[start, end)`, ascending; none for a text that is no conversation.
    """
    found = list(_TURN.finditer(text))
    if len({m.group("who").lower() for m in found}) < 2:
        return []
    ends = [b.start() for _, b in itertools.pairwise(found)] + [len(text)]
    turns = [(m.group("who").lower(), m.start(), end) for m, end in zip(found, ends, strict=True)]
    wanted = [(a, b) for who, a, b in turns if who == "system"]
    users = [(a, b) for who, a, b in turns if who in _USERS]
    return sorted([*wanted, *users[-1:]])
