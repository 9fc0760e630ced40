"""The tokens that are learnt are the chat template's own: those that it adds after the prompt."""

from typing import Any

import pytest
from transformers import ByT5Tokenizer

from autotune.errors import DataError, ModelError
from tests.support.chat_templates import FAMILIES, Family
from tests.support.tokenisers import TURNS, byte_level, tokenizer
from trainer.data.encoder import Encoded, Encoder
from trainer.reading.row import Message, Row

every_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
TALK = [
    ("user", "一加一等于几？"),
    ("assistant", "等于二。"),
    ("user", "Ｔｈａｎｋｓ！"),
    ("assistant", "bye <b>2</b>"),
]
QUESTION = [("user", "天气 how?"), ("assistant", " 下雨\n了 ")]


def ids_of(of: Any, turns: list[tuple[str, str]], **options: Any) -> list[int]:
    """By transformers alone."""
    messages = [{"role": role, "content": content} for role, content in turns]
    ids: list[int] = of.apply_chat_template(messages, **options)["input_ids"]
    return ids


def after_the_prompt(of: Any, turns: list[tuple[str, str]]) -> list[int]:
    """What the conversation has from where it leaves the prompt, which asks for the last answer."""
    whole = ids_of(of, turns)
    prompt = ids_of(of, turns[:-1], add_generation_prompt=True)
    common = next(
        (i for i, (a, b) in enumerate(zip(whole, prompt, strict=False)) if a != b), len(prompt)
    )
    return whole[common:]


def learnt(encoded: Encoded) -> list[list[int]]:
    return [*(encoded.source[a:b] for a, b in encoded.loss_spans), encoded.target]


@every_family
@pytest.mark.parametrize("turns", [TALK, TALK[:2], QUESTION])
@pytest.mark.parametrize("system", [False, True])
def test_a_conversation_is_the_templates_own(
    family: Family, turns: list[tuple[str, str]], system: bool
) -> None:
    """Token for token, and its last answer is all that follows the prompt."""
    own = family.tokenizer()
    if system and family.systems:
        turns = [("system", "短"), *turns]

    (encoded,) = Encoder(own, is_causal=True).encode([Row.conversation(turns)])

    end = [] if family is not FAMILIES["glm"] else [own.eos_token_id]  # GLM's turns have none
    assert [*encoded.source, *encoded.target] == [*ids_of(own, turns), *end]
    assert encoded.target == [*after_the_prompt(own, turns), *end]
    assert not encoded.is_altered


@every_family
def test_each_answer_is_learnt_as_the_conversation_has_it(family: Family) -> None:
    """With its end of turn; as when it was the last, but for what a template writes around the last."""
    own = family.tokenizer()

    (encoded,) = Encoder(own, is_causal=True).encode([Row.conversation(TALK)])

    first, _ = learnt(encoded)
    (begin, end), whole = encoded.loss_spans[0], ids_of(own, TALK)
    as_last = after_the_prompt(own, TALK[:2])
    around = [own.encode(text, add_special_tokens=False) for text in family.around_the_last]
    assert not encoded.is_last_only
    assert as_last == [*around[0], *first, *around[1]]
    assert whole[:begin] == ids_of(own, TALK[:1], add_generation_prompt=True)[:begin]
    assert whole[begin:end] == first


def test_an_answer_whose_thinking_is_left_out_later_is_not_learnt() -> None:
    """The model would learn to answer without it; in the text, or in a field of its own."""
    own = FAMILIES["qwen3"].tokenizer()
    thought = Row.conversation([TALK[0], ("assistant", "<think>嗯</think>二"), *TALK[2:]])
    apart = Row(
        (
            thought.messages[0],
            Message("assistant", "二", True, {"reasoning_content": "嗯"}),
            *thought.messages[2:],
        )
    )

    for encoded in Encoder(own, is_causal=True).encode([thought, apart]):
        assert encoded.is_last_only
        assert encoded.loss_spans == ()
        assert own.decode(encoded.source).count("嗯") == 0


