"""Free text of the simulated model, for requests without a constraint."""

from __future__ import annotations

from random import Random
from zlib import crc32

from simulator.answers.lexicon import CONCEPTS_BY_NAME

_MARKS = {"zh": "（模拟回答）", "en": "[simulated answer]"}
_TOPIC_SENTENCES = {
    "zh": {
        "refund": "关于您的退款申请，我们已经登记，审核通过后款项会原路退回。",
        "billing": "您的账单我们已经查看，如有多扣的费用会在三个工作日内退还。",
        "delivery": "您的包裹正在配送途中，请留意快递员的电话。",
        "fault": "请先重启设备，若问题仍然存在，我们会安排工程师上门检修。",
        "account": "请通过短信验证码重置密码，然后重新登录您的账号。",
        "complaint": "很抱歉给您带来不好的体验，您的投诉已转交主管处理。",
        "cancellation": "我们可以为您办理退订，服务将在本月底终止。",
        "booking": "已为您预约明天上午十点，届时会有短信提醒。",
        "human": "正在为您转接人工客服，请稍候。",
    },
    "en": {
        "refund": "Your refund request is registered and the money goes back to the card you paid with.",
        "billing": "We looked at your bill and any amount charged twice will be returned within three working days.",
        "delivery": "Your parcel is on its way, please keep your phone at hand for the courier.",
        "fault": "Please restart the device first, and if that does not help we will send a technician.",
        "account": "You can reset your password with the code we send to your phone and then sign in again.",
        "complaint": "We are sorry about this experience and have passed your complaint to a supervisor.",
        "cancellation": "We can cancel the service for you at the end of this month.",
        "booking": "Your appointment is booked for ten o'clock tomorrow and you will get a reminder.",
        "human": "I am connecting you with a colleague, please hold the line.",
    },
}
_CLOSING_SENTENCES = {
    "zh": (
        "感谢您的来电。",
        "您的问题我们已经记录下来。",
        "请问还有什么可以帮您？",
        "我们会在一个工作日内回复您。",
        "如需进一步帮助，请随时联系我们。",
        "请您放心，我们会持续跟进。",
    ),
    "en": (
        "Thank you for getting in touch.",
        "We have noted your question.",
        "Is there anything else we can do for you?",
        "You will hear from us within one working day.",
        "Please contact us again if you need more help.",
        "We will keep you posted.",
    ),
}
_CODE_WORDS = ("python", "function", "code", "script", "代码", "函数", "编程", "写一个程序", "sql", "bug in my")
_CODE_REPLIES = {
    "zh": (
        "（模拟回答）下面是一个示例：\n```python\n"
        "def add(first: int, second: int) -> int:\n    return first + second\n```\n"
    ),
    "en": (
        "[simulated answer] Here is an example:\n```python\n"
        "def add(first: int, second: int) -> int:\n    return first + second\n```\n"
    ),
}
_IMAGE_SENTENCES = {"zh": "图片中似乎是一个简单的画面。", "en": "The picture seems to show a simple scene."}


def detect_language(text: str) -> str:
    """Return `zh` when a text contains Chinese characters, else `en`."""
    return "zh" if any("\u4e00" <= character <= "\u9fff" for character in text) else "en"


def write_reply(text: str, seed: int, images: int = 0) -> str:
    """Write a few sentences in the language of the text, marked as simulated.

    The same text and seed always give the same reply.
    """
    language = detect_language(text)
    lowered = text.lower()
    if any(word in lowered for word in _CODE_WORDS):
        return _CODE_REPLIES[language]
    random = Random(crc32(text.encode("utf-8", "surrogatepass"), seed & 0xFFFFFFFF))
    parts = [_MARKS[language]]
    if images:
        parts.append(_IMAGE_SENTENCES[language])
    topic = next((name for name in _TOPIC_SENTENCES[language] if _is_about(name, lowered)), None)
    if topic:
        parts.append(_TOPIC_SENTENCES[language][topic])
    parts.extend(random.sample(_CLOSING_SENTENCES[language], 2 if topic or images else 3))
    return ("" if language == "zh" else " ").join(parts)


def _is_about(name: str, lowered: str) -> bool:
    return any(word in lowered for word in CONCEPTS_BY_NAME[name].strong_words)
