"""Several processes train one network: each on its share of every batch, all with the same weights.

`launch` starts them on this machine; `torchrun` starts them on several GPUs or hosts. Both tell a process its rank in
the environment, and `join` reads it there. One flat sum a step makes the gradients those of the whole batch.

On a CPU, processes of one thread beat one process of many: OpenMP's threads wait for each other at every layer, and on
a machine with other work each wait is as long as the slowest.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import wait
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .checkpoint import TrainError
from .processes import ONE_THREAD, environment, when_parent_ends

RENDEZVOUS = "EDGE_HAND_RENDEZVOUS"  # where `launch`'s processes meet; torchrun's meet at MASTER_ADDR
CHILD_ENVIRONMENT = {
    **ONE_THREAD,
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",  # huge pages: 5 to 8 % faster; read only as a process starts
}
GRACE_S = 5.0  # for the others to say why they failed, once one has


@dataclass(frozen=True)
class Group:
    """The processes of a run: this one's rank among size, and the device it computes on."""

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    def sum_(self, values: Tensor) -> Tensor:
        """The sum over all processes, in place; alone, the values themselves."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def average_(self, tensors: list[Tensor]) -> None:
        """Every tensor becomes its mean over the processes; one sum carries all of them."""
        if self.size == 1:
            return
        flat = torch.cat([t.detach().flatten().float() for t in tensors])
        self.sum_(flat).div_(self.size)
        for t, part in zip(tensors, torch.split(flat, [t.numel() for t in tensors]), strict=True):
            t.copy_(part.view(t.shape))

    def map(self, function: Callable[[Tensor], Tensor], inputs: list[Tensor], costs: list[float]) -> list[Tensor]:
        """function of every one of inputs, which are the same in all processes; each computes some of them, at about
        the same cost, and one sum brings them together. A value has its input's shape, float32."""
        if self.size == 1:
            return [function(x) for x in inputs]
        load = [0.0] * self.size
        flat = torch.zeros(sum(x.numel() for x in inputs), device=self.device)
        values = [v.view(x.shape) for v, x in zip(torch.split(flat, [x.numel() for x in inputs]), inputs, strict=True)]
        for i in sorted(range(len(inputs)), key=lambda i: -costs[i]):  # the dearest first, to who has least to do
            owner = load.index(min(load))
            load[owner] += costs[i]
            if owner == self.rank:
                values[i].copy_(function(inputs[i]))
        self.sum_(flat)
        return values