@pytest.mark.parametrize("answer", ["A", "t", "<t", "<think", ">", "d"])
def test_short_answers_are_found_where_they_stand(answer: str) -> None:
    """Not in the words that open an answer, or in its end."""
    for name in ("deepseek-r1", "chatml", "qwen3"):
        own = FAMILIES[name].tokenizer()
        turns = [("user", "a"), ("assistant", answer)]

        (encoded,) = Encoder(own, is_causal=True).encode([Row.conversation(turns)])

        assert [*encoded.source, *encoded.target] == ids_of(own, turns)
        assert own.decode(encoded.target).removeprefix("<think>\n\n</think>\n\n").startswith(answer)


VICUNA = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ 'USER: ' + m.content + ' ' }}"
    "{% else %}{{ 'ASSISTANT: ' + m.content + '[EOS]' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
"""The prompt ends before a space that the conversation has."""


@pytest.mark.parametrize("template", [TURNS, VICUNA])
@pytest.mark.parametrize("trim_offsets", [False, True])
def test_spaces_that_begin_an_answer_are_learnt(template: str, trim_offsets: bool) -> None:
    """A tokenizer may give no place to a token of spaces."""
    own = byte_level(template, trim_offsets=trim_offsets)
    turns = [("user", "a"), ("assistant", " b"), ("user", "c"), ("assistant", "  d"), *QUESTION]

    (encoded,) = Encoder(own, is_causal=True).encode([Row.conversation(turns)])

    ends = (2, 4, 6)
    assert [own.decode(each).removesuffix("\n") for each in learnt(encoded)] == [
        own.decode(after_the_prompt(own, turns[:end])).removesuffix("\n") for end in ends
    ]
    assert encoded.target == after_the_prompt(own, turns)


@pytest.mark.parametrize("opening", ["ASSISTANT:", "ASSISTANT: "])
def test_an_earlier_answer_begins_with_the_token_over_its_border_as_the_last_one_does(
    opening: str,
) -> None:
    """Where the words that open an answer end with a space that belongs to the answer's first token."""
    template = VICUNA.replace("{{ 'ASSISTANT:' }}", "{{ '" + opening + "' }}")
    own = byte_level(template, trim_offsets=False)
    turns = [("user", "hello"), ("assistant", "world"), ("user", "hello"), ("assistant", "world")]

    (encoded,) = Encoder(own, is_causal=True).encode([Row.conversation(turns)])

    first, last = learnt(encoded)
    assert first == last
    assert own.decode(last) == " world[EOS]"


@pytest.mark.parametrize("text", ["assistant", "world", "a"])
def test_an_answer_that_repeats_its_question_is_not_found_in_it(text: str) -> None:
    """BlenderBot's conversations have no words that open an answer, and end with a token."""
    template = (
        "{% for m in messages %}{{ ' ' + m.content }}{% if not loop.last %}{{ '  ' }}{% endif %}"
        "{% endfor %}{{ '[EOS]' }}"
    )
    own = byte_level(template, trim_offsets=False)

    (encoded,) = Encoder(own, is_causal=True).encode([Row.pair(text, text)])

    assert own.decode(encoded.source) == f" {text}"
    assert own.decode(encoded.target) == f"   {text}[EOS]"


def test_a_tokenizer_without_offsets_learns_each_answer_of_a_template_that_ends_with_a_token() -> (
    None
):
    """Phi-3's end of text begins as the next turn does: `<`."""
    family = FAMILIES["phi-3"]
    own: Any = ByT5Tokenizer()
    own.chat_template = family.template
    own.add_special_tokens({"additional_special_tokens": list(family.specials)})
    own.eos_token = family.specials[-1]

    (encoded,) = Encoder(own, is_causal=True).encode([Row.conversation(TALK)])

    assert [own.decode(each) for each in learnt(encoded)] == [
        "等于二。<|end|>\n", "bye <b>2</b><|end|>\n<|endoftext|>"
    ]  # fmt: skip
    assert not encoded.is_last_only


