"""How dates, times and spans of time are written: patterns for the rules "date" and "time".

Numbers in all usual orders, months and days of the week in English and eleven other European languages, parts of years
(seasons, quarters, fiscal years), decades and centuries, holidays, ages, and what is told from now ("last night").
Dates in Chinese, Japanese and Korean are numbers with counters, see the rule "number".
"""

from __future__ import annotations

import re

from distill.pruning.masks.nearby import Nearby

_MONTH = (
    r"(?:Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?|Sept?(?:ember)?|Oct(?:ober)?"
    r"|Nov(?:ember)?|Dec(?:ember)?"
    r"|JAN(?:UARY)?|FEB(?:RUARY)?|MAR(?:CH)?|APR(?:IL)?|MAY|JUNE?|JULY?|AUG(?:UST)?|SEPT?(?:EMBER)?|OCT(?:OBER)?"
    r"|NOV(?:EMBER)?|DEC(?:EMBER)?)\.?"
)
# the months of other languages count only beside a number, because many of them are words of others too
_FOREIGN = (
    r"(?i:Januar|Jänner|Februar|Feber|März|Maerz|Mai|Juni|Juli|Oktober|Dezember"
    r"|janvier|janv|février|févr?|mars|avril|avr|juin|juillet|juil|août|septembre|octobre|novembre|décembre|déc"
    r"|enero|ene|febrero|marzo|abril|abr|mayo|junio|julio|agosto|ago|sep?tiembre|octubre|noviembre|diciembre|dic"
    r"|gennaio|genn?|febbraio|aprile|maggio|magg?|giugno|giu|luglio|lug|settembre|sett?|ottobre|ott|dicembre"
    r"|janeiro|fevereiro|fev|março|maio|junho|julho|setembro|outubro|novembro|dezembro"
    r"|januari|februari|maart|mrt|mei|augustus|augusti|januari|februari|juni|juli|maj|marts|desember|desember"
    r"|stycznia|lutego|marca|kwietnia|maja|czerwca|lipca|sierpnia|września|października|listopada|grudnia"
    r"|ledna|února|března|dubna|května|června|července|srpna|září|října|listopadu|prosince"
    r"|января|февраля|марта|апреля|мая|июня|июля|августа|сентября|октября|ноября|декабря"
    r"|січня|лютого|березня|квітня|травня|червня|липня|серпня|вересня|жовтня|листопада|грудня)\.?"
)
_DAY = (
    r"(?:(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day|(?:MON|TUES|WEDNES|THURS|FRI|SATUR|SUN)DAY"
    r"|(?:Mon|Tues?|Wed|Thu(?:rs?)?|Fri|Sat|Sun)(?=,\s?\d|\.?,?\s\d{1,2}(?:st|nd|rd|th)?\b"
    rf"|\.?,?\s{_MONTH}\s\d)\.?)"
)
_SPAN = (
    r"(?:seconds|(?<=one\s)second|(?<=per\s)second|(?<=\d-)second|minute|hour|day|night|week|weekend|fortnight|month"
    r"|quarter|trimester|semester|season|year|decade"
    r"|generation|century|centuries|millennium|millennia|morning|afternoon|evening|winter|spring|summer|autumn|fall"
    r"|yr|mo|wk|hr|min)"
)
_COUNT = (
    r"(?:an?|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen"
    r"|seventeen|eighteen|nineteen|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety|half|several|few|many"
    r"|couple(?: of)?|hundreds?|thousands?|millions?|billions?|dozens?|score|tens?|\d{1,9}(?:[.,]\d{1,9}){0,3}"
    r"|\d?[½¼¾])"
)
_ORDINAL = (
    r"(?:first|second|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|eleventh|twelfth|thirteenth|fourteenth"
    r"|fifteenth|sixteenth|seventeenth|eighteenth|nineteenth|twentieth|thirtieth"
    r"|(?:twenty|thirty)[- ](?:first|second|third|fourth|fifth|sixth|seventh|eighth|ninth))"
)
_DIGITS_DAY = r"\d{1,2}(?:st|nd|rd|th|ST|ND|RD|TH)?"
_DASH = r"\s?[-–—/]\s?"
_ERA = r"(?:BCE?|CE|AD|B\.C\.(?:E\.)?|A\.D\.|C\.E\.)"
_YEAR = rf"(?:\d{{4}}(?:{_DASH}\d{{2,4}})?|['’]\d{{2}})(?!\d)"
_TAIL = rf"(?:,?\s(?:of\s)?(?:{_YEAR})(?:\s{_ERA})?)?"
_CLOCK = r"\d{1,2}:\d{2}(?::\d{2}(?:[.,]\d{1,9})?)?"
_ZONE = r"(?:\s?(?:Z|UTC|GMT|[ECMP][SD]T|CES?T|BST|IST|JST)(?![A-Za-z])(?:[+-]\d{1,2})?|\s?[+-]\d{2}:?\d{2}\b)?"
_PART = (
    r"(?:first|second|third|fourth|last|final|latter|early|late|middle|mid|beginning|start|end|close|turn|rest|eve"
    r"|half|course)"
)
_TOLD = (
    r"(?:last|next|this|that|each|every|per|past|coming|previous|prior|following|preceding|current|same|other|first"
    r"|second|third|fourth|fifth|final|latest|recent|fiscal|financial|calendar|working|business|trading|academic"
    r"|school|entire|whole|full"
    r"|early|late|mid|more|consecutive|straight)"
)

