"""Decoder layers compiled whole by torch: one graph for all layers of a kind, and for every row of a shape.

By layer, not the whole network: thirty equal layers are one graph, which is compiled once, and a first step takes seconds instead of minutes. What is replaced is
`layer.forward` alone: hooks (ZeRO-3 gathers a layer in them, trainer/kernels/leaves.py) and gradient checkpointing stay outside, so that a layer has no break. Passes that
need no gradient (the tries before a stage: isolation, output head) go through the layers as they are: their shapes would be graphs of their own.
"""

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from console import UserError
from trainer.kernels.layers import inner_layers

BACKEND = "inductor"
_MOST_GRAPHS = 64
"""More of one kind of layer in a stage than there are: lengths of rows, kinds of layers, which of their parameters are frozen. torch's own 8, of a process, would be met by a ladder of four."""
_MOST_OPERATIONS = 300
"""Of a layer, where they are also more than its tokens: then it computes token after token (Mamba without its kernels), and its graph would be as long as the row, for each length anew. A
Llama's layer has 76, Falcon-H1's with its scan in chunks 256; Mamba's in plain torch 13 a token."""
_FOLDER = "TORCHINDUCTOR_CACHE_DIR"
_ours: set[str] = set()
"""Values of it that were set here and not by the user."""
_cannot: dict[tuple[Any, ...], str] = {}
"""Architectures that this process has tried to compile in vain, with the reason: a stage costs no second try."""


def choose_compile(wanted: str, device: torch.device) -> tuple[bool, str]:
    """(trainer.compile resolved, why not where that is worth a line). UserError where it is asked for by name and there is no compiler."""
    missing = _no_compiler(device)
    if wanted == "on" and missing:
        raise UserError(f"trainer.compile: on needs {missing}, which is not here; install it, or set auto or off")
    if wanted == "auto" and device.type != "cuda":
        return False, ""  # on two CPU cores 1.15 times at best, and a minute before the first step
    return wanted != "off" and not missing, f"layers are not compiled: {missing} is not here" if wanted == "auto" and missing else ""


def _no_compiler(device: torch.device) -> str:
    """What torch's compiler misses; "" where nothing. On GPUs triton builds its launchers in C."""
    gpu = device.type == "cuda"
    if gpu and not importlib.util.find_spec("triton"):
        return "the package triton"
    own, names = ("CC", ("gcc", "clang", "cc")) if gpu else ("CXX", ("g++", "clang++"))
    found = [name for name in ([os.environ[own]] if os.environ.get(own) else names) if shutil.which(name.split()[0])]
    return "" if found else f"a C{'' if gpu else '++'} compiler ({' or '.join(names[:2])})"


