"""How amounts of money are written: patterns for the rule "money".

Signs and codes before and behind the number, thousands set apart by commas, points, blanks or apostrophes, scales
("$1.2bn", "Rs 9 lakh"), numbers in words, and adjectives between number and currency ("40 million Swiss francs").
"""

from __future__ import annotations

import re

from distill.pruning.masks.nearby import Nearby

_SIGN = r"[$¢£¤¥֏؋฿៛\u20a0-\u20cf]"
# ISO 4217, currencies in use, and some of the past; and signs made of letters
_CODE = (
    r"(?:AED|AFN|ALL|AMD|ANG|AOA|ARS|AUD|AWG|AZN|BAM|BBD|BDT|BGN|BHD|BIF|BMD|BND|BOB|BRL|BSD|BTN|BWP|BYN|BZD|CAD|CDF"
    r"|CHF|CLP"
    r"|CNY|CNH|COP|CRC|CUP|CVE|CZK|DJF|DKK|DOP|DZD|EGP|ERN|ETB|EUR|FJD|FKP|GBP|GEL|GHS|GIP|GMD|GNF|GTQ|GYD|HKD|HNL"
    r"|HTG|HUF"
    r"|IDR|ILS|INR|IQD|IRR|ISK|JMD|JOD|JPY|KES|KGS|KHR|KMF|KPW|KRW|KWD|KYD|KZT|LAK|LBP|LKR|LRD|LSL|LYD|MAD|MDL|MGA"
    r"|MKD|MMK"
    r"|MNT|MOP|MRU|MUR|MVR|MWK|MXN|MYR|MZN|NAD|NGN|NIO|NOK|NPR|NZD|OMR|PAB|PEN|PGK|PHP|PKR|PLN|PYG|QAR|RON|RSD|RUB"
    r"|RWF|SAR"
    r"|SBD|SCR|SDG|SEK|SGD|SHP|SLE|SOS|SRD|SSP|STN|SVC|SYP|SZL|THB|TJS|TMT|TND|TOP|TRY|TTD|TWD|TZS|UAH|UGX|USD|UYU"
    r"|UZS|VES"
    r"|VND|VUV|WST|XAF|XCD|XOF|XPF|YER|ZAR|ZMW|ZWL|RMB|DEM|FRF|ITL|ESP|NLG|ATS|BTC|ETH|USDT|USDC)"
)
_LETTERS = r"(?:Rs\.?|Rp\.?|RM|Fr\.|SFr\.?|kr\.?|Kr\.?|zł|Kč|Ft|DM|лв\.?|руб\.?|грн\.?|NT|Mex|Php|Ksh|KSh|Sh\.?|Tk\.?)"
_NUMBER = (
    r"(?:\d{1,3}(?:[\s\u00a0\u2009\u202f'’]\d{3}){1,5}(?!\d)(?:[.,]\d{1,4})?|\d{1,40}(?:[.,]\d{1,40}){0,6}"
    r"|[.,]\d{1,4})(?:\s?[½¼¾])?"
)
_SCALE = (
    r"(?:[\s-]?(?:hundreds?|thousands?|millions?|billions?|trillions?|bn|mn|mm|MM|mil|tn|lakhs?|crores?|cr|Mio|Mrd"
    r"|Mia|milli?ard\w{0,3}"
    r"|million(?:en|es)|milli?ones|[kKmMbB])\b\.?)?"
)
_NAME = (
    r"(?i:dollars?|euros?|cents?|pounds?(?:\ssterling)?|sterling|quid|pence|(?:two|three|four|six|ten|eleven)pence"
    r"|pennies|penny|p(?=\s(?:a|per|each)\b)|bucks?|(?<=\d\s)grand(?!\w)|yen|yuan"
    r"|renminbi|rupees?|rupiahs?|paise|francs?|centimes?|marks?|deutschmarks?|pfennigs?|crowns?|krone[rn]?"
    r"|kron[ao]r?|kronur"
    r"|pesos?|centavos?|reals?|reais|won|roubles?|rubles?|kopeks?|kopecks?|rands?|baht|ringgits?|dong|dinars?"
    r"|dirhams?|riyals?"
    r"|rials?|shekels?|liras?|lire|zlot(?:y|ys|ych)|forints?|koruna|korun|hryvnias?|lei|leva?|nairas?|cedis?"
    r"|shillings?|birr"
    r"|takas?|guilders?|drachmas?|ducats?|florins?|guineas?|farthings?|nickels?|dimes?|bolivars?|soles?|colon(?:es)?"
    r"|tenge|kyat"
    r"|escudos?|pesetas?|schillings?|talers?|thalers?|livres?|sovereigns?|bitcoins?|satoshis?|ether|рубл(?:ь|я|ей)"
    r"|гривень)"
)
_SPELLED = (
    r"(?:an?|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen"
    r"|seventeen"
    r"|eighteen|nineteen|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety|half|quarter|quarters|third|several"
    r"|few|many"
    r"|couple|tens|hundreds?|thousands?|millions?|billions?|trillions?|dozens?|lakhs?|crores?|\d{1,3}(?:[.,]\d{1,3})?)"
)
_KIND = r"(?:(?:[A-Z][\w.]{0,14}|old|new|gold|silver)\s){0,2}"  # Swiss francs, US dollars, gold coins' names
_RANGE = rf"(?:\s?[-–—]\s?(?:{_SIGN}\s?)?{_NUMBER}{_SCALE})?"
# what says how the amount is meant
_PER = (
    r"(?:\s(?:an?|per|each|every|apiece)\s?(?:share|barrel|ounce|oz|tonne|ton|hour|day|week|month|year|head|person"
    r"|unit|night"
    r"|gallon|litre|liter|mile|kilo|kg|pound|lb|bushel|piece|square\s\w{3,6})\b)?"
)