_CALENDAR = (
    # numbers: ISO 8601 with week and day of the year, and day, month, year in any order
    rf"\b\d{{4}}-\d{{2}}-\d{{2}}(?:[T ]{_CLOCK}{_ZONE})?|\b\d{{4}}-(?:W\d{{2}}(?:-\d)?|[0-3]\d{{2}}\b|[01]\d\b)",
    r"\b\d{4}[/.]\d{1,2}[/.]\d{1,2}\b|\b\d{1,2}[/.-]\d{1,2}[/.-]\d{2,4}\b|\b\d{1,2}\.\s\d{1,2}\.\s?\d{4}\b"
    r"|\b(?:0?[1-9]|1[0-2])/(?:19|20)\d{2}\b",
    # a day of the week before what follows
    rf"\b(?:(?:last|next|this|past|on|early|late|every|the)\s(?:on\s)?)?{_DAY}s?"
    r"(?:\s(?:morning|afternoon|evening|night)s?)?(?:,?(?=\s(?:the\s)?\d|\s[A-Z]))?(?:\slast|\snext)?\b",
    # months with days and years, ranges too: 17 May 2024, 17-19 May, May 17 and 18, 17-May-24, the 1st of May, May '24
    rf"\b(?:the\s)?{_DIGITS_DAY}\.?(?:(?:{_DASH}|\s(?:and|or|to)\s){_DIGITS_DAY})?[\s-](?:of\s)?{_MONTH}"
    rf"(?:-\d{{2,4}}|{_TAIL})(?![a-z])",
    rf"\b{_MONTH}\s(?:the\s)?{_DIGITS_DAY}(?:(?:{_DASH}|\s(?:and|or|to|through)\s){_DIGITS_DAY})?{_TAIL}(?!\d)",
    rf"\b(?:the\s)?{_ORDINAL}\s(?:day\s)?of\s{_MONTH}{_TAIL}\b|\b{_MONTH}\s(?:the\s)?{_ORDINAL}{_TAIL}\b",
    rf"\b(?:(?:early|late|mid|in)[- ])?(?:in\s)?{_MONTH}(?:{_DASH}{_MONTH})?{_TAIL}(?=[\s,.;:)'’]|$)",
    rf"\b{_DIGITS_DAY}[.º°]?(?:{_DASH}\d{{1,2}}\.?)?\s(?:de\s|d['’])?{_FOREIGN}(?:,?\s(?:de\s|del\s)?\d{{4}}(?:\s?"
    rf"(?:г|р|р\.|г\.))?)?(?!\w)",
    rf"(?<!\w){_FOREIGN}\s(?:de\s|del\s)?\d{{4}}\b",
    # parts of a year, decades and centuries, eras, years that are no plain number
    r"\b(?:(?:early|late|mid)[- ]?)?(?:winter|spring|summer|autumn|fall|fiscal(?:[ -]years?)?|FY|CY|[QH][1-4]"
    r"|[1-4][QH])\s?-?(?:of\s)?['’]?\d{2,4}(?:[-–/]\d{2,4})?\b"
    r"|\b\d{4}\s?-?[QH][1-4]\b|\b[1-4][QH]\d{2}\b",
    r"\b(?:the\s)?(?:(?:early|late|mid)[- ]?(?:to[- ](?:mid|late)[- ])?)?(?:\d{1,3}0s|['’]\d0s)\b"
    r"|\bthe\s(?:(?:early|late|mid)[- ])?(?:twenties|thirties|forties|fifties|sixties|seventies|eighties|nineties"
    r"|noughties)\b",
    rf"\b(?:the\s)?(?:(?:early|late|mid|turn of the)[- ])?(?:\d{{1,2}}(?:st|nd|rd|th)|{_ORDINAL})(?:{_DASH}|[- ](?:"
    rf"(?:and|to)\s(?:the\s)?(?:\d{{1,2}}(?:st|nd|rd|th)|{_ORDINAL})[- ])?)(?:century|centuries|millennium)(?:\s"
    rf"{_ERA})?\b",
    rf"\b\d{{1,5}}(?:{_DASH}\d{{1,5}})?\s{_ERA}(?![a-z])|\b(?:AD|A\.D\.)\s\d{{1,4}}\b",
    rf"\b(?:1[0-9]|20)\d{{2}}(?:s\b|{_DASH}\d{{2,4}}\b)",
    # holidays
    r"\b(?:Christmas|New Year['’]?s?|Easter|Thanksgiving|Ramadan|Eid(?: al-\w+)?|Diwali|Ha?nn?ukk?ah|Hallowe['’]?en"
    r"|Passover"
    r"|Yom Kippur|Rosh Hashanah|Pentecost|Whitsun|Advent|Epiphany|Michaelmas|Midsummer|Lent|Purim|Holi|Nowruz"
    r"|Mardi Gras"
    r"|(?:Good|Black)\sFriday|(?:Ash|Shrove|Palm|Cyber|Boxing)\s\w{3,9}day|Holy Week|Boxing Day"
    rf"|(?:[A-Z][a-z]{{2,12}}['’]?s?\s){{1,2}}(?:Day|Eve))(?:\s(?:Day|Eve|Sunday|Monday|Week|break))?(?:,?\s"
    rf"{_YEAR})?\b",
)  # fmt: skip
_TELLING = (
    # ages and spans, from now or not: 34-year-old, two and a half years ago, the last three fiscal quarters of 2024
    rf"(?i:\b(?:aged?|ages|age of)\s\d{{1,3}}(?:{_DASH}\d{{1,3}}|\s(?:to|and)\s\d{{1,3}})?\b)",
    rf"(?i:\b{_COUNT}-(?:{_COUNT}-)?{_SPAN}s?(?:-long|-olds?|-end)?\b)",
    rf"(?i:\b(?:(?:the|these|those|an?|each|every|per|{_TOLD}|{_COUNT})[- ](?:and\s|to\s|or\s)?){{1,6}}{_SPAN}s?"
    rf"(?:['’]s?)?"
    r"(?:[\s-](?:ago|olds?\b|earlier|later|before|after|hence|onwards?|old|of\s(?:age|\d{4})|from\s(?:now|today)|(?:ended"
    r"|ending)(?=\s)|end))?\b)",
    rf"(?i:\b(?:the\s)?{_PART}\s(?:(?:half|part|quarter|days?|weeks?|months?|years?)\s)?of\s(?:the\s|this\s|last\s"
    rf"|next\s|each\s|every\s)?(?:{_SPAN}s?\b|(?={_MONTH}\b)|(?=\d{{4}}\b)))",
    rf"(?i:\b(?:year|month|week|quarter)[- ](?:to[- ]date|end|on[- ]year)\b|\b{_COUNT}\s(?:times|twice|once)\s(?:an?"
    rf"|per|each|every)\s{_SPAN}\b)",
    r"(?i:\b(?:the\sday\s(?:before\syesterday|after\stomorrow)|yesterday|today|tonight|tomorrow|overnight|midnight"
    r"|noon|midday"
    r"|nowadays|weekdays?|daily|(?:bi-?)?(?:weekly|monthly|annual|annually)|fortnightly|quarterly|half-yearly"
    r"|semi-?annual(?:ly)?"
    r"|yearly|hourly)\b(?:\s(?:morning|afternoon|evening|night))?)",
)  # fmt: skip