def cache_beside(run_folder: Path, device: torch.device) -> Path:
    """From now on this process keeps what it compiles beside the run folder, where a restart, other ranks and other experiments of the same place find it; → the folder.

    Ranks may share it: torch writes a file under another name and renames it, and its locks end with the process that holds them. One folder for each version and
    kind of processor, for a cluster may have several. A folder that the user has set is left; torch sets its default as if a user had.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    if os.environ.get(_FOLDER) and os.environ[_FOLDER] not in _ours | {default_cache_dir()}:
        return Path(os.environ[_FOLDER])
    chip = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    folder = run_folder.resolve().parent / ".compiled" / f"torch-{torch.__version__}-{chip}".replace(" ", "-").replace("/", "-")
    folder.mkdir(parents=True, exist_ok=True)
    os.environ[_FOLDER] = str(folder)
    _ours.add(str(folder))
    return folder


class CompiledLayers:
    """A model's layers while they are compiled; close() gives them their own forward back."""

    def __init__(self, module: Any, static: bool, tell: Callable[[str], None] = lambda line: None, cuda_graphs: bool = False) -> None:
        """`static`: rows come in few shapes, each of which gets a graph of its own; else one graph knows lengths as unknowns. `tell` gets the reason where a
        layer cannot be compiled: then all of them stay as they are.
        """
        # A process trains many stages, and what earlier ones have compiled still counts.
        most = Graphs.made() + _MOST_GRAPHS
        for limit in ("recompile_limit", "accumulated_recompile_limit"):
            setattr(torch._dynamo.config, limit, max(getattr(torch._dynamo.config, limit), most))
        # The backward pass is compiled with the forward pass: what cannot be compiled is found where it can still be left.
        if hasattr(torch._functorch.config, "force_non_lazy_backward_lowering"):
            torch._functorch.config.force_non_lazy_backward_lowering = True
        self._key = (type(module), str(module.config), BACKEND, static)
        self._tell, self.layers = tell, inner_layers(module)
        # Dropout draws what it would draw uncompiled: a run may go on where layers cannot be compiled.
        self._options = {"fallback_random": True, "triton.cudagraphs": cuda_graphs} if BACKEND == "inductor" else None
        self.why_not = _cannot.get(self._key, "" if self.layers else "the model names no layers")
        if self.why_not:
            tell(f"layers are not compiled: {self.why_not}")
            return
        _input_needs_gradient(module)
        self._looked_at: dict[tuple[type, ...], int] = {}
        for number, (layer, uneven) in enumerate(zip(self.layers, _frozen_here_alone(self.layers), strict=True)):
            kind = tuple(type(part) for part in layer.modules())
            layer.forward = self._forward(layer.forward, kind, static, uneven, marks=cuda_graphs and number == 0)

    def _forward(
        self, own: Callable[..., Any], kind: tuple[type, ...], static: bool, uneven: list[torch.nn.Parameter], marks: bool
    ) -> Callable[..., Any]:
        """`uneven`: see _frozen_here_alone; `marks`: tells replayed graphs that a micro-step begins and what the last one wrote is not needed any more."""
        compiled = torch.compile(own, fullgraph=True, dynamic=not static, backend=BACKEND, options=self._options)  # type: ignore[call-overload, arg-type]

        as_compiled = True

        @wraps(own)
        def forward(*arguments: Any, **keywords: Any) -> Any:
            nonlocal as_compiled
            if torch._C._current_graph_task_id() == -1:  # else a backward pass computes again what a forward pass has: in the same way
                as_compiled = not self.why_not
            if not as_compiled or not torch.is_grad_enabled():
                return own(*arguments, **keywords)
            if reason := self._token_after_token(kind, own, arguments, keywords):
                self._leave(reason)
                as_compiled = False
                return own(*arguments, **keywords)
            try:
                if marks:
                    torch.compiler.cudagraph_mark_step_begin()
                with _seen_as_trained(uneven):
                    return compiled(*arguments, **keywords)
            except torch._dynamo.exc.FailOnRecompileLimitHit:
                self._leave(f"rows have had more than {_MOST_GRAPHS} shapes")
                as_compiled = False
            except torch._dynamo.exc.TorchDynamoException as error:
                first, *more = [line.strip() for line in str(error).splitlines() if line.strip()] or ["?"]
                self._leave(" ".join([f"{type(error).__name__}:", first, *(more[:1] if first.endswith("raised:") else [])]))
                as_compiled = False
            return own(*arguments, **keywords)

        return forward

    def _token_after_token(
        self, kind: tuple[type, ...], own: Callable[..., Any], arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> str:
        """Why a kind of layer is not for the compiler, found by running one as it is; "" where it is. Once, and again for rows that are twice as long."""
        tokens = next(
            int(x.shape[-2]) for x in (*arguments, *keywords.values()) if torch.is_tensor(x)
        )  # hidden states come first: (1, T, hidden size)
        if tokens < 2 * self._looked_at.get(kind, 0):
            return ""
        self._looked_at[kind] = tokens
        with torch.no_grad(), torch.random.fork_rng(), _Operations() as operations:
            own(*arguments, **keywords)
        if operations.count <= max(_MOST_OPERATIONS, tokens):
            return ""
        return f"a layer computes token after token, {operations.count:,} operations for {tokens:,} tokens"

    def _leave(self, reason: str) -> None:
        self.why_not = _cannot[self._key] = reason[:300]
        self._tell(f"layers are not compiled: {self.why_not}")

    def close(self) -> None:
        for layer in self.layers:
            layer.__dict__.pop("forward", None)
        self.layers = []  # and with them all that their stage held


class _Operations(TorchDispatchMode):
    """Counts what is dispatched."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def _frozen_here_alone(layers: list[torch.nn.Module]) -> list[list[torch.nn.Parameter]]:
    """Of each layer what is frozen in it and trained in another of its kind: half fine-tuning draws other matrices in every block, and each draw would be a graph."""
    trained: dict[type, set[str]] = {}
    for layer in layers:
        trained.setdefault(type(layer), set()).update(name for name, parameter in layer.named_parameters() if parameter.requires_grad)
    return [[p for name, p in layer.named_parameters() if not p.requires_grad and name in trained[type(layer)]] for layer in layers]


@contextmanager
def _seen_as_trained(parameters: list[torch.nn.Parameter]) -> Iterator[None]:
    """While a forward pass looks. Autograd drops the gradient of what is frozen again by the time it comes: it costs a product, and no memory."""
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)


def _input_needs_gradient(module: Any) -> None:
    """Beside an adapter the first layer's input needs no gradient, and that would be a second graph for it alone."""
    if not any(parameter.requires_grad for parameter in module.get_input_embeddings().parameters()):
        module.enable_input_require_grads()


class Graphs:
    """What torch has compiled in this process since the last look."""

    def __init__(self) -> None:
        self._seen = self.made()

    def new(self) -> list[str]:
        """A line for each graph: what and why, as torch gives it."""
        count = self.made()
        number, self._seen = count - self._seen, count
        return [] if number <= 0 else list(_reasons(number))

    @staticmethod
    def made() -> int:
        """All of this process."""
        # Read without importing torch's compiler, which takes two seconds: it is there where something was compiled.
        utils = sys.modules.get("torch._dynamo.utils")
        return int(utils.counters["stats"]["unique_graphs"]) if utils else 0


def _reasons(number: int) -> Iterator[str]:
    from torch._dynamo.utils import get_compilation_metrics

    for made in [found for found in get_compilation_metrics() if found.co_name][-number:]:
        why = " ".join(str(getattr(made, "recompile_reason", None) or "the first of its kind").split())
        yield f"{made.co_name} ({Path(made.co_filename or '?').name}): {why[:200]}"
