"""The intents of a call centre, used when a caller brings no labels.

The label names are the same in both languages, so that results can be counted together; the words differ in
their first character, so that one token distinguishes them.
"""

from pipeline.kinds.classification import Option
from schemas.calls import Language

OTHER = "other"

DEFAULT_OPTIONS: dict[Language, tuple[Option, ...]] = {
    Language.CHINESE: (
        Option("billing", "费用", "账单、扣费、价格或发票有疑问", ("上个月怎么多扣了二十块？",)),
        Option("refund", "退款", "要求退货退钱", ("东西我不要了，把钱退给我。",)),
        Option("cancellation", "取消", "要取消订单、套餐或服务", ("帮我把这个套餐停掉。",)),
        Option("complaint", "投诉", "对服务或人员不满，要投诉", ("你们态度太差了，我要投诉！",)),
        Option("fault", "故障", "设备、网络或软件不能用，要报修", ("家里宽带从早上就连不上。",)),
        Option("delivery", "物流", "问发货、配送或订单到哪了", ("我的快递三天了还没到。",)),
        Option("account", "账户", "登录、密码、实名或资料修改", ("密码忘了，登不上去。",)),
        Option("information", "咨询", "了解产品、地址、时间等信息", ("请问你们周末几点开门？",)),
        Option("booking", "预订", "预订、预约或改期", ("帮我订一间周五的房。",)),
        Option("human_agent", "人工", "要求转人工坐席", ("别说了，转人工。",)),
        Option(OTHER, "其他", "以上都不是"),
    ),
    Language.ENGLISH: (
        Option(
            "billing",
            "billing",
            "a question about a bill, a charge, a price or an invoice",
            ("Why was I charged twice?",),
        ),
        Option("refund", "refund", "wants money back", ("I sent it back, when do I get my money?",)),
        Option("cancellation", "cancellation", "wants to end an order, a plan or a service", ("Please stop my plan.",)),
        Option(
            "complaint", "grievance", "is unhappy with the service or a person and says so", ("Your staff was rude.",)
        ),
        Option(
            "fault", "fault", "a device, a network or an app does not work", ("My internet has been down all day.",)
        ),
        Option("delivery", "delivery", "asks where an order is or when it comes", ("Where is my parcel?",)),
        Option("account", "account", "login, password, identity or personal details", ("I forgot my password.",)),
        Option("information", "information", "wants to know about products, places or times", ("When do you open?",)),
        Option("booking", "scheduling", "wants to book, or to move an appointment", ("Can I come on Friday instead?",)),
        Option("human_agent", "human", "wants to speak to a person", ("Let me talk to a real person.",)),
        Option(OTHER, "other", "none of these"),
    ),
}
