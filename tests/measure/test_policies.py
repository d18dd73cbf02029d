"""Other ways to choose, against short torch statements of them."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable
from pathlib import Path

import halfv_cpp
import numpy as np
import pytest
import torch
from halfv_convert import untrained_twig
from halfv_cpp import halfv_compare_h

from halfv_edge.errors import HalfVError
from halfv_edge.measure import policies, selectors
from halfv_edge.measure.choosing import Chooser, seen_by, selecting
from halfv_edge.measure.policies import Policy, PolicyModel
from halfv_edge.measure.selectors import BOUNDARY, INPUT, Chosen, Seen
from halfv_edge.profile.profile import Profile
from halfv_edge.testing.client import Client, DecodeError
from tests.support import pruned
from tests.support.dialogue import N_LAYER, NEXT_TOKENS, feed, make_prompt
from tests.support.reference.halfv_torch import Reference, share
from tests.support.reference.policies_torch import PolicyReference
from tests.support.tiny_models import ARCHS, DROP, FREEZE, make_tiny

GRID, GRIDS = [(9, 12)], [(9, 12), (7, 19)]
IVR = FREEZE | {"ssr.layer": N_LAYER}
PYRAMID = FREEZE | {"ssr.layer": 3, "ssr.update": 0.25, "ssr.rest": "dropped"}
PYRAMID |= {"further.layers": (5,), "further.keep": (0.125,)}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, PolicyReference]]:
    folder = tmp_path_factory.mktemp("models")
    made: dict[str, tuple[Path, PolicyReference]] = {}

    def make(arch: str) -> tuple[Path, PolicyReference]:
        if arch not in made:
            path = make_tiny(folder / f"{arch}.gguf", arch, n_layer=N_LAYER, seed=11)
            made[arch] = path, PolicyReference(path)
        return made[arch]

    return make


def connect(path: Path, profile: dict, choice: str, seed: int = 0, **options: object) -> Client:
    client = Client(path, on_model=lambda model: pruned.set_profile(model, profile), **options)
    set_choice(client, choice, seed)
    return client


def set_choice(client: Client, choice: str, seed: int = 0) -> None:
    halfv_cpp.check(halfv_compare_h.halfv_set_choice(client.ctx, policies.CHOICES.index(choice), seed))


def assert_follows(client: Client, reference: PolicyReference, segments: list, profile: dict) -> None:
    """The reference chooses the same tokens, and what follows is the same."""
    logits = feed(client, segments)
    if reference.choice == "given":
        images = range(len(GRIDS))
        reference.given = [pruned.kept(client, image, 2) for image in images]
        reference.given_deep = [pruned.kept(client, image, 3) for image in images]
    expected = reference.run(segments, profile)
    for stage, chosen in ((2, expected.kept), (3, expected.deep)):
        for image, indices in enumerate(chosen):
            np.testing.assert_array_equal(pruned.kept(client, image, stage), indices, f"image {image}, stage {stage}")
    np.testing.assert_allclose(logits, expected.logits, rtol=0, atol=1e-4)
    for token in NEXT_TOKENS:
        np.testing.assert_allclose(client.decode(token), reference.decode(token), rtol=0, atol=1e-4)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize(("choice", "profile"), [("attention", IVR), ("attention", PYRAMID), ("dart", IVR)],
                         ids=["fastv", "pyramiddrop", "dart"])  # fmt: skip
def test_published_criterion(model: Callable, arch: str, choice: str, profile: dict) -> None:
    path, reference = model(arch)
    reference.choice = choice
    segments = make_prompt(reference, GRID, seed=3)
    with connect(path, profile, choice) as client:
        assert_follows(client, reference, segments, profile)
        ours = Reference.run(Reference(path), segments, profile).kept
        assert [pruned.kept(client)] != ours


@pytest.mark.parametrize("choice", ["attention", "dart"])
def test_pieces_and_pictures(model: Callable, choice: str) -> None:
    path, reference = model("qwen2vl")
    reference.choice = choice
    segments = make_prompt(reference, GRIDS, seed=4)
    with connect(path, PYRAMID, choice, n_batch=50, n_ubatch=30) as client:
        assert_follows(client, reference, segments, PYRAMID) if choice == "attention" else feed(client, segments)
        kept = [len(pruned.kept(client, image)) for image in (0, 1)]
    counts = [share(0.5, rows * cols) for rows, cols in GRIDS]
    assert kept == (counts if choice == "attention" else [4 + 8 * (count // 8) for count in counts])


@pytest.mark.parametrize("profile", [DROP, FREEZE], ids=["top", "freeze"])
@pytest.mark.parametrize("choice", ["random", "uniform"])
def test_blind_choices(model: Callable, choice: str, profile: dict) -> None:
    path, reference = model("llama")
    reference.choice = "given"
    with connect(path, profile, choice) as client:
        assert_follows(client, reference, make_prompt(reference, GRIDS, seed=5), profile)
        for image, (rows, cols) in enumerate(GRIDS):
            n = rows * cols
            kept, deep = (pruned.kept(client, image, stage) for stage in (2, 3))
            assert len(kept) == share(0.5, n)
            assert len(deep) == share(profile["ssr.update"], n)
            assert kept == sorted(set(kept))
            assert set(deep) <= set(kept)
            assert kept[0] >= 0
            assert kept[-1] < n
            if choice == "uniform":
                assert kept == [(2 * at + 1) * n // (2 * len(kept)) for at in range(len(kept))]


def kept_by(path: Path, reference: PolicyReference, seed: int, prompt: int) -> list[int]:
    with connect(path, DROP, "random", seed) as client:
        feed(client, make_prompt(reference, GRID, prompt))
        return pruned.kept(client)


def test_random_depends_on_seed_and_prompt_alone(model: Callable) -> None:
    path, reference = model("llama")
    first = kept_by(path, reference, seed=1, prompt=6)
    assert kept_by(path, reference, seed=1, prompt=6) == first
    assert kept_by(path, reference, seed=2, prompt=6) != first
    assert kept_by(path, reference, seed=1, prompt=7) != first


def test_random_is_fair(model: Callable) -> None:
    """Over many draws each token is kept about as often as any other."""
    path, reference = model("llama")
    counts = np.zeros(108)
    with connect(path, IVR, "random") as client:
        segments = make_prompt(reference, GRID, seed=6)
        for seed in range(120):
            halfv_cpp.check(halfv_compare_h.halfv_set_choice(client.ctx, 1, seed))
            client.next_pos[0] = 0
            pruned.llama_clear(client)
            feed(client, segments)
            counts[pruned.kept(client)] += 1
    assert counts.sum() == 120 * 54
    assert counts.min() > 60 - 5 * 30**0.5
    assert counts.max() < 60 + 5 * 30**0.5


def test_back_to_our_own(model: Callable) -> None:
    """A context that has chosen otherwise chooses as ever afterwards, bit for bit."""
    path, reference = model("qwen2vl")
    segments = make_prompt(reference, GRID, seed=8)
    with connect(path, DROP, "halfv") as client:
        expected, kept = feed(client, segments), pruned.kept(client)
    with connect(path, DROP, "attention") as client:
        feed(client, segments)
        set_choice(client, "halfv")
        pruned.llama_clear(client)
        client.next_pos[0] = 0
        assert (feed(client, segments) == expected).all()
        assert pruned.kept(client) == kept


def test_not_while_a_picture_waits(model: Callable) -> None:
    path, reference = model("llama")
    with connect(path, DROP, "halfv") as client:
        feed_part = make_prompt(reference, GRID, seed=9)[:2]
        client.text(feed_part[0].ids, logits_last=False)
        client.image(feed_part[1].embd)
        with pytest.raises(halfv_cpp.CallError, match="a picture waits for its question"):
            set_choice(client, "random")
        with pytest.raises(halfv_cpp.CallError, match="choice 9 does not exist"):
            halfv_cpp.check(halfv_compare_h.halfv_set_choice(client.ctx, 9, 0))


def by_attention(seen: Seen, count: int) -> Chosen:
    """FastV's rank, as a selector: where the last token of the question looks."""
    assert seen.attention is not None
    return Chosen(selectors.top(seen.attention[:, -1].mean(axis=0), count), 0.0)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("profile", [IVR, PYRAMID], ids=["stage II", "both"])
