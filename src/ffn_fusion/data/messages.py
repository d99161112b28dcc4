"""Messages as data sets write them: OpenAI's form, with tool turns and content in parts, and ShareGPT's.

OpenAI:   {"messages": [{"role": "user", "content": "..." | null | [{"type": "text", "text": "..."}, ...]}, ...]}
ShareGPT: {"conversations": [{"from": "human", "value": "..."}, ...]}
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from ffn_fusion.data.conversation import ROLES, Message
from ffn_fusion.errors import DataError

FIELDS = ("messages", "conversations", "conversation")
"""What a record may hold a conversation in."""
_FROM = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "function_response": "tool",
    "function": "tool",
}
"""Roles that go by another name."""
_CALLS = "tool_calls"
_CARRIED = (_CALLS, "tool_call_id", "name", "reasoning_content", "thinking")
"""What a chat template may read of a message beside its role and content."""
_HINT = 'write {"messages": [{"role": "user", "content": "..."}, ...]}'


def read_messages(value: Any, field: str, place: str) -> Iterator[Message]:
    """Read the messages of a conversation.

    Args:
        field: what they stand in.
        place: file and line, for error messages.

    Raises:
        DataError: it isn't a list of messages; names the message and what of it isn't known.
    """
    if not isinstance(value, list) or not value:
        raise DataError(f"{place}: {field} is no list of messages", _HINT)
    for number, message in enumerate(value, 1):
        what = f"{place}: message {number}"
        if not isinstance(message, Mapping):
            raise DataError(f"{what} has no role and content", _HINT)
        role, content = (_either(message, names, what) for names in (("role", "from"), ("content", "value")))
        known = _FROM.get(role, role) if isinstance(role, str) else role
        if known not in ROLES:
            raise DataError(f"{what} has the role {role!r}", f"use {', '.join(ROLES)}")
        more = {key: message[key] for key in _CARRIED if message.get(key) is not None}
        if _CALLS in more:
            more[_CALLS] = list(_calls(more[_CALLS], what))
        yield Message(known, _text(content, what), more)


def read_tools(value: Any) -> tuple[Any, ...]:
    """The tools of a record, as a list or as JSON in a column of text; nothing where there are none."""
    if isinstance(value, str):
        with suppress(ValueError, RecursionError):
            value = json.loads(value)
    return tuple(value) if isinstance(value, list) else ()


def _either(message: Mapping[str, Any], names: tuple[str, str], what: str) -> Any:
    """The value of a key in OpenAI's spelling or ShareGPT's; a message that calls tools may have no content."""
    for name in names:
        if name in message:
            return message[name]
    if names[0] == "content" and message.get(_CALLS):
        return None
    raise DataError(f"{what} has no role and content", _HINT)


def _text(content: Any, what: str) -> str:
    """Content as text: null is empty, and of content in parts the texts follow one another."""
    if content is None:
        return ""
    if isinstance(content, list):
        return "".join(_part(part, what) for part in content)
    return string(content, f"{what}'s content")


def _part(part: Any, what: str) -> str:
    if isinstance(part, str):
        return string(part, f"{what}'s content")
    if isinstance(part, Mapping) and part.get("type", "text") == "text" and "text" in part:
        return string(part["text"], f"{what}'s content")
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    raise DataError(f"{what} has a part of type {kind!r}, and only text is read", "leave such conversations out")


def _calls(value: Any, what: str) -> Iterator[dict[str, Any]]:
    """Calls of tools, with arguments as an object, as templates take them; OpenAI writes them as a string."""
    if not isinstance(value, list) or not all(isinstance(call, Mapping) for call in value):
        raise DataError(f"{what}: {_CALLS} is no list of calls", "write them as OpenAI does, or leave them out")
    for call in value:
        function = call.get("function", call)
        arguments = function.get("arguments") if isinstance(function, Mapping) else None
        if isinstance(arguments, str):
            with suppress(ValueError, RecursionError):  # a template that takes text gets it
                function = {**function, "arguments": json.loads(arguments)}
        yield {**call, "function": function} if "function" in call else dict(function)


def string(value: Any, what: str) -> str:
    """A text that can be encoded. Raises: DataError: it isn't text, or holds half a character."""
    if not isinstance(value, str):
        raise DataError(f"{what} is no text", "write it as a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # half of a \ud83d\ude00 pair
        raise DataError(f"{what} holds half a character", "write characters beyond U+FFFF in full") from error
    return value