def test_a_question_that_is_written_in_another_way_is_not_learnt() -> None:
    """Mistral's template writes the system message into a last question alone, and then not at all."""
    template = (
        "{% for m in messages %}{% if m.role == 'user' %}{% if loop.last and messages[0].role == 'system' %}"
        "{{ '[CLS]' + messages[0].content + ' ' + m.content + '[SEP]' }}"
        "{% else %}{{ '[CLS]' + m.content + '[SEP]' }}{% endif %}"
        "{% elif m.role == 'assistant' %}{{ m.content + '[EOS]' }}{% endif %}{% endfor %}"
    )
    own = tokenizer(template)

    (encoded,) = Encoder(own, is_causal=True).encode([Row.conversation([("system", "xy"), *TALK])])

    assert [own.decode(each) for each in learnt(encoded)] == ["等于二。[EOS]", "bye <b>2</b>[EOS]"]
    assert encoded.is_altered


@every_family
def test_what_ends_an_answer_is_known(family: Family) -> None:
    """The template's end of turn, which need not be the tokenizer's end of sequence."""
    own = family.tokenizer()
    ends = {"gemma": "<end_of_turn>", "phi-4": "<|im_end|>", "phi-3": "<|end|>"}
    name = next(name for name, each in FAMILIES.items() if each is family)

    encoder = Encoder(own, is_causal=True)

    assert encoder.end == own.convert_tokens_to_ids(ends.get(name, own.eos_token))


@every_family
def test_an_end_that_the_data_has_is_not_learnt_twice(family: Family) -> None:
    """The tokenizer's, or the template's; with spaces behind it too."""
    own = family.tokenizer()
    encoder = Encoder(own, is_causal=True)
    ends = {own.eos_token, own.convert_ids_to_tokens(encoder.end)}

    for end in ends:
        said = [(role, f"{text}{end} " if role == "assistant" else text) for role, text in TALK]
        assert encoder.encode([Row.conversation(said)]) == encoder.encode([Row.conversation(TALK)])


def test_masked_answers_are_not_learnt() -> None:
    """They stand in the source."""
    own = FAMILIES["chatml"].tokenizer()
    turns = [Message("user", "a"), Message("assistant", "b"), Message("user", "c")]
    row = Row((*turns, Message("assistant", "d", is_learnt=True)))

    (encoded,) = Encoder(own, is_causal=True).encode([row])

    assert encoded.loss_spans == ()
    assert not encoded.is_last_only
    assert own.decode(encoded.target) == "d<|im_end|>\n"


def test_a_template_that_drops_thinking_is_told() -> None:
    """The data says it, and the model does not learn it."""
    thought = Row.pair("a", "<think>\n嗯 嗯\n</think>\n\nb")
    kept = Row(
        (thought.messages[0], Message("assistant", "b", True, {"reasoning_content": "嗯 嗯"}))
    )

    dropped = Encoder(FAMILIES["deepseek-r1"].tokenizer(), is_causal=True).encode([thought])
    written = Encoder(FAMILIES["qwen3"].tokenizer(), is_causal=True).encode([thought, kept])
    ignored = Encoder(FAMILIES["chatml"].tokenizer(), is_causal=True).encode([kept])

    assert [each.is_altered for each in (*dropped, *written, *ignored)] == [
        True,
        False,
        False,
        True,
    ]
    assert written[0].target == written[1].target


# --- tools

