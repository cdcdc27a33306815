"""Layers of models that people train and ship: transposed convolutions with many channels and few pixels, or with few
channels and a large kernel. Sizes are those of the model's usual input.

Sources, in a word each: DCGAN is the 64 x 64 generator of Radford et al., as published or with half the channels;
pix2pix the U-Net of Isola et al. for 256 x 256 images; U-Net that of Ronneberger et al. with padded convolutions; VAE a
decoder of kernel 3, stride 2, as for 32 x 32 or 28 x 28 images; FCN the heads of Long et al. for PASCAL's 21 classes;
FSRCNN the last layer of Dong et al. for upscaling by 2, 3 and 4.
"""

from __future__ import annotations

from dataclasses import replace

from harness.cases.case import Case, shrink
from reference.problem import Chain

TWIN_ELEMENTS = 4_000
"""Elements of x in a twin, a fifth of the usual: there are many of these cases, and each runs in two interpreters."""


def _square(
    n: int,
    c_in: int,
    c_out: int,
    side: int,
    kernel: int,
    stride: int,
    padding: int = 0,
    extra: int = 0,
    bias: bool = True,
) -> Chain:
    """Planes, kernel, stride, padding and output_padding (`extra`) alike along both axes."""
    return Chain(
        n,
        c_in,
        c_out,
        side,
        side,
        (kernel, kernel),
        (stride, stride),
        (padding, padding),
        (extra, extra),
        bias=bias,
    )


def _up(n: int, c_in: int, c_out: int, side: int) -> Chain:
    """Twice the size by kernel 4, stride 2, padding 1: DCGAN's and pix2pix's layer."""
    return _square(n, c_in, c_out, side, 4, 2, 1)


def _layer(name: str, reason: str, problem: Chain) -> Case:
    return Case(f"chain/{name}", problem, reason, twin=shrink(problem, TWIN_ELEMENTS))


def _pix2pix(depth: int, n: int, c_in: int, c_out: int, side: int) -> Case:
    return _layer(f"pix2pix-{depth}", f"pix2pix's U-Net, decoder layer {depth}", _up(n, c_in, c_out, side))


def _fcn(name: str, reason: str, problem: Chain) -> Case:
    """A kernel of hundreds of taps, which are what the case is about: its twin has few channels and pixels."""
    twin = replace(problem, n=1, c_in=3, c_out=2, h=4, w=4)
    return Case(f"chain/{name}", problem, reason, twin=twin)


_ODD = _square(16, 64, 128, 1, 3, 2, 1, 1)

MODELS: tuple[Case, ...] = (
    _layer("dcgan-1", "DCGAN 64 x 64, layer 1: a latent of 100 numbers", _square(256, 100, 512, 1, 4, 1)),
    _layer("dcgan-2", "DCGAN 64 x 64, layer 2", _up(64, 512, 256, 4)),
    _layer("dcgan-2-wide", "DCGAN as published, layer 2: 1024 channels", _up(64, 1024, 512, 4)),
    _layer("dcgan-3", "DCGAN 64 x 64, layer 3", _up(64, 256, 128, 8)),
    _layer("dcgan-4", "DCGAN 64 x 64, layer 4", _up(64, 128, 64, 16)),
    _layer("dcgan-4-wide", "DCGAN as published, layer 4", _up(64, 256, 128, 16)),
    _layer("dcgan-5", "DCGAN 64 x 64, layer 5: to an image, no bias", replace(_up(64, 64, 3, 32), bias=False)),
    _layer("small-images", "a generator of 28 x 28 images, from 7 x 7", _up(256, 128, 64, 7)),
    _pix2pix(1, 16, 512, 512, 1),
    _pix2pix(2, 16, 1024, 512, 2),
    _pix2pix(3, 16, 1024, 512, 4),
    _pix2pix(4, 16, 1024, 512, 8),
    _pix2pix(5, 16, 1024, 256, 16),
    _pix2pix(6, 16, 512, 128, 32),
    _pix2pix(7, 16, 256, 64, 64),
    _pix2pix(8, 16, 128, 3, 128),
    _layer("unet-1", "U-Net, first step up: 1024 channels, 16 x 16", _square(8, 1024, 512, 16, 2, 2)),
    _layer("unet-2", "U-Net, second step up", _square(8, 512, 256, 32, 2, 2)),
    _layer("unet-3", "U-Net, third step up", _square(8, 256, 128, 64, 2, 2)),
    _layer("unet-4", "U-Net, last step up", _square(8, 128, 64, 128, 2, 2)),
    _layer("vae-8", "VAE decoder, 8 x 8", _square(32, 256, 256, 8, 3, 2, 1, 1)),
    _layer("vae-16", "VAE decoder, 16 x 16", _square(32, 256, 128, 16, 3, 2, 1, 1)),
    _layer("vae-7", "VAE decoder for 28 x 28 images, 7 x 7", _square(128, 64, 32, 7, 3, 2, 1, 1)),
    _layer("vae-14", "VAE decoder for 28 x 28 images, 14 x 14", _square(128, 32, 16, 14, 3, 2, 1, 1)),
    _fcn("fcn-32s", "FCN-32s: 32 times the size at once", _square(1, 21, 21, 16, 64, 32, bias=False)),
    _fcn("fcn-16s", "FCN-16s: 16 times the size", _square(1, 21, 21, 34, 32, 16, bias=False)),
    _fcn("fcn-8s", "FCN-8s: 8 times the size", _square(4, 21, 21, 32, 16, 8, bias=False)),
    _layer("fcn-2x", "FCN-16s and 8s: scores to twice the size", _square(4, 21, 21, 16, 4, 2, bias=False)),
    _layer("fsrcnn-x2", "FSRCNN, twice the size", _square(1, 56, 1, 128, 9, 2, 4, 1)),
    _layer("fsrcnn-x3", "FSRCNN, three times the size", _square(1, 56, 1, 128, 9, 3, 4, 2)),
    _layer("fsrcnn-x4", "FSRCNN, four times the size", _square(1, 56, 1, 128, 9, 4, 4, 3)),
    Case(
        "chain/odd-image",
        replace(_ODD, h=127, w=129),
        "the headline on an image of 127 x 129: no row is aligned",
        twin=replace(_ODD, n=2, c_in=3, c_out=5, h=23, w=25),
    ),
)
