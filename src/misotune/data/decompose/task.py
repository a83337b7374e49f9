"""What must be left of an instruction: a text that states a task, in a language that the rules know."""

import re

_TASK_VERBS = (
    "act add analyze analyse answer apply argue arrange assess assign assume brainstorm build calculate categorize "
    "change "
    "choose cite classify clarify combine come compare compile complete compose compute conduct construct continue "
    "contrast convert convince correct craft create critique debate debug decide define delete demonstrate depict "
    "derive "
    "describe design detail detect determine develop devise differentiate discuss distinguish divide do draft draw "
    "edit elaborate "
    "estimate evaluate examine execute expand explain explore express extend extract fill find finish fix follow "
    "formulate gather generate get give group guess guide help highlight identify illustrate imagine implement improve "
    "infer insert inspire interpret introduce invent investigate join judge justify label let list look make map "
    "mention merge modify name narrate offer optimize order organize outline paraphrase parse perform pick pitch "
    "plan play please "
    "predict prepare present pretend print produce program propose prove provide put rank rate read rearrange "
    "recommend "
    "reconstruct reduce refactor remove rename reorder rephrase replace report request research resolve respond "
    "restate "
    "retrieve review revise rewrite say search select sell send share shorten show simplify simulate solve sort "
    "speak specify "
    "split state suggest sum summarise summarize take teach tell test think transcribe transform translate try turn "
    "update use verify visualize walk weigh work write you"
)
_SENTENCE_START = re.compile(
    r"(?:^|[.!?:;,\n\-\u2013]\s*|\d[.)]\s+|\b(?:and|then|to|please|also|now|can|could|will|would|should|let's|me|you|"
    r"i|task is)\s+)"
    rf"[\"'“*_(]*(?:{'|'.join(_TASK_VERBS.split())})\b",
    re.IGNORECASE,
)
_OPENS = re.compile(
    r"(?:[\"'“*_#(]|(?:please|also|and|then|now|next|first|hi|hello|hey|ok|okay|can you|could you|would you|will you|"
    r"i want you to|"
    r"i(?:'d| would) like (?:you )?to|i need(?: you)? to|i need|i want|help me(?: to)?|your (?:task|job) is to|you "
    r"(?:will|should|must|need to|have to)|"
    r"in this task|let's)\b,?\s*|given [^,.]{1,80},\s*)*"
    rf"(?:{'|'.join(_TASK_VERBS.split())}|what|how|why|who|when|where|which)\b",
    re.IGNORECASE,
)
_ASKS = re.compile(
    r"\?|\b(?:i (?:want|need|would like|am|have)|i'd like|i'm|your (?:task|job|goal|role)|you (?:are|will|have)|what|"
    r"how|why|"
    r"when|where|which|who|tips|ideas|tell|help)\b",
    re.IGNORECASE,
)
_ENGLISH_TEXT = (
    "the a an of to and in is are for that this with you your it on do not as be write make use my i me or if any "
    "from about should must answer what how no words only can have at by please give create describe explain"
)
_ENGLISH = frozenset(_ENGLISH_TEXT.split())
_REFERENCE = re.compile(
    r"(?:this|that|these|those|it|they|such|doing so|then|after that|otherwise|instead|the (?:first|second|latter))\b",
    re.I,
)
# Asks nothing of the answer.
_CHECK = re.compile(
    r"(?:do you|did you|is (?:that|this|it)|got it|are you)\b ?(?:understand|understood|clear|ok|okay|ready|get "
    r"it)?[^.?!]{0,20}\?",
    re.I,
)
_VERB = re.compile(
    r"\b(?:is|are|was|were|be|been|has|have|had|can|will|would|could|does|did|do|may|might|must|should)\b", re.I
)
_LONGEST_NAME = 200
_SHORTEST_NAME = 3
_ENGLISH_SHARE = 0.1
_FEW_WORDS = 8
_PROSE_SEEN = 600


def states_task(text: str) -> bool:
    """True when a text asks for something: a question, an order, a wish, or the name of what is wanted.

    >>> [states_task(text) for text in ("Name three rivers.", "A poem about rain.", "The Rhine is long.", "Rivers:")]
    [True, True, False, False]
    """
    stripped = (_CHECK.sub("", text) if len(text) < _LONGEST_NAME and "?" in text else text).strip()
    if not stripped or (stripped.endswith(":") and "\n" not in stripped):
        return False
    if _SENTENCE_START.search(stripped) is not None or _ASKS.search(stripped) is not None:
        return True
    is_short = "\n" not in stripped and len(stripped) < _LONGEST_NAME
    return is_short and len(stripped.split()) >= _SHORTEST_NAME and _VERB.search(stripped) is None


def opens_task(sentence: str) -> bool:
    """True when a sentence begins with an order or a wish, or is a question.

    >>> [opens_task(text) for text in ("Please describe a river.", "Can you help me?", "Rivers describe curves.")]
    [True, True, False]
    """
    return sentence.endswith("?") or _OPENS.match(sentence) is not None


def is_english(text: str) -> bool:
    """True when enough of the words are the small words of English; a few words only need its letters."""
    words = text[:_PROSE_SEEN].lower().split()
    if len(words) < _FEW_WORDS:
        return text.isascii()
    return sum(word in _ENGLISH for word in words) >= _ENGLISH_SHARE * len(words)


def begins_with_reference(sentence: str) -> bool:
    """True when a sentence points back at the one before it."""
    return _REFERENCE.match(sentence) is not None
