"""How facts are stated and asked for. `[[...]]` marks the value in a statement and the answer in a question.

The last statement and the last question of every skill, and the kinds in `UNSEEN_KINDS`, are kept from training.
"""

from __future__ import annotations

KINDS = (
    "pass key", "password", "secret number", "access code", "door code", "key number", "magic number", "lucky number",
    "locker number", "secret code", "registration number", "passkey", "secret word", "special number",
)  # fmt: skip
#: second words of kinds and attributes made up on the spot, such as "copper token"
NOUNS = ("code", "number", "key", "password", "token", "digits", "phrase", "PIN", "sequence", "identifier")
UNSEEN_KINDS = ("vault combination", "ticket number")
PASSKEY_FACTS = (
    "The {kind} is [[{value}]]. Remember it. {value} is the {kind}.",
    "There is something important here: the {kind} is [[{value}]].",
    "Remember this: the {kind} is [[{value}]].",
    "My {kind} is [[{value}]], and nobody else knows it.",
    "The {kind} that you will need is [[{value}]].",
    "Note that [[{value}]] is the {kind}.",
    "[[{value}]] is the {kind}; keep it in mind.",
    "By the way, the {kind} was changed to [[{value}]].",
    "{Kind}: [[{value}]].",
    "The {kind} is: [[{value}]].",
    "I have been told that the {kind} is now [[{value}]].",
    "Please keep the {kind} in mind: it is [[{value}]].",
    "They chose [[{value}]] as the {kind}.",
    "On the back of the card stood the {kind}, [[{value}]].",
    "Yesterday we agreed on [[{value}]] for the {kind}.",
    "Use the {kind} [[{value}]] when you are asked for it.",
    "Do not forget that the {kind} was set to [[{value}]] this morning.",
)
PASSKEY_QUESTIONS = (
    "What is the {kind}? The {kind} is[[ {value}]].\n",
    "What is the {kind} mentioned in the text above? Answer:[[ {value}]].\n",
    "Question: What is the {kind}?\nAnswer:[[ {value}]]\n",
    "Tell me the {kind}. It is[[ {value}]].\n",
    "The {kind} is[[ {value}]].\n",
    "Q: What is the {kind}?\nA:[[ {value}]]\n",
    "What was the {kind}?[[ {value}]]\n",
    "What is the {kind} hidden in the text? The {kind} hidden in the text is:[[ {value}]]\n",
    "Can you tell me the {kind}? Yes, the {kind} is[[ {value}]].\n",
    "According to the text, what is the {kind}? According to the text, the {kind} is[[ {value}]].\n",
    "Do you remember the {kind}? I do. The {kind} was[[ {value}]].\n",
    "Please repeat the {kind} that was mentioned. The {kind} that was mentioned is[[ {value}]].\n",
    "What does the text say the {kind} is? It says that the {kind} is[[ {value}]].\n",
    "Here is the {kind} from the text:[[ {value}]]\n",
    "Which {kind} was given above? The {kind} given above is[[ {value}]].\n",
)

ATTRIBUTES = (
    "code", "number", "password", "key", "magic number", "token", "secret", "badge number", "room number", "code word",
    "special magic number", "favourite number", "account number",
)  # fmt: skip
#: the value stands before its owner: much harder, since what is read before cannot know what comes after
VALUE_FIRST = "They say that [[{value}]] is the {attribute} of {name}."
NEEDLE_FACTS = (
    "The {attribute} of {name} is [[{value}]].",
    "{name}'s {attribute} is [[{value}]].",
    "The {attribute} for {name} is: [[{value}]].",
    "One of the {attribute}s for {name} is: [[{value}]].",
    "{name} was given the {attribute} [[{value}]].",
    "For {name}, the {attribute} is [[{value}]].",
    "{name} has the {attribute} [[{value}]], as everyone knows.",
    "Remember that the {attribute} of {name} is [[{value}]].",
    "We know that {name} uses the {attribute} [[{value}]].",
    "The {attribute} belonging to {name}: [[{value}]].",
    "In the register, the {attribute} of {name} stands as [[{value}]].",
)
NEEDLE_QUESTIONS = (
    "What is the {attribute} of {name}? The {attribute} of {name} is[[ {value}]].\n",
    "What is {name}'s {attribute}? It is[[ {value}]].\n",
    "Question: What is the {attribute} of {name}?\nAnswer:[[ {value}]]\n",
    "What is the {attribute} for {name} mentioned in the text? The {attribute} for {name} mentioned in the text"
    " is[[ {value}]].\n",
    "{name}'s {attribute}:[[ {value}]]\n",
    "The {attribute} of {name} is[[ {value}]].\n",
    "Which {attribute} does {name} have? {name} has[[ {value}]].\n",
    "What is the {attribute} of {name}? Answer:[[ {value}]].\n",
    "Do you know the {attribute} of {name}? Yes, the {attribute} of {name} is[[ {value}]].\n",
    "According to the text, the {attribute} of {name} is[[ {value}]].\n",
    "Which {attribute} belongs to {name}? Answer:[[ {value}]]\n",
    "Give me the {attribute} of {name}. The {attribute} of {name}:[[ {value}]].\n",
)
PAIR_QUESTIONS = (
    "What are the {attribute}s of {name} and {other}? They are[[ {value}]] and[[ {second}]].\n",
    "Question: What are the {attribute}s of {name} and {other}?\nAnswer:[[ {value}]],[[ {second}]]\n",
    "The {attribute} of {name} is[[ {value}]], and that of {other} is[[ {second}]].\n",
    "Give the {attribute}s of {name} and {other}:[[ {value}]] and[[ {second}]].\n",
)
RELATIONS = ("neighbour", "friend", "teacher", "partner", "doctor", "brother", "cousin", "guide", "assistant")
LINK_FACTS = (
    "The {relation} of {name} is [[{other}]].",
    "{name}'s {relation} is [[{other}]].",
    "Everyone knows that the {relation} of {name} is [[{other}]].",
)
CHAIN_QUESTIONS = (
    "What is the {attribute} of the {relation} of {name}? The {relation} of {name} is[[ {other}]], and the {attribute}"
    " of {other} is[[ {value}]].\n",
    "What is the {attribute} of {name}'s {relation}? It is[[ {value}]].\n",
    "Question: What is the {attribute} of the {relation} of {name}?\nAnswer:[[ {value}]]\n",
)

