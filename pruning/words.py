"""English function words: frequent, short, and easily guessed back by a reader."""

_WORDS = """
a an the this that these those and or but if then than so as at by for from in into of on onto to with about
over under up down out off again further once here there when where why how all any both each few more most
other some such only own same too very can will just should now is am are was were be been being have has had
having do does did doing would could may might must shall i me my we our you your he him his she her it its they
them their what which who whom also which's it's that's i'm you're we're they're one s t
"""
FUNCTION_WORDS = frozenset(_WORDS.split())

_OPENERS = """
yes no however although though while since because after before during until unless whereas moreover furthermore
meanwhile instead indeed also perhaps maybe still yet thus therefore hence otherwise nevertheless nonetheless
finally first second third next last later soon today yesterday tomorrow now recently currently previously
sometimes often usually never always everyone everybody everything someone somebody something nobody nothing
anyone anything many several both neither either another without within despite among between like unlike let
please thanks thank well oh ok okay hey hi hello good great nice new old one two three there see read say make get
go come take give look think know want need use try ask tell find keep put call work feel seem become leave turn
how why what when where who whose which whether every each most much little few less least according given
"""
#: words that often begin an English sentence, so that a capital there says nothing
OPENERS = frozenset(_OPENERS.split())
