"""How facts are stated and asked for. `[[...]]` marks the value in a statement and the answer in a question.

A statement or a question is one of those written out here, or put together from parts around what is asked for,
`{it}`. What is kept from training is in `unseen.py`.
"""

from __future__ import annotations

from distill.mini.recipe import unseen

KINDS = (
    "pass key", "password", "secret number", "access code", "door code", "key number", "magic number", "lucky number",
    "locker number", "secret code", "registration number", "passkey", "secret word", "special number",
)  # fmt: skip
#: second words of kinds and attributes made up on the spot, such as "copper token"
NOUNS = ("code", "number", "key", "password", "token", "digits", "phrase", "PIN", "sequence", "identifier")
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
    "Now the record is over. What is the <{content}> in {line} {key}? I need the number. The <{content}> in {line}"
    " {key} is[[ {value}]].\n",
    "What is the {content} of {line} {key}? Answer:[[ {value}]].\n",
    "{line} {key}: {content} is <[[{value}]]>\n",
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

#: what a statement is about, in the words of a pass key, of a name's value, of a key's, and of a record's
KEY_ITS = (*["the {kind}"] * 6, "my {kind}", "our {kind}", "the right {kind}", "the {kind} you need")
NAME_ITS = (
    "the {attribute} of {name}", "the {attribute} of {name}", "{name}'s {attribute}", "the {attribute} for {name}",
    "the {attribute} that belongs to {name}", "the {attribute} that {name} has", "the {attribute} given to {name}",
)  # fmt: skip
VALUE_ITS = ("the value of {key}", "the value for {key}", "the value of the key {key}", "{key}", "the entry for {key}")
RECORD_ITS = ("the {content} in {line} {key}", "the <{content}> in {line} {key}", "the {content} of {line} {key}")

OPENERS = (
    "Remember this: ", "Note that ", "Please note: ", "By the way, ", "Important: ", "Keep this in mind: ",
    "For the record, ", "I was told that ", "We know that ", "They say that ", "Before I forget: ",
    "It is known that ", "Listen carefully: ", "As you may know, ", "According to the notice, ",
    "On the card was written: ", "A reminder: ", "P.S. ", "N.B. ", "One thing more: ", "In case you wonder, ",
    "Be sure to remember that ", "It turned out that ", "Note: ", "*** ", "- ", "> ", "# ", "Memo: ",
    "I can tell you now that ", "Everyone agreed that ", "He wrote that ", "The letter said: ",
    "Here is what you need: ", "You will be asked about this: ", "She whispered: ", "Today ", "In fact, ",
    "Of course ", "And so ", "Then I learnt that ", "There is something to remember: ", "FYI: ",
)  # fmt: skip
CORES = (
    "{it} is [[{value}]]", "{it} is [[{value}]]", "{it} is: [[{value}]]", "{it}: [[{value}]]", "{it} = [[{value}]]",
    "{it} was [[{value}]]", "{it} is now [[{value}]]", "{it} has been set to [[{value}]]", "{it} reads [[{value}]]",
    "{it} was changed to [[{value}]]", "{it} will be [[{value}]]", "{it} happens to be [[{value}]]",
    "{it} equals [[{value}]]", "{it} should be [[{value}]]", "{it} must be [[{value}]]", "{it} remains [[{value}]]",
    "{it}, as agreed, is [[{value}]]", '{it} is "[[{value}]]"', "{it} is '[[{value}]]'", "{it} is <[[{value}]]>",
    "{it} is **[[{value}]]**", "{it} -> [[{value}]]", "{it} was given as [[{value}]]",
    "{it} has the value [[{value}]]", "{it}, which you will be asked for, is [[{value}]]",
    "for {it} take [[{value}]]", "{it} is still [[{value}]]", "as {it} we agreed on [[{value}]]",
    "when asked for {it}, answer [[{value}]]", "{it} can only be [[{value}]]", "{it} was, I believe, [[{value}]]",
    "{it} is called [[{value}]]", "you can see {it} here: [[{value}]]", "{it} has not changed: [[{value}]]",
    "I wrote down {it}, [[{value}]]", "{it} - [[{value}]]", "{it} ([[{value}]])", "we were given [[{value}]] as {it}",
    "[[{value}]] is {it}", "use [[{value}]] as {it}",
)  # fmt: skip
#: of a pass key more often the forms in which what the value is comes after it, the hardest
KEY_CORES = (
    *CORES, *["[[{value}]] is {it}"] * 4, "we agreed on [[{value}]] for {it}", "they took [[{value}]] for {it}",
    "he gave me [[{value}]] as {it}", "[[{value}]] was chosen for {it}", "let [[{value}]] be {it}",
    "you have [[{value}]] there for {it}",
)  # fmt: skip
CLOSERS = (
    ". Remember it.", ". Do not lose it.", ", and nobody else knows it.", "; keep it in mind.", "!",
    ". {value} is {it}.", ", as everyone knows.", ", he said.", " and no other.", ". You will need it later.",
    ". Write it down.", ". That is all.", ". This is important.", " from today on.", ", if I am not mistaken.",
    ". So it is {value}.", ", and that is final.", ".)", " --", "", ", until further notice.", ". Keep it safe.",
)  # fmt: skip
ASKS = (
    "What is {it}?", "What is {it}?", "What was {it}?", "What is {it} mentioned in the text?", "Tell me {it}.",
    "What is {it} hidden in the text above?", "Can you tell me {it}?", "Do you remember {it}?", "Please repeat {it}.",
    "Give me {it}.", "State {it}.", "Find {it} in the text.", "Which one is {it}?", "I need {it}.", "{It}?",
    "What does the text say {it} is?", "According to the text, what is {it}?", "Now, what is {it}?", "Recall {it}.",
    "Based on the text above, what is {it}?", "Look up {it}.", "What did the text give as {it}?", "Name {it}.",
    "How does {it} read?", "Say {it}.", "Write down {it}.", "Let me know {it}.", "What is said about {it}?", "",
    "Somewhere above you read about {it}. What is it?", "Do you know {it}?", "Show me {it}.", "I forgot {it}.",
)  # fmt: skip
EXTRAS = (
    " Answer briefly.", " Only the value, please.", " I need it exactly.", " Do not explain.", " Be precise.",
    " Answer with what stands in the text.", " Think of the text above.", " Give no other words.",
)  # fmt: skip
ANSWERS = (
    " {It} is[[ {value}]].\n", " {It} is[[ {value}]]\n", " {It} is:[[ {value}]]\n", " It is[[ {value}]].\n",
    " Answer:[[ {value}]]\n", "\nAnswer:[[ {value}]]\n", "\nA:[[ {value}]]\n", "\n{It}:[[ {value}]]\n",
    " The answer is[[ {value}]].\n", "\nThe answer:[[ {value}]]\n", " It was[[ {value}]].\n",
    " {It} was[[ {value}]].\n", " {It} mentioned in the text is[[ {value}]].\n",
    " According to the text, {it} is[[ {value}]].\n", " Yes, {it} is[[ {value}]].\n",
    " It says that {it} is[[ {value}]].\n", " It reads[[ {value}]].\n", "[[ {value}]].\n", "\n[[{value}]]\n",
    " =>[[ {value}]]\n", ' "[[{value}]]"\n', " Response:[[ {value}]]\n", "\nReply:[[ {value}]]\n",
    " Certainly:[[ {value}]].\n", " I remember it:[[ {value}]].\n", " Well,[[ {value}]].\n",
    "\n\nAnswer: {it} is[[ {value}]].\n", " Here it is:[[ {value}]]\n", "\nAnswer: {It} is[[ {value}]].\n",
    " I do:[[ {value}]].\n", "\nAssistant:[[ {value}]]\n", " {It} =[[ {value}]]\n", "\nThe text says[[ {value}]].\n",
)  # fmt: skip

