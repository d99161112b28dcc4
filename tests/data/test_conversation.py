"""Conversations: validated, written by the chat template, never cut inside a special token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import write_tokenizer

from ffn_fusion.checkpoint.sidecars import load_tokenizer
from ffn_fusion.data.conversation import Conversation, Message
from ffn_fusion.data.text import BUILT_IN_CALIBRATION, BUILT_IN_HELD_OUT, read_documents
from ffn_fusion.data.windows import make_windows
from ffn_fusion.errors import DataError

TEMPLATE = "{% for m in messages %}{{ '<|start|>' + m['role'] + '\n' + m['content'] + '</s>\n' }}{% endfor %}"
STRICT = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{{ m['content'] }}{% endfor %}"
)


@pytest.fixture
def tokenizer(tmp_path: Path) -> Any:
    write_tokenizer(tmp_path / "tokenizer")
    made = load_tokenizer(tmp_path / "tokenizer")
    made.add_special_tokens({"additional_special_tokens": ["<|start|>"]})
    made.chat_template = TEMPLATE
    return made


def conversation(*words: str, place: str = "c.jsonl:1") -> Conversation:
    """Turns of the user and the assistant by turns."""
    roles = ("user", "assistant")
    return Conversation(tuple(Message(roles[i % 2], word) for i, word in enumerate(words)), place)


def written(path: Path, *conversations: Conversation) -> Path:
    lines = [json.dumps({"messages": [vars(m) for m in c.messages]}) for c in conversations]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_a_conversation_is_read_as_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    said = conversation("Hello", "Hi!", place=f"{path}:1")
    written(path, said)
    path.write_text(path.read_text() + '\n{"text": "plain"}')
    assert read_documents(path) == [said, "plain"]


def test_the_template_writes_special_tokens(tokenizer: Any, tmp_path: Path) -> None:
    path = written(tmp_path / "c.jsonl", *(conversation(f"number {i}", "yes") for i in range(20)))
    windows = make_windows(tokenizer, path, 32, 320)
    start, end = tokenizer.convert_tokens_to_ids(["<|start|>", "</s>"])
    assert (windows.ids_NT == start).sum() > 10
    row = windows.ids_NT[0].tolist()
    assert row[0] == start  # and not in the middle of a turn
    assert "</s>\n</s>" not in "".join(tokenizer.decode(row) for row in windows.ids_NT)  # ended once
    assert (windows.ids_NT == end).any()


def test_windows_begin_with_one_start_token(tokenizer: Any, tmp_path: Path) -> None:
    """The template writes it, and so do windows of a tokenizer that begins texts with it."""
    write_tokenizer(tmp_path / "bos", bos=True)
    begins = load_tokenizer(tmp_path / "bos")
    begins.chat_template = "{{ bos_token }}" + TEMPLATE.replace("<|start|>", "")
    path = written(tmp_path / "c.jsonl", *(conversation("a question " * 9, "an answer " * 9) for _ in range(9)))
    ids_NT = make_windows(begins, path, 64, 256).ids_NT
    assert (ids_NT[:, 0] == 256).all()
    assert (ids_NT[:, 1] != 256).all()


def test_a_long_conversation_is_cut_before_a_user_turn() -> None:
    head = Message("system", "Be brief.")
    turns = conversation(*(f"{i} " + "x" * 50 for i in range(8))).messages
    parts = list(Conversation((head, *turns), "c.jsonl:1").parts(150))
    assert len(parts) == 2
    assert all(part.messages[0] == head and part.messages[1].role == "user" for part in parts)
    assert [m for part in parts for m in part.messages[1:]] == list(turns)


def test_conversations_are_the_same_on_every_day(tokenizer: Any) -> None:
    tokenizer.chat_template = "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y %H:%M:%S.%f') }}{% endif %}"
    assert conversation("Hello").render(tokenizer) == "26 July 2024"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[1]", "text or a messages field"),
        ("{", "not JSON"),
        ("[" * 200_000, "not JSON"),
        ('{"text": null}', "text is no text"),
        ('{"text": "\\ud83d"}', "half a character"),
        ('{"messages": []}', "no list of messages"),
        ('{"messages": "Hello"}', "no list of messages"),
        ('{"messages": [{"from": "human"}]}', "message 1 has no role and content"),
        ('{"messages": [{"content": "Hello"}]}', "message 1 has no role and content"),
        ('{"messages": [{"role": "martian", "content": "Hello"}]}', "message 1 has the role 'martian'"),
        ('{"conversations": {"from": "human", "value": "Hello"}}', "conversations is no list of messages"),
        ('{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}', "type 'image_url'"),
        ('{"messages": [{"role": "user", "content": [7]}]}', "a part of type 'int'"),
        ('{"messages": [{"role": "assistant", "tool_calls": "x"}]}', "tool_calls is no list of calls"),
        ('{"messages": [{"role": ["user"], "content": "Hello"}]}', "message 1 has the role"),
        ('{"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": 7}]}', "message 2's content"),
    ],
)
def test_lines_that_cannot_be_used(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text('{"text": "fine"}\n' + line)
    with pytest.raises(DataError, match=message) as caught:
        read_documents(path)
    assert f"{path}:2" in caught.value.message
    assert caught.value.hint


def test_a_tokenizer_without_a_template(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.chat_template = None
    with pytest.raises(DataError, match=r"c\.jsonl:1: a conversation, and the model's tokenizer has no chat template"):
        make_windows(tokenizer, written(tmp_path / "c.jsonl", conversation("Hello", "Hi!")), 32, 64)


@pytest.mark.parametrize("template", [STRICT, "{% if %}", "{{ messages[7].content.x }}"])
def test_a_template_that_refuses(tokenizer: Any, template: str) -> None:
    tokenizer.chat_template = template
    said = Conversation((Message("system", "Be brief."), Message("user", "Hello")), "c.jsonl:3")
    with pytest.raises(DataError, match=r"c\.jsonl:3: the model's chat template refuses this conversation") as caught:
        said.render(tokenizer)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("template", [TEMPLATE, STRICT, None])
def test_built_in_texts_serve_every_tokenizer(tokenizer: Any, template: str | None) -> None:
    tokenizer.chat_template = template
    for text in (*BUILT_IN_CALIBRATION, *BUILT_IN_HELD_OUT):
        assert make_windows(tokenizer, text, 512, 1024).ids_NT.shape == (2, 512)


# ---- the forms that data sets have

TOOL_TEMPLATE = (
    "{% for tool in tools or [] %}[{{ tool.function.name }}]{% endfor %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{% for call in m.tool_calls or [] %}{{ call.function.name }}({{ call.function.arguments | tojson }}){% endfor %}"
    "{% endfor %}"
)
CALL = {"type": "function", "id": "1", "function": {"name": "add", "arguments": '{"a": 1}'}}
PARTS = [{"type": "text", "text": "What"}, {"text": " is"}, " it?"]
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
FORMS: dict[str, tuple[dict[str, Any], str]] = {
    "tool turns": (
        {
            "messages": [
                {"role": "developer", "content": "Be kind."},
                {"role": "user", "content": "Add."},
                {"role": "assistant", "content": None, "tool_calls": [CALL]},
                {"role": "tool", "content": "2", "tool_call_id": "1"},
                {"role": "assistant", "content": "Two.", "tool_calls": None},
            ],
            "tools": TOOLS,
        },
        '[add]<developer>Be kind.<user>Add.<assistant>add({"a": 1})<tool>2<assistant>Two.',
    ),
    "no content at all": (
        {"messages": [{"role": "user", "content": "Add."}, {"role": "assistant", "tool_calls": [CALL]}]},
        '<user>Add.<assistant>add({"a": 1})',
    ),
    "null content": ({"messages": [{"role": "user", "content": None}]}, "<user>"),
    "content in parts": ({"messages": [{"role": "user", "content": PARTS}]}, "<user>What is it?"),
    "ShareGPT": (
        {
            "conversations": [
                {"from": "system", "value": "Be kind."},
                {"from": "human", "value": "Hi"},
                {"from": "gpt", "value": "Ho", "weight": None},
                {"from": "observation", "value": "sun"},
            ],
            "tools": json.dumps(TOOLS),
        },
        "[add]<system>Be kind.<user>Hi<assistant>Ho<tool>sun",
    ),
    "ShareGPT with OpenAI's words": (
        {"conversation": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]},
        "<user>Hi<assistant>Ho",
    ),
}


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize("form", FORMS)
def test_forms_of_conversations(form: str, suffix: str, tokenizer: Any, tmp_path: Path) -> None:
    record, rendered = FORMS[form]
    path = tmp_path / f"c.{suffix}"
    if suffix == "jsonl":
        path.write_text(json.dumps(record) + "\n")
    elif form == "content in parts":
        pytest.skip("a column holds one type")
    else:
        pa = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pa.Table.from_pylist([{**record, "id": 1}]), path)
    tokenizer.chat_template = TOOL_TEMPLATE
    (conversation,) = read_documents(path)
    assert isinstance(conversation, Conversation)
    assert conversation.render(tokenizer) == rendered
    assert next(conversation.parts(1)).tools == conversation.tools
