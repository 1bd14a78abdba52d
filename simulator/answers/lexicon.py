"""Word lists, Chinese and English, for what callers want and how they feel.

The lists are small on purpose: enough for a demonstration, not enough for a real classifier.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Concept:
    """One intent or mood of a caller.

    Attributes:
        name: its identifier.
        labels: names that an option with this meaning can have.
        words: words of callers that suggest it, with weight 1.
        strong_words: words of callers that decide it, with weight 2.5.

    """

    name: str
    labels: tuple[str, ...]
    words: tuple[str, ...] = ()
    strong_words: tuple[str, ...] = ()


def _split_words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split("|") if word.strip())


CONCEPTS: tuple[Concept, ...] = (
    Concept(
        "refund",
        _split_words("refund|refunds|money back|return|退款|退货|退钱"),
        _split_words("refund|reimburse|return it|return this|退货|退钱|退回|退了|退给"),
        _split_words("refund|money back|get my money|退款|退钱|把钱退"),
    ),
    Concept(
        "cancellation",
        _split_words("cancellation|cancel|unsubscribe|terminate|取消|退订|销户|注销|解约"),
        _split_words("cancel|terminate|unsubscribe|stop my|close my|取消|退订|不想要了|终止|停机|解约"),
        _split_words("cancel|unsubscribe|退订|取消|注销|销户|解约"),
    ),
    Concept(
        "billing",
        _split_words("billing|bill|invoice|payment|payments|charge|fee|账单|计费|费用|扣费|付款|支付|缴费|话费|发票"),
        _split_words(
            "bill|invoice|charge|payment|fee|price|paid|pay|cost|overcharge|credit card|账单|扣费|扣款|费用|"
            "发票|话费|缴费|付款|支付|收费|欠费|充值|多少钱|扣了|信用卡"
        ),
        _split_words("charged twice|double charge|billed twice|overcharged|invoice|多扣|乱扣费|重复扣|扣费|账单|发票"),
    ),
    Concept(
        "delivery",
        _split_words("delivery|logistics|shipping|shipment|物流|快递|配送|发货|送货"),
        _split_words(
            "deliver|delivery|ship|shipping|parcel|package|courier|tracking|arrive|arrived|warehouse|快递|物流|"
            "配送|发货|送货|包裹|送到|签收|没收到|还没到|单号|运费|派送"
        ),
        _split_words("where is my order|where is my package|not arrived|tracking number|物流|快递|发货|包裹|派送"),
    ),
    Concept(
        "fault",
        _split_words(
            "fault|technical|technical support|bug|malfunction|repair|troubleshooting|故障|技术|报修|维修|技术支持|网络"
        ),
        _split_words(
            "broken|error|crash|crashes|fail|failed|bug|slow|internet|router|wifi|screen|freeze|frozen|update|"
            "offline|connection|signal|device|app|坏了|故障|报错|打不开|死机|卡顿|断网|信号|维修|闪退|网络|"
            "连不上|黑屏|没反应|网速|上不了网|不能用|用不了|宽带|路由器"
        ),
        _split_words(
            "not working|does not parsed|doesn't parsed|stopped working|won't turn on|故障|坏了|闪退|断网|死机|"
            "连不上|打不开|报修"
        ),
    ),
    Concept(
        "account",
        _split_words("account|login|password|profile|账户|账号|帐号|登录|密码|实名"),
        _split_words(
            "account|password|login|log in|sign in|username|verification code|locked|profile|email address|"
            "phone number|账户|账号|帐号|密码|登录|登陆|验证码|实名|绑定|解锁|手机号|用户名"
        ),
        _split_words(
            "reset my password|forgot my password|cannot log in|can't log in|locked out|忘记密码|登录不|密码|"
            "账号被|改密码"
        ),
    ),
    Concept(
        "complaint",
        _split_words("complaint|complain|grievance|投诉|抱怨|申诉"),
        _split_words(
            "complain|complaint|unacceptable|rude|attitude|terrible|worst|disappointed|manager|sue|lawyer|投诉|"
            "态度|差评|举报|太差|恶劣|不像话|骗子|欺骗|消费者协会|12315|工信部|欺诈|敷衍"
        ),
        _split_words("file a complaint|make a complaint|complain|complaint|投诉|举报|申诉|12315"),
    ),
    Concept(
        "human",
        _split_words("human|human agent|agent|operator|transfer|escalation|人工|转人工|人工客服|坐席"),
        _split_words("operator|representative|supervisor|real person|human|transfer me|人工|转接|真人|主管|坐席"),
        _split_words(
            "real person|human agent|speak to someone|talk to a human|talk to someone|a human|转人工|人工客服|"
            "人工服务|真人"
        ),
    ),
    Concept(
        "booking",
        _split_words("booking|appointment|schedule|scheduling|reservation|预约|预订|预定|改期|安排"),
        _split_words(
            "book|booking|appointment|schedule|reschedule|reserve|reservation|tomorrow|calendar|slot|预约|预订|"
            "预定|改期|改约|订位|订房|上门|挂号|时间段|档期"
        ),
        _split_words("make an appointment|book a|reschedule|reservation|预约|预订|改期|改约"),
    ),
    Concept(
        "information",
        _split_words("information|inquiry|enquiry|question|info|consultation|咨询|询问|查询|问询|了解"),
        _split_words(
            "how do|how can|what is|what are|which|opening hours|do you|tell me|information|wondering|plan|"
            "plans|请问|咨询|想了解|想问|怎么办理|如何|有没有|查询|营业时间|套餐|介绍|哪些|多少"
        ),
        _split_words("opening hours|more information|i would like to know|想咨询|营业时间|想了解"),
    ),
    Concept(
        "positive",
        _split_words("positive|good|praise|satisfied|happy|正面|积极|满意|好评|正向|表扬"),
        _split_words(
            "thank|thanks|great|good|excellent|perfect|love|happy|helpful|awesome|wonderful|amazing|satisfied|"
            "appreciate|friendly|fast|nice|谢谢|感谢|满意|很好|不错|太好了|太棒|喜欢|开心|高兴|专业|耐心|贴心|"
            "顺利|解决了|好评|点赞|给力|真棒|很快"
        ),
        _split_words(
            "thank you so much|very happy|very satisfied|well done|excellent|非常满意|太感谢|非常感谢|五星好评|太棒"
        ),
    ),
    Concept(
        "negative",
        _split_words("negative|bad|dissatisfied|unhappy|angry|负面|消极|不满|差评|负向|不满意"),
        _split_words(
            "bad|terrible|awful|angry|worst|disappointed|useless|horrible|hate|rude|unacceptable|frustrated|"
            "annoyed|annoying|broken|ridiculous|waste|slow|never|again|unhappy|poor|差劲|太差|很差|生气|失望|"
            "糟糕|垃圾|投诉|愤怒|骗|难用|恶劣|烦|坑人|没人管|拖了|气死|急死|离谱|管不管|还没人|算话|不行|不好|无语|敷衍|受不了|坏了|"
            "upset|losing patience|second time|nobody"
        ),
        _split_words(
            "not happy|not satisfied|not good|not helpful|never again|fed up|terrible|worst|不满意|不高兴|"
            "不开心|不喜欢|不专业|非常不满|太差|失望|气死|急死|太离谱|管不管|忍无可忍|不耐烦|really upset|losing patience"
        ),
    ),
    Concept("neutral", _split_words("neutral|ok|average|mixed|中性|一般|中立|客观")),
    Concept(
        "other",
        _split_words(
            "other|others|none|misc|unknown|general|else|none of the above|其他|其它|以上都不是|未知|杂项|别的"
        ),
    ),
)

CONCEPTS_BY_NAME: dict[str, Concept] = {concept.name: concept for concept in CONCEPTS}

_CONCEPT_OF_LABEL: dict[str, str] = {label: concept.name for concept in CONCEPTS for label in concept.labels}
_LONGEST_FIRST = sorted(_CONCEPT_OF_LABEL, key=len, reverse=True)


def find_concept_by_label(label: str) -> str | None:
    """Return the name of the concept that has exactly this label; None when no concept has it."""
    return _CONCEPT_OF_LABEL.get(label.strip().lower().replace("_", " ").replace("-", " "))


def find_concept_in_text(text: str) -> str | None:
    """Return the name of the concept whose label comes first in a text.

    When two labels start at the same position, the longer one decides.
    """
    lowered = text.lower()
    best: tuple[int, str] | None = None
    for label in _LONGEST_FIRST:
        position = _find_word(lowered, label)
        if position >= 0 and (best is None or position < best[0]):
            best = (position, _CONCEPT_OF_LABEL[label])
    return best[1] if best else None


def _find_word(text: str, label: str) -> int:
    """Return where a label occurs as a whole word, or -1.

    Chinese has no spaces, so a Chinese label counts at any position.
    """
    position = text.find(label)
    while position >= 0 and label.isascii():
        end = position + len(label)
        starts_word = position == 0 or not text[position - 1].isalpha()
        if starts_word and (end == len(text) or not text[end].isalpha()):
            return position
        position = text.find(label, position + 1)
    return position
