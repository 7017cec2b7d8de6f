"""English function words: frequent, short, and easily guessed back by a reader."""

_WORDS = """
a an the this that these those and or but if then than so as at by for from in into of on onto to with about
over under up down out off again further once here there when where why how all any both each few more most
other some such only own same too very can will just should now is am are was were be been being have has had
having do does did doing would could may might must shall i me my we our you your he him his she her it its they
them their what which who whom also which's it's that's i'm you're we're they're one s t
"""
FUNCTION_WORDS = frozenset(_WORDS.split())
