"""A convolution and a batch norm without an activation."""

from functools import partial

from vimamba.timm_layers import ConvNormAct

ConvNorm = partial(ConvNormAct, apply_act=False)