_TIMES = (
    rf"\b{_CLOCK}(?:\s?[aApP]\.?[mM]\b\.?)?{_ZONE}|\b\d{{1,2}}(?:[.]\d{{2}})?\s?[aApP]\.?[mM]\b\.?",
    r"\b\d{1,2}h(?:\d{2})?\b|\b\d{4}\s?(?:hours|hrs|h|UTC|GMT)\b|\b\d{1,2}(?:[.:]\d{2})?\sUhr\b",
    r"(?i:\b(?:half|a?\s?quarter|\d{1,2}|five|ten|twenty(?:-five)?)(?:\sminutes)?\s(?:past|to)\s(?:\d{1,2}|one|two"
    r"|three|four|five|six"
    r"|seven|eight|nine|ten|eleven|twelve|noon|midnight)\b|\b(?:\w{3,6}|\d{1,2})\so['’]clock\b)",
)  # fmt: skip

# without a digit, a month, a day of the week or a holiday none of the first can match
_NAMED = re.compile(
    r"[0-9]|Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec|JAN|FEB|MAR|APR|MAY|JUN|JUL|AUG|SEP|OCT|NOV|DEC"
    r"|Mon|Tue|Wed|Thu|Fri|Sat|Sun|MON|TUE|WED|THU|FRI|SAT|SUN|century|centuries|millennium|ties\b"
    r"|Day|Eve|Christmas|New Year|Easter|Thanksgiving|Ramadan|Eid|Diwali|Han|Chanukah|Hallow|Passover|Yom Kippur"
    r"|Rosh Hash|Pentecost|Whitsun|Advent|Epiphany|Michaelmas|Midsummer|Lent|Purim|Holi|Nowruz|Mardi Gras"
)
_SPANS = re.compile(
    r"second|minute|hour|day|night|week|month|trimester|quarter|semester|season|year|decade|generation|centur|millenni"
    r"|morning|afternoon|evening|winter|spring|summer|autumn|fall|yr|mo\b|mos\b|wk|hr|min\b|mins\b|today|tomorrow"
    r"|noon|annual|hourly"
    r"|daily|weekl|midday|aged |ages [0-9]|age [0-9]|age of [0-9]"
)
DATE = (Nearby(_NAMED, re.compile("|".join(_CALENDAR))), Nearby(_SPANS, re.compile("|".join(_TELLING)), folded=True))
TIME = (Nearby(re.compile(r"[0-9]| past | to |clock"), re.compile("|".join(_TIMES))),)