@contextmanager
def join(*, cpu: bool = False) -> Iterator[Group]:
    """This process's place in the run: from the environment (RANK, WORLD_SIZE, LOCAL_RANK), or alone without it.

    cpu: also where there are GPUs, for they do not sum what lies on a CPU. Raises TrainError for a process too many for
    the GPUs.
    """
    cuda = torch.cuda.is_available() and not cpu
    if not launched():
        yield Group(device="cuda" if cuda else "cpu")
        return
    rank, size, local = (int(os.environ.get(name, "0")) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if cuda:
        if local >= (gpus := torch.cuda.device_count()):
            raise TrainError(
                f"process {local + 1} of this machine has no GPU, there are {gpus}: start {gpus} at most, "
                "or hide them with CUDA_VISIBLE_DEVICES= to train on its CPU"
            )
        torch.cuda.set_device(local)
    dist.init_process_group(
        "nccl" if cuda else "gloo",
        init_method=os.environ.get(RENDEZVOUS, "env://"),
        rank=rank,
        world_size=size,
        timeout=timedelta(minutes=10),
    )
    try:
        yield Group(rank, size, f"cuda:{local}" if cuda else "cpu")
    finally:
        dist.destroy_process_group()


def launched() -> bool:
    """Whether this process is one of a run's, started by `launch` or torchrun."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def launch(n: int, function: Callable[..., Any], *arguments: Any, error: type[Exception], **options: Any) -> None:
    """Call function(*arguments, **options) in n processes of this machine and wait for all of them.

    An `error` raised in one of them is raised here, in one line; so is the death of one, after the rest are ended.
    SIGTERM and SIGINT are passed on to them.
    """
    context = mp.get_context("spawn")
    said = context.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        meet = f"file://{folder}/meet"
        with environment(CHILD_ENVIRONMENT):
            children = [
                context.Process(target=_child, args=(rank, n, meet, said, error, function, arguments, options))
                for rank in range(n)
            ]
            for child in children:
                child.start()

        def stop() -> None:
            for child in children:
                child.terminate()

        with stop_signals(stop):
            try:
                running = set(children)
                while running and not any(child.exitcode for child in children):
                    wait([child.sentinel for child in running])
                    running = {child for child in running if child.is_alive()}
                codes = [child.exitcode for child in children]  # before the others fail of it, or are killed
            finally:
                for child in children:
                    child.join(GRACE_S)
                    if child.is_alive():
                        child.kill()
                        child.join()
    if not said.empty():
        raise error(said.get())
    for rank, code in enumerate(codes):
        if code:
            how = f"was killed (signal {-code})" if code < 0 else "failed; its message stands above"
            raise error(f"process {rank + 1} of {n} {how}")


@contextmanager
def stop_signals(act: Callable[[], Any] = lambda: None) -> Iterator[list[int]]:
    """Inside, SIGINT and SIGTERM call act and are noted in the list; a second SIGINT is a KeyboardInterrupt."""
    noted: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield noted  # only the main thread can have signals
        return

    def note(number: int, _: Any) -> None:
        if number == signal.SIGINT and number in noted:
            raise KeyboardInterrupt
        noted.append(number)
        act()

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class SharedBatchNorm(_BatchNorm):
    """Batch normalisation with the mean and variance of all processes' batches, on any device.

    What `torch.nn.SyncBatchNorm` does, which needs CUDA. Two small sums a layer: slower than local statistics.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, ...), the same B in every process."""
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0, self.eps)
        axes = [0, *range(2, x.ndim)]
        shape = [1, -1, *[1] * (x.ndim - 2)]
        size = dist.get_world_size()
        count = size * x.numel() // x.shape[1]
        y = x.float()
        mean = _Sum.apply(y.mean(axes)) / size  # type: ignore[no-untyped-call]
        y = y - mean.view(shape)
        variance = _Sum.apply((y * y).mean(axes)) / size  # type: ignore[no-untyped-call]
        with torch.no_grad():
            assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
            assert self.num_batches_tracked is not None
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
            self.num_batches_tracked.add_(1)
        y = y * torch.rsqrt(variance + self.eps).view(shape)
        return (y * self.weight.view(shape) + self.bias.view(shape)).to(x.dtype)


def share_statistics(net: nn.Module) -> None:
    """Make every batch normalisation of net a `SharedBatchNorm`; names and values of its state stay."""
    for module in net.modules():
        if isinstance(module, _BatchNorm):
            module.__class__ = SharedBatchNorm


def statistics(net: nn.Module) -> list[Tensor]:
    """The running means and variances of net's batch normalisations."""
    layers = [m for m in net.modules() if isinstance(m, _BatchNorm)]
    return [s for m in layers for s in (m.running_mean, m.running_var) if s is not None]


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x.clone()
        dist.all_reduce(y)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        y = gradient.clone()
        dist.all_reduce(y)  # every process's loss depends on every process's x
        return y


def _child(
    rank: int, n: int, meet: str, said: Any, error: type[Exception], function: Any, arguments: Any, options: Any
) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(n))
    os.environ[RENDEZVOUS] = meet
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # all on this machine, whatever its name resolves to
    when_parent_ends(lambda: os.kill(os.getpid(), signal.SIGTERM))
    try:
        function(*arguments, **options)
    except error as problem:
        said.put(str(problem))
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except Exception:
        traceback.print_exc()
        raise SystemExit(1) from None
    # The work is done and on disk. Left to itself the process now and then aborts while C++ takes its threads down.
    for child in mp.active_children():
        child.terminate()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
