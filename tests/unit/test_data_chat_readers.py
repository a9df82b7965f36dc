"""Readers of conversations: each public form, and a reason and a place for what is left out."""

import gzip
import json

import pytest

from t5x_style.data.chat import Call, Turn
from t5x_style.data.chat_readers import (
    Dropped,
    NoConversationError,
    conversation_of,
    read_conversations,
)

USER, ANSWER = Turn("user", "Hi"), Turn("assistant", "Hello.")


def openai(*messages, **more):
    return {"messages": list(messages), **more}


def test_openai_messages():
    record = openai(
        {"role": "system", "content": "Be brief."},
        {"role": "developer", "content": [{"type": "text", "text": "In "}, {"type": "text"}]},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
    )
    expected = (Turn("system", "Be brief."), Turn("system", "In "), USER, ANSWER)
    assert conversation_of(record) == expected


def test_openai_tools_calls_and_answers():
    function = {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}
    add = {"name": "add", "arguments": '{"x": "é"}'}
    code = {"type": "code_interpreter", "id": "2", "code_interpreter": {"input": "1+1"}}
    record = openai(
        {"role": "system", "content": "S"},
        {"role": "user", "content": "Hi"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"type": "function", "id": "1", "function": add}, code],
        },
        {"role": "tool", "tool_call_id": "1", "name": "add", "content": "3"},
        {"role": "tool", "tool_call_id": "2", "content": "2"},
        {"role": "assistant", "content": "So.", "function_call": {"name": "end", "arguments": ""}},
        {"role": "function", "name": "end", "content": "ok"},
        {"role": "assistant", "content": "Hello."},
        tools=[{"type": "function", "function": function}],
    )
    calls = (
        Call("plugin", '{"name": "add", "parameters": {"x": "é"}}'),
        Call("interpreter", "```python\n1+1\n```"),
    )
    assert conversation_of(record) == (
        Turn("system", "S"),
        Turn("system", json.dumps([function]), "plugin"),
        USER,
        Turn("assistant", "", calls=calls),
        Turn("environment", "3", "plugin"),
        Turn("environment", "2", "interpreter"),
        Turn("assistant", "So.", calls=(Call("plugin", '{"name": "end", "parameters": {}}'),)),
        Turn("environment", "ok", "plugin"),
        ANSWER,
    )


def test_openai_messages_may_name_turns_of_the_chat_format():
    record = openai(
        {"role": "system", "content": "[]", "name": "plugin"},
        {"role": "user", "content": "[]", "name": "file"},
        {"role": "environment", "content": "4", "name": "interpreter"},
        {"role": "assistant", "content": "4"},
        tools=[{"name": "not taken, as there is a plugins' turn"}],
    )
    assert conversation_of(record) == (
        Turn("system", "[]", "plugin"),
        Turn("user", "[]", "file"),
        Turn("environment", "4", "interpreter"),
        Turn("assistant", "4"),
    )


def test_sharegpt():
    record = {
        "system": "S",
        "tools": '[{"name": "add"}]',
        "conversations": [
            {"from": "human", "value": "Hi"},
            {"from": "gpt", "value": "I add."},
            {"from": "function_call", "value": '{"name": "add"}'},
            {"from": "observation", "value": "3"},
            {"from": "function_call", "name": "interpreter", "value": "1"},
            {"from": "tool", "value": "1"},
            {"role": "assistant", "content": "Hello."},
        ],
    }
    assert conversation_of(record) == (
        Turn("system", "S"),
        Turn("system", '[{"name": "add"}]', "plugin"),
        USER,
        Turn("assistant", "I add.", calls=(Call("plugin", '{"name": "add"}'),)),
        Turn("environment", "3", "plugin"),
        Turn("assistant", "", calls=(Call("interpreter", "1"),)),
        Turn("environment", "1", "interpreter"),
        ANSWER,
    )


def test_alpaca():
    record = {"instruction": "Hi", "input": "", "output": "Hello."}
    assert conversation_of(record) == (USER, ANSWER)
    record |= {"input": "there", "system": "S", "history": [["Hi", "Hello."]]}
    asked = Turn("user", "Hi\nthere")
    assert conversation_of(record) == (Turn("system", "S"), USER, ANSWER, asked, ANSWER)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"text": "x"}, "neither messages"),
        (openai(), "messages is no list of objects"),
        ({"messages": "x"}, "messages is no list of objects"),
        (openai(3), "messages is no list of objects"),
        (openai({"role": "critic", "content": "x"}), "role 'critic'"),
        (openai({"role": ["user"], "content": "x"}), "role"),
        (openai({"content": "x"}), "role None"),
        (openai({"role": "user", "name": "Ann", "content": "x"}), "role 'user' or its name"),
        (openai({"role": "user", "content": 3}), "content is no text"),
        (openai({"role": "user", "content": [{"type": "image_url"}]}), "content is no text"),
        (openai({"role": "user", "content": "\ud800"}), "lone surrogate"),
        (openai({"role": "assistant", "tool_calls": [{"function": {}}]}), "names no function"),
        (
            openai({"role": "assistant", "function_call": {"name": "f", "arguments": "{"}}),
            "arguments are no JSON",
        ),
        (openai({"role": "user", "tool_calls": [{"function": {"name": "f"}}]}), "role 'user'"),
        (openai({"role": "user", "content": "x"}, tools="{"), "tools are no JSON"),
        (openai({"role": "user", "content": "x"}, tools=[1]), "tools is no list"),
        ({"conversations": [{"from": "crowd", "value": "x"}]}, "from is none"),
        ({"conversations": [{"from": [], "value": "x"}]}, "from is none"),
        ({"instruction": "x", "history": "ab", "output": "y"}, "history is no list"),
        ({"instruction": "x", "history": [["a"]], "output": "y"}, "history is no list"),
        ({"instruction": ["x"], "output": "y"}, "content is no text"),
    ],
)
def test_what_is_no_conversation_says_why(record, reason):
    with pytest.raises(NoConversationError, match=reason):
        conversation_of(record)


def test_files_are_read_in_order_and_what_is_dropped_has_a_place(tmp_path):
    good = openai({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."})
    lines, packed, whole = (tmp_path / name for name in ("a.jsonl", "b.jsonl.gz", "c.json"))
    lines.write_text(json.dumps(good) + '\n\n{"messages": 1}\nnot json\n[1]\n{"messages": 2}\n')
    packed.write_bytes(gzip.compress(json.dumps(good | {"id": "b"}).encode()))
    whole.write_text(json.dumps([{"instruction": "Hi", "output": "Hello."}, 3]))
    dropped = Dropped()
    read = list(read_conversations([lines, packed, whole], dropped))
    assert [turns for turns, _, _ in read] == [(USER, ANSWER)] * 3
    assert [record.get("id") for _, record, _ in read] == [None, "b", None]
    assert [place for _, _, place in read] == [
        f"{lines}, line 1",
        f"{packed}, line 1",
        f"{whole}, record 1",
    ]
    assert dropped.lines() == [
        f"messages is no list of objects: 2 (first: {lines}, line 3)",
        f"not a JSON object: 2 (first: {lines}, line 5)",
        f"not JSON: 1 (first: {lines}, line 4)",
    ]
