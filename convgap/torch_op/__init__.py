"""The operator as torch sees it: schemas, kernels, derivatives, dispatch, autocast, counted operations, shards."""

from convgap.torch_op import autocast, dispatch, flops

__all__ = ["autocast", "dispatch", "flops"]