TOOLS = ({"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}},)


def with_call(arguments: Any, content: str | None) -> Row:
    call = {"type": "function", "function": {"name": "weather", "arguments": arguments}}
    return Row(
        (
            Message("user", "how is riga"),
            Message("assistant", content, is_learnt=True, extra={"tool_calls": [call]}),
            Message("tool", "rain", extra={"name": "weather"}),
            Message("assistant", "it rains", is_learnt=True),
        ),
        TOOLS,
    )


@pytest.mark.parametrize("name", ["qwen2.5", "qwen3"])
@pytest.mark.parametrize("content", ["", None])
def test_tools_and_their_calls_are_written_by_the_template(name: str, content: str | None) -> None:
    """As one object, whether the data has the arguments as an object or as JSON text."""
    own = FAMILIES[name].tokenizer()
    rows = [with_call(arguments, content) for arguments in ({"town": "riga"}, '{"town": "riga"}')]

    for row, other in (rows, [Row(each.messages[:2], each.tools) for each in rows]):
        first, second = Encoder(own, is_causal=True).encode([row, other])

        assert first == second
        messages = [message.as_dict() for message in row.messages]
        whole = own.apply_chat_template(messages, tools=list(TOOLS))["input_ids"]
        assert [*first.source, *first.target] == whole
        assert not first.is_last_only
        assert own.decode(learnt(first)[0]).endswith(
            '<tool_call>\n{"name": "weather", "arguments": {"town": "riga"}}\n</tool_call><|im_end|>\n'
        )


@pytest.mark.parametrize("test", ["not m.content", "m.content == ''", "'content' not in m"])
def test_null_content_reaches_a_template_as_it_takes_it(test: str) -> None:
    """Some fail on what is not text."""
    template = (
        "{% for t in tools or [] %}{{ t.function.name }}{% endfor %}{% for m in messages %}"
        "{{ m.role + ':' }}{% if "
        + test
        + " %}{% for c in m.tool_calls %}{{ c.function.arguments + '[EOS]' }}{% endfor %}"
        "{% else %}{{ m.content + '[EOS]' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    )
    own = tokenizer(template)

    (encoded,) = Encoder(own, is_causal=True).encode([with_call('{"town": "riga"}', None)])

    assert [own.decode(each) for each in learnt(encoded)] == [
        '{"town": "riga"}[EOS]',
        "it rains[EOS]",
    ]


def test_a_template_that_refuses_every_row_is_blamed() -> None:
    """Not the row."""
    encoder = Encoder(tokenizer("{{ date() }}"), is_causal=True)

    with pytest.raises(DataError, match="refuses any prompt and answer alone: check the model's"):
        encoder.encode([Row.pair("a", "b")])


def test_a_template_that_writes_arguments_as_text_gets_text() -> None:
    """OpenAI's form."""
    template = (
        "{% for t in tools or [] %}{{ t.function.name }}{% endfor %}{% for m in messages %}"
        "{{ m.role }}:{{ m.content or '' }}{% for c in m.tool_calls or [] %}{{ c.function.arguments }}"
        "{% endfor %}[EOS]\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    )
    own = tokenizer(template)

    (encoded,) = Encoder(own, is_causal=True).encode([with_call('{"town": "riga"}', None)])

    assert own.decode(learnt(encoded)[0]) == '{"town": "riga"}[EOS]\n'


@pytest.mark.parametrize(
    ("name", "row", "missing"),
    [
        ("chatml", with_call({}, ""), "`tools`"),
        ("chatml", Row(with_call({}, "").messages), "`tool_calls`"),
    ],
)
def test_a_template_that_writes_no_tools_is_refused(name: str, row: Row, missing: str) -> None:
    """They would be dropped, and a call be learnt as its end alone."""
    encoder = Encoder(FAMILIES[name].tokenizer(), is_causal=True)

    with pytest.raises(DataError) as caught:
        encoder.encode([row])

    assert str(caught.value) == (
        "the model's chat template refuses the conversation that begins 'how is riga': it does not "
        f"write {missing}; fix the row or drop it"
    )


@pytest.mark.parametrize("is_causal", [False, True])
def test_tools_without_a_template_are_refused(is_causal: bool) -> None:
    """Nothing else knows how a model is told of them."""
    encoder = Encoder(tokenizer(), is_causal=is_causal)

    with pytest.raises(DataError) as caught:
        encoder.encode([with_call({}, "")])

    assert str(caught.value) == (
        "the conversation that begins 'how is riga' has tools, and the model has no chat template to "
        "write them; train a model whose template writes tools, or drop the row"
    )


# --- seq2seq


def test_a_t5_without_a_template_learns_what_its_tokenizer_writes_for_a_target() -> None:
    """The last answer and its end; the prompt has an end too."""
    own = tokenizer()

    (encoded,) = Encoder(own, is_causal=False).encode([Row.conversation(TALK)])

    assert encoded.target == [*own(text_target="bye <b>2</b>")["input_ids"], own.eos_token_id]
    assert encoded.source[-1] == own.eos_token_id


def test_a_t5_with_a_template_reads_the_prompt_that_it_writes() -> None:
    """Its decoder writes what follows."""
    own = FAMILIES["chatml"].tokenizer()

    (encoded,) = Encoder(own, is_causal=False).encode([Row.conversation(TALK)])

    assert encoded.source == ids_of(own, TALK[:-1], add_generation_prompt=True)
    assert encoded.target == after_the_prompt(own, TALK)


def test_two_ends_in_the_data_are_one() -> None:
    """In a prompt and in a response, as data for ChatLM has them."""
    encoder = Encoder(tokenizer(), is_causal=False)

    ended, bare = encoder.encode([Row.pair("one[EOS]", "two[EOS]"), Row.pair("one", "two")])

    assert ended == bare


def test_special_tokens_in_prose_are_noticed() -> None:
    """The first of each row; ends at the end of an answer are no prose."""
    encoder = Encoder(tokenizer(), is_causal=False)

    rows = [Row.pair("what is [SEP], [EOS]?", "an end[EOS]"), Row.pair("a", "b[EOS]")]

    assert [each.spelled for each in encoder.encode(rows)] == ["[SEP]", None]


# --- what tokenizers put around sources and targets


def nllb(**languages: str) -> Any:
    from transformers import NllbTokenizer

    specials = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "▁": 4}
    letters = {chr(97 + i): 5 + i for i in range(26)}
    return NllbTokenizer(vocab=specials | letters, merges=[], **languages)


def test_targets_have_the_target_language() -> None:
    """As `text_target` gives them, a language code first; sources have their own."""
    own = nllb(src_lang="eng_Latn", tgt_lang="fra_Latn")
    encoder = Encoder(own, is_causal=False)

    (encoded,) = encoder.encode([Row.pair("hello", "salut")])
    (ended,) = encoder.encode([Row.pair("hello</s>", "salut</s>")])

    assert encoded.source == own("hello")["input_ids"]
    assert encoded.target == own(text_target="salut")["input_ids"]
    assert own.convert_ids_to_tokens(encoded.target)[0] == "fra_Latn"
    assert ended.target == encoded.target
    source, _ = encoder.fit(encoded, max_source=4, max_target=4)
    assert source == [*encoded.source[:3], own.eos_token_id]


def test_a_tokenizer_of_bytes_needs_no_vocabulary_file() -> None:
    """ByT5's: it has no offsets either."""
    from transformers import ByT5Tokenizer

    own = ByT5Tokenizer()

    (encoded,) = Encoder(own, is_causal=False).encode([Row.pair("hé", "好")])

    assert encoded.source == own("hé")["input_ids"]
    assert encoded.target == own(text_target="好")["input_ids"]


def test_a_conversation_has_the_same_spans_without_offsets() -> None:
    """A tokenizer of bytes has none: prefixes of the text are tokenised."""
    from transformers import ByT5Tokenizer

    own = ByT5Tokenizer()
    own.chat_template = FAMILIES["chatml"].template
    own.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    own.eos_token = "<|im_end|>"

    (encoded,) = Encoder(own, is_causal=True).encode([Row.conversation(TALK)])

    assert [*encoded.source, *encoded.target] == ids_of(own, TALK)
    texts = [own.decode(ids) for ids in learnt(encoded)]
    assert texts == ["等于二。<|im_end|>\n", "bye <b>2</b><|im_end|>\n"]


def test_a_tokenizer_that_takes_no_targets_is_refused() -> None:
    """Its targets would be sources."""
    own = tokenizer()

    class OfSources(type(own)):  # type: ignore[misc]
        def __call__(self, text: Any, **options: Any) -> Any:
            return super().__call__(text, **options)

    own.__class__ = OfSources

    with pytest.raises(ModelError) as caught:
        Encoder(own, is_causal=False)

    assert str(caught.value).startswith(
        "the model's tokenizer, OfSources, fails on targets (text_target): "
    )
    assert Encoder(own, is_causal=True).end == own.eos_token_id