#: how words are made a tag, a heading, a quotation, a point of a list, or a gap to fill
MARKUP = ("<{}>", "[{}]", "### {}\n", "**{}**", "({})", '"{}"', "- {}\n", "{}:\n", "{} ____", "____ {}")
#: how an answer ends that begins with any words
ENDS = (
    *["[[ {value}]].\n"] * 4, "[[ {value}]]\n", "[[ {value}]]\n", ' "[[{value}]]".\n', "\n[[{value}]]\n",
    " <[[{value}]]>\n", " ([[{value}]])\n", " **[[{value}]]**\n",
)  # fmt: skip

#: what any words are drawn from, beside the books' rarer ones
COMMON = (
    "the a of to and in it is was that this you he she they we I as at on with for by be been has had have will would"
    " can may must here there now then again only just so very well yes indeed right sure say said tell told know"
    " think read heard found seen given shown kept named noted following final one thing text story page word end"
    " my your his our their from which what who how when"
)

#: what a question is announced by
LEADS = (
    "\n", "\n", "\n", "\n\n", "\n\n", "\n\nQuestion: ", "\nNow answer this. ", "\n\nThe text ends here. ",
    "\nQ: ", "\n\nAnswer the question about the text above.\n", "\n\n### Question\n", "\nUser: ", "\n---\n",
    "\n\nThat was the text. Now the question. ", "\n\nHere is what I want to know. ", "\n\nInstruction: ",
)  # fmt: skip
#: what stands before the text, one time in five
PREFACES = (
    "Somewhere in this long text something important is hidden. Find it and keep it in mind.\n\n",
    "Read the text. A question follows.\n\n",
    "Text:\n", "Context: ", "### Text\n", "User: ",
    "The following text hides a few facts that have nothing to do with it. You will be asked about them.\n",
    "Here are many lines that you have to remember. One of them will be asked for.\n",
    "I will give you a long text and ask about it afterwards.\n\n",
)  # fmt: skip
FILLER = (
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. ",
    "The grass is green. The sky is blue. The sun is yellow. ",
    "Nothing happened on this day. The rain fell. The clock struck one. ",
)


def corpus() -> list[str]:
    """What the tokenizer reads beside the books, so that words of these lists do not fall to pieces."""
    known = unseen.VALIDATION.kinds[:8]  # those that the shipped tokenizer has read
    words = [*KINDS, *known, *ATTRIBUTES, *RELATIONS, *PLACES, *THINGS, *MOVES, *TAKES, *FILLER]
    words += [word for pair in LINE_WORDS for word in pair]
    lists = (PASSKEY_QUESTIONS, NEEDLE_QUESTIONS, KV_QUESTIONS, LINE_QUESTIONS, ABSENT_QUESTIONS, WHERE_QUESTIONS)
    return words + [text for texts in lists for text in texts]
