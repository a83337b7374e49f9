"""The wordings of constraints: which sentences of an instruction restrict the answer, and how sure that is.

English only.
"""

from dataclasses import dataclass

NUMBER = r"(?:\d[\d,]*|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|fifteen|twenty|fifty|a hundred)"
UNIT = (
    r"(?:words?|sentences?|paragraphs?|characters?|letters?|lines?|sections?|bullet points?|bullets?|points|items|"
    r"stanzas?|verses?|pages?|tokens?|syllables?|pieces|placeholders?|times|minutes?|parts|key points)"
)
_MODAL = (
    r"(?:should(?:n't)?|must(?:n't)?|needs? to|ha(?:s|ve) to|cannot|can't|can not|may not|may only|can only|shall|"
    r"(?:is|are) (?:not )?allowed|(?:is|are) required|(?:is|are) not permitted|(?:is|are) to be)"
)
_ANSWER = r"(?:response|responses|answer|answers|reply|replies|output|outputs)"
_BOUND = (
    r"(?:exactly|precisely|only|just|at least|at most|(?:no|not) (?:more|fewer|less) than|more than|less than|"
    r"fewer than|up to|under|over|within|around|about|approximately|roughly|an? (?:maximum|minimum|total) of|"
    r"maximum|minimum|max\.?|min\.?|between)"
)
# A rule that holds for the first sentence of a text too, and wherever the sentence speaks of form.
SURE = 0.85


@dataclass(frozen=True, slots=True)
class Rule:
    """A wording of constraints.

    Attributes:
        name: For the account.
        first_words: The first words of such sentences, apart from politeness.
        pattern: Matches from that first word on.
        confidence: How sure it is that such a sentence is a constraint on the answer.
        names_answer: The wording speaks of the answer itself, so that it is no material even at the end of a
            passage.
    """

    name: str
    first_words: str
    pattern: str
    confidence: float
    names_answer: bool = False


