from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from forks import forked
from makers import DTYPES, llama_config, tree_sha256, write_model
from safetensors.torch import load_file

from ffn_fusion.blueprint import Blueprint
from ffn_fusion.checkpoint import direct_file, shards, staging
from ffn_fusion.checkpoint.reader import open_folder
from ffn_fusion.checkpoint.shards import OutputTensor, finite, plan_shards, write_shards
from ffn_fusion.checkpoint.staging import check_space, check_target, read_manifest, staged
from ffn_fusion.errors import CheckpointError, OutputError
from ffn_fusion.surgery.build import build


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def output(name: str, tensor: torch.Tensor, dtype: str, step: int = 40) -> OutputTensor:
    body = raw(tensor)

    def pieces() -> Iterator[memoryview]:
        return (memoryview(body[i : i + step]) for i in range(0, len(body), step))

    return OutputTensor(name, dtype, tuple(tensor.shape), pieces)


def some_tensors(dtype: str = "F32", count: int = 5) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {f"t{i}": torch.randn(4 + i, 10).to(DTYPES[dtype]) for i in range(count)}


def write(target: Path, tensors: dict[str, torch.Tensor], dtype: str = "F32", limit: int = 400, key: str = "k") -> None:
    with staged(target, key) as stage:
        write_shards(stage, plan_shards([output(n, t, dtype) for n, t in tensors.items()], limit))
        stage.write("config.json", b"{}")
        stage.commit({"made_by": "test"})


# ---- shards


@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.parametrize("limit", [100, 500, 10**9])
def test_our_shards_load_in_the_safetensors_library(dtype: str, limit: int, tmp_path: Path) -> None:
    tensors = some_tensors(dtype)
    write(tmp_path / "out", tensors, dtype, limit)
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    loaded = {k: v for name in files for k, v in load_file(tmp_path / "out" / name).items()}
    assert set(loaded) == set(tensors)
    assert all(loaded[name].dtype == t.dtype and torch.equal(loaded[name], t) for name, t in tensors.items())
    index = tmp_path / "out" / "model.safetensors.index.json"
    assert index.exists() == (len(files) > 1)
    if len(files) > 1:
        where = json.loads(index.read_text())["weight_map"]
        assert all(name in load_file(tmp_path / "out" / file) for name, file in where.items())


def test_shards_are_filled_in_order_up_to_the_limit() -> None:
    tensors = [output(f"t{i}", torch.zeros(n), "F32") for i, n in enumerate((10, 10, 30, 5, 5, 10))]
    groups = plan_shards(tensors, 80)
    assert [[t.name for t in group] for group in groups.values()] == [
        ["t0", "t1"],
        ["t2"],
        ["t3", "t4", "t5"],
    ]
    assert list(groups) == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert list(plan_shards(tensors, 10**6)) == ["model.safetensors"]


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_finite_agrees_with_torch(dtype: str) -> None:
    kind = DTYPES[dtype]
    info = torch.finfo(kind)
    fine = torch.tensor([0.0, -0.0, info.max, info.min, info.tiny, info.tiny / 2, 1.0, -1.0], dtype=kind)
    assert finite(raw(fine.repeat(20_000)), dtype)
    assert finite(b"", dtype)
    for bad in (float("nan"), float("inf"), -float("inf"), -float("nan")):
        for at in (0, 65_535, 65_536, 69_999):
            tensor = torch.ones(70_000, dtype=kind)
            tensor[at] = bad
            assert not finite(raw(tensor), dtype)
    assert not finite(raw(torch.tensor([info.max], dtype=kind) * 2), dtype)
    if dtype in ("F16", "BF16"):
        every = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(kind)
        assert all(finite(raw(every[i : i + 1]), dtype) == bool(every[i].isfinite()) for i in range(0, 1 << 16, 7))


# ---- whole or nothing


