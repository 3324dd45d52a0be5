"""Muon turns the matrices within the networks; everything else, and all that must go slowly, is AdamW's."""

import copy

import torch

from notewave.export.networks import SpectrogramDiffusion
from notewave.export.training.optimiser import make_optimiser
from notewave.export.training.stages import kind_of
from notewave.voice.contracts import Dimensions

TINY = Dimensions(
    width=32, heads=2, head_width=16, feed_forward=48, note_encoder_layers=1, context_encoder_layers=1, decoder_layers=3
)


def model() -> SpectrogramDiffusion:
    torch.manual_seed(0)
    return SpectrogramDiffusion(TINY)


def steps(networks: SpectrogramDiffusion, optimiser, count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    for group in optimiser.param_groups:
        group["lr"] = 1e-2
    for _ in range(count):
        for parameter in networks.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimiser.step()
        optimiser.zero_grad()


def test_each_parameter_has_one_optimiser_and_its_kind() -> None:
    networks = model()
    names = {id(parameter): name for name, parameter in networks.named_parameters()}
    for muon in (False, True):
        optimiser = make_optimiser(networks, kind_of, muon)
        held = [names[id(parameter)] for group in optimiser.param_groups for parameter in group["params"]]
        assert sorted(held) == sorted(names.values())
        for group in optimiser.param_groups:
            assert {kind_of(names[id(parameter)]) for parameter in group["params"]} == {group["kind"]}
    turned = {names[id(parameter)] for group in optimiser.parts[1].param_groups for parameter in group["params"]}
    assert {"decoder.layers.2.feed_forward.out.weight", "note_encoder.layers.0.attention.qkv.weight"} <= turned
    outer = ("embedding", "positions", "decoder.input", "decoder.output", "time_embedding", "context_encoder", "norm.")
    assert not [name for name in turned if any(part in name for part in outer)]


def test_muons_steps_are_orthogonal_and_of_adams_size() -> None:
    networks = model()
    before = copy.deepcopy(networks.state_dict())
    steps(networks, make_optimiser(networks, kind_of, True), 1)
    moved = (
        networks.state_dict()["decoder.layers.2.cross_queries.weight"] - before["decoder.layers.2.cross_queries.weight"]
    )
    values = torch.linalg.svdvals(moved)
    assert values.max() < 1.7 * values.median()  # of a random matrix the largest is far above the rest
    assert 0.1e-2 < moved.square().mean().sqrt() < 0.4e-2


def test_its_state_goes_on_where_it_was() -> None:
    whole, broken = model(), model()
    optimiser = make_optimiser(whole, kind_of, True)
    steps(whole, optimiser, 2)
    saved = copy.deepcopy(optimiser.state_dict())
    broken.load_state_dict(whole.state_dict())
    again = make_optimiser(broken, kind_of, True)
    again.load_state_dict(saved)
    steps(whole, optimiser, 1)
    steps(broken, again, 1)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(broken.state_dict()[name], value, rtol=0, atol=0)