#: how a line states its pair, and how the same form asks for it
KV_LINES = (
    ("{key}: [[{value}]]", "{key}:[[ {value}]]\n"),
    ("{key} = [[{value}]]", "{key} =[[ {value}]]\n"),
    ("{key} -> [[{value}]]", "{key} ->[[ {value}]]\n"),
    ('"{key}": "[[{value}]]",', '"{key}": "[[{value}]]"\n'),
    ("- {key}: [[{value}]]", "- {key}:[[ {value}]]\n"),
    ("key {key}, value [[{value}]]", "key {key}, value[[ {value}]]\n"),
    ("{key} | [[{value}]]", "{key} |[[ {value}]]\n"),
)
KV_QUESTIONS = (
    "What is the value of {key}? The value of {key} is[[ {value}]].\n",
    "What is the value for {key}? Answer:[[ {value}]]\n",
    "Question: Which value belongs to {key}?\nAnswer:[[ {value}]]\n",
    "Look up {key}. {same}",
    "{same}",
    "Find the value of the key {key}. The value associated with {key} is[[ {value}]].\n",
)

LINE_WORDS = (("line", "REGISTER_CONTENT"), ("line", "REGISTER_CONTENT"), ("row", "NUMBER"), ("record", "CONTENT"))
LINE_FACTS = (
    "{line} {key}: {content} is <[[{value}]]>",
    "{line} {key}: {content} is [[{value}]]",
    "In {line} {key}, the {content} is <[[{value}]]>",
)
LINE_QUESTIONS = (
    "Tell me what is the <{content}> in {line} {key}? The <{content}> in {line} {key} is[[ {value}]].\n",
    "What is the {content} in {line} {key}? The {content} in {line} {key} is <[[{value}]]>\n",
    "Now the record is over. Tell me what is the <{content}> in {line} {key}? I need the number.\n"
    "Answer:[[ {value}]]\n",
    "What is the {content} of {line} {key}? Answer:[[ {value}]].\n",
    "{line} {key}: {content} is <[[{value}]]>\n",
    "Which <{content}> stands in {line} {key}? It is[[ {value}]].\n",
)

PRESENT_FACTS = ("{name} was there.", "Then {name} spoke.", "{name} had come too.", "They had seen {name} that day.")
ABSENT_QUESTIONS = (
    "Which of these names did not appear: {options}? Answer:[[ {value}]].\n",
    "Question: Who of {options} was not mentioned?\nAnswer:[[ {value}]]\n",
    "Of {options}, the one who did not appear is[[ {value}]].\n",
)

PLACES = (
    "kitchen", "garden", "office", "bathroom", "bedroom", "hallway", "library", "cellar", "stable", "church", "market",
    "harbour", "school", "forest", "tower", "mill", "theatre", "station", "bakery", "museum", "prison", "attic",
)  # fmt: skip
THINGS = (
    "apple", "football", "milk", "lantern", "letter", "hammer", "basket", "umbrella", "violin", "candle", "mirror",
    "blanket", "kettle", "compass", "whistle", "saddle", "purse", "ladder", "pistol", "ribbon", "trumpet", "map",
)  # fmt: skip
MOVES = ("went to", "moved to", "journeyed to", "travelled to", "went back to", "walked into", "is in")
WHERE_QUESTIONS = (
    "Where is {name}? {name} is in the[[ {value}]].\n",
    "Question: Where is {name}?\nAnswer:[[ {value}]]\n",
    "Where is {name}? Answer:[[ {value}]].\n",
    "Where is {name} now? In the[[ {value}]].\n",
)
TAKES = ("picked up", "took", "got", "found", "carried off", "bought")
TAKE_QUESTIONS = (
    ("What did {name} take? {name} {take} the[[ {thing}]].\n", "thing"),
    ("Question: Who {take} the {thing}?\nAnswer:[[ {name}]]\n", "name"),
    ("Who {take} the {thing}? It was[[ {name}]].\n", "name"),
    ("Question: What was {take} by {name}?\nAnswer:[[ {thing}]]\n", "thing"),
)

LEADS = ("", "", "\n", "\n\n", "\n\nQuestion: ", "\nNow answer this. ", "\n\nThe text ends here. ")
FILLER = (
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. ",
    "The grass is green. The sky is blue. The sun is yellow. ",
    "Nothing happened on this day. The rain fell. The clock struck one. ",
)


def corpus() -> list[str]:
    """What the tokenizer reads beside the books, so that words of these lists do not fall to pieces."""
    words = [*KINDS, *UNSEEN_KINDS, *ATTRIBUTES, *RELATIONS, *PLACES, *THINGS, *MOVES, *TAKES, *FILLER]
    words += [word for pair in LINE_WORDS for word in pair]
    lists = (PASSKEY_QUESTIONS, NEEDLE_QUESTIONS, KV_QUESTIONS, LINE_QUESTIONS, ABSENT_QUESTIONS, WHERE_QUESTIONS)
    return words + [text for texts in lists for text in texts]
