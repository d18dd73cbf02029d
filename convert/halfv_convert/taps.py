"""What `halfv calibrate` observes, from a Hugging Face checkpoint with torch: the independent check of the native taps.

    python -m halfv_convert.taps CHECKPOINT --image photo.jpg --question "What is this?"

prints the curves of one sample as JSON. Entropies come by another way than in halfv_edge: from singular values.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

TOP = 50


@dataclass(frozen=True, slots=True)
class Observation:
    """As halfv_edge.measure.calibrate.taps.Observation, without the attention."""

    visual: list[float]
    text: list[float]
    all: list[float]
    layer_kl: list[float] | None
    n_visual: int
    n_text: int


@torch.no_grad()
def observe(
    model: torch.nn.Module, run: Callable[[], torch.Tensor], is_visual: torch.Tensor, freeze: bool = False
) -> Observation:
    """`run` runs the model on one prompt and gives the last token's logits; `is_visual` has a flag per token."""
    decoder = _decoder(model)
    states: list[torch.Tensor] = []
    with _hooks(decoder, states):
        logits = run().double()
    rows = [decoder.norm(state.float()).double() for state in states]
    kl = None
    if freeze:
        kl = []
        for layer in decoder.layers:
            with _frozen(layer, is_visual):
                kl.append(_kl(logits, run().double()))
    return Observation(
        visual=[matrix_entropy(row[is_visual]) for row in rows],
        text=[matrix_entropy(row[~is_visual]) for row in rows],
        all=[matrix_entropy(row) for row in rows],
        layer_kl=kl,
        n_visual=int(is_visual.sum()),
        n_text=int((~is_visual).sum()),
    )


def matrix_entropy(rows: torch.Tensor) -> float:
    values = torch.linalg.svdvals(rows.double() - rows.double().mean(0))[:TOP] ** 2
    p = values / values.sum()
    return float(-torch.special.xlogy(p, p).sum()) if values.sum() > 0 else 0.0


def _decoder(model: torch.nn.Module) -> Any:
    """The language model's layers, wherever the family keeps them."""
    for module in model.modules():
        if all(hasattr(module, name) for name in ("layers", "embed_tokens", "norm")):
            return module
    raise ValueError(f"{type(model).__name__} has no language model that is known here")


@contextlib.contextmanager
def _hooks(decoder: Any, states: list[torch.Tensor]) -> Iterator[None]:
    """Collects the input of each layer and the output of the last, of the one sequence there is."""

    def before(_layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states.append((args[0] if args else kwargs["hidden_states"])[0].double())

    def after(_layer: Any, _args: tuple[Any, ...], out: Any) -> None:
        states.append((out[0] if isinstance(out, tuple) else out)[0].double())

    with contextlib.ExitStack() as stack:
        for layer in decoder.layers:
            stack.callback(layer.register_forward_pre_hook(before, with_kwargs=True).remove)
        stack.callback(decoder.layers[-1].register_forward_hook(after).remove)
        yield


@contextlib.contextmanager
def _frozen(layer: torch.nn.Module, is_visual: torch.Tensor) -> Iterator[None]:
    """One layer gives visual tokens on as they came."""

    def after(_layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
        came = args[0] if args else kwargs["hidden_states"]
        new = (out[0] if isinstance(out, tuple) else out).clone()
        new[0, is_visual] = came[0, is_visual]
        return (new, *out[1:]) if isinstance(out, tuple) else new

    handle = layer.register_forward_hook(after, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _kl(full: torch.Tensor, other: torch.Tensor) -> float:
    p, q = full.log_softmax(-1), other.log_softmax(-1)
    return float((p.exp() * (p - q)).sum())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m halfv_convert.taps", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--question", required=True)
    parser.add_argument("--freeze", action="store_true", help="also the divergence of each layer, at its full cost")
    args = parser.parse_args()

    import transformers
    from PIL import Image

    processor = transformers.AutoProcessor.from_pretrained(args.checkpoint)
    model = transformers.AutoModelForImageTextToText.from_pretrained(args.checkpoint, dtype=torch.float32).eval()
    content = [
        {"type": "image", "image": Image.open(args.image).convert("RGB")},
        {"type": "text", "text": args.question},
    ]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    config = model.config
    token = getattr(config, "image_token_id", None) or config.image_token_index
    is_visual = inputs["input_ids"][0] == token
    print(json.dumps(asdict(observe(model, lambda: model(**inputs).logits[0, -1], is_visual, args.freeze)), indent=2))


if __name__ == "__main__":
    main()
