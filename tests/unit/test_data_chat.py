"""The chat format: the published sequence, no control id from text, and answers read back."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_style.data.chat import ROLES, Call, ChatFormat, Turn
from t5x_style.data.vocabulary import SPECIAL_SPARES, Vocabulary, train_vocabulary

# Greek and spaces alone: every other ASCII character is spelled in bytes, so that ids can be
# written down by hand.
GREEK = [
    "αβγδεζηθικλμνξοπρστυφχψω " * 4,
    "ωψχφυτσρποξνμλκιθηζεδγβα " * 4,
    "αγεηιλνοσυχωβδζθκμξπρτφψ " * 4,
]
SIZE = 460
NUM_CONTROLS = 3
# The numbers of the spare pieces, as published, counted back from the end of the vocabulary.
START, END = SIZE - 1, SIZE - 2
ACTION, ACTION_END, INTERPRETER, PLUGIN = SIZE - 3, SIZE - 4, SIZE - 5, SIZE - 6


@pytest.fixture(scope="module")
def chat() -> ChatFormat:
    return ChatFormat(train_vocabulary(GREEK, SIZE))


def in_bytes(text):
    return [NUM_CONTROLS + byte for byte in text.encode()]


TOOLS_CONVERSATION = (
    Turn("system", "Be brief."),
    Turn("system", '[{"name": "add"}]', name="plugin"),
    Turn("system", "You can run code.", name="interpreter"),
    Turn("user", '[{"path": "a.csv", "size": "1KB"}]', name="file"),
    Turn("user", "2+2?"),
    Turn("assistant", "I add.", calls=(Call("plugin", '{"name": "add"}'),)),
    Turn("environment", "4", name="plugin"),
    Turn("assistant", "", calls=(Call("interpreter", "```python\n2+2\n```"),)),
    Turn("environment", "4", name="interpreter"),
    Turn("assistant", "4."),
)
SPELLED = """<s><|im_start|>system
Be brief.<|im_end|>
<|im_start|>system name=<|plugin|>
[{"name": "add"}]<|im_end|>
<|im_start|>system name=<|interpreter|>
You can run code.<|im_end|>
<|im_start|>user name=file
[{"path": "a.csv", "size": "1KB"}]<|im_end|>
<|im_start|>user
2+2?<|im_end|>
<|im_start|>assistant
I add.<|action_start|><|plugin|>
{"name": "add"}<|action_end|><|im_end|>
<|im_start|>environment name=<|plugin|>
4<|im_end|>
<|im_start|>assistant
<|action_start|><|interpreter|>
```python
2+2
```<|action_end|><|im_end|>
<|im_start|>environment name=<|interpreter|>
4<|im_end|>
<|im_start|>assistant
4.<|im_end|>
"""


def test_the_ids_are_the_published_ones(chat):
    turns = (
        Turn("system", "S"),
        Turn("user", "U"),
        Turn("assistant", "T", calls=(Call("plugin", "{}"),)),
        Turn("environment", "E", name="plugin"),
        Turn("assistant", "A"),
    )
    header = [START, *in_bytes("assistant\n")]
    call = [*in_bytes("T"), ACTION, PLUGIN, *in_bytes("\n{}"), ACTION_END, END]
    parts = [  # ids, and whether the assistant writes them
        ([1, START, *in_bytes("system\nS"), END, *in_bytes("\n")], False),
        ([START, *in_bytes("user\nU"), END, *in_bytes("\n")], False),
        (header, False),
        (call, True),
        (in_bytes("\n"), False),
        ([START, *in_bytes("environment"), *chat.vocabulary.encode(" ")], False),
        ([*in_bytes("name="), PLUGIN, *in_bytes("\nE"), END], False),
        (in_bytes("\n"), False),
        (header, False),
        ([*in_bytes("A"), END], True),
        (in_bytes("\n"), False),
    ]
    rendered = chat.render(turns)
    assert rendered.ids.dtype == np.int32 and rendered.is_target.dtype == bool
    assert rendered.ids.tolist() == [token_id for ids, _ in parts for token_id in ids]
    assert rendered.is_target.tolist() == [written for ids, written in parts for _ in ids]
    assert chat.stop_ids == [2, END]
    assert chat.reward_id == SIZE - 17


def test_every_kind_of_turn_is_spelled_as_published(chat):
    rendered = chat.render(TOOLS_CONVERSATION)
    assert chat.spelled(rendered.ids) == SPELLED
    written = chat.spelled(rendered.ids[rendered.is_target])
    assert written == (
        'I add.<|action_start|><|plugin|>\n{"name": "add"}<|action_end|><|im_end|>'
        "<|action_start|><|interpreter|>\n```python\n2+2\n```<|action_end|><|im_end|>4.<|im_end|>"
    )
    for number in range(len(TOOLS_CONVERSATION)):
        first = chat.render(TOOLS_CONVERSATION[: number + 1]).ids
        np.testing.assert_array_equal(first, rendered.ids[: rendered.turn_ends[number]])


def test_a_prompt_ends_where_the_assistant_begins(chat):
    turns = TOOLS_CONVERSATION[:5]
    prompt, rendered = chat.prompt(turns), chat.render(TOOLS_CONVERSATION).ids.tolist()
    assert prompt == rendered[: len(prompt)]
    assert chat.spelled(prompt).endswith("2+2?<|im_end|>\n<|im_start|>assistant\n")


def test_an_empty_system_turn_is_left_out_and_an_empty_plugin_list_is_not(chat):
    user = Turn("user", "hi")
    assert chat.prompt([Turn("system", ""), user]) == chat.prompt([user])
    assert chat.prompt([Turn("system", "", name="plugin"), user]) != chat.prompt([user])


hostile = st.lists(
    st.one_of(
        st.text(max_size=8),
        st.sampled_from([*SPECIAL_SPARES, "<s>", "</s>", "[UNUSED_TOKEN_146]", "\n", "user\n"]),
    )
).map("".join)


@settings(max_examples=200)
@given(st.data())
def test_no_text_becomes_a_control_token(chat, data):
    text = data.draw(hostile)
    role = data.draw(st.sampled_from(ROLES))
    calls = (Call("plugin", text),) if role == "assistant" else ()
    neutral = Turn(role, "x", calls=tuple(Call("plugin", "x") for _ in calls))
    ids, expected = chat.render([Turn(role, text, calls=calls)]).ids, chat.render([neutral]).ids
    controls = {0, 1, 2, *range(SIZE - 147, SIZE)}
    if role == "system" and not text:
        assert ids.tolist() == [1]
        return
    assert [i for i in ids.tolist() if i in controls] == [
        i for i in expected.tolist() if i in controls
    ]
    assert chat.vocabulary.decode(ids).count(text) >= 1


@settings(max_examples=200)
@given(hostile, st.lists(st.tuples(st.sampled_from(["plugin", "interpreter"]), hostile)))
def test_what_is_rendered_is_read_back(chat, text, calls):
    turn = Turn("assistant", text, calls=tuple(Call(*call) for call in calls))
    ids = chat.render([turn]).ids[len(chat.prompt([])) :]
    answer = chat.parse(ids.tolist())
    content = text.rstrip("\n") if calls else text
    assert answer.turn == Turn("assistant", content, calls=turn.calls)
    assert answer.is_ended and answer.problem is None


@pytest.mark.parametrize("between", ["", "\n", "\n\n"])
@pytest.mark.parametrize("after", ["", "\n"])
def test_newlines_around_a_call_are_no_part_of_it(chat, between, after):
    call = [ACTION, INTERPRETER, *in_bytes("\n1\n"), ACTION_END]
    answer = chat.parse([*in_bytes(f"I see.{between}"), *call, *in_bytes(after), END, 9, 9])
    assert answer.turn == Turn("assistant", "I see.", calls=(Call("interpreter", "1\n"),))
    assert answer.is_ended and answer.problem is None


@pytest.mark.parametrize(
    ("ids", "turn", "problem"),
    [
        ([*in_bytes("ab")], Turn("assistant", "ab"), None),
        ([], Turn("assistant", ""), None),
        ([ACTION], Turn("assistant", ""), "a call names no tool"),
        ([ACTION, *in_bytes("x"), ACTION_END], Turn("assistant", ""), "a call names no tool"),
        (
            [ACTION, PLUGIN, *in_bytes("\n{")],
            Turn("assistant", "", calls=(Call("plugin", "{"),)),
            "a call does not end",
        ),
        (
            [ACTION, PLUGIN, *in_bytes("\n{}"), ACTION_END, *in_bytes("more")],
            Turn("assistant", "more", calls=(Call("plugin", "{}"),)),
            "there is text after a call",
        ),
        ([START, *in_bytes("a")], Turn("assistant", "a"), "<|im_start|> stands where text is"),
        ([ACTION_END], Turn("assistant", ""), "<|action_end|> stands where text is meant"),
    ],
)
def test_answers_that_are_not_as_they_should_be_say_so(chat, ids, turn, problem):
    answer = chat.parse(ids)
    assert answer.turn == turn and not answer.is_ended
    assert answer.problem is None if problem is None else answer.problem.startswith(problem)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Turn("human", ""), "Turn.role = 'human'"),
        (lambda: Turn("assistant", "", name="plugin"), "the assistant has no name"),
        (lambda: Turn("user", "", name="plugin"), "the user has file"),
        (lambda: Turn("user", "", calls=(Call("plugin", ""),)), "only the assistant calls"),
        (lambda: Call("search", ""), "Call.tool = 'search'"),
    ],
)
def test_turns_that_the_format_does_not_have(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_vocabulary_without_chat_tokens_is_refused(chat):
    bare = object.__new__(Vocabulary)
    bare.special_ids = {"<|im_start|>": 5}
    with pytest.raises(ValueError, match=r"has no <\|im_end\|>"):
        ChatFormat(bare)
