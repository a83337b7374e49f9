"""Words that make no good keyword, and words that writers are told to avoid."""

# ruff: noqa: SIM905  (lists of words read better as text)

# The commonest English words without a meaning of their own; their share tells English from other languages.
FUNCTION_WORDS = frozenset(
    """
    a about after all also an and any are as at be because been before being but by can could did do does
    for from had has have he her here him his how i if in into is it its just like more most my no not of on one
    only or other our out over she should so some such than that the their them then there these they this
    those through to too under up us was we were what when where which while who why will with would you your
    """.split()
)

# Words that say little about a topic: no keyword, no forbidden topic word.
_GENERAL = """
    able above absolutely according accordingly across actual actually additional additionally again against ago
    allow allows almost along already although always among amount another anyone anything appropriate area aren't
    around aside aspect aspects aware away back based basic become becomes began begin behind believe below best
    better between beyond bit both bring brings call called came can't cannot case cases cause certain change
    clear clearly come comes common completely consider contain contains correct course couldn't create creates
    creating current currently day days definitely depending describe described despite didn't different
    difficult directly doesn't doing don't done down due during each early easily easy effective effectively
    either else end ensure ensures ensuring enough entire especially essential etc even ever every everyone
    everything exactly example examples fact far feel few finally find first five follow following follows form
    four full further furthermore general generally get gets getting give given gives giving goes going good got
    great half hand happen hard haven't having help helpful helping helps hence he's high highly himself hope
    however i'd i'll i'm i've idea ideas important improve include included includes including increase
    indeed instead isn't issue issues it's itself keep kept kind know known large last later least leave left less
    let let's likely little live long look looking lot lots made main mainly make makes making many matter may
    maybe mean means meant might mind moreover much must myself name namely near need needed needs
    neither never new next nice nor nothing now number numerous obtain occur off often old once onto order others
    otherwise overall own part particular particularly parts people per perhaps person place please point points
    possible possibly potential present previous probably process properly provide provided provides providing
    put quickly quite rather reach real really reason reasons receive related remain require required requires
    respective right said same say says second see seem seems seen sense set several she's show shown shows side
    similar simple simply since six size small someone something sometimes soon specific start started state
    step steps still sure take taken takes taking tell tend tends ten text that's themselves there's therefore
    they're thing things think though thought three throughout thus time times today together told took towards
    tried true try trying turn two type types understand unless until upon use used useful user uses using
    usually various very via want wants wasn't way ways we're we've weren't went well what's whatever whether
    whole whose wide within without won't word words work working works world would wouldn't year years yes yet
    you'd you'll you're you've yourself
"""
GENERAL_WORDS = FUNCTION_WORDS | frozenset(_GENERAL.split())

# Words that style guides and impatient readers cross out.
OVERUSED_WORDS = (
    "very really just however important also overall additionally furthermore moreover therefore various "
    "several many great good essential crucial effective significant ensure utilize provide things something "
    "actually basically simply truly definitely certainly obviously incredible amazing unique perfect "
    "always never often usually maybe perhaps interesting nice big"
).split()

FIRST_PERSON = frozenset(
    "i me my mine myself we us our ours ourselves i'm i've i'll i'd we're we've we'll we'd let's".split()
)
SECOND_PERSON = frozenset("you your yours yourself yourselves you're you've you'll you'd".split())
CONTRACTION_ENDINGS = ("n't", "'re", "'ve", "'ll", "'d", "'m")
# 's is a contraction after these, else perhaps a possessive.
CONTRACTED_IS = frozenset("it's that's there's here's what's who's he's she's let's where's how's".split())

NUMBER_NAMES = "zero one two three four five six seven eight nine ten eleven twelve".split()
ORDINALS = "zeroth first second third fourth fifth sixth seventh eighth ninth tenth".split()
# Letters in a thousand letters of English prose.
LETTER_RATES = dict(zip("kvjxqzbpygfwm", (8, 10, 1.5, 1.5, 1, 0.7, 15, 19, 20, 20, 22, 24, 24), strict=True))
