"""Turn a conversation into text with the chat template of the model's tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ffn_fusion.errors import DataError

ROLES = ("system", "developer", "user", "assistant", "tool")
_FIXED_DATE = "{% macro strftime_now(format) %}26 July 2024{% endmacro +%}"
"""In front of every template. Some write today's date into each conversation; tokens must be the same on every day."""


@dataclass(frozen=True)
class Message:
    """One message of a conversation; ``role`` is one of ``ROLES``.

    ``more`` is what a chat template may read beside them, such as ``tool_calls``.
    """

    role: str
    content: str
    more: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Conversation:
    """The messages of a conversation, in order.

    Args:
        place: file and line, for error messages.
        tools: what the assistant may call, as the template takes it.
        plain: fall back to "role: content" paragraphs if the tokenizer has no chat template or refuses these messages.
            Used for built-in texts, which have to work with every model; a person's own text is never changed silently.
    """

    messages: tuple[Message, ...]
    place: str
    plain: bool = False
    tools: tuple[Any, ...] = field(default=(), hash=False)

    def __str__(self) -> str:
        return "\n\n".join(f"{message.role}: {message.content}" for message in self.messages) + "\n"

    def parts(self, size: int) -> Iterator[Conversation]:
        """Split a long conversation before user turns, into parts of about ``size`` characters.

        Messages before the first user turn, such as a system message, are repeated in every part.
        """
        first = next((i for i, message in enumerate(self.messages) if message.role == "user"), len(self.messages))
        head = self.messages[:first]
        part: list[Message] = []
        for message in self.messages[first:]:
            if message.role == "user" and part and sum(len(m.content) for m in part) >= size:
                yield replace(self, messages=(*head, *part))
                part = []
            part.append(message)
        if head or part:
            yield replace(self, messages=(*head, *part))

    def render(self, tokenizer: Any) -> str:
        """Return the text with its special tokens written out; templates run in transformers' sandbox.

        Raises:
            DataError: the tokenizer has no chat template or refuses the conversation, and ``plain`` is false.
        """
        messages = [{"role": message.role, "content": message.content, **message.more} for message in self.messages]
        try:
            tools = list(self.tools) or None
            template = _FIXED_DATE + tokenizer.get_chat_template()
            return str(tokenizer.apply_chat_template(messages, tools, chat_template=template, tokenize=False))
        except Exception as error:  # a template is a program of the model's maker: it can fail in any way
            if self.plain:
                return str(self)
            if not getattr(tokenizer, "chat_template", None):
                raise DataError(
                    f"{self.place}: a conversation, and the model's tokenizer has no chat template",
                    'give plain text: .txt, or .jsonl with {"text": ...} a line',
                ) from error
            raise DataError(
                f"{self.place}: the model's chat template refuses this conversation ({_first_line(error)})",
                "change its roles or their order to what the model takes, or leave it out",
            ) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