RULES = (
    Rule(
        "answer-must",
        "your the this my all each entire whole final full response responses answer reply replies output any every",
        rf"(?:(?:all|each|any|every) )?(?:of )?(?:your |the |this |my )?(?:(?:entire|whole|final|full|complete|very|"
        rf"first|last|total|number|beginning|end|start|words?|sentences?|letters?|length|of|in|your|the|each|both) )*"
        rf"{_ANSWER}\b(?!:| the (?:question|following))(?:[^?]{{0,80}}?\b(?:{_MODAL}|contains?|without)| be)\b",
        0.9,
        True,
    ),
    Rule(
        "in-your-answer",
        "in at throughout within outside for before after",
        rf"(?!\w+ (?:the )?(?:case|light|view|terms|number)\b)[^?]{{0,50}}?\b(?:your|the|this) (?:(?:entire|whole|"
        rf"final|full|complete) )?{_ANSWER}\b(?! (?:to|of)\b)",
        0.9,
        True,
    ),
    Rule(
        "order-on-answer",
        "wrap organize organise divide limit end finish begin start format highlight keep give put conclude present "
        "structure separate enclose write provide make restrict control respond return split mark capitalize surround "
        "control state repeat choose select",
        rf"[^?]{{0,90}}?\b(?:your|the (?:entire|whole|full|final)) (?:(?:entire|whole|final|full|complete|own) "
        rf")?{_ANSWER}\b"
        rf"(?! (?:to|of)\b)",
        0.9,
        True,
    ),
    Rule(
        "make-sure",
        "make making ensure be take remember don't do keep bear",
        r"(?:(?:make|making) (?:sure|certain)|ensure|be (?:sure|careful)|take care|remember to|(?:don't|do not) "
        r"forget|(?:keep|bear) in mind)\b",
        0.85,
    ),
    Rule(
        "prohibition",
        "do don't dont never avoid refrain exclude omit abstain without",
        r"(?:(?:do not|don'?t|never)(?! (?:worry|you|know|understand|have|mind|want|like|hesitate|get me|think|believe|"
        r"see|feel|let me)\b)|avoid|refrain from|exclude|omit|abstain from|without)\b",
        0.85,
    ),
    Rule(
        "no-form",
        "no nothing",
        rf"no (?:other|additional|extra|further|need to \w+|more than|(?:[\w-]+ ){{0,2}}(?:{UNIT}|commas?|"
        rf"punctuation|explanations?|"
        r"code|comments?|lists?|examples?|introduction|preamble|markdown|emojis?|jargon|prose|text|quotes?|headings?|"
        r"capital\w*|"
        r"repetition|rhym\w+|disclaimers?))\b|no [\w -]+ allowed\b|nothing else\b",
        0.75,
    ),
    Rule("i-do-not-want", "i", r"i (?:don'?t|do not) want (?:you to|any|the|to see|it)\b", 0.75),
    Rule(
        "only",
        "only just simply exclusively using",
        r"using only\b|(?:only|just|simply|exclusively) (?:output|reply|respond|answer|return|give|write|provide|"
        r"include|use|show|"
        r"list|print|say)\b(?! me (?:a|an|the)\b)",
        0.8,
    ),
    Rule("there-should", "there", rf"there {_MODAL} be\b|there (?:should|must) (?:not )?be\b", 0.85),
    Rule(
        "reply-form",
        "respond reply answer",
        r"(?:respond|reply|answer)(?: me| back| only| to me| exactly)* (?:in|with|as|only|using|within|without|like|at|"
        r"by|exactly|less|more)\b(?! (?:the|this|these) following questions)",
        0.85,
        True,
    ),
    Rule(
        "count-order",
        "use using limit keep contain containing include have organize divide highlight mention write repeat put "
        "italicize italic bold offer give provide add control restrict",
        rf"[a-z]+ (?:(?:me|us|it|them|the|your|all|each|everything|this|words?|letters?|answer|response|reply|text|"
        rf"entire|whole|key) ){{0,3}}?(?:to |in |into |for )?{_BOUND} {NUMBER}\b[^?]*?\b{UNIT}\b"
        rf"|(?:use|limit|keep|contain|organize|divide|mention|restrict) [^?]{{0,60}}?\b{_BOUND} {NUMBER}\b"
        rf"|[^?]{{0,20}}?\b{NUMBER} {UNIT} (?:or (?:less|fewer|more)|at most|maximum|max)\b"
        r"|(?:limit|control|restrict) (?:the|your) (?:number|length|count|use|\w+ count)\b",
        0.85,
    ),
    Rule(
        "form-order",
        "format wrap highlight italicize bold underline capitalize separate enclose begin start end finish conclude "
        "close limit stick adhere organize structure maintain adopt cap restrict aim",
        r"[a-z]+ (?:up )?(?:with(?! \w+ing\b)|each|every|it|the|your|to|all|by|at|them|this|in|as|into|for|"
        r"everything|an?)\b",
        0.75,
    ),
    Rule("keep-it", "keep", r"keep (?:it|them|this|things|each|every|all|the|your|to)\b", 0.75),
    Rule(
        "written-in",
        "write return output present provide give generate print show use display",
        r"[a-z]+ (?:(?:it|them|this|everything|all|each|only|the (?:result|results|answer|output)|your \w+) )*(?:in|"
        r"as|using|only|"
        r"without|within|with)\b(?! (?:the|this|these) following)",
        0.7,
    ),
    Rule(
        "include",
        "include mention incorporate use utilize emphasize focus prioritize cite assume insert italicize",
        r"[a-z]+ (?!the (?:following|given|above|below|provided|information|data|context|text|table|code|input)\b|"
        r"this\b|these\b|that\b|up\b|case\b|cases\b|to\b)\S",
        0.65,
    ),
    Rule(
        "use-format",
        "use follow",
        r"(?:use|follow) (?:the|this|these) (?:following |same )?(?:[\w-]+ ){0,3}?(?:format|structure|template|style|"
        r"pattern|"
        r"layout|order)\b",
        0.8,
    ),
    Rule(
        "add-form",
        "add put",
        r"[a-z]+ (?:\w+ ){0,4}?(?:titles?|postscript|p\.s|headings?|examples?|citations?|references|sources|emojis?|"
        r"hashtags?|"
        r"keywords?|comments?|explanations?|sections?|summary|conclusion|introduction|note)\b",
        0.65,
    ),
    Rule(
        "be-so",
        "be",
        r"be (?:as |very |more |extremely )?(?!(?:found|used|made|able|it|an?|the|that|done|my|me|in|at|to)\b)[a-z]+\b",
        0.7,
    ),
    Rule(
        "you-must",
        "you",
        r"you (?:(?:must|should|(?:need|have|are) to|shall|(?:may|can|will)(?= (?:not|only|never|always|reply|"
        r"respond|answer)\b)) (?:also )?(?:not|only|never|always|avoid|use|include|keep|be|"
        r"end|begin|start|wrap|answer|respond|reply|stick|adhere|make sure|ensure|mention|cite|limit|refrain|stay|"
        r"add|put|"
        r"highlight|separate|finish)\b(?! able\b)|(?:must not|shouldn't|should not|cannot|can't|can not)\b|"
        r"(?:are|'re) (?:not|only) (?:allowed|permitted|supposed)\b)",
        0.75,
    ),
    Rule(
        "i-want-it",
        "i i'd",
        r"i(?:(?:'d| would) (?:like|prefer)| want| need| prefer| expect) (?:the (?!following\b)|it\b|them\b|each\b|"
        r"every\b|all of\b|"
        r"your (?:answer|response|reply|output)|you to (?:only|never|not|avoid|end|begin|start|finish|use|include|"
        r"answer|respond|reply|keep|wrap|format|highlight)\b|for there to be\b|only\b)",
        0.65,
    ),
    Rule(
        "word-frequency",
        "the letter letters word words keyword keywords all capital",
        r"(?:the |all )?(?:total )?(?:number of )?(?:letters?|words?|keywords?|phrases?|"
        r"capital\w*)\b[^?]*\b(?:should|must|appears?|be)\b",
        0.85,
    ),
    Rule(
        "its-part-must",
        "it they this each every all both the these those any some at his her my first second third fourth fifth last",
        rf"(?P<subject>[^?:,]{{0,70}}?)\b{_MODAL}\b",
        0.7,
    ),
    Rule(
        "label",
        "tone style length format language word audience target voice genre output max maximum",
        r"(?:tone|style|length|format|language|word (?:count|limit)|audience|target audience|voice|genre|output format|"
        r"writing style|(?:max|maximum) length)\s*(?:of voice)?\s*[:=]\s*\S",
        0.75,
    ),
    Rule(
        "bare-count",
        "maximum max minimum min at no up under between about around exactly approximately less more fewer over",
        rf"(?:{_BOUND}|at least|at most) {NUMBER}(?:\s*(?:-|to|and)\s*{NUMBER})? (?:\w+ )?{UNIT}\b",
        0.85,
    ),
    Rule("first-repeat", "first", r"first,? repeat\b", 0.85, True),
)