def build_once(stage_exception: BaseException, target: Path) -> None:
    with staged(target, "k") as stage:
        stage.write("a", b"1")
        raise stage_exception


def test_a_commit_leaves_the_files_and_their_manifest(tmp_path: Path) -> None:
    write(tmp_path / "deep" / "out", some_tensors())
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]
    manifest = read_manifest(tmp_path / "deep" / "out")
    assert manifest is not None
    assert manifest["made_by"] == "test"
    names = {path.name for path in (tmp_path / "deep" / "out").iterdir()}
    assert set(manifest["files"]) == names - {"manifest.json"}
    for name, says in manifest["files"].items():
        content = (tmp_path / "deep" / "out" / name).read_bytes()
        assert says == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


@pytest.mark.parametrize("error", [ValueError("x"), AssertionError("x"), CheckpointError("x", "y"), MemoryError("x")])
def test_an_exception_leaves_nothing(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(type(error)):
        build_once(error, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_os_error_leaves_nothing_and_names_the_target(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"out: No space left on device"):
        build_once(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_keeps_what_is_finished(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        build_once(KeyboardInterrupt(), tmp_path / "out")
    with staged(tmp_path / "out", "k") as stage:
        assert stage.finished("a")
        stage.commit({})
    assert (tmp_path / "out" / "a").read_bytes() == b"1"


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_full_disk_in_the_middle_of_a_shard(after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "_BLOCK_BYTES", 4096)
    calls = 0
    real = os.write

    def write_some(handle: int, data: bytes | memoryview) -> int:
        nonlocal calls
        calls += 1
        if calls > after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(handle, data)

    monkeypatch.setattr(direct_file.os, "write", write_some)
    with pytest.raises(OutputError, match="No space left"):
        write(tmp_path / "out", some_tensors())
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []


def test_short_writes_are_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(direct_file.os, "write", lambda handle, data: real(handle, data[: max(1, len(data) // 3)]))
    write(tmp_path / "out", some_tensors(), limit=10**9)
    monkeypatch.undo()
    loaded = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in some_tensors().items())


def test_a_target_that_cant_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match=r"file/out\.partial: Not a directory"):
        write(tmp_path / "file" / "out", some_tensors())
    assert (tmp_path / "file").read_text() == "x"


def test_a_folder_of_someone_elses_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match="in the way"):
        write(tmp_path / "out", some_tensors())
    assert (tmp_path / "out.partial" / "thesis.tex").read_text() == "years of work"


# ---- resuming


def interrupted(target: Path, tensors: dict[str, torch.Tensor], after: int, key: str = "k") -> None:
    """A build that is cut off (as by Ctrl-C) in the shard behind ``after`` finished ones."""
    planned = plan_shards([output(n, t, "F32") for n, t in tensors.items()], 400)

    def cut() -> Iterator[memoryview]:
        yield memoryview(bytes(4))
        raise KeyboardInterrupt

    name = list(planned)[after]
    first = planned[name][0]
    planned[name] = [OutputTensor(first.name, first.dtype, first.shape, cut)]
    with pytest.raises(KeyboardInterrupt), staged(target, key) as stage:
        write_shards(stage, planned)


def test_finished_shards_are_not_written_again(tmp_path: Path) -> None:
    tensors = some_tensors(count=7)
    write(tmp_path / "whole", tensors)
    interrupted(tmp_path / "out", tensors, after=2)
    unfinished = tmp_path / "out.partial"
    done = {path.name: path.stat() for path in unfinished.glob("model-0000[12]*")}
    assert len(done) == 2
    write(tmp_path / "out", tensors)
    for name, stat in done.items():
        now = (tmp_path / "out" / name).stat()
        assert (now.st_ino, now.st_mtime_ns) == (stat.st_ino, stat.st_mtime_ns)
    assert tree_sha256(tmp_path / "out") == tree_sha256(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


def test_another_key_discards(tmp_path: Path) -> None:
    interrupted(tmp_path / "out", some_tensors(), after=1, key="one")
    (tmp_path / "out.partial" / "stray").write_text("x")
    with staged(tmp_path / "out", "two") as stage:
        assert sorted(path.name for path in stage.folder.iterdir()) == [".journal.json", ".lock"]
        assert not stage.finished("model-00001-of-00003.safetensors")


def truncate(unfinished: Path) -> None:
    shard = min(unfinished.glob("*.safetensors"))
    os.truncate(shard, shard.stat().st_size - 1)


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        lambda folder: min(folder.glob("*.safetensors")).unlink(),
        lambda folder: (folder / ".journal.json").write_text("{"),
        lambda folder: (folder / ".journal.json").write_text("[]"),
        lambda folder: (folder / ".journal.json").unlink(),
        lambda folder: (folder / "stray").write_text("x"),
        lambda folder: (folder / "config.json").write_text("half"),
    ],
)
def test_what_a_crash_may_have_left_is_set_right(damage: Callable[[Path], None], tmp_path: Path) -> None:
    tensors = some_tensors()
    write(tmp_path / "whole", tensors)
    interrupted(tmp_path / "out", tensors, after=1)
    damage(tmp_path / "out.partial")
    write(tmp_path / "out", tensors)
    assert tree_sha256(tmp_path / "out") == tree_sha256(tmp_path / "whole")


def child_of(parent: Path, target: Path, on_bytes: Callable[[int], None] = lambda n: None) -> Path:
    model = open_folder(parent)
    blueprint = Blueprint.identity(model.spec.parent("p")).apply(drop=[2, 3], runs=[(1, 3)])
    return build(model, blueprint, target, max_shard_bytes=40_000, on_bytes=on_bytes)


def killed_build(parent: Path, target: Path) -> None:
    written = 0

    def count(size: int) -> None:
        nonlocal written
        written += size
        if written > 90_000:
            os.kill(os.getpid(), signal.SIGKILL)

    child_of(parent, target, count)


@pytest.mark.slow
def test_kill_minus_nine_and_the_same_build_again(tmp_path: Path) -> None:
    parent = write_model(tmp_path / "parent", llama_config(num_hidden_layers=5)).folder
    before = tree_sha256(parent)
    killed = forked(partial(killed_build, parent, tmp_path / "out"))
    assert killed.wait() == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "out").exists()
    unfinished = tmp_path / "out.partial"
    finished = json.loads((unfinished / ".journal.json").read_text())["files"]
    stats = {name: (unfinished / name).stat() for name in finished}
    assert len(stats) >= 1
    child_of(parent, tmp_path / "out")
    for name, stat in stats.items():
        now = (tmp_path / "out" / name).stat()
        assert (now.st_ino, now.st_mtime_ns) == (stat.st_ino, stat.st_mtime_ns)
    assert tree_sha256(tmp_path / "out") == tree_sha256(child_of(parent, tmp_path / "whole"))
    assert tree_sha256(parent) == before
    assert not unfinished.exists()


def test_a_changed_parent_isnt_resumed_from(tmp_path: Path) -> None:
    parent = write_model(tmp_path / "parent", llama_config(num_hidden_layers=5)).folder

    def stop(done: int, limit: int = 90_000) -> None:
        nonlocal seen
        seen += done
        if seen > limit:
            raise KeyboardInterrupt

    seen = 0
    with pytest.raises(KeyboardInterrupt):
        child_of(parent, tmp_path / "out", stop)
    write_model(parent, llama_config(num_hidden_layers=5), seed=1)
    child_of(parent, tmp_path / "out")
    assert tree_sha256(tmp_path / "out") == tree_sha256(child_of(parent, tmp_path / "whole"))


# ---- locks, targets, space


def test_a_second_builder_is_refused_and_harms_nothing(tmp_path: Path) -> None:
    with staged(tmp_path / "out", "k") as stage:
        stage.write("a", b"1")
        for key in ("k", "other"):
            with (
                pytest.raises(OutputError, match="another process is building it"),
                staged(tmp_path / "out", key),
            ):
                pytest.fail("two builders at once")
        stage.write("b", b"2")
        stage.commit({})
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a", "b", "manifest.json"]


def test_a_second_builder_is_refused_up_to_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock may not be gone before the folder has its name."""
    real = Path.rename
    tried: list[str] = []

    def rename(self: Path, target: Path) -> Path:
        with pytest.raises(OutputError), staged(tmp_path / "out", "other"):
            pytest.fail("two builders at once")
        tried.append(self.name)
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with staged(tmp_path / "out", "k") as stage:
        stage.write("a", b"1")
        stage.commit({})
    assert tried == ["out.partial"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a", "manifest.json"]


def test_a_lock_that_was_removed_under_us_doesnt_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other builder ends between our opening its lock and our taking it."""
    real = staging.fcntl.flock

    def flock(handle: object, how: int) -> None:
        shutil.rmtree(tmp_path / "out.partial")
        real(handle, how)  # type: ignore[arg-type]

    monkeypatch.setattr(staging.fcntl, "flock", flock)
    with pytest.raises(OutputError, match="another process"), staged(tmp_path / "out", "k"):
        pytest.fail("on a lock that's gone")


def test_a_target_that_appeared_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    def build_beside() -> None:
        with staged(tmp_path / "out", "k") as stage:
            stage.write("a", b"1")
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "precious").write_text("x")
            stage.commit({})

    with pytest.raises(OutputError, match="out: Directory not empty"):
        build_beside()
    assert tree_sha256(tmp_path) == {"out/precious": hashlib.sha256(b"x").hexdigest()}


def test_check_target(tmp_path: Path) -> None:
    source = tmp_path / "model"
    source.mkdir()
    check_target(tmp_path / "model2", source)
    check_target(tmp_path / "new", None)
    for target in (
        source,
        source / "child",
        tmp_path,
        source / ".." / "model",
        tmp_path / "model2" / ".." / "model",
    ):
        with pytest.raises(OutputError, match="lie in one another"):
            check_target(target, source)
        with pytest.raises(OutputError, match="lie in one another"):
            check_target(target, source, force=True)
    (tmp_path / "there").mkdir()
    with pytest.raises(OutputError, match="exists already"):
        check_target(tmp_path / "there", source)
    check_target(tmp_path / "there", source, force=True)


def free(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    usage = shutil.disk_usage("/")._replace(free=count)
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda place: usage if Path(place).exists() else None)


def test_check_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, 1000)
    check_space(tmp_path / "not" / "there" / "yet", 1000)
    with pytest.raises(OutputError, match=r"needs 0\.00 GB"):
        check_space(tmp_path / "not" / "there" / "yet", 1001)


def test_an_interrupted_build_needs_only_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(tmp_path / "out", some_tensors(), after=1)
    held = sum(path.stat().st_size for path in (tmp_path / "out.partial").iterdir())
    free(monkeypatch, 1000)
    check_space(tmp_path / "out", 1000 + held)
    with pytest.raises(OutputError):
        check_space(tmp_path / "out", 1001 + held)


def test_a_build_that_wont_fit_starts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parent = write_model(tmp_path / "parent", llama_config(num_hidden_layers=5)).folder
    free(monkeypatch, 1 << 20)
    with pytest.raises(OutputError, match="are free on its disk"):
        child_of(parent, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["parent"]


def test_manifests_that_arent_ours(tmp_path: Path) -> None:
    assert read_manifest(tmp_path) is None
    for content in ("[]", "{}", "3"):
        (tmp_path / "manifest.json").write_text(content)
        assert read_manifest(tmp_path) is None
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(CheckpointError, match="not valid JSON"):
        read_manifest(tmp_path)