_SIGNED = (
    rf"\(?[-−–+]?(?:\b[A-Z]{{1,3}}|\bMex)?{_SIGN}\s?-?{_NUMBER}{_SCALE}{_RANGE}(?:\)|(?:\s{_KIND}(?:{_CODE}|"
    rf"{_NAME})\b)?{_PER})"
)
_COUNTED = (
    rf"\b{_NUMBER}{_SCALE}(?:\s?[-–—]\s?{_NUMBER}{_SCALE})?[\s-]?(?:{_SIGN}|(?:{_KIND}(?:{_CODE}|{_NAME})|"
    rf"{_LETTERS})(?!\w)){_PER}"
    rf"|\b(?:{_CODE}|{_LETTERS})\s?-?{_NUMBER}{_SCALE}{_RANGE}{_PER}"
)
_WORDS = (
    rf"(?i:\b{_SPELLED}(?:[ -](?:(?:and|of|an?|the)\s){{0,2}}{_SPELLED}){{0,8}}[ -](?:of\s)?(?-i:{_KIND})(?:{_NAME}|"
    rf"{_CODE})(?:,?\s(?:and\s)?(?:{_SPELLED}\s)?{_NAME}){{0,2}}\b){_PER}"
)
_CURRENCIES = re.compile(
    r"doll|euro|cent|pound|sterl|quid|penc|penn|buck|yen|yuan|renm|rupe|rupi|pais|fran|mark|pfen|crown|kron"
    r"|peso|real"
    r"|reais|won|roub|rubl|kope|rand|baht|ring|dong|dina|dirh|riya|rial|shek|lir|zlot|fori|koru|hryv|lei|lev|nair"
    r"|cedi|shil"
    r"|birr|taka|guild|drach|duca|flor|guin|fart|nick|dime|boli|sole|colo|teng|kyat|escu|pese|schil|tale|thal|livr"
    r"|sove"
    r"|bitc|sato|ether|usd|eur|gbp|chf|jpy"
)
MONEY = (
    Nearby(re.compile(_SIGN), re.compile(_SIGNED), before=8, after=100),
    Nearby(re.compile("[0-9]"), re.compile(_COUNTED), before=8, after=80),
    Nearby(_CURRENCIES, re.compile(_WORDS), folded=True, before=100, after=40),
)
