"""Writes the bundled training data: Chinese prompt/response pairs that a tiny model can learn.

Everything is composed here from small tables and sentence patterns, so the data have no source but
this file. Each fact is asked in many wordings; the validation rows ask facts of the training rows in
wordings that training never saw. What is measured with them is whether training works, not what a
model knows of the world: for that, bring real data.

    python -m bench.make_data            write trainer/assets/data/{train,valid}.jsonl
    python -m bench.make_data --check    fail unless the files are what would be written
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import combinations, islice, product, zip_longest
from pathlib import Path
from random import Random
from typing import NamedTuple, TypeVar

FOLDER = Path(__file__).parent.parent / "trainer" / "assets" / "data"
SEED = 20240607

T = TypeVar("T")


class Row(NamedTuple):
    """One line of a data file."""

    prompt: str
    response: str


class Fact(NamedTuple):
    """One response and every wording that asks for it."""

    prompts: Sequence[str]
    response: str


class Task(NamedTuple):
    """One kind of question, with the number of its rows in each file."""

    facts: Callable[[], Iterable[Fact]]
    train: int
    valid: int


def table(text: str) -> list[list[str]]:
    """The cells of a table: rows apart by white space, `|` between cells."""
    return [line.split("|") for line in text.split()]


OPENINGS = (
    "",
    "请问，",
    "你好，",
    "想问一下，",
    "考考你：",
    "我想知道，",
    "小助手，",
    "麻烦问一下，",
    "孩子问我：",
    "有个问题：",
)
CLOSINGS = ("", "谢谢！", "请告诉我。", "简单说说就行。", "想听听你的回答。")


def asked(*questions: str) -> list[str]:
    """Every question, with every opening and closing."""
    return ["".join(parts) for parts in product(OPENINGS, questions, CLOSINGS)]


CAPITALS = table("""
中国|北京 日本|东京 韩国|首尔 法国|巴黎 德国|柏林 英国|伦敦 意大利|罗马 西班牙|马德里
葡萄牙|里斯本 俄罗斯|莫斯科 美国|华盛顿 加拿大|渥太华 古巴|哈瓦那 巴西|巴西利亚 秘鲁|利马
埃及|开罗 肯尼亚|内罗毕 摩洛哥|拉巴特 澳大利亚|堪培拉 新西兰|惠灵顿 印度|新德里 泰国|曼谷
越南|河内 老挝|万象 柬埔寨|金边 马来西亚|吉隆坡 蒙古|乌兰巴托 伊朗|德黑兰 土耳其|安卡拉
希腊|雅典 瑞典|斯德哥尔摩 挪威|奥斯陆 芬兰|赫尔辛基 丹麦|哥本哈根 波兰|华沙 奥地利|维也纳
""")


def capitals() -> Iterator[Fact]:
    for country, city in CAPITALS:
        yield Fact(
            asked(
                f"{country}的首都是哪里？",
                f"{country}的首都是哪座城市？",
                f"哪座城市是{country}的首都？",
                f"{country}首都叫什么名字？",
            ),
            f"{country}的首都是{city}。",
        )
        yield Fact(
            asked(f"{city}是哪个国家的首都？", f"哪个国家的首都是{city}？", f"{city}是谁的首都？"),
            f"{city}是{country}的首都。",
        )


ANIMALS = table("""
猫|喵喵|四条|鱼 狗|汪汪|四条|骨头 牛|哞哞|四条|青草 羊|咩咩|四条|青草 鸭子|嘎嘎|两条|小虾
公鸡|喔喔|两条|谷粒 青蛙|呱呱|四条|害虫 老鼠|吱吱|四条|粮食 蜜蜂|嗡嗡|六条|花蜜
布谷鸟|布谷布谷|两条|毛虫 麻雀|叽叽喳喳|两条|谷粒 知了|知了知了|六条|树汁
""")
COLOURS = table("""
草莓|红色 樱桃|红色 西红柿|红色 辣椒|红色 香蕉|黄色 柠檬|黄色 玉米|黄色 向日葵|黄色 黄瓜|绿色
菠菜|绿色 青草|绿色 荷叶|绿色 茄子|紫色 葡萄|紫色 薰衣草|紫色 胡萝卜|橙色 橘子|橙色 南瓜|橙色
雪花|白色 牛奶|白色 豆腐|白色 煤炭|黑色 木耳|黑色 乌鸦|黑色 晴天的天空|蓝色 大海|蓝色
""")


def nature() -> Iterator[Fact]:
    for animal, sound, legs, food in ANIMALS:
        yield Fact(
            asked(f"{animal}怎么叫？", f"{animal}的叫声是什么样的？", f"{animal}是怎么叫的？"),
            f"{animal}的叫声是“{sound}”。",
        )
        yield Fact(
            asked(f"{animal}有几条腿？", f"一只{animal}有多少条腿？"), f"{animal}有{legs}腿。"
        )
        yield Fact(
            asked(f"{animal}爱吃什么？", f"{animal}平时吃什么？", f"{animal}喜欢吃什么东西？"),
            f"{animal}爱吃{food}。",
        )
    for thing, colour in COLOURS:
        yield Fact(
            asked(f"{thing}是什么颜色的？", f"{thing}一般是什么颜色？", f"{thing}的颜色是哪一种？"),
            f"{thing}是{colour}的。",
        )


OPPOSITES = table("""
高|低 大|小 多|少 长|短 快|慢 轻|重 冷|热 黑|白 新|旧 胖|瘦 粗|细 深|浅 远|近 早|晚 左|右
前|后 上|下 里|外 开|关 进|退 买|卖 哭|笑 软|硬 干|湿 甜|苦 真|假 美|丑 强|弱
安全|危险 成功|失败 勤劳|懒惰 勇敢|胆小 骄傲|谦虚 热闹|冷清 聪明|愚笨 整齐|凌乱 简单|复杂
增加|减少 开始|结束 喜欢|讨厌 表扬|批评
""")


def opposites() -> Iterator[Fact]:
    for word, other in (pair for one, two in OPPOSITES for pair in ((one, two), (two, one))):
        yield Fact(
            asked(
                f"“{word}”的反义词是什么？",
                f"{word}的反义词是哪个词？",
                f"和“{word}”意思相反的词是什么？",
                f"请写出“{word}”的反义词。",
                f"{word}反过来怎么说？",
            ),
            other,
        )


IDIOMS = table("""
画蛇添足|做了多余的事，反而把事情弄糟 守株待兔|不想努力，只盼着碰上好运气
亡羊补牢|出了差错以后及时补救，还不算晚 井底之蛙|见识太少，却以为自己什么都懂
对牛弹琴|说话不看对象，说了也没有用 掩耳盗铃|自己欺骗自己，以为别人也不知道
刻舟求剑|死守老办法，不懂得随着情况变化 拔苗助长|急于求成，违反规律，结果坏了事
狐假虎威|借着别人的威风去吓唬人 杯弓蛇影|疑神疑鬼，自己吓唬自己
熟能生巧|练习得多了，自然就能找到窍门 水滴石穿|力量虽小，只要坚持就能成功
一石二鸟|做一件事，得到两样好处 半途而废|事情没有做完就停下来，不能坚持
三心二意|心思不专一，拿不定主意 一心一意|心思专一，没有别的念头
马到成功|事情一开始就很快取得了胜利 雪中送炭|在别人最困难的时候给予帮助
锦上添花|好上加好，让美的东西更加美 胸有成竹|做事之前心里已经有了主意
目不转睛|看得十分专心，眼珠都不动一下 手忙脚乱|做事慌张，没有条理
七上八下|心里慌乱不安，十分担心 五颜六色|颜色很多，十分好看
千军万马|人马众多，声势很大 春暖花开|春天气候温暖，百花开放，景色美好
自相矛盾|说话做事前后不一致，互相冲突 异口同声|很多人说出同样的话，意见一致
名列前茅|成绩优秀，排在最前面 滔滔不绝|话很多，一直说个不停
""")


def idioms() -> Iterator[Fact]:
    for idiom, meaning in IDIOMS:
        start = idiom[:3]
        yield Fact(
            asked(
                f"成语“{start}（）”的最后一个字是什么？",
                f"“{start}”后面接哪个字？",
                f"请把成语补充完整：{start}__。",
                f"成语填空，{start}什么？",
            ),
            idiom,
        )
        yield Fact(
            asked(
                f"“{idiom}”是什么意思？",
                f"{idiom}这个成语怎么解释？",
                f"成语{idiom}说的是什么？",
                f"请解释一下{idiom}。",
            ),
            f"“{idiom}”的意思是：{meaning}。",
        )


MONTHS = ("一", "二", "三", "四", "五", "六", "七", "八", "九", "十", "十一", "十二")
SEASONS = ("冬天", "冬天", *["春天"] * 3, *["夏天"] * 3, *["秋天"] * 3, "冬天")
WEEK = "一二三四五六日"
SHIFTS = {"昨天": -1, "前天": -2, "明天": 1, "后天": 2}
FESTIVALS = table("""
春节|正月初一|饺子 元宵节|正月十五|汤圆 端午节|五月初五|粽子 七夕节|七月初七|巧果
中秋节|八月十五|月饼 重阳节|九月初九|重阳糕 腊八节|腊月初八|腊八粥
""")


def calendar() -> Iterator[Fact]:
    for month, season in zip(MONTHS, SEASONS, strict=True):
        yield Fact(
            asked(
                f"{month}月是什么季节？", f"北京的{month}月是哪个季节？", f"{month}月份属于哪一季？"
            ),
            season,
        )
    for (today, day), (word, shift) in product(enumerate(WEEK), SHIFTS.items()):
        answer = WEEK[(today + shift) % len(WEEK)]
        yield Fact(
            asked(
                f"今天是星期{day}，{word}星期几？",
                f"今天星期{day}，那么{word}是星期几？",
                f"如果今天是星期{day}，{word}是星期几？",
            ),
            f"{word}是星期{answer}。",
        )
    for festival, date, food in FESTIVALS:
        yield Fact(
            asked(f"{festival}是哪一天？", f"{festival}在什么时候？", f"{festival}吃什么？"),
            f"{festival}在农历{date}，人们常吃{food}。",
        )


def counting() -> Iterator[Fact]:
    for last in range(3, 21):
        upwards = [str(number) for number in range(1, last + 1)]
        yield Fact(
            asked(f"从1数到{last}。", f"请从1数到{last}。", f"会从1数到{last}吗？"),
            "、".join(upwards),
        )
        yield Fact(
            asked(f"从{last}倒数到1。", f"请从{last}倒着数到1。", f"会从{last}倒数到1吗？"),
            "、".join(reversed(upwards)),
        )


# Each line runs from the least to the most of its quality.
SCALES = {
    "大": ("蚂蚁", "老鼠", "兔子", "水牛", "大象", "蓝鲸"),
    "快": ("蜗牛", "步行", "自行车", "汽车", "飞机", "火箭"),
    "重": ("羽毛", "鸡蛋", "西瓜", "汽车", "轮船"),
}


def comparisons() -> Iterator[Fact]:
    for quality, scale in SCALES.items():
        for less, more in combinations(scale, 2):
            truth = f"{more}比{less}{quality}。"
            yield Fact(
                asked(
                    f"{less}和{more}，哪个更{quality}？",
                    f"{more}和{less}比，谁更{quality}？",
                    f"{more}、{less}哪一个{quality}一些？",
                ),
                truth,
            )
            yield Fact(
                asked(f"{more}比{less}{quality}吗？", f"{more}是不是比{less}{quality}？"), "是"
            )
            yield Fact(
                asked(f"{less}比{more}{quality}吗？", f"{less}是不是比{more}{quality}？"), "不是"
            )


GOODS = (
    "这件衣服",
    "这双鞋",
    "这台洗衣机",
    "这家餐厅",
    "这本书",
    "这部手机",
    "这个书包",
    "这家酒店",
)
PRAISE = (
    "质量特别好，完全超出了我的预期",
    "用了一个月，没有出过任何问题",
    "家里人都很喜欢，老人也说好",
    "服务热情周到，回复也很及时",
    "价格实惠，下次还会再来",
    "细节做得很用心，看着就舒服",
    "已经推荐给了好几位朋友",
    "和介绍的一模一样，非常满意",
    "包装很仔细，第二天就送到了",
)
BLAME = (
    "质量太差了，没几天就坏了",
    "等了半个月才送到，包装还破了",
    "客服态度冷淡，问什么都不理",
    "和图片上的完全不一样，很失望",
    "价格这么贵，一点也不值",
    "有一股难闻的味道，洗了也没用",
    "想退货，对方却一直拖着不办",
    "做工粗糙，到处都是毛病",
    "以后再也不会来了，大家小心",
)
REVIEWERS = ("", "说说我的感受：", "买了很久才来评价，", "朋友介绍我来的，", "第一次写评价，")
JUDGE_BEFORE = ("判断这条评价的态度：", "下面的评论是正面还是负面？", "情感分类：")
JUDGE_AFTER = ("这条评价是正面还是负面？", "顾客满意吗？请答正面或负面。")


def sentiment() -> Iterator[Fact]:
    for remarks, verdict in ((PRAISE, "正面"), (BLAME, "负面")):
        for length in (1, 2, 3, 4):
            reviews = [
                f"{reviewer}{goods}{'。'.join(said)}。"
                for reviewer, goods, said in product(
                    REVIEWERS, GOODS, combinations(remarks, length)
                )
            ]
            before = [judge + review for judge, review in product(JUDGE_BEFORE, reviews)]
            after = [review + judge for judge, review in product(JUDGE_AFTER, reviews)]
            yield Fact(before + after, verdict)


PEOPLE = (
    "小明",
    "小红",
    "小刚",
    "丽丽",
    "王老师",
    "李阿姨",
    "张叔叔",
    "陈医生",
    "刘经理",
    "赵奶奶",
)
TIMES = ("今天中午", "明天上午", "后天下午", "周五晚上", "周日早上", "月底", "下周三", "国庆节")
PLACES = ("图书馆", "火车站", "体育馆", "会议室", "公园门口", "电影院", "学校礼堂", "人民医院")
DEEDS = ("参加活动", "和老朋友见面", "取一份材料", "当志愿者")
PASSAGES = (
    "{who}{when}要去{where}{what}。",
    "通知：{when}，{who}在{where}{what}，请大家相互转告。",
    "{who}打来电话说，{when}会到{where}{what}，不过要先把家里收拾好，可能晚到几分钟。",
    "最近天气一直不错，街上的人也多了起来。听邻居说，{who}打算{when}到{where}{what}，"
    "为了这件事已经准备了好多天，连雨伞和水杯都提前放进了包里。",
)
QUERIES = {
    "who": ("是谁？", "文中说的人是谁？", "谁要去？"),
    "when": ("是什么时候？", "时间是哪天？", "什么时候去？"),
    "where": ("是在哪里？", "地点在哪儿？", "去什么地方？"),
}


def extraction() -> Iterator[Fact]:
    slots = {"who": PEOPLE, "when": TIMES, "where": PLACES}
    for slot, queries in QUERIES.items():
        for answer in slots[slot]:
            people, times, places = (
                [answer] if name == slot else values for name, values in slots.items()
            )
            for passage in PASSAGES:
                texts = [
                    passage.format(who=who, when=when, where=where, what=what)
                    for who, when, where, what in product(people, times, places, DEEDS)
                ]
                asking = [f"{text}问：{query}" for text, query in product(texts, queries)]
                yield Fact(asking, answer)


CHATS = {
    "你好！很高兴见到你，有什么可以帮你的吗？": "你好|您好|嗨，你好|在吗|哈喽，有人吗|你好呀，小助手",
    "不客气，能帮到你我也很开心。": "谢谢你|太感谢了|多谢帮忙|谢谢，帮了大忙|非常感谢你的回答",
    "再见，祝你一切顺利！": "再见|拜拜|我先走了|下次再聊|回头见|我要下线了",
    "早上好！新的一天，加油。": "早上好|早安|早啊|大家早|早，我起床了",
    "晚安，做个好梦。": "晚安|我要睡觉了|困了，先睡了|我去睡了|好困啊，明天见",
    "我是一个小小的对话模型，可以回答简单的问题。": "你是谁|你叫什么名字|介绍一下你自己|你是机器人吗",
    "我会回答常识问题、解释成语、数数，也能讲讲做菜和旅行。": "你会做什么|你有什么本领|你能帮我什么|你都会些什么",
    "没关系，谁都有出错的时候，下次注意就好。": "对不起|抱歉，我弄错了|不好意思|是我不好|我又做错了",
    "别难过，休息一下，明天会更好的。": "我好难过|今天心情很差|我有点伤心|我想哭|今天真倒霉",
    "太好了，恭喜你！": "我考了第一名|我找到工作了|我们赢了比赛|我通过考试了|我学会游泳了",
    "生日快乐！愿你天天开心。": "今天是我的生日|我今天过生日|我又长大一岁了|今天我满十岁",
    "抱歉，作业要自己完成，我可以帮你理清思路。": "替我写作业|帮我抄一份作业|把考试答案给我|帮我在考试里作弊",
    "抱歉，这会伤害别人，我不能帮忙。": "教我怎么骗人|帮我偷看别人的日记|帮我编谣言|怎么捉弄同学",
    "抱歉，这是别人的隐私，我不能提供。": "告诉我邻居的电话|查一下别人的住址|帮我查同事的工资|把他的密码给我",
    "身体不舒服要尽快去医院，听医生的安排。": "我发烧了怎么办|我肚子疼|我头疼好几天了|我该吃什么药",
}


def chat() -> Iterator[Fact]:
    tones = ("", "。", "！", "……", "，真的。", "呢。", "，听到了吗？", "，嘿嘿。")
    heads = ("", "嗯，", "那个，", "朋友，", "哎，")
    for response, said in CHATS.items():
        prompts = product(heads, said.split("|"), tones)
        yield Fact(["".join(parts) for parts in prompts], response)


RECIPES = table("""
西红柿炒鸡蛋|西红柿和鸡蛋|西红柿洗净切成小块，鸡蛋打散|葱花|三|盐和一点糖|鸡蛋要先炒好盛出，等西红柿出汁再倒回锅里
青椒土豆丝|土豆和青椒|洗净切成细丝，土豆丝用清水泡去淀粉|蒜末|四|盐和白醋|火要大，动作要快，口感才脆
麻婆豆腐|豆腐和牛肉末|豆腐切成方块，用热水焯一下|豆瓣酱|五|酱油和花椒粉|翻动要轻，免得豆腐碎掉
红烧肉|五花肉|切成方块，冷水下锅焯去血沫|姜片和冰糖|六十|酱油和料酒|加热水没过肉，小火慢炖，肉才会软烂
清炒西兰花|西兰花|洗净掰成小朵，焯水一分钟|蒜片|三|盐和蚝油|焯水时滴几滴油，颜色更绿
蛋炒饭|米饭和鸡蛋|把米饭拨散，把鸡蛋打匀|葱花|六|盐和胡椒粉|隔夜的米饭水分少，炒出来粒粒分明
可乐鸡翅|鸡翅|洗净以后两面划几刀，方便入味|姜片|二十|可乐和酱油|最后开大火，把汤汁收浓
红烧茄子|茄子|洗净切成长条，撒点盐腌出水分|蒜末和葱花|八|酱油和糖|茄子很吸油，先蒸一下会更清爽
冬瓜排骨汤|冬瓜和排骨|冬瓜去皮切成厚片，排骨焯水洗净|姜片|五十|盐和白胡椒|水要一次加够，冬瓜等肉软了再放
土豆炖牛肉|土豆和牛肉|切成大块，牛肉焯水洗净|姜片和八角|九十|酱油和料酒|土豆容易煮烂，最后二十分钟再放
""")


def recipes() -> Iterator[Fact]:
    for dish, main, cut, aroma, minutes, sauce, tip in RECIPES:
        yield Fact(
            asked(
                f"{dish}怎么做？",
                f"怎样做{dish}才好吃？",
                f"{dish}的做法是什么？",
                f"我想学做{dish}，第一步做什么，后面呢？",
                f"家里来客人，想做一道{dish}，步骤是怎样的？",
            ),
            f"做{dish}并不难。第一步，准备{main}，{cut}；第二步，锅里放油烧热，放入{aroma}炒香；"
            f"第三步，放入{main}，做{minutes}分钟左右，加{sauce}调味，就可以出锅了。小提示：{tip}。",
        )


CITIES = table("""
北京|故宫|长城|烤鸭 上海|外滩|豫园|小笼包 西安|兵马俑|古城墙|肉夹馍 成都|宽窄巷子|熊猫基地|火锅
杭州|西湖|灵隐寺|龙井虾仁 广州|白云山|珠江夜游|早茶 桂林|漓江|象鼻山|米粉 昆明|滇池|石林|过桥米线
南京|中山陵|秦淮河|盐水鸭 青岛|栈桥|崂山|海鲜 哈尔滨|中央大街|太阳岛|红肠 厦门|鼓浪屿|环岛路|沙茶面
""")
TRIPS = table("""
春天|百花开放，不冷也不热|早晚偏凉，记得带一件薄外套 夏天|阳光很强，白天很长|最好带上帽子和防晒霜，多喝水
秋天|天高气爽，最适合拍照|路走得多，记得穿一双舒服的鞋 冬天|气温较低，游人也少|请穿厚衣服，戴好手套和围巾
""")


def travel() -> Iterator[Fact]:
    for (city, first, second, food), (season, weather, advice) in product(CITIES, TRIPS):
        yield Fact(
            asked(
                f"{season}去{city}怎么玩？",
                f"{season}想去{city}旅游，有什么建议？",
                f"打算{season}带父母去{city}，怎么安排？",
                f"{season}到{city}玩两天，去哪里好？",
            ),
            f"{season}的{city}{weather}。第一天可以逛{first}，第二天去{second}，"
            f"别忘了尝尝当地的{food}。{advice}。祝你旅途愉快！",
        )


EXPLANATIONS = table("""
为什么会有彩虹|雨后空气里有许多小水滴，阳光照进去以后被分成七种颜色，就成了彩虹。
为什么会有影子|光沿着直线前进，遇到不透明的物体就被挡住，后面照不到的地方就是影子。
为什么会打雷|云里的电放出来时会发热，空气突然膨胀，发出很大的响声，这就是雷声。
为什么会有回声|声音遇到高墙或山谷会被反射回来，晚一点传到耳朵里，我们就听到了回声。
月亮为什么会发光|月亮自己不发光，我们看到的是它反射的太阳光。
为什么会有四季|地球斜着身子绕太阳转，不同时候受到的阳光多少不一样，于是有了春夏秋冬。
树叶秋天为什么会变黄|天气变冷以后，叶子里的绿色慢慢消失，原来藏着的黄色就显出来了。
海水为什么是咸的|河水把岩石里的盐带进大海，水不断蒸发，盐却留了下来，海水就越来越咸。
晚上睡不着怎么办|睡前一小时放下手机，喝一小杯温水，听一点轻音乐；白天多运动，每天按时起床，慢慢就会好起来。
考试前很紧张怎么办|先做几次深呼吸，告诉自己紧张是正常的；再把重点列成一张表，一项一项复习，睡够觉，就能发挥出水平。
和朋友吵架了怎么办|先让自己冷静下来，想想对方为什么生气；再找个安静的时候，诚恳地说出想法，该道歉就道歉。
总是迟到怎么办|前一天晚上把东西收拾好，闹钟提前二十分钟，路上多留一点时间，坚持两周就能养成习惯。
怎样学好一门外语|每天坚持听和读，先背常用的句子，再大胆开口说；不怕出错，每周复习一次，积累多了自然就会用。
怎样养好一盆花|放在有阳光、通风的地方，土干了再浇水，不要天天浇；每个月施一次薄肥，及时剪掉枯叶。
怎样省钱|每个月先存下一部分，再安排花费；买东西前列好清单，想一想是否真的需要，记账也很有帮助。
怎样保护眼睛|看书写字半小时就休息一下，望望远处；光线要充足，不躺着看手机，多到户外活动。
""")


def explanations() -> Iterator[Fact]:
    for question, answer in EXPLANATIONS:
        yield Fact(
            asked(
                f"{question}？", f"{question}呢？", f"能说说{question}吗？", f"你知道{question}吗？"
            ),
            answer,
        )


TASKS = (
    Task(capitals, 400, 32),
    Task(nature, 350, 28),
    Task(opposites, 360, 28),
    Task(idioms, 350, 28),
    Task(calendar, 320, 24),
    Task(counting, 210, 18),
    Task(comparisons, 330, 26),
    Task(sentiment, 180, 16),
    Task(extraction, 260, 22),
    Task(chat, 180, 14),
    Task(recipes, 210, 18),
    Task(travel, 330, 26),
    Task(explanations, 220, 20),
)


def shuffled(items: Iterable[T], rng: Random) -> list[T]:
    """The items in a random order that rests on `random()` alone, the one stream that Python promises
    to keep the same from version to version."""
    return sorted(items, key=lambda _: rng.random())


def dealt(facts: Iterable[Fact], rng: Random) -> Iterator[Row]:
    """Rows in rounds: a wording of every fact before a second one of any."""
    hands = [[Row(prompt, response) for prompt in prompts] for prompts, response in facts]
    for wordings in zip_longest(*(shuffled(hand, rng) for hand in shuffled(hands, rng))):
        yield from (row for row in wordings if row is not None)


def rows(seed: int = SEED) -> tuple[list[Row], list[Row]]:
    """The training rows and the validation rows.

    The latter are the last of each task's rounds, so that their facts have been taught by then.
    """
    rng = Random(seed)
    train: list[Row] = []
    valid: list[Row] = []
    for task in TASKS:
        taken = list(islice(dealt(task.facts(), rng), task.train + task.valid))
        train += taken[: task.train]
        valid += taken[task.train :]
    return shuffled(train, rng), shuffled(valid, rng)


def files(seed: int = SEED) -> dict[str, str]:
    """The text of each data file by its name."""
    train, valid = rows(seed)
    return {"train.jsonl": as_lines(train), "valid.jsonl": as_lines(valid)}


def as_lines(rows: Iterable[Row]) -> str:
    return "".join(json.dumps(row._asdict(), ensure_ascii=False) + "\n" for row in rows)


def write(folder: Path, seed: int = SEED) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files(seed).items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")


def stale(folder: Path, seed: int = SEED) -> list[str]:
    """The names of the files that are missing or differ from what would be written."""
    return [
        name
        for name, text in files(seed).items()
        if not (folder / name).is_file() or (folder / name).read_bytes() != text.encode()
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the bundled training data.")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    options = parser.parse_args()
    if not options.check:
        write(FOLDER, options.seed)
        return 0
    if differing := stale(FOLDER, options.seed):
        print(f"{', '.join(differing)} in {FOLDER}: not what make_data writes; run it and commit")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
