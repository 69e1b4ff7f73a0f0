"""The first list: convolutional networks, unusual parameters, unusual ways in and out."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from tests.removal.zoo import branches, convolutional, mobile, parameters, residual, wrapped
from tests.removal.zoo.architecture import Architecture, image, seeded, signal, tokens, vectors

__all__ = ["FIRST", "REFUSED"]


def two_towers(batch: int) -> dict[str, Any]:
    return {"pixels": image(3, 8)(batch), "ids": tokens(40, 6)(batch), "scale": 0.5}


def first(
    name: str, build: Any, inputs: Any, groups: int, units: int, macs: float, note: str, **more: Any
) -> Architecture:
    make = seeded(build)
    return Architecture(name, make, inputs, groups, "first", macs_at_half=macs, min_units=units, note=note, **more)


FIRST: tuple[Architecture, ...] = (
    first("conv_bn_flatten_linear", convolutional.PlainCNN, image(), 3, 64, 0.340, "conv1 12, conv2 20, fc1 32"),
    first("resnet_downsample", residual.ResNet, image(3, 16), 6, 108, 0.280,
          "two streams 12, 24; inner 12, 12, 24, 24"),
    first("resnet_option_a", residual.OptionANet, image(3, 8), 5, 56, 0.310,
          "inner 8, 8, 16, 16; 8 of the stream through both stages, at distance 4: what is padded on must stay"),
    first("preactivation", residual.PreActNet, image(3, 8), 2, 36, 0.268, "stream 16 with BN on it, inner 20"),
    first("dense_concat", branches.DenseNet, image(3, 8), 12, 110, 0.267,
          "conv0 8; 5 bottlenecks of 12; 5 growths of 6; transition 12; all go alone through the BNs over the sums"),
    first("unet", branches.UNet, image(3, 16), 12, 132, 0.264, "10 convolutions without the last, 2 transposed ones"),
    first("squeeze_excite", mobile.SENet, image(3, 8), 4, 60, 0.333,
          "stem 16 and conv 24 with their gates; hidden 8, 12"),
    first("spatial_gate", mobile.SpatialGate, image(3, 8), 3, 44, 0.283,
          "conv1 16, conv2 20, attend 8; one-channel maps broadcast and couple nothing"),
    first("cbam", mobile.CBAM, image(3, 8), 3, 40, 0.510,
          "conv1 12, mlp 8, conv3 20; the mean over channels makes conv2 inexact: its divisor changes"),
    first("resnext", residual.ResNeXt, image(3, 8), 5, 40, 0.274,
          "stream 16; into and out of each grouped convolution 6 places, the same number of each of its 4 groups"),
    first("grouped_on_stream", residual.GroupedStream, image(3, 8), 2, 24, 0.344,
          "stream in 4 units of one channel per group (or 4 whole groups); mix 20"),
    first("depthwise_multiplier", mobile.DepthwiseMultiplier, image(3, 8), 2, 28, 0.398,
          "conv1 12, each with its two depthwise channels; pointwise 16"),
    first("channel_shuffle", branches.ShuffleNet, image(3, 8), 4, 44, 0.369,
          "two branches 8, conv5 24, the stream: chunk and shuffle bind four channels and their partners, 4 units"),
    first("pixel_shuffle", branches.PixelShuffleNet, image(3, 8), 3, 36, 0.360,
          "head 12, expand 10 units of 4, body 14"),
    first("sliced", branches.SlicedNet, image(3, 8), 3, 40, 0.568,
          "conv_a 12, conv_b 12, conv_c 16; the stem is sliced at 8 (its upper half could go, not counted)"),
    first("group_norm_residual", residual.GroupNormNet, image(3, 8), 3, 48, 0.278,
          "hidden 20, 24; the stream passes GroupNorm, whose statistics mix channels: its 4 whole groups"),
    first("convnext", residual.ConvNeXtTiny, image(3, 16), 4, 192, 0.704,
          "hidden 32, 32, 64, 64; streams pass LayerNorm"),
    first("scale_module", parameters.ScaledNet, image(3, 8), 2, 36, 0.283, "conv1 16, conv2 20 with their factors"),
    first("module_called_twice", parameters.CalledTwice, image(3, 8), 2, 40, 0.272,
          "stem, shared in and out, the mlp's ends and fc's input are one group of 16; hidden 24"),
    first("tied_autoencoder", parameters.TiedAutoencoder, vectors(30), 2, 36, 0.429,
          "24 (e1 out, e2 in, b1), 12 (e2 out)",
          consumer_law=False),
    first("tied_language_model", parameters.TiedLanguageModel, tokens(), 2, 40, 0.364,
          "stream 16 with no norm; hidden 24",
          consumer_law=False),
    first("functional", convolutional.FunctionalNet, image(3, 12), 6, 100, 0.326, "12, 16, 16, 16, 24, 16"),
    first("weight_norm", parameters.WeightNormNet, image(3, 8), 3, 60, 0.283,
          "conv1 16 (gain and direction), conv2 20, fc1"),
    first("weight_norm_everywhere", parameters.WeightNormWavenet, signal(4, 16), 1, 20, 0.908,
          "mid 20; stream and gated width feed weight_norm, exact only when the gain makes up: not counted"),
    first("parametrized", parameters.SoftParametrized, vectors(12), 2, 40, 0.385, "fc1 24, fc2 16; weight by weight"),
    first("einsum", parameters.EinsumNet, image(3, 8), 4, 72, 0.255, "16, 20, 24, 12: raw Parameters only"),
    first("decoder_literal_view", partial(convolutional.TransposedDecoder, "literal"), vectors(10), 3, 44, 0.438,
          "fc0 24, up1 12, up2 8; the call says 16 channels, so they stay"),
    first("decoder_attribute_view", partial(convolutional.TransposedDecoder, "attribute"), vectors(10), 4, 60, 0.298,
          "and fc's 16, by setting self.channels"),
    first("decoder_symbolic_view", partial(convolutional.TransposedDecoder, "symbolic"), vectors(10), 4, 60, 0.298,
          "and fc's 16 channels of 16 rows"),
    first("dcgan_grouped_transposed", convolutional.Generator, vectors(10), 2, 20, 0.380,
          "24 in and 16 out of a transposed convolution of 2 groups: 12 and 8 places"),
    first("inception", branches.Inception, image(3, 16), 15, 112, 0.294, "stem 12; twice 8, 6, 10, 6, 6, 8, 6"),
    first("squeezenet", branches.SqueezeNet, image(3, 20), 8, 76, 0.358,
          "conv1 12; squeeze 6, 6, 8; the first two modules share both halves of 10; 12, 12"),
    first("mobilenet_v2", mobile.MobileNetV2, image(3, 16), 7, 172, 0.337,
          "8 (stem and first block), 24, 12, 36, 36, 16, 40"),
    first("xception", residual.Xception, image(3, 16), 6, 120, 0.357, "conv1 8; inner 16, 24; out 16, 24; exit 32"),
    first("efficientnet", mobile.EfficientNet, image(3, 16), 10, 180, 0.352,
          "stem 8; widths 24, 36, 36; squeezed 4, 6, 6; outs 12, 16; head 32"),
    first("vgg16", convolutional.VGG, image(3, 32), 15, 304, 0.277, "13 convolutions, 2 linear layers"),
    first("conv1d", convolutional.SpeechCNN, signal(4, 24), 3, 64, 0.276, "16, 24 (PReLU, InstanceNorm is exact), 24"),
    first("conv3d", convolutional.C3D, vectors(1, 8, 8, 8), 3, 48, 0.333, "8, 16, fc1 24"),
    first("bfloat16", partial(convolutional.PlainCNN, torch.bfloat16),
          vectors(3, 16, 16, dtype=torch.bfloat16), 3, 64, 0.340,
          "as conv_bn_flatten_linear; sums of 8-bit numbers in another order", tolerance=1e-2),
    first("frozen_parameters", parameters.PartlyFrozen, image(3, 8), 3, 48, 0.358,
          "12, 16, 20; no gradient below the head"),
    first("nested_outputs", wrapped.Detector, image(3, 8), 3, 48, 0.410,
          "c1 12, c2 16, tower 20; lateral is an output"),
    first("keywords_and_dict", wrapped.TwoTowers, two_towers, 3, 52, 0.495,
          "conv 16, words 12, joint 24 of both towers"),
    first("data_parallel", wrapped.data_parallel, image(), 3, 64, 0.340, "as conv_bn_flatten_linear"),
    first("distributed", wrapped.distributed, image(), 3, 64, 0.340,
          "as conv_bn_flatten_linear; needs a process group"),
    first("compiled", wrapped.compiled, image(), 3, 64, 0.340, "as conv_bn_flatten_linear"),
)  # fmt: skip

REFUSED: tuple[Architecture, ...] = (
    Architecture("branch_on_input", seeded(partial(wrapped.Branching, "input")), vectors(12), 2, "then", min_units=40,
                 note="one example shows one branch: the other would keep the old widths. With both: fc1 24, and 16 of "
                 "left and right, which meet in fc2"),
    Architecture("branch_on_channels", seeded(partial(wrapped.Branching, "channels")), vectors(12), 0, "then",
                 note="as before, and the mean that decides changes with the channels"),
)  # fmt: skip