def test_a_chooser_sees_what_it_should(
    model: Callable, arch: str, profile: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that ranks by attention chooses as the library does itself, in pieces and with text before the picture."""
    monkeypatch.setitem(selectors.BOUNDARY, "by attention", by_attention)
    path, reference = model(arch)
    reference.choice = "attention"
    segments = make_prompt(reference, GRID, seed=3)
    chooser = Chooser(selecting("by attention"))
    with connect(path, profile, "halfv", n_batch=50, n_ubatch=30) as client:
        chooser.serve(client.ctx)
        set_choice(client, "given")
        assert_follows(client, reference, segments, profile)


def test_what_a_chooser_sees_of_the_states(model: Callable) -> None:
    path, reference = model("qwen2vl")
    segments = make_prompt(reference, GRID, seed=3)
    seen: list[Seen] = []

    def look(what: halfv_compare_h.halfv_choosing) -> Chosen:
        seen.append(seen_by(what))
        return selectors.scope(seen[-1], what.n_keep)

    spy = Chooser(look)
    with connect(path, IVR, "halfv") as client:
        spy.serve(client.ctx)
        set_choice(client, "given")
        feed(client, segments)
    states = Reference.run(Reference(path), segments, IVR, states=True).states[IVR["ivr.layer"]].numpy()
    n, before = GRID[0][0] * GRID[0][1], len(segments[0].ids)
    np.testing.assert_allclose(seen[0].states, states[before : before + n], atol=1e-4)
    np.testing.assert_allclose(seen[0].text, states[before + n :], atol=1e-4)
    normed = reference.norm(torch.from_numpy(states), "output_norm.weight").numpy()
    np.testing.assert_allclose(seen[0].features, selectors.unit(normed)[before : before + n], atol=1e-4)
    attention = seen[0].attention
    assert attention is not None and (attention.sum(axis=2) < 1).all()
    assert seen[0].pairs is not None and seen[0].n_before == before
    logits = torch.from_numpy(seen[0].pairs())  # of all rows; of text they are what the attention is of
    assert logits.shape[1:] == (len(states), len(states)) and torch.isinf(logits.triu(1)).sum() > 0
    expected = logits.softmax(-1)[:, before + n :, before : before + n]
    np.testing.assert_allclose(expected.numpy(), attention, atol=1e-12)
    layer = IVR["ivr.layer"] - 1
    entering = Reference.run(Reference(path), segments, IVR, states=True).states[layer]
    q, k, _ = reference.qkv(reference.norm(entering, f"blk.{layer}.attn_norm.weight"), layer)
    pos = reference._embed(segments).pos
    q, k = reference.rope(q, pos), reference.rope(k, pos)
    whole = torch.einsum("hqd,hkd->hqk", q, k.repeat_interleave(len(q) // len(k), 0)) / q.shape[-1] ** 0.5
    np.testing.assert_allclose(logits.tril().numpy(), whole.tril().numpy(), atol=1e-3)


def test_a_chooser_that_fails(model: Callable) -> None:
    path, reference = model("llama")
    with connect(path, IVR, "halfv") as client:
        with pytest.raises(halfv_cpp.CallError, match="nobody is there to choose"):
            set_choice(client, "given")
        for wrong in ([0, 0], [-1], [108]):
            chooser = Chooser(lambda _what, wrong=wrong: Chosen(np.array(wrong), 0.0))
            pruned.llama_clear(client)
            client.next_pos[0] = 0
            chooser.serve(client.ctx)
            set_choice(client, "given")
            with pytest.raises(DecodeError, match="chose a token twice, or none of the picture's"):
                feed(client, make_prompt(reference, GRID, seed=9))


def test_neither_prepared_nor_topped_up(model: Callable) -> None:
    path, reference = model("llama")
    with connect(path, DROP, "uniform") as client:
        text, image, question = make_prompt(reference, GRID, seed=9)
        client.text(text.ids, logits_last=False)
        client.image(image.embd)
        assert pruned.prepare(client) == pruned.NOTHING
        client.text(question.ids)
        assert pruned.stats(client).n_stored == 0
        assert pruned.topup(client) == pruned.NOTHING


def test_header(root: Path) -> None:
    """The bindings and the names say what halfv-compare.h says."""
    header = (root / "native/include/halfv-compare.h").read_text()
    values = {name: int(value) for name, value in re.findall(r"(HALFV_CHOICE_\w+)\s*= (\d+)", header)}
    assert values == {
        name: getattr(halfv_compare_h, name) for name in vars(halfv_compare_h) if name.startswith("HALFV_C")
    }
    assert [name.removeprefix("HALFV_CHOICE_").lower() for name in values] == list(policies.CHOICES)
    assert "int32_t halfv_set_choice(struct llama_context * ctx, int32_t choice, uint32_t seed);" in header


#
# names
#

OWN = Profile(2, 0.25, 0.1, 21, 0.05, "dropped")


def cost(profile: Profile | None, n: int) -> float:
    """Layers times tokens."""
    if profile is None:
        return 28.0 * n
    layers = [0, profile.ivr_layer, profile.ssr_layer, *profile.further_layers, 28]
    shares = itertools.accumulate([1.0, profile.ivr_keep, profile.ssr_update, *profile.further_keep], min)
    return n * sum(
        (end - first) * share for (first, end), share in zip(itertools.pairwise(layers), shares, strict=True)
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("random", Policy("random", OWN, choice="random")),
        ("fastv", Policy("fastv", Profile(2, 0.5, 0, 28, 1, "dropped", 1), choice="attention")),
        ("fastv:0.1", Policy("fastv:0.1", Profile(2, 0.1, 0, 28, 1, "dropped", 1), choice="attention")),
        ("dart:0.25", Policy("dart:0.25", Profile(2, 0.25, 0, 28, 1, "dropped", 1), choice="dart")),
        (
            "pyramiddrop",
            Policy(
                "pyramiddrop",
                Profile(7, 0.5, 0, 14, 0.25, "dropped", 1, further_layers=(21,), further_keep=(0.125,)),
                choice="attention",
            ),
        ),
        ("wipe:24", Policy("wipe:24", dataclasses.replace(OWN, further_layers=(24,), further_keep=(0.0,)))),
        (
            "twigvlm:0.25",  # two layers see all, layers 2 to 20 see 5/19 of it: together seven of 28
            Policy("twigvlm:0.25", Profile(2, 5 / 19, 0.1, 21, 0, "dropped", 1), choice="attention"),
        ),
        ("merge:0.25", Policy("merge:0.25", Profile(1, 1, 0.1, 28, 1, "dropped", input_merge=0.25))),
        ("bias:0.5", Policy("bias:0.5", dataclasses.replace(OWN, ivr_bias=0.5))),
        (
            "bias:1+sieve:2/0.2",
            Policy(
                "bias:1+sieve:2/0.2",
                Profile(2, 0.2, 0.1, 28, 1, "dropped", ivr_bias=1),
                choice="given",
                selector="sieve",
            ),
        ),
        ("image:0.15+profile", Policy("image:0.15+profile", dataclasses.replace(OWN, image_loss=0.15))),
        (
            "encoder:8/0.5+profile",
            Policy("encoder:8/0.5+profile", dataclasses.replace(OWN, encoder_layer=8, encoder_keep=0.5)),
        ),
        (
            "merge:0.5+pixel:0+cut:2/0.25",
            Policy(
                "merge:0.5+pixel:0+cut:2/0.25",
                Profile(2, 0.25, 0.1, 28, 1, "dropped", pixel_tau=0, input_merge=0.5),
            ),
        ),
        (
            "cut:2/0.5/4/0.25/6/0.1/8/0",
            Policy(
                "cut:2/0.5/4/0.25/6/0.1/8/0",
                Profile(2, 0.5, 0.1, 4, 0.25, "dropped", further_layers=(6, 8), further_keep=(0.1, 0)),
            ),
        ),
        (
            "aim",
            Policy(
                "aim",
                Profile(
                    15,
                    0.8125,
                    0.1,
                    17,
                    0.5625,
                    "dropped",
                    1,
                    input_merge=0.25,
                    further_layers=(19, 21, 22),
                    further_keep=(0.3125, 0.125, 0),
                ),
                choice="given",
                selector="pagerank",
            ),
        ),
        ("vtw", Policy("vtw", Profile(1, 1, 0.1, 14, 0, "dropped", 1))),
        ("cut:2/0.5/9/0.1", Policy("cut:2/0.5/9/0.1", Profile(2, 0.5, 0.1, 9, 0.1, "dropped"))),
        ("cut:2/0.5/9/frozen", Policy("cut:2/0.5/9/frozen", Profile(2, 0.5, 0.1, 9, 0, "frozen"))),
        ("shortv:0.5", Policy("shortv:0.5", Profile(1, 1, 0.1, 14, 0, "frozen", 1))),
        ("heads:4/0.5", Policy("heads:4/0.5", dataclasses.replace(OWN, heads_layer=4, heads_keep=0.5))),
        ("neighbour:3/5", Policy("neighbour:3/5", dataclasses.replace(OWN, neighbours_layer=3, neighbours_width=5))),
        (
            "heads:4/0.5+neighbour:3/5+vtw:9",
            Policy(
                "heads:4/0.5+neighbour:3/5+vtw:9",
                Profile(
                    1, 1, 0.1, 9, 0, "dropped", 1, heads_layer=4, heads_keep=0.5, neighbours_layer=3, neighbours_width=5
                ),
            ),
        ),
        (
            "yopo",
            Policy(
                "yopo",
                Profile(
                    1,
                    1,
                    0.1,
                    14,
                    0,
                    "dropped",
                    1,
                    ffn_layer=1,
                    ffn_keep=0.5,
                    heads_layer=2,
                    heads_keep=0.75,
                    neighbours_layer=1,
                    neighbours_width=5,
                ),
            ),
        ),
        (
            "yopo+profile",
            Policy(
                "yopo+profile",
                dataclasses.replace(
                    OWN,
                    ffn_layer=2,
                    ffn_keep=0.5,
                    heads_layer=2,
                    heads_keep=0.75,
                    neighbours_layer=2,
                    neighbours_width=5,
                ),
            ),
        ),
        ("wrong-ssr", Policy("wrong-ssr", Profile(2, 0.25, 0.1, 21, 0, "frozen"))),
    ],
)
def test_names(name: str, expected: Policy) -> None:
    assert policies.parse_one(name, PolicyModel(28, OWN)) == expected


@pytest.mark.parametrize("n_layer", [4, 6, 10, 28, 32, 80])
def test_schedule_of_aim(n_layer: int) -> None:
    """Joining layers changes no cost, and the number of stages fits."""
    layers, keep = policies.aim_schedule(n_layer)
    profile = policies.staged(n_layer, layers, keep).validate(n_layer)
    published = sum(min(1.0, max(0.0, 1 - (layer * 28 / n_layer - 14) / 8)) for layer in range(n_layer))
    ends = [*layers[1:], n_layer]
    seen = layers[0] + sum(share * (end - layer) for layer, share, end in zip(layers, keep, ends, strict=True))
    assert seen == pytest.approx(published)
    assert list(keep) == sorted(keep, reverse=True) and profile.prunes(n_layer)


@pytest.mark.parametrize("name", ["fastv", "dart", "pyramiddrop", "vtw", "shortv", "downscale", "random", "uniform"])
def test_matched_flops(name: str) -> None:
    """No more than the profile costs, and the next step would be more."""
    policy = policies.parse_one(f"{name}:flops", PolicyModel(28, OWN, cost, 1000))
    profile = policy.profile
    if name == "dart":
        profile = dataclasses.replace(profile, ivr_keep=(4 + 8 * int(1000 * profile.ivr_keep / 8)) / 1000)
    spent = cost(profile, 1000 if profile else policy.max_tokens)
    assert 0.88 * cost(OWN, 1000) < spent <= cost(OWN, 1000)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("fastv:flops", "eval alone can match FLOPs"),
        ("fastv:0", "must be a share above 0"),
        ("vtw:x", "must be a whole number"),
        ("speed:2", "eval alone knows the frontier of a model"),
        ("speed:0", "0 must be a number of at least 1"),
        ("profile:1", "profile is the model's profile"),
        ("downscale:", "is not valid"),
        ("cut:2/0", "must be a share above 0"),
        ("cut:2/0.5/3/0.4/4/0.3/5/0.2/6/0.1/7/0.05/8/0", "it is like cut:2/0.2"),
        ("twig:nothing.gguf/0.3", r"nothing\.gguf cannot be read"),
        ("twigvlm:0.05", "in 28 layers the mean is above 0.071 and at most 0.75"),
        ("wipe:21", "halfv.further.layers = 21 is not valid: it must be above the halfv.ssr.layer before it"),
        (
            "fastv:0.5+profile",
            r"before \+ must be one of image, pixel, encoder, merge, input, channels, heads, neighbour, bias, yopo",
        ),
        ("heads:4", "it is like heads:4/0.5"),
        ("neighbour:4/6", "halfv.neighbours.width = 6 is not valid"),
        ("", "names no policy"),
    ],
)
def test_mistaken_names(name: str, said: str) -> None:
    with pytest.raises(HalfVError, match=said):
        policies.parse(name, PolicyModel(28, OWN))


def test_speed_is_of_the_models_frontier() -> None:
    model = PolicyModel(28, OWN, at_speed=lambda speed: dataclasses.replace(OWN, ivr_keep=1 / speed))
    assert policies.parse_one("speed:2.5", model) == Policy("speed:2.5", dataclasses.replace(OWN, ivr_keep=0.4))


def test_names_of_selectors() -> None:
    assert tuple(BOUNDARY) == policies.AT_A_BOUNDARY
    assert tuple(INPUT) == policies.BEFORE_THE_MODEL


def test_a_twigs_schedule(tmp_path: Path) -> None:
    """TwigVLM's, behind as many layers as the twig shares; its file's name may have slashes in it."""
    path = make_tiny(tmp_path / "whole.gguf", "llama", n_layer=6)
    twig = tmp_path / "twig.gguf"
    untrained_twig(path, twig, after=1, layers=2)
    for name, mean in ((f"twig:{twig}/0.25", 0.25), (f"twig:{twig}", 1 / 3)):
        (found,) = policies.parse(name, PolicyModel(28, OWN))
        assert found.profile == Profile(1, (28 * mean - 1) / 20, 0.1, 21, 0, "dropped", 1)
        assert (found.choice, found.selector) == ("given", "twig")
        assert found.twig is not None and found.twig.path == str(twig)
    with pytest.raises(HalfVError, match=r"is not a twig, as it has no twig\.layer"):
        policies.parse(f"twig:{path}/0.25", PolicyModel(28, OWN))
    with pytest.raises(HalfVError, match=r"in 28 layers the mean is above 0\.036 and at most 0\.75"):
        policies.parse(f"twig:{twig}/0.03", PolicyModel(28, OWN))
