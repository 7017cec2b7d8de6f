"""Wordings that no training task uses, in the form of `wording.py`.

The failures of `VALIDATION` were read while the recipe was made, and the tokenizer has read its first eight kinds.
`TEST` was written apart from all others, in the manner of well-known benchmarks and chats; its failures were never
read.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Wordings:
    """What values are called, and how they are stated and asked for: of a pass key, and of a name."""

    kinds: tuple[str, ...]
    passkey_facts: tuple[str, ...]
    passkey_questions: tuple[str, ...]
    needle_facts: tuple[str, ...]
    needle_questions: tuple[str, ...]


VALIDATION = Wordings(
    kinds=(
        "vault combination",
        "ticket number",
        "parcel reference",
        "launch sequence",
        "membership number",
        "wifi passphrase",
        "customs code",
        "lottery number",
        "safe combination",
        "invitation number",
        "boarding code",
        "alarm code",
        "library card number",
        "docket number",
        "entry phrase",
        "shelf mark",
        "confirmation code",
        "serial number",
    ),
    passkey_facts=(
        "Do not forget that the {kind} was set to [[{value}]] this morning.",
        "Whoever wants to come in has to type the {kind}, which is [[{value}]].",
        "There is one thing that you must never mix up, namely that the {kind} is [[{value}]].",
        "Somebody had scratched the {kind} into the wall: [[{value}]].",
        "Our {kind} from Monday onwards is going to be [[{value}]].",
        "Attention, please! The {kind} consists of these digits: [[{value}]].",
        "If a stranger should ever want to hear the {kind}, reply with [[{value}]].",
        "A clerk looked into the ledger and announced that the {kind} had become [[{value}]].",
        "Should anyone ring at the gate, the {kind} to give is [[{value}]].",
        "Printed in small letters at the bottom of the page was the {kind}: [[{value}]].",
        "My grandmother never told a soul that her {kind} was [[{value}]].",
        "You can only open it with the {kind} [[{value}]].",
        "After a long quarrel they settled on [[{value}]] as the new {kind}.",
        "For safety reasons the {kind} has been replaced; the new one is [[{value}]].",
        "Inside the old clock lies a note with the {kind}, and it reads [[{value}]].",
        "Please inform all guests that from tonight the {kind} shall be [[{value}]].",
        "Between you and me: the {kind} used here is [[{value}]].",
        "The captain shouted the {kind} across the deck: [[{value}]]!",
    ),
    passkey_questions=(
        "Which {kind} was given above? The {kind} given above is[[ {value}]].\n",
        "Now to our question: how does the {kind} from the story go? It goes like this:[[ {value}]].\n",
        "To finish, write out the {kind} in full:[[ {value}]]\n",
        "We are looking for the {kind}. Which is it? Solution:[[ {value}]]\n",
        "A stranger wants to hear the {kind} from you. You say:[[ {value}]]\n",
        "Could you remind me what the {kind} was? Of course, it was[[ {value}]].\n",
        "The text above contains the {kind}. What is it? Final answer:[[ {value}]]\n",
        "Quiz time! The {kind} in the passage was...? Correct answer:[[ {value}]]\n",
        "What {kind} does the author reveal? The author reveals the {kind}[[ {value}]].\n",
        "Based on the passage, report the {kind}. Reported {kind}:[[ {value}]]\n",
        "Someone knocks and asks you for the {kind}. Your reply is[[ {value}]].\n",
        "I have forgotten the {kind}. Can you help? Sure! The {kind} you are looking for is[[ {value}]].\n",
        "Fill in the blank. The {kind} is ____. Blank:[[ {value}]]\n",
        "Look back at the document and extract the {kind}. Extracted value:[[ {value}]]\n",
        "Before you go: the {kind}, please! It reads[[ {value}]].\n",
        "What number has to be entered as the {kind}? One has to enter[[ {value}]].\n",
        "Complete the sentence with what you have read: according to the note, the {kind} is[[ {value}]].\n",
        "<question>What's the {kind}?</question>\n<answer>[[{value}]]</answer>\n",
    ),
    needle_facts=(
        "In the register, the {attribute} of {name} stands as [[{value}]].",
        "Beside the name {name} somebody had put down the {attribute} [[{value}]].",
        "When {name} arrived, the {attribute} handed out was [[{value}]].",
        "To {name} belongs a {attribute}, namely [[{value}]].",
        "The clerk looked up {name} and found the {attribute} to be [[{value}]].",
        "{name}, whose {attribute} is [[{value}]], said nothing.",
        "Under the heading {name} you will find the {attribute} [[{value}]].",
        "They handed {name} a slip of paper with the {attribute} [[{value}]].",
        "As far as {name} is concerned, the {attribute} must be [[{value}]].",
        "It was decided that {name} should receive the {attribute} [[{value}]].",
        "{name} repeated the {attribute} over and over: [[{value}]].",
        "Ask {name} for the {attribute} and you will hear [[{value}]].",
        "{name} signed with the {attribute} [[{value}]] and left.",
    ),
    needle_questions=(
        "Give me the {attribute} of {name}. The {attribute} of {name}:[[ {value}]].\n",
        "We are looking for the {attribute} which {name} has. Solution:[[ {value}]]\n",
        "A stranger wants to hear the {attribute} of {name}. You say:[[ {value}]]\n",
        "Could you remind me of {name}'s {attribute}? Of course, {name}'s {attribute} was[[ {value}]].\n",
        "As for {name}: which {attribute} was that? Final answer:[[ {value}]]\n",
        "To finish, write out the {attribute} of {name}:[[ {value}]]\n",
        "What {attribute} did {name} get? {name} got the {attribute}[[ {value}]].\n",
        "Look back at the document and extract the {attribute} of {name}. Extracted value:[[ {value}]]\n",
        "Someone asks you about {name} and the {attribute}. Your reply is[[ {value}]].\n",
        "I have forgotten {name}'s {attribute}. Can you help? Sure! {name}'s {attribute} is[[ {value}]].\n",
        "<question>Which {attribute} goes with {name}?</question>\n<answer>[[{value}]]</answer>\n",
        "Concerning {name}, complete the sentence: the {attribute} is[[ {value}]].\n",
    ),
)

TEST = Wordings(
    kinds=(
        "gate PIN",
        "security key",
        "parcel tracking number",
        "launch code",
        "door passcode",
        "badge ID",
    ),
    passkey_facts=(
        "Please note that the {kind} is [[{value}]]; you will be asked for it later.",
        "The {kind} you need to keep in mind is [[{value}]]. Do not forget it.",
        "By the way, before I forget, they changed the {kind} to [[{value}]] this morning.",
        "IMPORTANT: {kind} = [[{value}]].",
        "For the record, [[{value}]] is the {kind}.",
        "Effective immediately, the {kind} has been set to [[{value}]] for all authorised staff.",
        "One of the special facts hidden in this document: the {kind} is: [[{value}]].",
        'On a scrap of paper someone had scribbled the {kind}, "[[{value}]]", in blue ink.',
        "Hey, write this down somewhere: [[{value}]]. That is our {kind}.",
        "Anyone asking at the front desk about the {kind} should be told that it is [[{value}]].",
        "<note>The {kind} has the value [[{value}]].</note>",
        "Remember the following {kind}, since nothing else in this text matters: [[{value}]]. Once more, it "
        "is {value}.",
    ),
    passkey_questions=(
        "\n\nQuestion: What is the {kind}?\nAnswer: The {kind} is[[ {value}]].\n",
        "\n\nNow, what was the {kind} given in the text above? It was[[ {value}]].\n",
        "\n\n### Instruction:\nFind the {kind} in the passage above and repeat it exactly.\n\n### "
        "Response:\nThe {kind} mentioned in the passage is[[ {value}]].\n",
        "\n\n<|user|>\nCan you tell me the {kind}?\n<|assistant|>\nSure! The {kind} you are looking for is[[ "
        "{value}]].\n",
        "\n\nA special {kind} is hidden within the text above. What is the special {kind} mentioned in the "
        "provided text? The special {kind} mentioned in the provided text is[[ {value}]]\n",
        "\n\nRead the document and reply with the five digits only, without any explanation.\nQ: "
        "{kind}?\nA:[[ {value}]]\n",
        '\n\n"Wait, I have lost my notes. Which number did they give us as the {kind}?"\n"They gave us the '
        'number[[ {value}]]."\n',
        "\n\nReturn the {kind} from the context inside XML tags, digits only.\n<answer>[[{value}]]</answer>\n",
        "\n\nUser: I skimmed most of that, sorry. Somewhere in there was a {kind}, right?\nBot: Yes, there "
        "was. According to the text, the {kind} is[[ {value}]].\n",
        "\n\nThe reader is requested to state the {kind} as it was recorded earlier in this "
        "document.\nRecorded {kind}:[[ {value}]]\n",
        "\n\nComplete the sentence using the information in the book. The digits that make up the {kind} "
        "are[[ {value}]].\n",
        "\n\n[END OF CONTEXT]\nTask: retrieve the {kind}.\nRetrieved value =[[ {value}]]\n",
    ),
    needle_facts=(
        "One of the special {attribute}s for {name} is: [[{value}]].",
        "The {attribute} belonging to {name} was registered as [[{value}]].",
        "If you ever need to reach {name}, the {attribute} to use is [[{value}]].",
        "Record entry: {name}, {attribute}: [[{value}]].",
        "I happen to know that {name} has [[{value}]] as {attribute}.",
        "After some hesitation the clerk assigned {name} a new {attribute}, namely [[{value}]].",
        "Everybody in the office knows {name} and the {attribute} that goes with the name, [[{value}]].",
    ),
    needle_questions=(
        "\n\nQuestion: What is {name}'s {attribute}?\nAnswer: {name}'s {attribute} is[[ {value}]].\n",
        "\n\nWhat is the special {attribute} for {name} mentioned in the provided text? The special "
        "{attribute} for {name} mentioned in the provided text is[[ {value}]]\n",
        "\n\n<|im_start|>user\nBased on the story, give me the {attribute} of "
        "{name}.<|im_end|>\n<|im_start|>assistant\nThe {attribute} of {name} is[[ {value}]].<|im_end|>\n",
        "\n\nAnswer the question based only on the passage above, giving just the number and nothing "
        "else.\n\nQuestion: Which {attribute} belongs to {name}?\nNumber:[[ {value}]]\n",
        "\n\nSo, do you recall the {attribute} we noted for {name}? Of course I do, we noted down[[ {value}]].\n",
        "\n\n### Query\nLook up: {attribute}\nPerson: {name}\n### Result\nValue:[[ {value}]]\n",
        "\n\nKindly confirm the {attribute} held on file for {name}.\n\nWe hereby confirm that the "
        '{attribute} on file for {name} is "[[{value}]]".\n',
        "\n\nHuman: Among all that text there was something about {name}. What was the "
        "{attribute}?\n\nAssistant: The text says that the {attribute} for {name} was[[ {value}]].\n",
    ),
)

#: what no value of a training task is called
KINDS = frozenset((*VALIDATION.kinds, *TEST.kinds))
