"""Models that no single device can hold: FSDP2 (torch's ``fully_shard``), where every process holds its rows of every
tensor.

The model is created without weights and sharded block by block; then each process reads only its own rows from disk.
The weights of a block are gathered while it computes, forward and backward, and its gradient is scattered at once.
Embedding, final norm and head stay gathered for the duration of a batch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ffn_fusion.checkpoint.reader import Checkpoint, open_folder
from ffn_fusion.errors import MissingExtraError, UsageError
from ffn_fusion.modeling.causal import blocks_of, embedding_of, head_of, renew_buffers
from ffn_fusion.processes import current
from ffn_fusion.registration import register

_LAUNCHED = "ACCELERATE_USE_FSDP"
_DEEPSPEED = "ACCELERATE_USE_DEEPSPEED"
_SENT_AT_ONCE = 1 << 24  # elements


def launched_sharded() -> bool:
    """Return whether ``accelerate launch`` was given an FSDP configuration.

    Raises:
        UsageError: the configuration asks for FSDP 1 or CPU offloading, which are not supported.
    """
    if os.environ.get(_LAUNCHED, "").lower() != "true":
        return False
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise UsageError("accelerate's configuration asks for FSDP 1", "set fsdp_version: 2")
    if os.environ.get("FSDP_OFFLOAD_PARAMS", "").lower() == "true":
        raise UsageError("accelerate's configuration asks for fsdp_offload_params", "set it to false")
    return True


def launched_deepspeed() -> bool:
    """Return whether ``accelerate launch`` was given a DeepSpeed configuration; the Trainer then leaves the child to
    DeepSpeed.
    """
    return os.environ.get(_DEEPSPEED, "").lower() == "true"


def forget_deepspeed() -> None:
    """Make transformers load models normally again, after a training told it to load them in DeepSpeed's parts."""
    if launched_deepspeed():
        from transformers.integrations import unset_hf_deepspeed_config

        unset_hf_deepspeed_config()


def take_over() -> None:
    """Disable accelerate's own sharding, which would wrap a model that is already sharded."""
    os.environ.pop(_LAUNCHED, None)


def check_sharding(world: int) -> None:
    """Check that sharding is possible.

    Raises:
        UsageError: there is a single process, or DeepSpeed shards already. MissingExtraError: this torch has no FSDP2.
    """
    if launched_deepspeed():
        raise UsageError("--shard, and accelerate's configuration asks for DeepSpeed", "choose one of them")
    if world < 2:
        raise UsageError("a single process can't shard weights", "start several: torchrun --nproc-per-node 8")
    try:
        from torch.distributed.fsdp import fully_shard  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("sharding needs FSDP2, which came with torch 2.6", "pip install -U torch") from error


def load_sharded(folder: Path, dtype: torch.dtype, device: str, *, bf16: bool = False, learns: bool = True) -> Any:
    """Load a checkpoint as a sharded transformers model without running code of its own.

    Args:
        dtype: of the shards.
        bf16: blocks compute in bfloat16 (inside autocast) and are gathered in it; gradients are summed in float32.
        learns: there will be a backward pass. Otherwise embedding, norm and head are scattered again after every batch.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    register()
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    _shard(model, device, bf16, learns)
    model.to_empty(device=device)
    model.tie_weights()
    renew_buffers(model, device)
    read_rows(model, open_folder(folder))
    return model


def _shard(model: Any, device: str, bf16: bool, learns: bool) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(torch.device(device).type, (current().world,))
    # Not cast_forward_inputs: between blocks, states stay in float32, as they do under autocast on one device.
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    for block in blocks_of(model):
        fully_shard(block, mesh=mesh, mp_policy=policy if bf16 else MixedPrecisionPolicy())
    if head_of(model).weight is not embedding_of(model).weight:
        fully_shard(embedding_of(model), mesh=mesh)
    fully_shard(model, mesh=mesh, reshard_after_forward=None if learns else True)


@torch.no_grad()
def read_rows(model: Any, checkpoint: Checkpoint) -> None:
    """Fill this process's shards from the checkpoint."""
    here = current()
    for name, parameter in model.named_parameters():
        start, stop = _rows_of(here.rank, here.world, len(parameter))
        if start < stop:
            parameter.to_local().copy_(checkpoint.rows(name, start, stop))


def _rows_of(rank: int, world: int, count: int) -> tuple[int, int]:
    """Return this process's rows as FSDP2 divides them (``torch.chunk``): equal shares rounded up, the last ones short
    or empty.
    """
    size = -(-count // world)
    return min(rank * size, count), min((rank + 1) * size, count)


def gathered(parameter: Any) -> Iterator[Tensor]:
    """Yield a sharded parameter's rows in order, a few at a time, on the first process; on the others, nothing.

    All processes have to iterate to the end, because the others send their rows meanwhile.
    """
    import torch.distributed as dist

    here, shape = current(), parameter.shape
    step = max(1, _SENT_AT_ONCE // max(1, shape[1:].numel()))
    mine = parameter.detach().to_local()
    for rank in range(here.world):
        first, last = _rows_of(rank, here.world, len(parameter))
        for start in range(first, last, step):
            stop = min(start + step, last)
            if here.rank == rank:
                part = mine[start - first : stop - first].cpu().contiguous()
                if not rank:
                    yield part
                else:
                    dist.send(part, 0)
            elif not here.rank:
                part = torch.empty((stop - start, *shape[1:]), dtype=parameter.dtype)
                dist.recv(part, rank)
                yield part


def whole(weight: Tensor) -> Tensor:
    """Return all rows of a weight that may be sharded, on every process; not for weights that are trained."""
    from torch.distributed.tensor import DTensor

    return weight.full_tensor() if isinstance(weight, DTensor) else weight
