from __future__ import annotations

from ffn_fusion.errors import EXIT_CODES, CheckpointError, FfnFusionError


def test_messages_are_one_line_whatever_a_file_says() -> None:
    error = CheckpointError("tensor evil\n\x1b[31mname", "a\rb")
    assert error.message == r"tensor evil\n\x1b[31mname"
    assert error.hint == r"a\rb"


def test_codes_are_unique_and_documented() -> None:
    codes = [kind.exit_code for kind in FfnFusionError.__subclasses__()]
    assert len(codes) == len(set(codes))
    assert {0, 1, 2, 130, *codes} == set(EXIT_CODES)
